"""Making a tool's attempts: where it runs, how long it may take, and what its failure says."""

import asyncio
import contextvars
import functools
import importlib
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from actors.contract import Tool, ToolCall
from actors.core.outcome import TryAgain, Unknown, after_failure
from actors.errors import Ambiguous, InvalidValue, NotApplied, ToolError, described
from admission.retry import FailureClass, RetryPolicy

_SYNC_TOOL_THREADS: Final = 32


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a tool's attempts ended.

    ``error`` (class, message) is None on success, and then ``value`` is the validated result and ``payload`` the JSON
    of it. ``unknown`` says that nobody can prove whether the effect happened.
    """

    attempts: int
    value: Any = None
    payload: bytes = b""
    error: tuple[str, str] | None = None
    unknown: bool = False


def classify(error: BaseException, *, effect: bool) -> FailureClass:
    """What an exception says of the effect. Tools say it themselves by :class:`ToolError`; for others we must assume.

    An effect that raised anything else may have happened: we cannot prove otherwise. A read that raised anything
    else has a defect, which another attempt would not mend.
    """
    if isinstance(error, ToolError):
        return error.failure_class
    if isinstance(error, ConnectionRefusedError):
        return FailureClass.NOT_APPLIED
    if effect or isinstance(error, OSError | TimeoutError):
        return FailureClass.AMBIGUOUS
    return FailureClass.REJECTED


class Attempts:
    """Runs tools for one host: on its loop, in its threads, or as Ray tasks."""

    def __init__(self, clock: Callable[[], float], draw: Callable[[], float]) -> None:
        self._clock = clock
        self._draw = draw
        self._threads: ThreadPoolExecutor | None = None

    async def perform(
        self,
        tool: Tool[Any, Any],
        values: list[Any],
        *,
        run_id: str,
        step: str,
        key: Callable[[], str],
        tenant: str,
        repeated: bool,
        lease_renewed: Callable[[], Awaitable[None]],
    ) -> Outcome:
        """Tries until the tool answers or its policy says stop.

        Args:
            tool: the tool.
            values: its validated arguments.
            run_id: the run that asks.
            step: the path of the step.
            key: makes the step's idempotency key; most tools never ask for it.
            tenant: the run's tenant.
            repeated: an earlier owner may have sent this effect already.
            lease_renewed: returns when this host may start something; awaited before each further attempt, so that a
                host that stood still for longer than its lease repeats nothing in a run that may be somebody else's.
        """
        options = tool.options
        clock = self._clock
        first = clock()
        ambiguous = repeated
        attempt = 0
        while True:
            attempt += 1
            call = ToolCall(tool.name, run_id, step, attempt, key, options.timeout_s, tenant, clock)
            try:
                if tool.is_async and options.resources is None:
                    async with asyncio.timeout(options.timeout_s):
                        value = await tool.invoke(call, values)
                else:
                    value = await self._elsewhere(tool, call, values)
            except BaseException as error:
                if _is_for_us(error):
                    raise
                failure = classify(error, effect=options.risk.is_effect)
                decision = after_failure(
                    failure,
                    risk=options.risk,
                    idempotent=options.idempotent,
                    ambiguous_before=ambiguous,
                    attempt=attempt,
                    elapsed=clock() - first,
                    policy=options.retry or RetryPolicy(),
                    draw=self._draw(),
                )
                if isinstance(decision, TryAgain):
                    ambiguous = ambiguous or failure is FailureClass.AMBIGUOUS
                    await asyncio.sleep(decision.pause_s)
                    await lease_renewed()
                    continue
                said = _describe(error, options.timeout_s)
                return Outcome(attempt, error=said, unknown=isinstance(decision, Unknown))
            return _settled(tool, value, attempt)

    async def _elsewhere(self, tool: Tool[Any, Any], call: ToolCall, values: list[Any]) -> Any:
        if tool.options.resources is not None:
            async with asyncio.timeout(tool.options.timeout_s):
                return await _ray_task(tool, call, values)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_SYNC_TOOL_THREADS, thread_name_prefix="penstock-tool")
        work = self._threads.submit(contextvars.copy_context().run, tool.invoke, call, values)
        try:
            async with asyncio.timeout(tool.options.timeout_s):
                value = await asyncio.wrap_future(work)
                return await value if inspect.isawaitable(value) else value
        except TimeoutError:
            if work.cancel():
                # It never began, and so it cannot have changed anything.
                within = f"within {tool.options.timeout_s:g} s"
                raise NotApplied(f"none of the {_SYNC_TOOL_THREADS} threads for tools became free {within}") from None
            raise

    def close(self) -> None:
        """Lets go of the threads; calls that are under way in them go on to their end."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _settled(tool: Tool[Any, Any], value: Any, attempt: int) -> Outcome:
    """Checks a result. A bad one is a failed step and not an unknown effect: the tool did answer."""
    result = tool.signature.result
    try:
        checked = result.check(value)
        return Outcome(attempt, checked, result.dump(checked))
    except InvalidValue as error:
        return Outcome(attempt, error=("InvalidValue", str(error)))


def _is_for_us(error: BaseException) -> bool:
    """Whether an exception stops the step from outside, instead of being the tool's own doing.

    A tool may raise CancelledError because something of its own was cancelled, and SystemExit out of a library; such
    a tool has failed, and neither its run nor its host must end by it.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return isinstance(error, GeneratorExit)


def _describe(error: BaseException, timeout_s: float) -> tuple[str, str]:
    name, text = described(error)
    if isinstance(error, TimeoutError) and not text:
        text = f"no answer within the tool's timeout of {timeout_s:g} s"
    return name, text


def run_by_path(module: str, qualname: str, facts: dict[str, Any], values: list[Any]) -> Any:
    """What a Ray worker does for a tool with resources: finds it by its import path and runs it."""
    import time

    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    key = facts.pop("key")
    tool_call = ToolCall(**facts, key=lambda: key, clock=time.monotonic)
    answer = found.invoke(tool_call, values)
    return asyncio.run(answer) if found.is_async else answer


@functools.cache
def _remote() -> Any:
    """Made once a process: Ray keeps a copy of every remote function that it is shown."""
    import ray

    return ray.remote(run_by_path)


async def _ray_task(tool: Tool[Any, Any], call: ToolCall, values: list[Any]) -> Any:
    import ray

    known = ("tool", "run_id", "step", "attempt", "timeout_s", "tenant")
    facts = {name: getattr(call, name) for name in known} | {"key": call.idempotency_key}
    remote = _remote().options(max_retries=0, **(tool.options.resources or {}))
    reference = remote.remote(tool.__module__, tool.__qualname__, facts, values)
    try:
        return await reference
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
