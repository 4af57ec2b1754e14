"""The numbering of steps in the task that runs now, and a small tool of those that wait."""

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from actors.core.identity import Scope
from actors.errors import AgentExit, described

if TYPE_CHECKING:
    from actors.engine import RunEngine

T = TypeVar("T")
SCOPE: Final[ContextVar[Scope]] = ContextVar("penstock_scope")


def wake(future: "asyncio.Future[None]") -> None:
    """Ends a wait, once."""
    if not future.done():
        future.set_result(None)


def number_branches(loop: asyncio.AbstractEventLoop) -> None:
    """Has the loop give a scope to every task that an agent starts, when it starts it.

    A task could also be numbered when it first asks for a step. But a task that awaits another one before that would
    then get its number by which one ended first, and a replay would number it differently.
    """
    former = loop.get_task_factory()
    if getattr(former, "numbers_branches", False):
        return

    def make(
        loop: asyncio.AbstractEventLoop, work: "Coroutine[Any, Any, T] | Generator[Any, None, T]", **options: Any
    ) -> "asyncio.Task[T]":
        scope = SCOPE.get(None)
        # While a tool works in an agent's task the scope has no owner: its tasks are none of the agent's.
        if scope is None or scope.owner is None or scope.owner is not asyncio.current_task(loop):
            return _make(former, loop, work, options)
        branch = scope.branch(None)
        context = options.pop("context", None) or copy_context()
        context.run(SCOPE.set, branch)
        task = _make(former, loop, _contained(work), options | {"context": context})
        # A task that is cancelled before its first turn never gets to its work.
        task.add_done_callback(lambda _: work.close())
        branch.owner = task
        cast("RunEngine", scope.shell).branch_started(task)
        return task

    make.numbers_branches = True  # type: ignore[attr-defined]
    loop.set_task_factory(make)


async def _contained(work: Any) -> Any:
    """An exception of this kind ends an event loop, and with it all other runs, wherever a task raises it."""
    try:
        return await work
    except (SystemExit, KeyboardInterrupt) as error:
        raise AgentExit(": ".join(described(error))) from error


def _make(former: Any, loop: asyncio.AbstractEventLoop, work: Any, options: dict[str, Any]) -> "asyncio.Task[Any]":
    if former is None:
        return asyncio.Task(work, loop=loop, **options)
    made: asyncio.Task[Any] = former(loop, work, **options)
    return made
