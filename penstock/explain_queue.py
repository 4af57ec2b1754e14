"""Why is a run queued, and when will it start; why was it shed, and when to come back? Pure: facts in, words out."""

from collections.abc import Sequence
from typing import Final

from cluster.records import RunRecord
from penstock.explain_words import after, moment
from penstock.queue_place import QueuePlace
from penstock.refusals import in_words
from penstock.views import HostView

_UNSERVED: Final = "no host serves"
_RUNNING_CAP: Final = "tenant_running"


def queued(
    record: RunRecord, place: int | None, queue: QueuePlace | None, hosts: Sequence[HostView], now_ms: int
) -> tuple[str, str, str]:
    """For what a queued run waits, who owns the wait, and what comes next.

    Args:
        record: the run's.
        place: how many runs of its partition go before it; None while it is set aside.
        queue: what is known of its place; None where its record says none.
        hosts: the registered ones.
        now_ms: the store's clock.
    """
    partition = f"partition {record.id[:2]}"
    owner = f"{partition}, set aside" if place is None else f"{partition}, place {place + 1} of its queue"
    if queue is not None and queue.paused is not None:
        return _paused(queue, owner)
    if place is None and record.reason.startswith(_RUNNING_CAP):
        tenant = "its tenant" if queue is None else f"tenant {queue.tenant}"
        return record.reason, owner, f"it goes on as soon as a run of {tenant} ends (penstock queue)"
    if place is None and not record.reason.startswith("paused"):
        following = f"a host that serves {record.agent} starts: penstock up --app MODULE"
        return record.reason or f"{_UNSERVED} {record.agent}", owner, following
    return _reason(record, queue), owner, _next(queue, hosts, now_ms)


def _paused(queue: QueuePlace, owner: str) -> tuple[str, str, str]:
    held = queue.paused
    assert held is not None
    kind, _, name = held.what.partition(":")
    option = f" --{kind} {name}" if name else ""
    since = "" if held.since_ms is None else f", since {moment(held.since_ms)}"
    return (
        f"{held}{since}",
        f"{held.by or 'whoever paused it'}; {owner}",
        f"penstock resume{option}; then it is started in its order",
    )


def _reason(record: RunRecord, queue: QueuePlace | None) -> str:
    reason = "queue" if record.reason in ("", "queue") else f"queue ({record.reason})"
    if queue is None or not queue.before:
        return reason
    before = ", ".join(f"{count:,} {name}" for name, count in queue.before)
    ahead = f"; {queue.ahead_s:,.1f} slot-seconds of work in all" if queue.ahead_s else ""
    return f"{reason}: of its partition {before} go before it{ahead}"


def _next(queue: QueuePlace | None, hosts: Sequence[HostView], now_ms: int) -> str:
    alive = [host for host in hosts if host.alive]
    claiming = [host for host in alive if not host.draining]
    if not alive:
        return "no host is alive, so nothing claims it: start some with `penstock up`, or see `penstock doctor`"
    if not claiming:
        return "every host is draining, so nothing claims it: start one, or `penstock drain HOST --undo`"
    return f"one of {len(claiming)} hosts claims it when it has a free slot{_prediction(queue, now_ms)}"


def _prediction(queue: QueuePlace | None, now_ms: int) -> str:
    if queue is None or queue.wait_s is None:
        return ""
    cause = "" if queue.cause == "queue" else f" ({in_words(queue.cause)})"
    when = f"in {queue.wait_s:.1f} s, {moment(now_ms + round(queue.wait_s * 1000))}"
    silent = ""
    if queue.stale:
        silent = f"; the admission controller is silent for {queue.age_s:.0f} s, so that is of its own partition only"
    return f"; about place {queue.place:,} of all, predicted to start {when}{cause}{silent}"


def shed(record: RunRecord, now_ms: int) -> tuple[str, str]:
    """Why a run was shed, and what comes next."""
    reason = f"{record.reason}: {in_words(record.reason)}"
    again = "submit the same job again in the same batch: it becomes this run again"
    if record.retry_after_ms is None:
        return reason, f"nothing by itself; {again}"
    if record.retry_after_ms < 0:
        return reason, "nothing: it cannot be accepted as it is any more"
    at_ms = (record.ended_ms or record.since_ms) + record.retry_after_ms
    when = f"come back at {moment(at_ms)}, {after(at_ms, now_ms)}"
    if not record.by_itself:
        when = f"{when} or later: nobody knows when there is room (penstock queue)"
    return reason, f"{when}; {again}"
