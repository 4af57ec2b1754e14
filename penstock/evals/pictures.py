"""Pictures of an evaluation as inline SVG; colours are the page's, light or dark. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from penstock.evals.analysis import JobReport, VersionReport
from penstock.evals.paths import Way

_LINE: Final = 16
_NAMES_SHOWN: Final = 6
_LETTERS_SHOWN: Final = 22
_BOX_WIDTH: Final = 178
_GAP_X: Final = 64
_GAP_Y: Final = 14
_CURVE_WIDTH, _CURVE_HEIGHT = 560, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 34


def text(x: float, y: float, said: str, kind: str = "", anchor: str = "start") -> str:
    """A piece of text."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(said)}</text>'


def _svg(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    inside = "".join(parts)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{inside}</svg>'
    )


# pass^k


def curve(ours: VersionReport, other: VersionReport | None, threshold: tuple[int, float] | None) -> str:
    """pass^k over k: a steep fall says that runs pass by chance, and not because the job is done reliably."""
    most = len(ours.pass_hat)
    across, down = _CURVE_WIDTH - _LEFT - _RIGHT, _CURVE_HEIGHT - _TOP - _BOTTOM

    def x(k: float) -> float:
        return _LEFT + across * (0.5 if most == 1 else (k - 1) / (most - 1))

    def y(share: float) -> float:
        return _TOP + down * (1 - share)

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        ends = f'x1="{_LEFT}" x2="{_CURVE_WIDTH - _RIGHT}"'
        parts.append(f'<line {ends} y1="{y(share):g}" y2="{y(share):g}" class="grid"/>')
        parts.append(text(_LEFT - 8, y(share) + 4, f"{share:.0%}", "small", "end"))
    for k in _ticks(most):
        parts.append(text(x(k), _CURVE_HEIGHT - 14, str(k), "small", "middle"))
    parts.append(text(_CURVE_WIDTH - _RIGHT, _CURVE_HEIGHT - 1, "k, runs that must all pass", "small", "end"))
    if threshold is not None:
        k, share = threshold
        parts.append(
            f'<line x1="{x(k):g}" x2="{x(k):g}" y1="{y(0):g}" y2="{y(share):g}" class="limit"/>'
            f'<line x1="{x(k) - 7:g}" x2="{x(k) + 7:g}" y1="{y(share):g}" y2="{y(share):g}" class="limit"/>'
        )
    for report, kind in ((other, "theirs"), (ours, "ours")):
        if report is not None:
            points = [(x(k), y(share)) for k, share in enumerate(report.pass_hat, 1)]
            parts.append(f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}" class="line {kind}"/>')
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" class="dot {kind}"/>' for a, b in points]
    return _svg(_CURVE_WIDTH, _CURVE_HEIGHT, "pass^k over k", parts)


