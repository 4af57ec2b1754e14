"""Making a tool's attempts: through its dependency's gate, under its bounds, again when that is right."""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from actors.asked import Asked, Held, Interrupted
from actors.bounds import nearest
from actors.contract import Tool, ToolCall
from actors.core.outcome import Decision, GiveUp, StepEnd, TryAgain, Unknown, after_failure, after_no_more
from actors.errors import InvalidValue, RateLimited, Rejected, ToolError, described
from actors.gatekeeper import Gatekeeper
from actors.invocation import Invocation
from actors.reservation import ONE_REQUEST, Reservations
from admission.passage import Passage
from admission.retry import LONGEST_RETRY_AFTER_S, FailureClass, RetryPolicy

_DEFAULT_RETRY: Final = RetryPolicy()
_SHORTEST_S: Final = 1e-3
_LOG: Final = logging.getLogger("penstock.tool")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a tool's attempts ended.

    ``error`` (class, message) is None on success, and then ``value`` is the validated result and ``payload`` the JSON
    of it. ``unknown`` says that nobody can prove whether the effect happened. ``end`` says how it ended, and
    ``ended_by`` which field of which policy ended it. ``interrupted``: it was stopped between two attempts, and may
    go on elsewhere; ``ambiguous`` says whether one of them may have been applied.
    """

    attempts: int
    value: Any = None
    payload: bytes = b""
    error: tuple[str, str] | None = None
    unknown: bool = False
    end: StepEnd = StepEnd.SUCCEEDED
    ended_by: str = ""
    interrupted: bool = False
    ambiguous: bool = False


class NoMore(Exception):
    """A bound above the retry policy allows no further attempt, and not the first one either."""

    def __init__(self, end: StepEnd, by: str, text: str) -> None:
        super().__init__(text)
        self.end = end
        self.by = by


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


def told_of_dependency(error: BaseException, call: ToolCall) -> str:
    """What an exception says of the dependency's health, in the words of :meth:`admission.gate.Gate.done`."""
    if isinstance(error, RateLimited):
        return "rate_limited"
    if isinstance(error, Rejected):
        return "succeeded"  # it is well enough to say no
    if isinstance(error, TimeoutError) and not call.bounded_by.startswith(("timeout", "idle_timeout")):
        return "ignored"  # it had less time than it may have
    return "failed" if isinstance(error, ToolError | OSError | TimeoutError) else "ignored"


