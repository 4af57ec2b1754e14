"""One step's call of a tool, while it waits and is tried."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from actors.contract import Tool
from actors.gatekeeper import Gatekeeper

SCHEDULE_TO_CLOSE_S: Final = 86_400.0


class Interrupted(Exception):
    """The run is wanted elsewhere, or is to end, while no attempt of its effect is under way."""


class Rests:
    """A run's effects that are between two attempts: they may be stopped there, since nothing is under way."""

    __slots__ = ("_resting", "_stopped", "_stopped_all")

    def __init__(self) -> None:
        self._resting: dict[asyncio.Task[Any], bool] = {}
        self._stopped = self._stopped_all = False

    def stop(self, *, uncertain_too: bool) -> None:
        """Stops all that rest, now and later; those of which an attempt may have been applied only if asked."""
        self._stopped, self._stopped_all = True, self._stopped_all or uncertain_too
        for task, uncertain in list(self._resting.items()):
            if self._stops(uncertain):
                task.cancel()

    def _stops(self, uncertain: bool) -> bool:
        return self._stopped_all or (self._stopped and not uncertain)

    @contextlib.contextmanager
    def rest(self, *, uncertain: bool) -> Iterator[None]:
        """Between two attempts.

        Raises:
            Interrupted: it is not to go on here.
        """
        task = asyncio.current_task()
        assert task is not None
        if self._stops(uncertain):
            raise Interrupted
        before, self._resting[task] = task.cancelling(), uncertain
        try:
            yield
        except asyncio.CancelledError:
            if not self._stops(uncertain):
                raise
            while task.cancelling() > before:
                task.uncancel()
            raise Interrupted from None
        finally:
            del self._resting[task]


@dataclass(slots=True, eq=False)
class Held:
    """What a step waits for just now: its dependency's gate, the retry budget, or the pause before a retry.

    ``until`` is the moment (host's clock) at which the wait ends by itself, where that is known.
    """

    what: Literal["gate", "budget", "pause"]
    since: float
    until: float | None = None
    attempt: int = 1
    last_error: str = ""


@dataclass(slots=True, eq=False)
class Asked:
    """A call that a run asks for.

    Attributes:
        tool, values: what is to be called, and its validated arguments.
        run_id, step, agent, tenant: who asks.
        rank: of the run's class, 0 for the most valuable.
        key: makes the step's idempotency key; most tools never ask for it.
        repeated: an earlier owner may have sent this effect already.
        began: when the step began, by the host's clock; earlier than now where the run was unloaded meanwhile.
        run_deadline: the run's own, by the host's clock.
        lease_renewed: returns when this host may start something.
        stuck: is told that the tool goes on in spite of its cancellation.
        rests: where an effect says that it is between two attempts; None for what is cancelled anyway.
        gatekeeper: of the tool's dependency.
        held_s: seconds that gate and budget have held it up so far.
    """

    tool: Tool[Any, Any]
    values: list[Any]
    run_id: str
    step: str
    agent: str
    tenant: str
    rank: int
    key: Callable[[], str]
    repeated: bool
    began: float
    run_deadline: float
    lease_renewed: Callable[[], Awaitable[None]]
    stuck: Callable[[], None]
    rests: Rests | None
    gatekeeper: Gatekeeper | None = None
    held_s: float = 0.0

    @property
    def may_probe(self) -> bool:
        """Whether it may be the call by which a dependency shows that it is well again: it may be repeated freely."""
        options = self.tool.options
        return options.idempotent or not options.risk.is_effect

    def bounds(self, now: float) -> dict[str, float]:
        """What bounds the whole step, by name: seconds that are left."""
        schedule_s = self.tool.options.schedule_to_close_s or SCHEDULE_TO_CLOSE_S
        return {
            f"schedule_to_close={schedule_s:g}": self.began + schedule_s - now,
            "the run's deadline": self.run_deadline - now,
        }
