"""The agents of the figures about dependencies: callers of one provider, each bounded in another way.

``PROVIDER_URL`` says where the provider is, ``BENCH_REDIS_URL`` where the arm with one round trip per call counts;
hosts inherit both from Ray's processes. The limits declared here are far off: a benchmark overrides them through the
store.
"""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final

import redis.asyncio as redis
from aiolimiter import AsyncLimiter
from pydantic import BaseModel, Field
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from actors.contract import Tool, ToolCall, agent, tool
from actors.core.outcome import Risk
from actors.errors import NotApplied, RateLimited, Rejected, StepFailed
from actors.run import Run
from admission.dependency import Dependency, Limit
from admission.retry import RetryPolicy
from benchmarks.provider_client import client

REDIS_VARIABLE: Final = "BENCH_REDIS_URL"
ATTEMPT_TIMEOUT_S: Final = 5.0
# Where waiting for a permit happens inside the tool, it counts as the tool's time: such tools get more of it.
WAITING_TIMEOUT_S: Final = 60.0
FAR_OFF: Final = 1_000_000

HOST: Final = str(os.getpid())
"""What the provider knows this host by: the pid that hosts register with."""

provider = Dependency("provider", rate=[Limit("requests", FAR_OFF, per="1m")])
provider_tokens = Dependency("provider-tokens", rate=[Limit("input_tokens", FAR_OFF, per="1m")])

# Without a breaker the budget alone has to hold retries back.
provider_budgeted = Dependency("provider-budgeted", breaker=None)

# The control arm of the retry storm: everybody tries again and again, and nobody looks at what the others see.
provider_naive = Dependency(
    "provider-naive",
    breaker=None,
    retry_budget=None,
    retry=RetryPolicy(initial_interval=0.05, maximum_interval=1.0, maximum_attempts=50, max_duration=120.0),
)


class Permits(BaseModel):
    """What the tools keep to that have no dependency: the same limit, told to each of them.

    Attributes:
        amount: calls in a window, by all hosts together.
        window_s: the window.
        hosts: how many hosts share it, for those that split it.
        burst: calls that may go at once after a pause, by all hosts together; None for ``amount``, as both limiters are
            commonly used, which allows up to twice the amount in the worst window. The smaller, the smoother.
        key: where Redis counts.
    """

    amount: float = Field(gt=0)
    window_s: float = Field(gt=0)
    hosts: int = Field(default=1, ge=1)
    burst: float | None = Field(default=None, ge=1)
    key: str = "bench:permits"


class Calls(BaseModel):
    """What a caller does.

    Attributes:
        calls: how many.
        tool: which of :data:`TOOLS` makes them.
        interval_s: None to make one after the other; otherwise one starts every so many seconds, whatever becomes of
            the earlier ones, as users outside would start them.
        delay_s: how long it waits before the first one.
        tokens: what each call says that it takes.
        value: what each call says that it is worth.
        permits: for the tools without a dependency.
    """

    calls: int = Field(ge=0)
    tool: str = "provider"
    interval_s: float | None = Field(default=None, ge=0)
    delay_s: float = Field(default=0.0, ge=0)
    tokens: int = Field(default=0, ge=0)
    value: str = "normal"
    permits: Permits | None = None


class Made(BaseModel):
    """How calls ended: those that failed for good by the class of their error."""

    succeeded: int = 0
    failed: dict[str, int] = {}


async def send(call: ToolCall, tokens: int, value: str) -> int:
    """Calls the provider; returns the status."""
    answer = await client().call(host=HOST, tokens=tokens, attempt=call.attempt, value=value)
    if tokens:
        call.used(input_tokens=tokens, output_tokens=0)
    return answer.status


def calling(dependency: Dependency) -> Tool[[int, str], int]:
    """The tool that calls the provider under a dependency's rules. It is the same for all of them."""

    async def call_provider(call: ToolCall, tokens: int, value: str) -> int:
        """Calls the provider."""
        return await send(call, tokens, value)

    reserves = any(limit.resource != "requests" for limit in dependency.rate)
    declared = tool(
        name=f"call_{dependency.name}",
        dependency=dependency.name,
        risk=Risk.READ,
        timeout=ATTEMPT_TIMEOUT_S,
        reserve=(lambda tokens, value: {"input_tokens": tokens}) if reserves else None,
    )
    return declared(call_provider)


# ------------------------------------------------------------------------------------------- without a dependency

_limiters: dict[tuple[float, float], AsyncLimiter] = {}
_limiters_loop: asyncio.AbstractEventLoop | None = None


def limiter(permits: Permits) -> AsyncLimiter:
    """This host's limiter: its equal part of the limit. One for each event loop, as aiolimiter needs it."""
    global _limiters_loop
    loop = asyncio.get_running_loop()
    if _limiters_loop is not loop:
        _limiters.clear()
        _limiters_loop = loop
    # Its capacity cannot be below what one call takes.
    capacity = max(1.0, (permits.burst or permits.amount) / permits.hosts)
    share = permits.amount / permits.hosts
    period_s = permits.window_s * capacity / share
    found = _limiters.get((capacity, period_s))
    if found is None:
        found = _limiters[capacity, period_s] = AsyncLimiter(capacity, period_s)
    return found