class Attempts:
    """Makes attempts for one host. ``gatekeepers`` are those of the dependencies that its app declares; ``uses`` are
    the agents whose calls went to a dependency, with its name.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        draw: Callable[[], float],
        gatekeepers: dict[str, Gatekeeper] | None = None,
    ) -> None:
        self._clock = clock
        self._draw = draw
        self._gatekeepers = gatekeepers or {}
        self._invocation = Invocation()
        self._reservations = Reservations()
        self.waiting: dict[Asked, Held] = {}
        self.uses: set[tuple[str, str]] = set()

    def close(self) -> None:
        """Lets go of threads; calls that are under way in them go on to their end."""
        self._invocation.close()

    # Through the gate

    async def admit(self, asked: Asked, *, may_postpone: bool) -> Passage | None:
        """Waits until the dependency's gate lets one attempt go; None where nothing has to be asked.

        Raises:
            NoMore: a bound of the step has been reached, or the call can never go.
            Postponed: it will take long; only if ``may_postpone``.
        """
        name = asked.tool.options.dependency
        if name is None:
            return None
        gatekeeper = asked.gatekeeper = self._gatekeepers.get(name)
        if gatekeeper is None:
            text = f"tool {asked.tool.name!r} names dependency {name!r}, which this app does not declare"
            raise NoMore(StepEnd.REFUSED, f"dependency={name}", f"{text}: add Dependency({name!r}, ...) to it")
        self.uses.add((asked.agent, name))
        cost = self._cost(asked, gatekeeper)
        passage = gatekeeper.try_pass(asked.rank, cost, asked.may_probe)
        if passage is not None:
            return passage
        impossible = gatekeeper.gate.impossible(cost)
        if impossible:
            raise NoMore(
                StepEnd.REFUSED, f"rate of {name}", f"a call of tool {asked.tool.name!r} can never go: {impossible}"
            )
        now = self._clock()
        bound, left_s = nearest(asked.bounds(now))
        try:
            with self._holding(asked, Held("gate", now)):
                async with asyncio.timeout(left_s):
                    return await gatekeeper.passage(asked.rank, cost, asked.may_probe, may_postpone=may_postpone)
        except TimeoutError:
            what = gatekeeper.hindrance()
            raise NoMore(
                StepEnd.TIMED_OUT, bound, f"not let through to {name} within {self._clock() - now:.4g} s: {what.text}"
            ) from None

    def _cost(self, asked: Asked, gatekeeper: Gatekeeper) -> dict[str, float]:
        if not gatekeeper.limits_tokens:
            return ONE_REQUEST
        try:
            cost = self._reservations.cost(asked.tool, asked.agent, asked.values)
        except Exception as error:
            # The tool's own function: whatever it raises, the call's cost is not known, and it must not go.
            raise NoMore(StepEnd.REFUSED, "reserve", f"{type(error).__name__}: {described(error)[1]}") from error
        most = gatekeeper.gate.lease.most if gatekeeper.gate.lease else {}
        if asked.tool.options.reserve is None:
            # What is only an estimate must not make a call impossible.
            cost = {name: min(amount, most.get(name, math.inf)) for name, amount in cost.items()}
        return cost

    @contextlib.contextmanager
    def _holding(self, asked: Asked, held: Held) -> Iterator[None]:
        """While a step waits: people are told what for; what gate and budget hold up is none of its retries' time."""
        self.waiting[asked] = held
        try:
            yield
        finally:
            self.waiting.pop(asked, None)
            if held.what != "pause":
                asked.held_s += self._clock() - held.since

    # Trying

    async def perform(self, asked: Asked, passage: Passage | None) -> Outcome:
        """Tries until the tool answers or a policy says stop.

        Args:
            asked: the call.
            passage: what :meth:`admit` gave for the first attempt.
        """
        tool, options = asked.tool, asked.tool.options
        first = self._clock()
        ambiguous = asked.repeated
        attempt = 0
        # What the gate held up before the first attempt is none of the retries' time.
        asked.held_s = 0.0
        while True:
            attempt += 1
            if attempt == 1 and asked.gatekeeper is not None and passage is not None:
                asked.gatekeeper.gate.first_attempt(asked.tenant)
            call = self._call(asked, attempt)
            try:
                value = await self._attempt(asked, call, passage)
            except BaseException as error:
                if _is_for_us(error):
                    raise
                failure = classify(error, effect=options.risk.is_effect)
                after_s = self._asked_pause(asked, call, error)
                decision: Decision = after_failure(
                    failure,
                    risk=options.risk,
                    idempotent=options.idempotent,
                    ambiguous_before=ambiguous,
                    attempt=attempt,
                    elapsed=self._clock() - first - asked.held_s,
                    policy=self._policy(asked),
                    draw=self._draw(),
                    at_least_s=after_s,
                )
                ambiguous = ambiguous or failure is FailureClass.AMBIGUOUS
                said = described(error)
                if isinstance(decision, TryAgain):
                    try:
                        with asked.rests.rest(uncertain=ambiguous) if asked.rests else contextlib.nullcontext():
                            passage = await self._before_next(asked, attempt, decision.pause_s, ": ".join(said))
                    except NoMore as no_more:
                        decision = after_no_more(no_more.end, no_more.by, risk=options.risk, ambiguous=ambiguous)
                        said = said[0], f"{said[1]}; then: {no_more}" if said[1] else str(no_more)
                    except Interrupted:
                        return Outcome(attempt, error=said, interrupted=True, ambiguous=ambiguous)
                    else:
                        continue
                return _failed(attempt, said, decision)
            return _settled(tool, value, attempt)

    def most_attempts(self, asked: Asked) -> int:
        """How many attempts the policy in force allows."""
        return self._policy(asked).maximum_attempts

    def retry_policy(self, tool: Tool[Any, Any]) -> RetryPolicy:
        """What a tool's calls are repeated by: its own policy, or its dependency's."""
        gatekeeper = self._gatekeepers.get(tool.options.dependency or "")
        return tool.options.retry or (gatekeeper.dependency.retry if gatekeeper else _DEFAULT_RETRY)

    def _policy(self, asked: Asked) -> RetryPolicy:
        gatekeeper = asked.gatekeeper
        return asked.tool.options.retry or (gatekeeper.dependency.retry if gatekeeper else _DEFAULT_RETRY)

    def _call(self, asked: Asked, attempt: int) -> ToolCall:
        options, bounded_by, timeout_s = asked.tool.options, "timeout", asked.tool.options.timeout_s
        for name, left_s in asked.bounds(self._clock()).items():
            # A run's deadline never cuts an effect that is under way: it would only make it uncertain.
            if left_s < timeout_s and not (options.risk.is_effect and not name.startswith("schedule")):
                bounded_by, timeout_s = name, max(left_s, _SHORTEST_S)
        return ToolCall(
            asked.tool.name,
            asked.run_id,
            asked.step,
            attempt,
            asked.key,
            timeout_s,
            asked.tenant,
            self._clock,
            dependency=options.dependency,
            is_effect=options.risk.is_effect,
            bounded_by=bounded_by,
            maximum_retry_after_s=LONGEST_RETRY_AFTER_S
            if asked.gatekeeper is None
            else asked.gatekeeper.dependency.maximum_retry_after_s,
        )

    async def _attempt(self, asked: Asked, call: ToolCall, passage: Passage | None) -> Any:
        gatekeeper = asked.gatekeeper
        if gatekeeper is None or passage is None:
            return await self._invocation.run(asked.tool, call, asked.values, asked.stuck)

        def stuck() -> None:
            gatekeeper.done(passage, "abandoned")
            asked.stuck()

        result = "ignored"
        try:
            value = await self._invocation.run(asked.tool, call, asked.values, stuck)
            result = "succeeded"
            return value
        except BaseException as error:
            result = "ignored" if _is_for_us(error) else told_of_dependency(error, call)
            raise
        finally:
            if call.usage:
                self._reservations.learn(asked.tool, asked.agent, asked.values, call.usage)
            if result == "succeeded" and call.attempt > 1:
                gatekeeper.retry_helped(asked.tenant)
            gatekeeper.done(passage, result, {name: float(used) for name, used in (call.usage or {}).items()} or None)

    async def _before_next(self, asked: Asked, attempt: int, pause_s: float, error: str) -> Passage | None:
        """The retry budget, the pause, the gate and the lease, in this order; each bounded by the step's bounds."""
        if asked.gatekeeper is not None:
            await self._within_budget(asked, asked.gatekeeper, attempt, error)
        bound, left_s = nearest(asked.bounds(self._clock()))
        if pause_s >= left_s:
            raise NoMore(StepEnd.TIMED_OUT, bound, f"the pause of {pause_s:.4g} s before a retry would outlast it")
        now = self._clock()
        with self._holding(asked, Held("pause", now, now + pause_s, attempt + 1, error)):
            await asyncio.sleep(pause_s)
        passage = await self.admit(asked, may_postpone=False)
        # Last, since the gate may have taken longer than the lease: nobody else may own the run when it is sent.
        await asked.lease_renewed()
        return passage

    async def _within_budget(self, asked: Asked, gatekeeper: Gatekeeper, attempt: int, error: str) -> None:
        now = self._clock()
        bound, left_s = nearest(asked.bounds(now))
        try:
            with self._holding(asked, Held("budget", now, None, attempt + 1, error)):
                async with asyncio.timeout(left_s):
                    await gatekeeper.retry(asked.tenant)
        except TimeoutError:
            name = gatekeeper.dependency.name
            text = f"tenant {asked.tenant!r} had no retry left for {name} until {bound} was over"
            raise NoMore(StepEnd.BUDGET_EXHAUSTED, f"retry_budget of {name}; {bound}", text) from None

    def _asked_pause(self, asked: Asked, call: ToolCall, error: BaseException) -> float:
        """How long the other side asked to be left alone, in seconds; what is no such time is clamped, and said."""
        wish = getattr(error, "retry_after_s", None) if isinstance(error, ToolError) else None
        if wish is None:
            return 0.0
        usable = isinstance(wish, int | float) and not math.isnan(wish)
        pause_s = min(max(float(wish), 0.0), call.maximum_retry_after_s) if usable else 0.0
        if not usable or pause_s != wish:
            _LOG.warning("tool %s: retry_after is %r; taken as %g s", call.tool, wish, pause_s)
        if asked.gatekeeper is not None and pause_s > 0:
            asked.gatekeeper.stop(pause_s)
        return pause_s


def _failed(attempt: int, said: tuple[str, str], decision: Decision) -> Outcome:
    if isinstance(decision, Unknown):
        return Outcome(attempt, error=said, unknown=True, end=StepEnd.UNKNOWN, ended_by=decision.by)
    assert isinstance(decision, GiveUp)
    return Outcome(attempt, error=said, end=decision.end, ended_by=decision.by)


def _settled(tool: Tool[Any, Any], value: Any, attempt: int) -> Outcome:
    """Checks a result. A bad one is a failed step and not an unknown effect: the tool did answer."""
    result = tool.signature.result
    try:
        checked = result.check(value)
        return Outcome(attempt, checked, result.dump(checked))
    except InvalidValue as error:
        said = "InvalidValue", str(error)
        return Outcome(attempt, error=said, end=StepEnd.INVALID_RESULT, ended_by="the tool's return annotation")


def _is_for_us(error: BaseException) -> bool:
    """Whether an exception stops the step from outside, instead of being the tool's own doing.

    A tool may raise CancelledError because something of its own was cancelled, and SystemExit out of a library; such
    a tool has failed, and neither its run nor its host must end by it.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return isinstance(error, GeneratorExit)
