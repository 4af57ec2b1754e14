"""Gates with a lease, without a hub: what most tests of gates begin with."""

from __future__ import annotations

from typing import Any

from admission.exchange import Lease
from admission.gate import Gate
from admission.passage import Passage

ONE = {"requests": 1.0}


def leased(permits: float | None = 10.0, sequence: int = 1, **fields: Any) -> Lease:
    limited = {} if permits is None else {"permits": {"requests": permits}, "most": {"requests": 100.0}}
    return Lease(1, sequence, **{"lifetime_s": 1.0, **limited, **fields})


def gate_with(permits: float | None = 10.0, **fields: Any) -> Gate:
    gate = Gate("h", 0.0)
    gate.accept(0.0, 0.0, leased(permits, **fields))
    return gate


def passed(gate: Gate, now: float = 0.0, rank: int = 2, *, may_probe: bool = True) -> Passage | None:
    return gate.try_pass(now, rank, ONE, may_probe)


def went(gate: Gate, now: float = 0.0) -> list[Any]:
    """The tokens of all that may go now, in order."""
    found = []
    while (one := gate.next(now)) is not None:
        found.append(one[0].token)
    return found