@tool(risk=Risk.READ, timeout=WAITING_TIMEOUT_S)
async def call_with_aiolimiter(call: ToolCall, tokens: int, value: str, permits: Permits) -> int:
    """Calls the provider when this host's part of the limit has room."""
    async with limiter(permits):
        async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
            return await send(call, tokens, value)


# The generic cell rate algorithm (ITU-T I.371), with the server's clock: one round trip says when the caller may go and
# books that moment, so that nobody asks twice and nobody overtakes. Nothing is booked for a caller that will not wait.
# KEYS: where the theoretical arrival time is. ARGV, in microseconds: interval between calls, tolerance, longest wait.
# Returns how long to wait, or minus how long it would have been.
GCRA: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, tolerance, longest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local expected = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local wait = math.max(0, expected - tolerance - now)
if wait > longest then return -math.ceil(wait) end
local booked = expected + interval
redis.call('SET', KEYS[1], string.format('%.3f', booked), 'PX', math.ceil((booked - now) / 1000) + 1000)
return math.ceil(wait)
"""
GCRA_SHA: Final = hashlib.sha1(GCRA.encode(), usedforsecurity=False).hexdigest()
CONNECTIONS: Final = 32
_redis: tuple[asyncio.AbstractEventLoop, "redis.Redis"] | None = None


def counting() -> "redis.Redis":
    """This loop's client of the server that counts; a call waits for one of its connections rather than to open one."""
    global _redis
    loop = asyncio.get_running_loop()
    if _redis is None or _redis[0] is not loop:
        url = os.environ.get(REDIS_VARIABLE)
        if not url:
            raise Rejected(f"{REDIS_VARIABLE} is not set: start the hosts with it, as in redis://127.0.0.1:6379/0")
        # Without repetition: a booking that is sent twice is made twice, and its step tries again by itself.
        pool = redis.BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=ATTEMPT_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
        _redis = loop, redis.Redis.from_pool(pool)
    return _redis[1]


async def permitted(permits: Permits, longest_s: float) -> None:
    """Waits until a call may go.

    Raises:
        RateLimited: that would take longer than ``longest_s``.
        NotApplied: the server cannot be asked.
    """
    interval_us = permits.window_s / permits.amount * 1e6
    tolerance_us = interval_us * ((permits.burst or permits.amount) - 1)
    arguments: tuple[str, ...] = (permits.key, f"{interval_us:.3f}", f"{tolerance_us:.3f}", f"{longest_s * 1e6:.0f}")
    store = counting()
    try:
        try:
            wait_us = int(await _run(store.evalsha, GCRA_SHA, *arguments))
        except NoScriptError:
            wait_us = int(await _run(store.eval, GCRA, *arguments))
    except RedisError as error:
        raise NotApplied(f"no permit: {error}") from None
    if wait_us < 0:
        raise RateLimited("no permit in time", retry_after=max(0.0, -wait_us / 1e6 - longest_s))
    if wait_us:
        await asyncio.sleep(wait_us / 1e6)


async def _run(command: Callable[..., Any], script: str, *arguments: str) -> Any:
    """One script with one key."""
    sent: Awaitable[Any] = command(script, 1, *arguments)
    return await sent


@tool(risk=Risk.READ, timeout=WAITING_TIMEOUT_S)
async def call_with_redis(call: ToolCall, tokens: int, value: str, permits: Permits) -> int:
    """Calls the provider when Redis says so: one round trip before every call."""
    await permitted(permits, call.remaining_s() - ATTEMPT_TIMEOUT_S)
    async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
        return await send(call, tokens, value)


# ------------------------------------------------------------------------------------------------------- callers

TOOLS: Final[dict[str, Tool[[int, str], int]]] = {
    dependency.name: calling(dependency)
    for dependency in (provider, provider_tokens, provider_budgeted, provider_naive)
}
PERMITTED: Final[dict[str, Tool[[int, str, Permits], int]]] = {
    "aiolimiter": call_with_aiolimiter,
    "redis": call_with_redis,
}


async def one(run: Run, wanted: Calls, made: Made) -> None:
    """One call, and how it ended. A failure for good does not end the caller: the load goes on."""
    try:
        if wanted.permits is None:
            await run.call(TOOLS[wanted.tool], wanted.tokens, wanted.value)
        else:
            await run.call(PERMITTED[wanted.tool], wanted.tokens, wanted.value, wanted.permits)
    except StepFailed as failed:
        made.failed[failed.error_class] = made.failed.get(failed.error_class, 0) + 1
    else:
        made.succeeded += 1


@agent("caller", version="1")
async def caller(run: Run, wanted: Calls) -> Made:
    """Makes calls, one after the other or at fixed moments."""
    made = Made()
    if wanted.delay_s:
        await asyncio.sleep(wanted.delay_s)
    if wanted.interval_s is None:
        for _ in range(wanted.calls):
            await one(run, wanted, made)
        return made
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(wanted.calls):
            await asyncio.sleep(started + number * wanted.interval_s - loop.time())
            group.create_task(one(run, wanted, made))
    return made
