"""Simulated runs: what is pretended in them, and which faults strike where. Pure: chance comes from a seed.

A simulated run causes no effect: in the place of a tool that has one, its ``simulate`` is called. Which faults strike
is decided by seed, step, tool and attempt alone, so that the same evaluation meets the same faults again, whatever
order things happen in, and two versions of an agent meet the same ones as long as they ask for the same steps.
"""

import hashlib
from enum import StrEnum
from typing import Final

import msgspec


class FaultKind(StrEnum):
    """What can go wrong with a simulated effect, or after a step."""

    NOT_APPLIED = "not_applied"
    AMBIGUOUS = "ambiguous"
    RATE_LIMITED = "rate_limited"
    HANDED_BACK = "handed_back"


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """One kind of fault and how often it strikes.

    ``not_applied``, ``ambiguous`` and ``rate_limited`` are raised by attempts of simulated calls of ``tools`` (of all,
    if empty); ``handed_back`` lets the host give the run away after a new step, so that it is replayed.
    """

    kind: FaultKind
    probability: float
    tools: tuple[str, ...] = ()


class Simulation(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a run is simulated; part of its job's record.

    Attributes:
        seed: where its chance comes from; of this run alone.
        reads: tools without effects are simulated too, where they have a ``simulate``.
        approves: how calls that need an approval are answered: approved, or denied.
        faults: what goes wrong.
    """

    seed: str = ""
    reads: bool = False
    approves: bool = True
    faults: tuple[Fault, ...] = ()

    def of_child(self, step: str) -> "Simulation":
        """The same for the child run that a step spawns, with chance of its own."""
        return msgspec.structs.replace(self, seed=f"{self.seed}/{step}")

    def fault_of_call(self, tool: str, step: str, attempt: int) -> FaultKind | None:
        """What strikes an attempt of a simulated call; where several do, the one that is named first."""
        for place, fault in enumerate(self.faults):
            if fault.kind is FaultKind.HANDED_BACK or (fault.tools and tool not in fault.tools):
                continue
            if drawn(self.seed, str(place), "call", tool, step, str(attempt)) < fault.probability:
                return fault.kind
        return None

    def was_applied(self, tool: str, step: str, attempt: int) -> bool:
        """The truth about an attempt that an ambiguous fault has struck, which only its ``reconcile`` may learn."""
        return drawn(self.seed, "truth", tool, step, str(attempt)) < _HALF

    def hands_back(self, step: str) -> bool:
        """Whether the run is handed back once this step is recorded."""
        return any(
            drawn(self.seed, str(place), "step", step) < fault.probability
            for place, fault in enumerate(self.faults)
            if fault.kind is FaultKind.HANDED_BACK
        )


_HALF: Final = 0.5
NO_SIMULATION: Final = Simulation()


def drawn(*parts: str) -> float:
    """A number in [0, 1), uniform over all texts: 53 bits of BLAKE2b over ``parts`` with their lengths."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        raw = part.encode()
        state.update(len(raw).to_bytes(4, "big"))
        state.update(raw)
    return (int.from_bytes(state.digest(), "big") >> 11) / (1 << 53)
