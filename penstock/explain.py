"""Why is a run where it is? Pure: facts in, an explanation out. Every wait has a reason, an owner and a bound."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from cluster.lifecycle import RunState
from cluster.records import RunRecord
from penstock import explain_queue
from penstock.approval_facts import ApprovalView
from penstock.explain_words import after, moment
from penstock.queue_place import QueuePlace
from penstock.unknown_views import UnknownEffect
from penstock.views import HostView, JournalStep, RunError, Why


class HeldNote(msgspec.Struct, frozen=True):
    """What a host says of a step that waits in its memory (``actors/wait_notes.py``); times by the store's clock."""

    what: str
    step: str
    tool: str
    dependency: str
    since_ms: int
    bound: str
    bound_ms: int
    kind: str = ""
    text: str = ""
    until_ms: int | None = None
    attempt: int = 1
    last_error: str = ""


@dataclass(frozen=True)
class WhyFacts:
    """What is known beside the run's record.

    ``place`` is how many runs of its partition are before it (None: not in the queue), ``unserved`` says that it was
    set aside (paused, over its tenant's cap, or because no host serves its agent), ``hosts`` are those registered,
    ``last_step`` is the journal's end, ``held`` is what its host says that it waits for in memory, ``approvals`` are
    those that it waits for, ``doubts`` are its effects that nobody can prove, ``queue`` is its place by the
    law of admission.
    """

    now_ms: int
    max_wait_ms: int | None
    place: int | None
    unserved: bool
    hosts: dict[str, HostView]
    last_step: JournalStep | None
    steps: int
    error: RunError | None
    note: str
    held: HeldNote | None = None
    waits_for: str = ""
    approvals: tuple[ApprovalView, ...] = ()
    doubts: Sequence[UnknownEffect] = ()
    queue: QueuePlace | None = None


def explain(record: RunRecord, facts: WhyFacts) -> Why:
    """The explanation of a run's present state."""
    match record.state:
        case RunState.QUEUED:
            reason, owner, bound, following = _queued(record, facts)
        case RunState.RUNNING:
            reason, owner, bound, following = _running(record, facts)
        case RunState.WAITING:
            reason, owner, bound, following = _waiting(record, facts)
        case RunState.CONFIRMATION_UNKNOWN:
            reason, owner, bound, following = _unknown(record, facts)
        case RunState.SHED:
            reason, following = explain_queue.shed(record, facts.now_ms)
            owner, bound = "nobody: it has ended", "none"
        case _:
            reason = str(facts.error) if facts.error else record.reason or _END_REASONS.get(record.state, "")
            owner, bound, following = "nobody: it has ended", "none", "nothing: this is an end"
    return Why(
        run_id=record.id,
        custom_id=record.custom_id,
        state=record.state.value,
        reason=reason,
        since_ms=record.since_ms,
        for_s=max(0.0, (facts.now_ms - record.since_ms) / 1000),
        owner=owner,
        bound=bound,
        next=following,
        last_step=_last_step(facts),
        note=facts.note,
    )


_END_REASONS = {
    RunState.SUCCEEDED: "the agent returned",
    RunState.FAILED: "the agent failed",
    RunState.CANCELLED: "it was cancelled",
}


def _queued(record: RunRecord, facts: WhyFacts) -> tuple[str, str, str, str]:
    hosts = list(facts.hosts.values())
    place = None if facts.unserved else facts.place
    reason, owner, following = explain_queue.queued(record, place, facts.queue, hosts, facts.now_ms)
    return reason, owner, _bound(record, facts), following


def _running(record: RunRecord, facts: WhyFacts) -> tuple[str, str, str, str]:
    reason = "a host is executing it" if facts.held is None else _held(facts.held, facts.now_ms)
    if facts.approvals:
        reason = f"{reason}; it waits for {_listed(facts.approvals)} as well"
    if record.cancel:
        reason = f"{reason}; its cancellation was asked for ({record.cancel})"
    host = facts.hosts.get(record.host)
    if host is None:
        owner = f"host {record.host}, which is not registered any more"
        following = "its runs are moved to other hosts"
    elif not host.alive:
        owner = f"host {record.host}, whose lease ran out {-host.lease_left_s:.1f} s ago"
        following = "another host takes its runs over"
    else:
        owner = f"host {record.host} (lease renewed, {host.lease_left_s:.1f} s left; fence {record.fence})"
        following = "it ends at the next step boundary" if record.cancel else "its next step is recorded, or it ends"
        if host.draining and not record.cancel:
            following = "the host is draining: it ends soon, or is handed back at the next step boundary"
    bound = _bound(record, facts)
    if facts.held is not None and not record.cancel and host is not None and host.alive:
        following = _NEXT[facts.held.what]
        bound = (
            f"{facts.held.bound}, {after(facts.held.bound_ms, facts.now_ms)}: then the step ends as timed_out; {bound}"
        )
    return reason, owner, bound, following


def _listed(approvals: tuple[ApprovalView, ...]) -> str:
    return ", ".join(f"approval {each.id} ({each.who_may})" for each in approvals)


_NEXT = {
    "gate": "the call goes as soon as the gate lets it",
    "budget": "the retry goes when calls have paid it in, after its pause",
    "pause": "the retry goes to the gate",
}


