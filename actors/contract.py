"""What users write against: tools and agents, declared by decorators and otherwise plain Python."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeVar, overload

from actors.core.outcome import Risk
from actors.effect_options import HOOKS, NO_EFFECT, EffectOptions, check_effect_options
from actors.errors import DefinitionError
from actors.schema import Signature, Value
from admission.retry import LONGEST_RETRY_AFTER_S, RetryPolicy

if TYPE_CHECKING:
    from actors.run import Run

P = ParamSpec("P")
R = TypeVar("R")
I = TypeVar("I")  # noqa: E741 - the field's usual name for an input type
O = TypeVar("O")  # noqa: E741 - and for an output type
R_co = TypeVar("R_co", covariant=True)
I_contra = TypeVar("I_contra", contravariant=True)
O_co = TypeVar("O_co", covariant=True)
DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_SETTLE_WITHIN_S: Final = 86_400.0


class ToolCall:
    """What a tool knows of the call it serves. Read it; do not change it.

    Attributes:
        tool: the tool's name.
        run_id: the run that asks.
        step: the path of the step in the run.
        attempt: which attempt of the step this is, from 1, on this host.
        timeout_s: what this attempt has, from its start: the nearest of all bounds.
        bounded_by: which bound that is, by the name of its setting.
        tenant: the run's tenant.
        dependency: the dependency that the tool names, if any.
        is_effect: whether the tool changes the world outside.
        maximum_retry_after_s: longer wishes of the other side than this are clamped.
        usage: tokens that the call has used, as far as the tool has said.
        heard_at: when the tool has shown a sign of life for the last time, by the host's clock.
    """

    __slots__ = (
        "_clock", "_deadline", "_key", "attempt", "bounded_by", "dependency", "heard_at", "is_effect",
        "maximum_retry_after_s", "run_id", "step", "tenant", "timeout_s", "tool", "usage",
    )  # fmt: skip

    def __init__(
        self,
        tool: str,
        run_id: str,
        step: str,
        attempt: int,
        key: Callable[[], str],
        timeout_s: float,
        tenant: str,
        clock: Callable[[], float],
        *,
        dependency: str | None = None,
        is_effect: bool = False,
        bounded_by: str = "timeout",
        maximum_retry_after_s: float = LONGEST_RETRY_AFTER_S,
    ) -> None:
        self.tool = tool
        self.run_id = run_id
        self.step = step
        self.attempt = attempt
        self.timeout_s = timeout_s
        self.tenant = tenant
        self._key = key
        self._clock = clock
        self.dependency = dependency
        self.is_effect = is_effect
        self.bounded_by = bounded_by
        self.maximum_retry_after_s = maximum_retry_after_s
        self.usage: dict[str, int] | None = None
        self.heard_at = clock()
        self._deadline = self.heard_at + timeout_s

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of the step, on every host: hand it to the remote side."""
        return self._key()

    def remaining_s(self) -> float:
        """Seconds until this attempt's deadline; never negative. Pass it on to whatever is called."""
        return max(0.0, self._deadline - self._clock())

    def used(self, *, input_tokens: int | None = None, output_tokens: int | None = None) -> None:
        """Says what the call has really used, as soon as the other side has said so; what was reserved and is not
        needed goes back to everybody. The last word counts.
        """
        said = {"input_tokens": input_tokens, "output_tokens": output_tokens}
        self.usage = (self.usage or {}) | {name: int(count) for name, count in said.items() if count is not None}

    def heartbeat(self) -> None:
        """A sign of life: the tool's ``idle_timeout`` begins anew. For streams, at every piece that arrives."""
        self.heard_at = self._clock()


@dataclass(frozen=True)
class ToolOptions:
    """A tool's declaration; see :func:`tool`."""

    dependency: str | None
    risk: Risk
    timeout_s: float
    idempotent: bool
    retry: RetryPolicy | None
    resources: dict[str, float] | None
    schedule_to_close_s: float | None = None
    idle_timeout_s: float | None = None
    max_tokens: int | None = None
    reserve: Callable[..., Mapping[str, float]] | None = None
    effect: EffectOptions = NO_EFFECT


