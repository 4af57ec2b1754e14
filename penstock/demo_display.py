"""What the demonstration shows: a live picture on a terminal, plain lines elsewhere, and the closing table."""

import contextlib
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from cluster.lifecycle import RunState
from penstock.demo_world import Witness
from penstock.views import BatchStatus

RATE_WINDOW_S: Final = 3.0
_FRAME_S: Final = 0.2
_LINE_S: Final = 2.0
_TIME_WIDTH: Final = 6
# In the order of the bar: what has ended on the left. The signs differ too, for terminals without colours.
_LOOKS: Final = (
    (RunState.SUCCEEDED, "green", "█", "#"),
    (RunState.FAILED, "red", "█", "x"),
    (RunState.CANCELLED, "bright_black", "█", "x"),
    (RunState.SHED, "bright_black", "█", "x"),
    (RunState.CONFIRMATION_UNKNOWN, "magenta", "█", "?"),
    (RunState.RUNNING, "cyan", "▒", "="),
    (RunState.WAITING, "yellow", "▒", "~"),
    (RunState.QUEUED, "bright_black", "░", "."),
    (RunState.ACCEPTED, "bright_black", "░", "."),
)
_ALWAYS: Final = (RunState.SUCCEEDED, RunState.RUNNING, RunState.QUEUED)


@dataclass
class HostLife:
    """One life of a host, from its registration to its end. Moments count from the submission."""

    host: str
    label: str
    pid: int
    since_s: float
    runs: int = 0
    lease_left_s: float = 0.0
    registered: bool = True
    killed_at_s: float | None = None
    restarted: bool = False


@dataclass
class Kill:
    """The SIGKILL of a host: when (seconds from the submission), what it had, what became of that.

    After ``taken_s`` all of its runs were taken from it, after ``moved_s`` all of them went on elsewhere.
    """

    host: str
    label: str
    pid: int
    at_s: float
    runs: int
    ended: int
    taken_s: float | None = None
    moved_s: float | None = None


@dataclass
class Picture:
    """Everything that is shown while the batch goes on."""

    jobs: int
    status: BatchStatus | None = None
    elapsed_s: float = 0.0
    lives: list[HostLife] = field(default_factory=list)
    kill: Kill | None = None
    _history: deque[tuple[float, int, int]] = field(default_factory=deque)

    def update(self, status: BatchStatus, elapsed_s: float) -> None:
        """Take in a newer status."""
        self.status, self.elapsed_s = status, elapsed_s
        self._history.append((elapsed_s, status.steps, status.ended))
        while len(self._history) > 2 and self._history[1][0] <= elapsed_s - RATE_WINDOW_S:
            self._history.popleft()

    def rates(self) -> tuple[float, float]:
        """Steps and ended runs a second, over the last seconds."""
        if len(self._history) < 2:
            return 0.0, 0.0
        (before, steps, ended), (now, steps_now, ended_now) = self._history[0], self._history[-1]
        span_s = max(now - before, 1e-9)
        return (steps_now - steps) / span_s, (ended_now - ended) / span_s


