"""``penstock trace``: what a run did when, and what it waited for, drawn from its journal."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from penstock.cli import shown
from penstock.cli.connection import ask
from penstock.cli.outcome import guarded, plain

if TYPE_CHECKING:
    from penstock.tracing import RunTrace, SpanView

_BAR: Final = 32
_SHOWN_ATTRIBUTES: Final = (
    ("penstock.attempts", "attempts"),
    ("penstock.receipt", "receipt"),
    ("penstock.permission.rule", "rule"),
    ("penstock.approval.id", "approval"),
    ("penstock.waited_for", "waited for"),
    ("penstock.child.run.id", "run"),
    ("penstock.step.ended_by", "ended by"),
)


@guarded
def trace(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to the standard output.")] = False,
) -> None:
    """Show a run's trace as a waterfall: each step, when, for how long, how often tried, and how it ended."""
    found = ask(lambda client: client.trace(run))
    shown.data(found) if as_json else _waterfall(found)


def _waterfall(found: "RunTrace") -> None:
    out = shown.console()
    root = found.spans[0]
    out.print(plain(f"trace {found.trace_id} of run {found.run_id} ({found.custom_id}): {found.state}"))
    # The steps' time, not the queue's: a job may have waited for hours and run for a second.
    last = max([span.ended_ms or found.now_ms for span in found.spans if span is not root or not span.ended_ms] or [0])
    from_ms, to_ms = root.started_ms, max(root.ended_ms or last, root.started_ms + 1)
    made = shown.table("step", "what", "start", "took", "when", "how")
    for span in found.spans:
        ended = span.ended_ms if span.ended_ms is not None else found.now_ms
        shown.row(
            made,
            str(span.attributes.get("penstock.step", "")),
            span.name,
            f"+{_length(span.started_ms - from_ms)}",
            _length(ended - span.started_ms) + ("" if span.ended_ms is not None else " …"),
            _bar(span.started_ms - from_ms, ended - from_ms, to_ms - from_ms),
            _how(span),
        )
    out.print(made)


def _bar(start: int, end: int, whole: int) -> str:
    first = min(_BAR - 1, start * _BAR // whole)
    length = max(1, min(_BAR - first, round((end - start) * _BAR / whole)))
    return " " * first + "█" * length + " " * (_BAR - first - length)


def _how(span: "SpanView") -> str:
    said = {"ok": "ok", "error": "failed", "unset": "under way" if span.ended_ms is None else ""}[span.status]
    parts = [": ".join(filter(None, [said, span.status_text]))]
    for name, word in _SHOWN_ATTRIBUTES:
        value = span.attributes.get(name)
        if value not in (None, "", 1) and not (name == "penstock.waited_for" and span.name == "queue"):
            parts.append(f"{word} {value}")
    parts += [event.name for event in span.events if event.name != "intent recorded"]
    if span.attributes.get("penstock.step.left_open"):
        parts.append("left open by the run's end")
    return "; ".join(filter(None, parts))


def _length(milliseconds: int) -> str:
    if milliseconds < 1000:
        return f"{milliseconds} ms"
    seconds = milliseconds / 1000
    if seconds < 120:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
