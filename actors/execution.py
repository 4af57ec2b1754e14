"""An agent's code on a host: what keeps it going, and what stops it, whatever it does about that."""

import asyncio
import functools
import logging
from collections.abc import Coroutine
from enum import Enum
from typing import Any, Final, NoReturn

from actors.asked import Rests
from actors.errors import RunAborted
from actors.scope import wake
from actors.verdict import Verdict, ignored_cancellation
from cluster.lifecycle import RunState

STOP_AGAIN_S: Final = 1.0
MOST_STOPS: Final = 3
_LOG: Final = logging.getLogger("penstock.run")


class Phase(Enum):
    """How far a run has come on this host."""

    NEW = 0
    EXECUTING = 1
    CLOSING = 2
    CLOSED = 3


class Execution:
    """The agent's task, the tasks that it has started, and the effects that are under way.

    ``leaving``: this host must not write for the run any more. ``_verdict``: how the run is to end, whatever its code
    does. ``_departing``: why the run is to be handed back. Each of them stops the agent's code at its next step.
    """

    __slots__ = (
        "_again", "_branches", "_closed", "_departing", "_effects", "_phase", "_run_id", "_stops", "_task", "_verdict",
        "active", "leaving", "rests",
    )  # fmt: skip

    def __init__(self, run_id: str) -> None:
        self.active = 0
        self.leaving = False
        self.rests = Rests()
        self._run_id = run_id
        self._branches: set[asyncio.Task[Any]] = set()
        self._effects: set[asyncio.Task[Any]] = set()
        self._verdict: Verdict | None = None
        self._departing = ""
        self._phase = Phase.NEW
        self._stops = 0
        self._again: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    # What the engine adds

    def step_over(self) -> None:
        """A step has ended."""
        raise NotImplementedError

    async def _close(self, verdict: Verdict | None) -> None:
        raise NotImplementedError

    # Tasks

    def is_driven_here(self) -> bool:
        """Whether the caller is the agent's own task, and none that it started."""
        return asyncio.current_task() is self._task

    async def effect(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Makes an effect in a task of its own and awaits it; cancelling this await does not touch the effect."""
        loop = asyncio.get_running_loop()
        # Not by the loop, whose factory would number it as a branch of the agent's.
        task = asyncio.Task(work, loop=loop)
        over = loop.create_future()
        self._effects.add(task)
        self.active += 1
        task.add_done_callback(functools.partial(self._effect_over, over))
        await over
        return task.result()

    def _effect_over(self, over: "asyncio.Future[None]", task: "asyncio.Task[Any]") -> None:
        self._effects.discard(task)
        self.active -= 1
        if not task.cancelled():
            task.exception()  # looked at, also if nobody waits for it any more
        wake(over)
        self.step_over()

    def branch_started(self, task: "asyncio.Task[Any]") -> None:
        """The agent has started a task of its own."""
        self._branches.add(task)
        task.add_done_callback(self._branches.discard)

    # Stopping

    def request_cancel(self, reason: str) -> None:
        """Ends the run as cancelled at its next step boundary; an effect that is under way comes to its end first."""
        if self._verdict is None and not self.leaving and self._phase in (Phase.NEW, Phase.EXECUTING):
            self._verdict = Verdict(RunState.CANCELLED, reason)
            self.rests.stop(uncertain_too=False)
            self._stop()

    def abort(self, verdict: Verdict) -> NoReturn:
        """Ends the run from inside, past whatever its code does. What is unknown stays so, whatever else was said."""
        if self._verdict is None or verdict.state is RunState.CONFIRMATION_UNKNOWN:
            self._verdict = verdict
        self._stop()
        raise RunAborted

    def drop(self) -> None:
        """Lets go of the run without a word to its record: it belongs to somebody else."""
        self.leaving = True
        current = asyncio.current_task()
        for effect in tuple(self._effects):
            if effect is not current:
                effect.cancel()
        self._stop()

    def depart(self, reason: str) -> None:
        """Hands the run back at its next step boundary (drain). An effect that is under way comes to its end first."""
        if not self.leaving and self._verdict is None and self._phase in (Phase.NEW, Phase.EXECUTING):
            self._departing = reason
            self.rests.stop(uncertain_too=True)
            self._stop()

    def stuck(self, path: str, tool: str, *, is_effect: bool) -> None:
        """A tool goes on although it was cancelled again and again: the run ends without it. It is a defect of the tool
        that no other host would mend, and what it still does nobody knows.
        """
        _LOG.error("run %s: tool %s at step %s does not stop when it is cancelled; given up", self._run_id, tool, path)
        self._verdict = ignored_cancellation(path, tool, is_effect=is_effect)
        for effect in tuple(self._effects):
            if effect.cancelling():
                # Nobody waits for it any more; its own end, if it ever comes, says nothing.
                self._effects.discard(effect)
        self._stop()

    async def closed(self) -> None:
        """Returns when this host has nothing to do with the run any more."""
        if self._phase is Phase.CLOSED:
            return
        if self._closed is None:
            self._closed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._closed)

    def _stop(self) -> None:
        """Cancels the agent's code. Code may swallow that: it is cancelled again, and in the end it is given up."""
        task = self._task
        if self._phase is not Phase.EXECUTING or task is None:
            return
        if asyncio.current_task() is not task:
            task.cancel()
        if self._again is None:
            self._again = asyncio.get_running_loop().call_later(STOP_AGAIN_S, self._stop_again)

    def _stop_again(self) -> None:
        self._again = None
        if self._phase is not Phase.EXECUTING:
            return
        self._stops += 1
        if self._stops < MOST_STOPS:
            self._stop()
            return
        _LOG.error("run %s: its code does not stop when it is cancelled; the run goes on without it", self._run_id)
        self._task = asyncio.get_running_loop().create_task(self._close(None))