class Tool(Generic[P, R_co]):
    """A declared tool. Agents call it through ``run.call(tool, ...)``; ``tool.function`` is the undecorated one."""

    def __init__(self, function: Callable[..., Any], name: str, options: ToolOptions) -> None:
        self.function = function
        self.name = name
        self.options = options
        self.signature = Signature(function, f"tool {name!r}")
        self.is_async = inspect.iscoroutinefunction(function)
        self._hooks: dict[str, Tool[Any, Any] | None] = {}
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__

    def invoke(self, call: ToolCall, values: list[Any]) -> Any:
        """Calls the function with bound values; what it returns is an awaitable for coroutine functions."""
        keywords = self.signature.keywords
        if not keywords:
            return self.function(call, *values)
        positional = len(values) - len(keywords)
        return self.function(call, *values[:positional], **dict(zip(keywords, values[positional:], strict=True)))

    def hook(self, which: str) -> "Tool[Any, Any] | None":
        """What this tool declares as its ``reconcile``, ``verify``, ``compensate`` or ``simulate``: a tool of its own
        that keeps to the same dependency and bounds; None where it declares none.
        """
        if which not in self._hooks:
            function = getattr(self.options.effect, which)
            self._hooks[which] = None if function is None else self._made_hook(which, function)
        return self._hooks[which]

    def _made_hook(self, which: str, function: Callable[..., Any]) -> "Tool[Any, Any]":
        undoes, pretends = which == "compensate", which == "simulate"
        options = ToolOptions(
            None if pretends else self.options.dependency,
            self.options.risk if undoes else Risk.READ,
            self.options.timeout_s,
            self.options.idempotent and undoes,
            self.options.retry,
            None,
            effect=EffectOptions(owner=self.options.effect.owner, replicas=self.options.effect.replicas * undoes),
        )
        return Tool(function, f"{self.name}.{which}", options)

    def call_of_hook(self, which: str, values: list[Any], *first: Any) -> tuple["Tool[Any, Any]", list[Any]] | None:
        """A hook and its arguments for a call with these values: what comes ``first``, then the tool's own."""
        hook = self.hook(which)
        if hook is None:
            return None
        positional = len(values) - len(self.signature.keywords)
        named = dict(zip(self.signature.keywords, values[positional:], strict=True))
        return hook, hook.signature.bind((*first, *values[:positional]), named)[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses: a direct call would be neither recorded nor bounded."""
        raise DefinitionError(
            f"tool {self.name!r} was called directly: that would be neither recorded nor bounded. "
            f"Use `await run.call({self.__name__}, ...)`, or {self.__name__}.function(...) in a test"
        )

    def __repr__(self) -> str:
        return f"<tool {self.name!r} {self.options.risk.name.lower()}>"


class Agent(Generic[I_contra, O_co]):
    """A declared agent; ``agent.function`` is the undecorated one."""

    def __init__(self, function: Callable[..., Any], name: str, version: str) -> None:
        self.function = function
        self.name = name
        self.version = version
        signature = Signature(function, f"agent {name!r}")
        if len(signature.inputs) != 1 or signature.keywords:
            raise DefinitionError(f"agent {name!r} must take the run and one input, as in `async def f(run, input)`")
        self.input: Value = signature.inputs[0]
        self.output: Value = signature.result
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__

    @property
    def input_adapter(self) -> Any:
        """Pydantic's TypeAdapter of the input."""
        return self.input.adapter

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses: a direct call would not be durable."""
        raise DefinitionError(
            f"agent {self.name!r} was called directly: that would not be durable. Submit a job, or use "
            f"`await run.spawn({self.__name__}, input)`"
        )

    def __repr__(self) -> str:
        return f"<agent {self.name!r} version {self.version!r}>"


def _checked_name(kind: str, name: str) -> str:
    if not name or len(name) > 128 or not name.isprintable() or any(letter in name for letter in " @:{}"):
        raise DefinitionError(f"{kind} name {name!r}: 1 to 128 printable characters without spaces, @, : or braces")
    return name


class _ToolDecorator:
    """Types ``@tool(...)`` for coroutine functions and plain functions alike."""

    def __init__(self, name: str | None, options: ToolOptions) -> None:
        self._name = name
        self._options = options

    @overload
    def __call__(self, function: Callable[Concatenate[ToolCall, P], Awaitable[R]]) -> Tool[P, R]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[ToolCall, P], R]) -> Tool[P, R]: ...

    def __call__(self, function: Callable[..., Any]) -> Tool[Any, Any]:
        made: Tool[Any, Any] = Tool(function, _checked_name("tool", self._name or function.__name__), self._options)
        check_effect_options(made.name, self._options.effect, self._options.risk, made.signature)
        for which in HOOKS:
            made.hook(which)  # what is wrong with it is said here, and not when it is needed
        if self._options.resources is not None and "<locals>" in made.__qualname__:
            raise DefinitionError(
                f"tool {made.name!r} asks for Ray resources, so it must be importable: define it at module level"
            )
        return made


def tool(
    *,
    name: str | None = None,
    dependency: str | None = None,
    risk: Risk = Risk.READ,
    timeout: float = DEFAULT_TIMEOUT_S,
    idempotent: bool = False,
    retry: RetryPolicy | None = None,
    resources: dict[str, float] | None = None,
    schedule_to_close: float | None = None,
    idle_timeout: float | None = None,
    max_tokens: int | None = None,
    reserve: Callable[..., Mapping[str, float]] | None = None,
    reconcile: Callable[..., Any] | None = None,
    compensate: Callable[..., Any] | None = None,
    simulate: Callable[..., Any] | None = None,
    verify: Callable[..., Any] | None = None,
    needs_approval: bool | Callable[..., bool] = False,
    advisory: Sequence[str] = (),
    scopes: Sequence[str] = (),
    settle_within: float = DEFAULT_SETTLE_WITHIN_S,
    lands_within: float | None = None,
    owner: str = "",
    replicas: int = 0,
) -> _ToolDecorator:
    """Declares a tool: a function of a :class:`ToolCall` and plain or pydantic arguments.

    Coroutine functions run on the host's event loop, plain functions in its thread pool, and with ``resources``
    (``{"num_cpus": 1}``) as a Ray task.

    Args:
        name: recorded in journals; the function's name by default.
        dependency: the service that it calls, whose limits it shares with other tools.
        risk: READ and DRAFT may be repeated freely; WRITE and IRREVERSIBLE are effects with an intent and a receipt.
        timeout: seconds that one attempt may take, from its start to its end.
        idempotent: the remote side honours ``call.idempotency_key``, so that an effect may be sent again.
        retry: how often failed attempts are repeated; by default as the dependency says.
        resources: Ray resources of the task that runs it.
        schedule_to_close: seconds that the whole step may take, with all its waiting and all its attempts; by default a
            day. The run's own deadline may come first.
        idle_timeout: seconds that one attempt may be silent; the tool tells by ``call.heartbeat()`` that it is alive.
        max_tokens: how many output tokens the call asks for at most; reserved while nothing better is known.
        reserve: given the tool's arguments, what a call takes of the dependency's limits, as in
            ``{"input_tokens": 1200}``; what it does not name is estimated.
        reconcile: ``reconcile(call, *args)``, read-only: what became of a call whose answer was lost. Returns
            :class:`Applied`, or None when the other side knows nothing of it.
        compensate: ``compensate(call, result, *args)``: undoes the effect when its run fails or is cancelled.
        simulate: ``simulate(call, *args)``: a result without the effect, for repeated-run evals.
        verify: ``verify(call, result, *args)``, read-only: the evidence that the effect is there, after the tool has
            said so. Raises :class:`NotApplied` while it cannot be seen.
        needs_approval: a person has to approve the exact call; or a function of the arguments that says so.
        advisory: names of arguments that an approval does not bind.
        scopes: grants that a job needs for this tool, all of them.
        settle_within: seconds within which somebody should have settled an unknown outcome.
        lands_within: seconds after which a request that was sent can have no effect any more if it has had none; by
            default as long as ``timeout``. A negative answer of ``reconcile`` counts only then.
        owner: who settles unknown outcomes, for people.
        replicas: how many replicas of the store must have the effect's intent and receipt before it goes on.

    Raises:
        DefinitionError: the declaration cannot work; the text names the tool and the fix.
    """
    if timeout <= 0:
        raise DefinitionError(f"tool {name or ''}: timeout is {timeout}; give seconds above zero")
    for what, bound in (("schedule_to_close", schedule_to_close), ("idle_timeout", idle_timeout)):
        if bound is not None and bound <= 0:
            raise DefinitionError(f"tool {name or ''}: {what} is {bound}; give seconds above zero")
    if schedule_to_close is not None and schedule_to_close < timeout:
        raise DefinitionError(
            f"tool {name or ''}: one attempt may take {timeout:g} s (timeout), the whole step only "
            f"{schedule_to_close:g} s (schedule_to_close). Give the step more, or the attempt less"
        )
    if max_tokens is not None and max_tokens < 1:
        raise DefinitionError(f"tool {name or ''}: max_tokens is {max_tokens}; give a number above zero")
    if dependency is None and (max_tokens is not None or reserve is not None):
        raise DefinitionError(f"tool {name or ''}: max_tokens and reserve count against a dependency's limits; name it")
    known = {"num_cpus", "num_gpus", "memory"}
    if resources is not None and not set(resources) <= known:
        raise DefinitionError(f"tool {name or ''}: resources {sorted(set(resources) - known)}; known: {sorted(known)}")
    options = ToolOptions(
        dependency,
        risk,
        float(timeout),
        idempotent,
        retry,
        resources,
        schedule_to_close,
        idle_timeout,
        max_tokens,
        reserve,
        EffectOptions(
            reconcile,
            compensate,
            simulate,
            verify,
            needs_approval,
            tuple(advisory),
            tuple(scopes),
            float(settle_within),
            float(timeout if lands_within is None else lands_within),
            owner,
            replicas,
        ),
    )
    return _ToolDecorator(name, options)


class _AgentDecorator:
    """Types ``@agent(...)``."""

    def __init__(self, name: str, version: str) -> None:
        self._name = name
        self._version = version

    def __call__(self, function: "Callable[[Run, I], Awaitable[O]]") -> Agent[I, O]:
        if not inspect.iscoroutinefunction(function):
            raise DefinitionError(f"agent {self._name!r} must be a coroutine function (`async def`)")
        return Agent(function, self._name, self._version)


def agent(name: str, *, version: str) -> _AgentDecorator:
    """Declares an agent: ``async def f(run: Run, input: Input) -> Output``.

    ``version`` pins runs: a run goes on under the version that it started with. Change it when the code asks for
    other steps than before.
    """
    _checked_name("agent version", version)
    return _AgentDecorator(_checked_name("agent", name), version)
