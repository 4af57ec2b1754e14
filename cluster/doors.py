"""What the door says of a run."""

from typing import Any

from cluster.records import Made, Submitted


def submitted(answer: Any) -> Submitted:
    """What ``submit.lua`` says of one run."""
    if isinstance(answer, int):
        return Submitted(Made(answer))
    if answer[0] == Made.REFUSED:
        _, reason, retry_after_ms, by_itself = answer
        return Submitted(Made.REFUSED, reason=reason.decode(), retry_after_ms=retry_after_ms, by_itself=bool(by_itself))
    return Submitted(Made.MADE, answer[1], answer[2])
