"""How data look to people: tables and short texts. ``--json`` is written by :func:`data`."""

import json
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.cli.outcome import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from penstock.approval_facts import ApprovalView
    from penstock.doctor import Check
    from penstock.submit_views import Problem, SubmitReport
    from penstock.views import BatchStatus, DeploymentStatus, HostView, JournalStep, RunSummary, RunView

_WIDTH_WITHOUT_TERMINAL = 160
_JSON_SHOWN = 2000
_COLOURS = {
    "succeeded": "green",
    "running": "cyan",
    "queued": "blue",
    "waiting": "magenta",
    "failed": "red",
    "cancelled": "yellow",
    "shed": "yellow",
    "confirmation_unknown": "bold red",
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
    "closed": "green",
    "open": "bold red",
    "probing": "yellow",
}


def data(value: Any) -> None:
    """One JSON value in one line on the standard output."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def console(*, stderr: bool = False) -> "Console":
    """A console that writes no colours into files and is wide enough there."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, emoji=False, markup=False)
    if not made.is_terminal:
        made.width = _WIDTH_WITHOUT_TERMINAL
    return made


def table(*columns: str, right: Iterable[str] = ()) -> "Table":
    """An empty table; columns named in ``right`` hold numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def colour(state: str) -> str:
    """The style of a state."""
    return _COLOURS.get(state, "")


def row(made: "Table", *cells: object) -> None:
    """Adds a row; states have their colours."""
    from rich.text import Text

    texts = [plain(str(cell)) for cell in cells]
    made.add_row(*(Text(text, style=_COLOURS.get(text, "")) for text in texts))


def age(since_ms: int | None) -> str:
    """How long ago, roughly."""
    return length(max(0.0, time.time() - since_ms / 1000)) if since_ms else ""


def length(seconds: float) -> str:
    """A length of time, roughly."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def wait(seconds: float | None) -> str:
    """A wait that is predicted: exact where it is short, ``unknown`` where nobody can tell."""
    if seconds is None:
        return "unknown"
    return f"{seconds:.1f} s" if seconds < 10 else length(seconds)


def moment(epoch_ms: int | None) -> str:
    """A moment in UTC."""
    if epoch_ms is None:
        return ""
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")[:-6] + "Z"


def counts(by_state: dict[str, int]) -> str:
    """Counts by state in a line, in the order in which runs go through them."""
    order = [state for state in (*_COLOURS, "accepted") if state in by_state]
    return ", ".join(f"{by_state[state]:,} {state}" for state in order) or "no runs"


def batch(status: "BatchStatus") -> None:
    """One batch."""
    word = "ended" if status.terminal else "settled, with unknown outcomes" if status.settled else "going on"
    made = table("state", "runs", right=("runs",))
    for state, count in sorted(status.by_state.items(), key=lambda item: -item[1]):
        row(made, state, f"{count:,}")
    row(made, "total", f"{status.total:,}")
    out = console()
    out.print(f"batch {status.batch}: {word}")
    out.print(made)
    out.print(f"{status.steps:,} steps, {status.migrations:,} migrations of {status.migrated_runs:,} runs")


def deployment(status: "DeploymentStatus") -> None:
    """The whole deployment."""
    out = console()
    alive = sum(host.alive for host in status.hosts)
    out.print(f"deployment {status.name}: {alive} of {len(status.hosts)} hosts alive, {status.total:,} runs")
    out.print(f"{counts(status.by_state)}; {status.steps:,} steps, {status.migrations:,} migrations")
    if status.batches:
        made = table("batch", "runs", "ended", "by state", right=("runs", "ended"))
        for each in status.batches:
            row(made, each.batch, f"{each.total:,}", f"{each.ended:,}", counts(each.by_state))
        out.print(made)


def runs(found: list["RunSummary"]) -> None:
    """A listing of runs."""
    made = table("run", "custom id", "batch", "agent", "state", "for", "host", "moves", "reason", right=("moves",))
    for run in found:
        row(
            made, run.run_id, run.custom_id, run.batch, run.agent, run.state, age(run.since_ms), run.host,
            run.migrations, run.reason,
        )  # fmt: skip
    console().print(made)


def hosts(found: list["HostView"]) -> None:
    """The registered hosts; what else they tell of themselves is in the JSON."""
    made = table("host", "state", "lease left", "node", "pid", "up for", "agents", right=("lease left", "pid"))
    for host in found:
        word = "lost" if not host.alive else "draining" if host.draining else "alive"
        agents = host.info.get("agents")
        served = " ".join(f"{name}@{version}" for name, version in agents.items()) if isinstance(agents, dict) else ""
        since_ms = host.info.get("since_ms")
        up_for = age(since_ms) if isinstance(since_ms, int) else ""
        left = f"{host.lease_left_s:.1f} s"
        row(made, host.host, word, left, host.info.get("node", ""), host.info.get("pid", ""), up_for, served)
    console().print(made)