def _ticks(most: int) -> list[int]:
    step = max(1, -(-most // 10))
    return sorted({1, most, *range(step, most + 1 - step // 2, step)})


# Pass rates


def rates(ours: Sequence[JobReport], other: Sequence[JobReport]) -> str:
    """Each job's pass rate with its 95 % interval."""
    theirs = {job.job: job for job in other}
    row, label, across = 26, 210, 360
    width, height = label + across + 70, row * len(ours) + 40

    def x(share: float) -> float:
        return label + across * share

    parts = [
        f'<line x1="{x(share):g}" x2="{x(share):g}" y1="6" y2="{height - 30}" class="grid"/>'
        + text(x(share), height - 12, f"{share:.0%}", "small", "middle")
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    for place, job in enumerate(ours):
        middle = 6 + row * place + row / 2
        parts.append(text(label - 12, middle + 4, _cut(job.job, 28), "", "end"))
        if job.job in theirs:
            parts.append(_interval(theirs[job.job], x, middle + 5, "theirs"))
        parts.append(_interval(job, x, middle - (3 if job.job in theirs else 0), "ours"))
        parts.append(text(x(1) + 14, middle + 4, f"{job.passed}/{job.runs}", "small"))
    return _svg(width, height, "Pass rate of each job with its 95 % interval", parts)


def _interval(job: JobReport, x: Callable[[float], float], y: float, kind: str) -> str:
    return (
        f'<line x1="{x(job.rate_low):.1f}" x2="{x(job.rate_high):.1f}" y1="{y:g}" y2="{y:g}" class="line {kind}"/>'
        f'<circle cx="{x(job.rate):.1f}" cy="{y:g}" r="4.5" class="dot {kind}"/>'
    )


# Ways


@dataclass
class _Node:
    """Steps that some runs make one after the other, and how they go on."""

    names: list[str]
    runs: int
    passed: int
    children: "list[_Node]" = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0

    @property
    def shown(self) -> list[str]:
        """The lines of its box below the first one."""
        if len(self.names) <= _NAMES_SHOWN:
            return self.names
        return [*self.names[: _NAMES_SHOWN - 1], f"… {len(self.names) - _NAMES_SHOWN + 1} more"]

    @property
    def height(self) -> float:
        """Of its box."""
        return 34.0 + _LINE * max(1, len(self.shown))


def tree(ways: Sequence[Way], title: str) -> str:
    """The ways of a job's runs: steps that runs share are in one box, and lines are as thick as many runs go there."""
    root = _grown([(way.steps, way.runs, way.passed) for way in ways])
    bottom = _placed(root, 4.0, 4.0)
    boxes: list[str] = []
    lines: list[str] = []
    right = 0.0
    waiting = [root]
    while waiting:
        node = waiting.pop()
        boxes.append(_box(node, root.runs))
        right = max(right, node.x + _BOX_WIDTH)
        for child in node.children:
            lines.append(_link(node, child, root.runs))
            waiting.append(child)
    return _svg(right + 4, bottom + 4, title, lines + boxes)


def _grown(ways: Sequence[tuple[tuple[str, ...], int, int]]) -> _Node:
    """A radix tree: as many steps as all of them share, then a branch for each way to go on."""
    first, shared = ways[0][0], 0
    while shared < len(first) and all(steps[shared : shared + 1] == first[shared : shared + 1] for steps, _, _ in ways):
        shared += 1
    node = _Node(list(first[:shared]), sum(runs for _, runs, _ in ways), sum(passed for _, _, passed in ways))
    rest: dict[str, list[tuple[tuple[str, ...], int, int]]] = {}
    for steps, runs, passed in ways:
        after = steps[shared:]
        rest.setdefault(after[0] if after else "", []).append((after, runs, passed))
    if len(rest) > 1:
        node.children = [_grown(group) for group in rest.values()]
    return node


def _placed(node: _Node, x: float, y: float) -> float:
    """Gives every box its place; the lowest edge."""
    node.x = x
    if not node.children:
        node.y = y
        return y + node.height
    bottom = y
    for child in node.children:
        bottom = _placed(child, x + _BOX_WIDTH + _GAP_X, bottom if child is node.children[0] else bottom + _GAP_Y)
    first, last = node.children[0], node.children[-1]
    node.y = max(y, (first.y + last.y + last.height) / 2 - node.height / 2)
    return max(bottom, node.y + node.height)


def _box(node: _Node, of: int) -> str:
    share = node.passed / node.runs if node.runs else 0.0
    width = _BOX_WIDTH - 16
    parts = [
        f'<rect x="{node.x:g}" y="{node.y:g}" width="{_BOX_WIDTH}" height="{node.height:g}" rx="6" class="box"/>',
        text(node.x + 8, node.y + 17, f"{node.runs} of {of} runs", "strong"),
        text(node.x + _BOX_WIDTH - 8, node.y + 17, f"{node.passed} passed", "small", "end"),
    ]
    for place, name in enumerate(node.shown or ["(start)" if node.children else "(end)"]):
        parts.append(text(node.x + 8, node.y + 34 + _LINE * place, _cut(name, _LETTERS_SHOWN), "name"))
    bar = node.y + node.height - 8
    parts.append(f'<rect x="{node.x + 8:g}" y="{bar:g}" width="{width}" height="3" class="failed"/>')
    parts.append(f'<rect x="{node.x + 8:g}" y="{bar:g}" width="{width * share:.1f}" height="3" class="passed"/>')
    return "".join(parts)


def _link(node: _Node, child: _Node, of: int) -> str:
    x1, y1 = node.x + _BOX_WIDTH, node.y + node.height / 2
    x2, y2 = child.x, child.y + child.height / 2
    middle = (x1 + x2) / 2
    width = 1 + 11 * child.runs / of
    return (
        f'<path d="M{x1:g},{y1:.1f} C{middle:g},{y1:.1f} {middle:g},{y2:.1f} {x2:g},{y2:.1f}" class="link" '
        f'stroke-width="{width:.1f}"/>'
    )


def _cut(said: str, most: int) -> str:
    return said if len(said) <= most else f"{said[: most - 1]}…"
