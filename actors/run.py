"""The run as an agent sees it: every call that must be recorded goes through it."""

import asyncio
import uuid as uuids
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from actors import durable, steps
from actors.errors import InvalidValue
from actors.scope import SCOPE

if TYPE_CHECKING:
    from actors.contract import Agent, Tool
    from actors.engine import RunEngine

P = ParamSpec("P")
R = TypeVar("R")
I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741


class Run:
    """One durable execution of a job, handed to the agent as its first argument.

    Whatever decides what the agent does next must come through here (or from its input), because after a failure
    the agent's code runs again from its start, on any host, and is given the recorded results.
    """

    __slots__ = ("_engine",)

    def __init__(self, engine: "RunEngine") -> None:
        self._engine = engine

    @property
    def id(self) -> str:
        """The run's id."""
        return self._engine.claim.id

    @property
    def agent(self) -> str:
        """The agent's name."""
        return self._engine.claim.agent

    @property
    def version(self) -> str:
        """The agent's version that this run is pinned to."""
        return self._engine.agent.version

    @property
    def batch(self) -> str:
        """The batch that the job came with; empty for a child run."""
        return self._engine.claim.batch

    @property
    def custom_id(self) -> str:
        """The job's name in its batch."""
        return self._engine.claim.custom_id

    @property
    def tenant(self) -> str:
        """The job's tenant."""
        return self._engine.job.tenant

    @property
    def metadata(self) -> Mapping[str, str]:
        """The job's metadata."""
        return self._engine.job.metadata

    @property
    def state(self) -> Any:
        """What the last checkpoint saved, as plain data; None before the first one."""
        return durable.state(self._engine)

    def call(self, tool: "Tool[P, R]", /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        """Calls a tool and records its result; a replay gets the recorded one and calls nothing.

        Which step this is is decided here, and not when it is awaited: calls made in one order have that order,
        also below ``asyncio.gather``.

        Raises:
            StepFailed: the tool failed for good.
            InvalidValue: the arguments do not fit the tool.
        """
        return steps.call(self._engine, self.next_step(), tool, args, kwargs)

    def effect(self, *, key: str) -> "KeyedEffect":
        """Effects under a key of your own: ``await run.effect(key="refund:order-17").call(refund, order)``.

        The key stands for one effect in all runs, batches and forks of the tenant: the first call causes it, others get
        its receipt, and one with other arguments fails as :class:`IdempotencyConflict`.

        Raises:
            InvalidValue: the key is empty, longer than 256 characters, or not printable.
        """
        if not key or len(key) > 256 or not key.isprintable():
            raise InvalidValue(f"run.effect(key={key[:40]!r}): give 1 to 256 printable characters")
        return KeyedEffect(self, key)

    def spawn(self, agent: "Agent[I, O]", payload: I, /) -> Awaitable[O]:
        """Starts a child run and awaits its output; this run is unloaded meanwhile.

        Raises:
            ChildFailed: the child ended without success.
            InvalidValue: the input does not fit the agent.
        """
        return durable.spawn(self._engine, self.next_step(), agent, payload)

    def sleep(self, seconds: float, /) -> Awaitable[None]:
        """Waits, however often the host changes meanwhile; a long wait holds no memory anywhere."""
        return durable.sleep(self._engine, self.next_step(), seconds)

    def now(self) -> datetime:
        """The time (UTC, by the store's clock), recorded."""
        engine = self._engine
        moment: int = durable.value(engine, self.next_step(), "now", engine.services.now_ms)
        return datetime.fromtimestamp(moment / 1000, UTC)

    def random(self) -> float:
        """A random number in [0, 1), recorded. No secret: it is in the journal."""
        engine = self._engine
        drawn: float = durable.value(engine, self.next_step(), "random", engine.services.draw)
        return drawn

    def uuid(self) -> uuids.UUID:
        """A random UUID, recorded."""
        return uuids.UUID(durable.value(self._engine, self.next_step(), "uuid", lambda: str(uuids.uuid4())))

    async def checkpoint(self, state: Any) -> None:
        """Drops the run's past: from here on a replay starts with :attr:`state` and the steps that follow.

        The agent's code must go on from ``run.state`` when it is not None. ``state`` is anything that pydantic can
        write as JSON. Only the agent's own task may call it, with no step under way.

        Raises:
            PenstockError: a step is under way, or another task called.
        """
        await durable.checkpoint(self._engine, state)

    def next_step(self) -> str:
        """The path of the next step that the caller's task asks for."""
        task = asyncio.current_task()
        scope = SCOPE.get()
        if scope.owner is not task:
            # A task that was not made through the loop, or before it numbered them.
            scope = scope.branch(task)
            SCOPE.set(scope)
            if task is not None:
                self._engine.branch_started(task)
        return scope.next_step()


class KeyedEffect:
    """Effects of a run under a business key; see :meth:`Run.effect`."""

    __slots__ = ("_key", "_run")

    def __init__(self, run: Run, key: str) -> None:
        self._run = run
        self._key = key

    def call(self, tool: "Tool[P, R]", /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        """Calls a tool as :meth:`Run.call` does, under the key.

        Raises:
            IdempotencyConflict: the key stands for other arguments.
            InvalidValue: the tool is no effect (its risk is below WRITE), or the arguments do not fit.
        """
        if not tool.options.risk.is_effect:
            raise InvalidValue(f"run.effect(key=...).call({tool.name}): only effects (risk WRITE and above) have keys")
        return steps.call(self._run._engine, self._run.next_step(), tool, args, kwargs, self._key)