def run(view: "RunView") -> None:
    """One run with its journal."""
    out = console()
    facts: list[tuple[str, object]] = [
        ("run", view.run_id),
        ("custom id", view.custom_id),
        ("batch", view.batch or (f"(child of {view.parent})" if view.parent else "")),
        ("forked from", f"{view.forked_from} at step {view.forked_at}" if view.forked_from else ""),
        ("forked by", f"{view.forked_by}{f': {view.forked_why}' if view.forked_why else ''}"),
        ("inherited", f"{view.inherited} journal entries" if view.forked_from else ""),
        ("effects", "" if view.may_cause_effects else f"none until: penstock promote {view.run_id} --why TEXT"),
        ("agent", f"{view.agent} version {view.agent_version}" if view.agent_version else view.agent),
        ("state", view.state),
        ("reason", view.reason),
        ("host", f"{view.host} (fence {view.fence})" if view.host else ""),
        ("migrations", view.migrations or ""),
        ("value, tenant", f"{view.value}, {view.tenant}"),
        ("submitted by", view.by),
        ("waits for", "; ".join(approval_line(each) for each in view.approvals)),
        ("grants", ", ".join(view.grants)),
        ("metadata", short(view.metadata) if view.metadata else ""),
        ("accepted", moment(view.accepted_ms)),
        ("started", moment(view.started_ms)),
        ("ended", moment(view.ended_ms)),
        ("deadline", moment(view.deadline_ms)),
        ("come back", "" if view.retry_after_s is None else f"{length(view.retry_after_s)} after its end"),
        ("cancel asked", view.cancel_requested),
        ("input", short(view.input)),
        ("output", short(view.output) if view.state == "succeeded" else ""),
        ("error", view.error or ""),
    ]
    made = table("field", "value")
    for name, value in facts:
        if str(value):
            row(made, name, value)
    out.print(made)
    if view.journal:
        steps(out, view.journal)


def steps(out: "Console", found: "list[JournalStep]") -> None:
    """Journal entries."""
    made = table("step", "kind", "name", "status", "attempts", "took", "value", right=("took",))
    for step in found:
        took = f"{step.ended_ms - step.started_ms} ms" if step.ended_ms else ""
        # A timer has one entry, written when it was set; nothing follows it when it is due.
        timer = step.kind == "timer"
        status, value = ("set", f"due {moment(step.payload)}") if timer else (step.status, short(step.payload, 120))
        if step.kind == "approval" and step.status == "open" and isinstance(step.payload, dict):
            value = f"approval {step.payload.get('id')}, until {moment(step.payload.get('expires_ms'))}"
        row(made, step.step, step.kind, step.name, status, step.attempts, took, value)
    out.print(made)


def approval_line(view: "ApprovalView") -> str:
    """An approval in a line: which, until when, who may decide it."""
    return f"approval {view.id} ({view.progress}) until {moment(view.expires_ms)}, by {view.who_may}"


def problems(found: Iterable["Problem"], total: int, kept: int) -> None:
    """What is wrong with a batch file, on the standard error."""
    out = console(stderr=True)
    made = table("line", "custom id", "field", "reason", "fix", right=("line",))
    for each in found:
        row(made, each.line, each.custom_id, each.field, each.reason, each.fix)
    out.print(made)
    if total > kept:
        out.print(f"… and {total - kept:,} more")


def refusals(report: "SubmitReport") -> None:
    """Why jobs were refused, and when to come back, on the standard error."""
    from penstock.refusals import in_words

    made = table("reason", "jobs", "come back", "by itself", "never", "meaning", right=("jobs", "by itself", "never"))
    for each in report.reasons:
        when = "" if each.first_s is None else f"in {wait(each.first_s)}"
        if each.last_s is not None and each.first_s is not None and each.last_s >= each.first_s + 1:
            when = f"{when} to {wait(each.last_s)}"
        row(
            made, each.reason, f"{each.count:,}", when, f"{each.by_itself:,}", f"{each.never:,}", in_words(each.reason)
        )  # fmt: skip
    console(stderr=True).print(made)


def checks(found: list["Check"]) -> None:
    """What the doctor says."""
    made = table("", "check", "found", "what to do")
    for check in found:
        row(made, check.verdict, check.name, check.found, check.fix)
    console().print(made)


def short(value: Any, limit: int = _JSON_SHOWN) -> str:
    """JSON for people, cut where it is long (``--json`` shows all of it)."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text):,} characters, all of them with --json)"