class StateBar:
    """A bar as wide as there is room, divided by state."""

    def __init__(self, by_state: dict[str, int], total: int) -> None:
        self._by_state = by_state
        self._total = max(total, 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Cells by state: they fill the bar, and whatever is not zero is seen, as long as there is a cell for it."""
        width = options.max_width
        shown = [(look, count) for look in _LOOKS if (count := self._by_state.get(look[0].value, 0))]
        done = cells = 0
        for place, ((_, colour, sign, plain), count) in enumerate(shown, start=1):
            done += count
            until = min(max(cells + 1, width * done // self._total), width - (len(shown) - place))
            yield Segment((plain if options.ascii_only else sign) * (until - cells), Style(color=colour))
            cells = max(cells, until)
        yield Segment(" " * (width - cells))
        yield Segment.line()


def counts(by_state: dict[str, int], always: Collection[RunState] = ()) -> Text:
    """The counts by state, in the colours of the bar; zeros of those states only that are shown ``always``."""
    parts = [
        Text.assemble((f"{state.value} ", colour), (f"{by_state.get(state.value, 0):,}", "bold"))
        for state, colour, *_ in _LOOKS
        if by_state.get(state.value) or state in always
    ]
    return Text("   ").join(parts)


def live(picture: Picture) -> RenderableType:
    """The moving part of the screen."""
    status = picture.status
    by_state = status.by_state if status else {}
    ended = status.ended if status else 0
    steps, runs = picture.rates()
    head = Text.assemble(
        (f"{ended:,}", "bold"),
        f" of {picture.jobs:,} jobs ended   ",
        (f"{picture.elapsed_s:.1f} s", "bold"),
        "   ",
        (f"{steps:,.0f}", "bold"),
        " steps/s   ",
        (f"{runs:,.0f}", "bold"),
        " runs/s",
    )
    if status and status.migrated_runs:
        head.append(f"   {status.migrated_runs:,} runs migrated", "yellow")
    parts: list[RenderableType] = [
        head,
        StateBar(by_state, picture.jobs),
        counts(by_state, _ALWAYS),
        Text(),
        _hosts(picture),
    ]
    return Padding(Group(*parts), (1, 0, 0, 0))


def _hosts(picture: Picture) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bright_black")
    table.add_column("host")
    table.add_column("process", justify="right")
    table.add_column("runs", justify="right")
    table.add_column("lease", justify="right")
    table.add_column("", overflow="ellipsis", no_wrap=True)
    for life in picture.lives:
        style = "red" if life.killed_at_s is not None else ""
        lease = f"{max(life.lease_left_s, 0.0):.1f} s" if life.registered else "gone"
        table.add_row(life.label, str(life.pid), f"{life.runs:,}", lease, _said_of(life), style=style)
    return table


def _said_of(life: HostLife) -> str:
    if life.killed_at_s is not None:
        return f"SIGKILL at {life.killed_at_s:.1f} s"
    if life.restarted:
        return f"restarted by Ray, back at {life.since_s:.1f} s"
    if not life.registered:
        return "gone"
    return "alive" if life.lease_left_s > 0 else "lease has run out"


def plain(picture: Picture) -> str:
    """The same in one line, for logs."""
    status = picture.status
    by_state = status.by_state if status else {}
    steps, runs = picture.rates()
    states = " ".join(
        f"{state.value}={by_state.get(state.value, 0)}"
        for state, *_ in _LOOKS
        if by_state.get(state.value) or state in _ALWAYS
    )
    hosts = " ".join(f"{life.label}={life.runs}" for life in picture.lives if life.registered)
    return f"{picture.elapsed_s:6.1f} s  {states}  {steps:.0f} steps/s  {runs:.0f} runs/s  {hosts}"


@dataclass(frozen=True)
class Verdict:
    """What the history checker found: how much it looked at, and every violation."""

    checked: str
    violations: Sequence[str]


@dataclass(frozen=True)
class Outcome:
    """Everything that the demonstration ends with."""

    status: BatchStatus
    wall_s: float
    witness: Witness
    verdict: Verdict
    kill: Kill | None

    @property
    def holds(self) -> bool:
        """Whether it went as it must: all ended, nothing twice, a history without a violation."""
        return self.status.terminal and self.witness.duplicate_effects == 0 and not self.verdict.violations


def closing(outcome: Outcome) -> RenderableType:
    """The closing table and a last sentence."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, said in _rows(outcome):
        table.add_row(name, said)
    return Group(table, _sentence(outcome))


def _rows(outcome: Outcome) -> Iterator[tuple[str, RenderableType]]:
    status, witness, kill = outcome.status, outcome.witness, outcome.kill
    yield f"{status.total:,} jobs", counts(status.by_state)
    yield "time", f"{outcome.wall_s:.1f} s from the submission to the last end"
    yield "steps", f"{status.steps:,} durable steps, {status.steps / max(outcome.wall_s, 1e-9):,.0f} a second"
    yield "killed", _kill_row(kill)
    yield "migrations", _migrations_row(status, kill)
    duplicates = f"{witness.duplicate_effects:,}"
    yield (
        "duplicate side effects",
        Text.assemble(
            (duplicates, "bold green" if duplicates == "0" else "bold red"), ", by the outside world's ledger"
        ),
    )
    yield (
        "the world's ledger",
        f"{witness.refunds:,} refunds and {witness.answers:,} answers applied; {witness.requests:,} requests, "
        f"{witness.repeated_keys:,} idempotency keys came more than once",
    )
    found = outcome.verdict.violations
    said = Text.assemble(("holds", "bold green") if not found else (f"{len(found)} violations", "bold red"))
    yield "history checker", said.append(f": {outcome.verdict.checked}")


def _kill_row(kill: Kill | None) -> str:
    if kill is None:
        return "no host"
    return f"{kill.label} (process {kill.pid}) by SIGKILL at {kill.at_s:.1f} s, with {kill.runs:,} runs"


def _migrations_row(status: BatchStatus, kill: Kill | None) -> str:
    said = f"{status.migrated_runs:,} runs migrated, {status.migrations:,} moves in all"
    if kill is not None and kill.taken_s is not None and kill.moved_s is not None:
        said += f"; taken over {kill.taken_s:.2f} s after the kill, all of them had gone on after {kill.moved_s:.1f} s"
    return said


def _sentence(outcome: Outcome) -> Text:
    if outcome.holds:
        return Text("Every job has ended in one truthful state, and no side effect happened twice.", "bold green")
    lines = []
    if not outcome.status.terminal:
        left = outcome.status.total - outcome.status.ended
        lines.append(f"{left:,} jobs have not ended: their states are above.")
    if outcome.witness.duplicate_effects:
        lines.append(f"{outcome.witness.duplicate_effects:,} side effects happened more than once.")
    lines.extend(str(violation) for violation in outcome.verdict.violations[:10])
    return Text("\n".join(lines), "bold red")


class Presenter:
    """Tells the story on a console: on a terminal with a moving picture below it, elsewhere in plain lines.

    Its clock starts with the batch: what is told before has no time.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._next_s = 0.0
        self._zero_s: float | None = None

    def start_clock(self) -> None:
        """Now is second 0."""
        self._zero_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since then."""
        return 0.0 if self._zero_s is None else time.monotonic() - self._zero_s

    def say(self, text: str, style: str = "") -> None:
        """One thing that has happened."""
        at = "" if self._zero_s is None else f"{self.elapsed_s:.1f} s"
        if not self.console.is_terminal:
            self.console.print(f"{at:>8}  {text}", highlight=False, markup=False, soft_wrap=True)
            return
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(width=_TIME_WIDTH, justify="right", style="bright_black")
        line.add_column(overflow="fold")
        line.add_row(at, Text(text, style))
        self.console.print(line)

    @contextlib.contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """While something takes its time."""
        if not self.console.is_terminal:
            self.say(text)
            yield
            return
        with self.console.status(f"  {text} …", spinner_style="cyan"):
            yield

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """While the batch goes on."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as self._live:
            yield
        self._live = None

    def show(self, picture: Picture) -> None:
        """A newer picture, if it is time for one."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        if self._live is not None:
            self._next_s = now_s + _FRAME_S
            self._live.update(live(picture), refresh=True)
        else:
            self._next_s = now_s + _LINE_S
            self.console.print(plain(picture), highlight=False, markup=False, soft_wrap=True)
