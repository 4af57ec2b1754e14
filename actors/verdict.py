"""How a run is to end."""

import msgspec

from actors.attempts import Outcome
from actors.journal import encode_error
from cluster.lifecycle import RunState


class Verdict(msgspec.Struct, frozen=True):
    """The state to end in, its reason, and the output or the error as the record keeps them."""

    state: RunState
    reason: str
    output: bytes = b""
    error: bytes = b""


def failed(error_class: str, message: str, step: str = "", reason: str = "failed") -> Verdict:
    """A run that failed, and why."""
    return Verdict(RunState.FAILED, reason, b"", encode_error(error_class, message, step))


def unknown(path: str, tool: str, outcome: Outcome) -> Verdict:
    """A run with an effect that nobody can prove."""
    why = ": ".join(outcome.error or ())
    message = f"tool {tool!r}: {why}. Nobody can prove whether its effect happened"
    error = encode_error("ConfirmationUnknown", message, path)
    return Verdict(RunState.CONFIRMATION_UNKNOWN, f"effect {tool} at step {path}", b"", error)
