"""How a run is to end."""

from typing import Final

import msgspec

from actors.attempts import Outcome
from actors.core.chain import Ended, seal_of_end
from actors.core.replay import Divergence
from actors.errors import StepFailed, described
from actors.journal import Entry, encode_error, first_link
from cluster.lifecycle import RunState
from cluster.records import Claim, Finish

HOSTS_LOST: Final = "too many hosts lost"


class Verdict(msgspec.Struct, frozen=True):
    """The state to end in, its reason, and the output or the error as the record keeps them."""

    state: RunState
    reason: str
    output: bytes = b""
    error: bytes = b""


def sealed_end(claim: Claim, version: str, head: bytes, verdict: Verdict) -> Finish:
    """What the store is told of a run's end, sealed by its owner; ``head`` is the last link of its journal."""
    state, reason, output, error = verdict.state, verdict.reason, verdict.output, verdict.error
    ended = Ended(
        claim.id, claim.job, claim.agent, version, claim.batch, claim.custom_id, claim.parent, state.value, reason,
        output, error,
    )  # fmt: skip
    return Finish(claim.id, claim.fence, state, reason, output, error, head.hex(), seal_of_end(head, ended))


def end_without_head(claim: Claim, version: str, verdict: Verdict) -> Finish:
    """The same from whoever does not know how far the journal has come: sealed with the chain's start instead."""
    return sealed_end(claim, version, first_link(claim.id, claim.job), verdict)._replace(head="")


def failed(
    error_class: str, message: str, step: str = "", reason: str = "failed", *, end: str = "", ended_by: str = ""
) -> Verdict:
    """A run that failed, and why."""
    return Verdict(RunState.FAILED, reason, b"", encode_error(error_class, message, step, end, ended_by))


def failure(error: BaseException) -> Verdict:
    """A run whose code raised."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        # A task group wraps even a single error; what happened is that error.
        error = error.exceptions[0]
    if isinstance(error, Divergence):
        return failed("ReplayDivergence", str(error), error.step, "replay_divergence")
    if isinstance(error, StepFailed):
        return failed(error.error_class, error.message, error.step, end=error.end, ended_by=error.ended_by)
    if isinstance(error, BaseExceptionGroup):
        inner = "; ".join(": ".join(described(part)) for part in error.exceptions)
        return failed(type(error).__name__, f"{described(error)[1]}: {inner}")
    return failed(*described(error))


def hosts_lost(losses: int) -> Verdict:
    """A run that is given up: whatever it does, it may well be what its hosts died of."""
    message = f"{losses} {'host' if losses == 1 else 'hosts'} died under it without progress"
    return failed("TooManyHostsLost", message, reason=HOSTS_LOST)


def ignored_cancellation(path: str, tool: str, *, is_effect: bool) -> Verdict:
    """A run whose tool does not stop when it is cancelled."""
    message = f"tool {tool!r} goes on although it was cancelled after its time-out: it swallows CancelledError"
    if not is_effect:
        return failed("ToolIgnoresCancellation", message, path, "tool ignores cancellation", end="timed_out")
    return _unconfirmed(path, tool, message)


def unproven(entry: Entry, instead_of: Verdict) -> Verdict:
    """A run that would end with an effect whose intent is recorded and whose outcome nobody has asked for again."""
    why = f" ({instead_of.reason})" if instead_of.reason not in ("", instead_of.state.value) else ""
    message = (
        f"tool {entry.name!r}: its host died between intent and receipt, and the run would have ended as "
        f"{instead_of.state}{why} without asking for it again"
    )
    return _unconfirmed(entry.step, entry.name, message)


def unknown(path: str, tool: str, outcome: Outcome) -> Verdict:
    """A run with an effect that nobody can prove."""
    why = ": ".join(outcome.error or ())
    return _unconfirmed(path, tool, f"tool {tool!r}: {why}", outcome.end.value, outcome.ended_by)


def _unconfirmed(path: str, tool: str, message: str, end: str = "", ended_by: str = "") -> Verdict:
    text = f"{message}. Nobody can prove whether its effect happened"
    error = encode_error("ConfirmationUnknown", text, path, end, ended_by)
    return Verdict(RunState.CONFIRMATION_UNKNOWN, f"effect {tool} at step {path}", b"", error)
