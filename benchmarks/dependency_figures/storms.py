"""Two storms: retries while a dependency is down, and 429s while it is over its quota."""

import asyncio
from bisect import bisect_right
from collections.abc import Sequence

from benchmarks.dependency_figures.bench import Bench, Deployment, of
from benchmarks.figures import Figure, at_least, at_most, beside
from benchmarks.provider import analysis
from benchmarks.provider.arrivals import Arrival
from benchmarks.provider.conduct import NS, OK, RATE_LIMITED, Mode, Quota

WELL = Mode(latency_ms=30, jitter_ms=20)
DOWN = Mode(latency_ms=30, jitter_ms=20, fail_share=1.0)
BUDGET = "budget alone"
BOTH = "budget and breaker"
NAIVE = "neither"
STEP_S = 0.1
SMOOTHED_S = 2.0
GRACE_S = 0.25
"""Calls may be on their way for so long when others are told to stop: it takes a message to the hub and its news."""


def recovery_s(moments_ns: Sequence[int], healed_ns: int, end_ns: int, rate: float) -> float:
    """Seconds until goodput is back for good: from then on no two seconds have less than 95 % of what is wanted."""
    found_ns = healed_ns
    step_ns, window_ns = round(STEP_S * NS), round(SMOOTHED_S * NS)
    for at_ns in range(healed_ns, end_ns - window_ns, step_ns):
        if analysis.between(moments_ns, at_ns, at_ns + window_ns) < 0.95 * rate * SMOOTHED_S:
            found_ns = at_ns + step_ns
    return (found_ns - healed_ns) / NS


async def retry_storm(
    bench: Bench,
    command: str,
    hosts: int = 8,
    rate: float = 60.0,
    well_s: float = 8.0,
    down_s: float = 60.0,
    after_s: float = 25.0,
    naive_rate: float = 20.0,
    naive_down_s: float = 20.0,
) -> list[Figure]:
    """Independent runs come at a constant rate, whatever becomes of them, while the provider fails for all."""
    figures: list[Figure] = []
    provider = bench.provider
    provider.set_mode(WELL)
    provider.forget()
    async with bench.hosts(hosts, slots_per_host=4000) as deployment:
        arms = {BUDGET: "provider-budgeted", BOTH: "provider"}
        calls = [{"tool": tool, "value": name} for name, tool in arms.items()]
        until = asyncio.get_running_loop().time() + well_s + down_s + after_s
        load = asyncio.create_task(deployment.single_calls(rate, until, calls, "storm"))
        await asyncio.sleep(well_s)
        down_ns = provider.set_mode(DOWN)
        await asyncio.sleep(down_s)
        healed_ns = provider.set_mode(WELL)
        await load
        end_ns = provider.set_mode(WELL)
        arrivals = provider.arrivals()
        await deployment.client.cancel("storm")
        control = await naive_storm(deployment, naive_rate, naive_down_s)
    steady_ns = down_ns + (healed_ns - down_ns) // 3
    for name in arms:
        own = of(arrivals, name)
        attempts = analysis.between(analysis.moments(own), steady_ns, healed_ns) * NS / (healed_ns - steady_ns)
        figures.append(
            at_most(f"retry storm: {name}: attempts while down", attempts / rate, "of the load", 1.1, command)
        )
        good = analysis.moments([arrival for arrival in own if arrival.status == OK])
        took_s = recovery_s(good, healed_ns, end_ns, rate)
        figures.append(at_most(f"retry storm: {name}: back to 95 % of goodput", took_s, "s", 15, command))
    figures.append(beside(f"retry storm: {NAIVE}: attempts after {naive_down_s:g} s", control, "of the load", command))
    return figures


async def naive_storm(deployment: Deployment, rate: float, down_s: float) -> float:
    """The control arm, with less load and for less time: attempts over the load in the last quarter of the outage."""
    provider = deployment.provider
    provider.forget()
    until = asyncio.get_running_loop().time() + down_s
    down_ns = provider.set_mode(DOWN)
    await deployment.single_calls(rate, until, [{"tool": "provider-naive", "value": NAIVE}], "naive")
    end_ns = provider.set_mode(WELL)
    await deployment.client.cancel("naive")
    from_ns = end_ns - (end_ns - down_ns) // 4
    attempts = analysis.between(analysis.moments(of(provider.arrivals(), NAIVE)), from_ns, end_ns)
    return attempts * NS / (end_ns - from_ns) / rate


async def too_many_requests(
    bench: Bench,
    command: str,
    hosts: int = 8,
    amount: int = 500,
    window_s: float = 10.0,
    unknown_s: float = 15.0,
    known_s: float = 60.0,
) -> list[Figure]:
    """Half as many calls again as the quota allows: first nobody knows it, then an operator sets it."""
    provider = bench.provider
    quota = Quota(amount=amount, window_s=window_s, retry_after_s=2.0, strict=True)
    limited = Mode(latency_ms=20, jitter_ms=20, quota=quota)
    provider.set_mode(limited)
    provider.forget()
    async with bench.hosts(hosts) as deployment:
        span_s = unknown_s + known_s
        batch, _ = await deployment.shape(span_s=span_s, rate=1.5 * amount / window_s)
        await asyncio.sleep(1.0 + unknown_s)
        await deployment.define("provider", rate=[{"resource": "requests", "amount": amount, "per": window_s}])
        known_ns = provider.set_mode(limited)
        await asyncio.sleep(known_s - 1.0)
        end_ns = provider.set_mode(limited)
        arrivals = provider.arrivals()
        await deployment.client.cancel(batch)
        provider.set_mode(WELL)
    before = [arrival for arrival in arrivals if arrival.at_ns < known_ns]
    after = [arrival for arrival in arrivals if arrival.at_ns >= known_ns]
    through = analysis.moments(analysis.let_through(after))
    used = analysis.share_used(through, amount, window_s, known_ns + round(window_s * NS), end_ns)
    return [
        beside("429 storm: calls that got a 429 while limits are unknown", _refused(before), "of the calls", command),
        at_most(
            "429 storm: calls that got a 429 once limits are known", _refused(after), "of the calls", 0.001, command
        ),
        at_least("429 storm: calls once limits are known", len(after), "calls", 1000 * known_s / 60, command),
        at_most(
            f"429 storm: calls before a Retry-After has passed (those on their way for {GRACE_S:g} s excepted)",
            len(analysis.before_retry_after(arrivals, GRACE_S)),
            "calls",
            0,
            command,
        ),
        beside("429 storm: last call after a 429 that was on its way", _latest_s(arrivals), "s", command),
        beside("429 storm: use of the quota once limits are known", used, "of the quota", command),
    ]


def _refused(arrivals: Sequence[Arrival]) -> float:
    return sum(arrival.status == RATE_LIMITED for arrival in arrivals) / max(1, len(arrivals))


def _latest_s(arrivals: Sequence[Arrival]) -> float:
    """How long after a 429 the last call came that should have waited."""
    refused = [arrival.at_ns for arrival in arrivals if arrival.status == RATE_LIMITED]
    early = analysis.before_retry_after(arrivals)
    # 429s that such calls get themselves do not begin a new pause.
    firsts = [at for at, last in zip(refused, [0, *refused], strict=False) if at - last > NS]
    return max((each.at_ns - firsts[bisect_right(firsts, each.at_ns) - 1] for each in early), default=0) / NS