def _held(held: HeldNote, now_ms: int) -> str:
    """What a step waits for: limiter, breaker, budget or pause, by name, and until when."""
    call = f"step {held.step} ({held.tool})"
    until = "" if held.until_ms is None else f", until {moment(held.until_ms)} ({after(held.until_ms, now_ms)})"
    for_s = f"for {max(0, now_ms - held.since_ms) / 1000:.1f} s"
    retry = f" (attempt {held.attempt}; the last one: {held.last_error})" if held.attempt > 1 else ""
    if held.what == "pause":
        return f"{call} pauses before a retry{until}{retry}"
    if held.what == "budget":
        return f"{call} has waited {for_s} for the retry budget of {held.dependency}{retry}"
    kinds = {
        "limit": f"the rate limit of {held.dependency}",
        "breaker": f"the breaker of {held.dependency}",
        "retry_after": f"{held.dependency}, which asked to be left alone",
        "concurrency": f"max_concurrency of {held.dependency}",
        "hub": f"the hub of {held.dependency}",
    }
    text = f": {held.text}" if held.text else ""
    return f"{call} has waited {for_s} for {kinds.get(held.kind, held.dependency)}{text}{until}{retry}"


def _waiting(record: RunRecord, facts: WhyFacts) -> tuple[str, str, str, str]:
    if record.reason == "approval" and facts.approvals:
        return _approval(record, facts)
    if record.due_ms is None:
        owner = "its children" if record.reason == "child" else record.reason or "unknown"
        return record.reason, owner, _bound(record, facts), "it is queued again when what it waits for has happened"
    due = f"due {moment(record.due_ms)}, {after(record.due_ms, facts.now_ms)}"
    bound = due if record.deadline_ms is None else f"{due}; {_bound(record, facts)}"
    if record.reason == "promotion":
        return (
            "promotion: it is a branch that may cause no effects, and its next step is one",
            f"whoever promotes it; penstock lineage {record.id} tells which branch has the right",
            bound,
            f"penstock promote {record.id} --why TEXT; it looks again by itself when it is due",
        )
    kind, _, dependency = record.reason.partition(" ")
    if dependency:
        reason = f"{_PARKED.get(kind, kind)} {dependency}{f': {facts.waits_for}' if facts.waits_for else ''}"
        return reason, f"the hub of {dependency}; the store's timers", bound, "it is queued again when that is over"
    return record.reason, "the store's timers", bound, "it is queued again when the timer is due"


def _approval(record: RunRecord, facts: WhyFacts) -> tuple[str, str, str, str]:
    """It waits for people: for what they are asked, who may decide, until when, and how."""
    first, others = facts.approvals[0], facts.approvals[1:]
    more = f"; and for {', '.join(each.id for each in others)}" if others else ""
    reason = f"approval {first.id}: {first.tool} ({first.risk}) at step {first.step}, {first.progress}{more}"
    if first.problem:
        reason = f"{reason}; {first.problem}"
    expires = f"expires {moment(first.expires_ms)}, {after(first.expires_ms, facts.now_ms)}: then the call is denied"
    bound = expires if record.deadline_ms is None else f"{expires}; {_bound(record, facts)}"
    following = f"penstock approve {first.id}, or penstock deny {first.id} --reason TEXT; then it goes on at once"
    return reason, first.who_may, bound, following


_PARKED = {"breaker": "the breaker of", "retry_after": "a Retry-After of"}


def _unknown(record: RunRecord, facts: WhyFacts) -> tuple[str, str, str, str]:
    reason = str(facts.error) if facts.error else record.reason or "an effect's outcome cannot be proved"
    first = next(iter(facts.doubts), None)
    if first is None:
        return reason, "operators", "none: it stays so until somebody resolves it", "penstock unknown"
    bound = "none: it stays so until somebody resolves it"
    if first.settle_by_ms is not None:
        when = f"{moment(first.settle_by_ms)}, {after(first.settle_by_ms, facts.now_ms)}"
        bound = f"to be settled by {when}; nothing happens by itself then"
    commands = " or ".join(f"{doubt.command} --applied | --not-applied | --ask-again" for doubt in facts.doubts)
    then = f"it ends then ({record.cancel})" if record.cancel else "it goes on from there"
    return reason, first.owner, bound, f"somebody finds out whether it happened, and says so: {commands}; {then}"


def _bound(record: RunRecord, facts: WhyFacts) -> str:
    bounds: list[str] = []
    if record.deadline_ms is not None:
        when = after(record.deadline_ms, facts.now_ms)
        bounds.append(f"deadline {moment(record.deadline_ms)}, {when}: then it is cancelled")
    if facts.max_wait_ms is not None and record.started_ms is None and record.state is RunState.QUEUED:
        left_s = (record.accepted_ms + facts.max_wait_ms - facts.now_ms) / 1000
        when = f"over in {left_s:.1f} s" if left_s > 0 else f"over since {-left_s:.1f} s"
        bounds.append(f"max_wait {facts.max_wait_ms / 1000:g} s, {when}: then it is shed")
    return "; ".join(bounds) if bounds else "none: the job has neither a deadline nor a max_wait that applies now"


def _last_step(facts: WhyFacts) -> str:
    step = facts.last_step
    if step is None:
        return ""
    age_s = max(0.0, (facts.now_ms - (step.ended_ms or step.started_ms)) / 1000)
    attempts = f", {step.attempts} attempts" if step.attempts > 1 else ""
    return f"{step.step} {step.kind} {step.name} ({step.status}{attempts}), {age_s:.1f} s ago; {facts.steps} entries"
