"""Where a tool runs: on the host's event loop, in its threads, or as a Ray task."""

import asyncio
import contextvars
import functools
import importlib
import inspect
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from actors.bounds import Bound
from actors.contract import Tool, ToolCall
from actors.errors import Ambiguous, NotApplied, described

SYNC_TOOL_THREADS: Final = 32
_MOST_LOST_THREADS: Final = 256
_LOG: Final = logging.getLogger("penstock.tool")


class Invocation:
    """Runs tools for one host."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._lost_here = 0
        self._lost: list[Future[Any]] = []

    @property
    def lost_threads(self) -> int:
        """How many threads are still in tools that were given up."""
        # Looked up by whoever asks, on the loop: a thread that counted itself out would do so while the loop counts.
        self._lost = [work for work in self._lost if not work.done()]
        return len(self._lost)

    async def run(self, tool: Tool[Any, Any], call: ToolCall, values: list[Any], on_stuck: Callable[[], None]) -> Any:
        """One attempt, under its bounds.

        Raises:
            TimeoutError: a bound was reached; the text names it.
            Exception: whatever the tool raises.
        """
        options = tool.options
        if options.resources is not None:
            with Bound(call, options.idle_timeout_s, on_stuck):
                return await _ray_task(tool, call, values)
        if not tool.is_async:
            return await self._in_thread(tool, call, values, on_stuck)
        with Bound(call, options.idle_timeout_s, on_stuck):
            return await tool.invoke(call, values)

    async def _in_thread(
        self, tool: Tool[Any, Any], call: ToolCall, values: list[Any], on_stuck: Callable[[], None]
    ) -> Any:
        if (lost := self.lost_threads) >= _MOST_LOST_THREADS:
            raise NotApplied(f"{lost} threads are still in tools that were given up: restart the host")
        if self._threads is None:
            self._threads = ThreadPoolExecutor(SYNC_TOOL_THREADS, thread_name_prefix="penstock-tool")
        work = self._threads.submit(contextvars.copy_context().run, tool.invoke, call, values)
        try:
            with Bound(call, tool.options.idle_timeout_s, on_stuck):
                value = await asyncio.wrap_future(work)
                return await value if inspect.isawaitable(value) else value
        except TimeoutError:
            if work.cancel():
                # It never began, and so it cannot have changed anything.
                within = f"within {call.timeout_s:g} s"
                raise NotApplied(f"none of the {SYNC_TOOL_THREADS} threads for tools became free {within}") from None
            if not work.done():
                self._lose(tool, work)
            raise

    def _lose(self, tool: Tool[Any, Any], work: "Future[Any]") -> None:
        """A thread cannot be stopped. So that it is not missing for ever, others take the place of lost ones."""
        self._lost_here += 1
        self._lost.append(work)
        _LOG.error(
            "tool %s: its function goes on in a thread after its time-out (%d such threads)",
            tool.name,
            self.lost_threads,
        )
        if self._lost_here >= SYNC_TOOL_THREADS // 2 and self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads, self._lost_here = None, 0

    def close(self) -> None:
        """Lets go of the threads; calls that are under way in them go on to their end."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def run_by_path(
    module: str, qualname: str, facts: dict[str, Any], values: list[Any]
) -> tuple[Any, dict[str, int] | None]:
    """What a Ray worker does for a tool with resources: finds it by its import path and runs it."""
    import time

    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    key = facts.pop("key")
    tool_call = ToolCall(**facts, key=lambda: key, clock=time.monotonic)
    answer = found.invoke(tool_call, values)
    return asyncio.run(answer) if found.is_async else answer, tool_call.usage


@functools.cache
def _remote() -> Any:
    """Made once a process: Ray keeps a copy of every remote function that it is shown."""
    import ray

    return ray.remote(run_by_path)


async def _ray_task(tool: Tool[Any, Any], call: ToolCall, values: list[Any]) -> Any:
    import ray

    known = (
        "tool", "run_id", "step", "attempt", "timeout_s", "tenant", "dependency", "is_effect", "bounded_by",
        "maximum_retry_after_s",
    )  # fmt: skip
    facts = {name: getattr(call, name) for name in known} | {"key": call.idempotency_key}
    remote = _remote().options(max_retries=0, **(tool.options.resources or {}))
    reference = remote.remote(tool.__module__, tool.__qualname__, facts, values)
    try:
        value, call.usage = await reference
        return value
    except asyncio.CancelledError:
        # asyncio's cancellation stops the waiting only; the task would hold its resources to its end.
        ray.cancel(reference, force=False)
        raise
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, Exception) else error from None
    except ray.exceptions.RayError as error:
        # Its worker or its node died; whether it had done its work by then nobody knows.
        raise Ambiguous(f"the Ray task was lost: {described(error)[1]}") from None
