"""The breaker: how soon it has opened for all hosts, what still reaches the provider then, and one bad host.

When the condition held, when the last ordinary call came and how many came after it is all from the provider's own
record; only how many probes were granted is from the hub: each time that it says that it is probing is one probe, as
long as the provider fails.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from benchmarks.dependency_figures.bench import Bench, Deployment
from benchmarks.figures import Figure, at_least, at_most, beside
from benchmarks.provider.arrivals import Arrival
from benchmarks.provider.conduct import FAILED, NS, OK
from cluster.tasks import end

WINDOW_S = 10.0
MINIMUM_CALLS = 20
FAILURE_RATE = 0.5
EARLIEST_PROBE_S = 1.5


class Told(NamedTuple):
    """News of a hub: when it was heard, in nanoseconds of the monotonic clock, and which."""

    at_ns: int
    news: dict[str, Any]


@asynccontextmanager
async def listening(deployment: Deployment, dependency: str) -> AsyncIterator[list[Told]]:
    """What the hub tells its hosts meanwhile."""
    told: list[Told] = []
    store, ready = deployment.client.store, asyncio.Event()

    async def listen() -> None:
        async for message in store.listen(store.keys.dependencies_channel):
            ready.set()
            words = ["changed"] if message is None else message[1].split(" ", 2)
            if words[:2] == ["news", dependency]:
                told.append(Told(time.monotonic_ns(), json.loads(words[2])))

    task = asyncio.create_task(listen())
    await ready.wait()
    try:
        yield told
    finally:
        await end([task])


def condition_ns(arrivals: Sequence[Arrival], *, of_all_together: bool = False) -> int:
    """When the default breaker's condition held first: by the answers that the provider has sent.

    Args:
        arrivals: the provider's own record.
        of_all_together: whether the rate over all calls is enough; otherwise it must hold with any one host left out,
            as it must for a breaker to open for everybody.

    Raises:
        ValueError: it never did.
    """
    answers = sorted((each.ended_ns, each.host, each.status == FAILED) for each in arrivals if each.ended_ns)
    calls, failed = Counter[str](), Counter[str]()
    first = 0
    for at_ns, host, bad in answers:
        calls[host] += 1
        failed[host] += bad
        while at_ns - answers[first][0] >= WINDOW_S * NS:
            _, gone, was_bad = answers[first]
            calls[gone] -= 1
            failed[gone] -= was_bad
            first += 1
        all_calls, all_failed = calls.total(), failed.total()
        if all_calls < MINIMUM_CALLS or all_failed < FAILURE_RATE * all_calls:
            continue
        if of_all_together or all(
            all_failed - failed[each] >= FAILURE_RATE * (all_calls - calls[each]) for each in calls
        ):
            return at_ns
    raise ValueError("the condition never held")


async def breaker(bench: Bench, command: str) -> list[Figure]:
    """The provider fails for all hosts; then, in a second deployment, only for one."""
    return await opening(bench, command) + await one_bad_host(bench, command)


async def opening(
    bench: Bench, command: str, hosts: int = 8, rate: float = 120.0, well_s: float = 3.0, open_s: float = 20.0
) -> list[Figure]:
    """The provider begins to fail under load. All of it is younger than the window when the breaker opens, so that it
    does not matter by how little the hub's window of ten slots is shorter than ten seconds.
    """
    provider = bench.provider
    provider.set_mode(latency_ms=30, jitter_ms=20)
    provider.forget()
    async with bench.hosts(hosts, slots_per_host=1000) as deployment, listening(deployment, "provider") as told:
        loop = asyncio.get_running_loop()
        until = loop.time() + well_s + open_s
        load = asyncio.create_task(deployment.single_calls(rate, until, [{}], "load"))
        await asyncio.sleep(well_s)
        failing_ns = provider.set_mode(latency_ms=30, jitter_ms=20, fail_share=1.0)
        await load
        arrivals = provider.arrivals()
        await deployment.client.cancel("load")
        provider.set_mode()
    held_ns, together_ns = condition_ns(arrivals), condition_ns(arrivals, of_all_together=True)
    opened_ns = next(each.at_ns for each in told if each.news["state"] == "open")
    probing = [each.at_ns for each in told if each.news["state"] == "probing"]
    assert probing, "it never began to probe: nothing is known of what comes then"
    # A breaker stays open for 1.6 s at least: what comes sooner is no probe, and all that comes later has to be one.
    probed_ns = opened_ns + round(EARLIEST_PROBE_S * NS)
    last_ns = max(each.at_ns for each in arrivals if each.at_ns < probed_ns)
    later = sum(each.at_ns >= probed_ns for each in arrivals)
    late = sum(opened_ns < each.at_ns < probed_ns for each in arrivals)
    whole = len({each.host for each in arrivals})
    assert whole == hosts, f"only {whole} of {hosts} hosts had calls"
    return [
        beside("breaker: from the first failure to the condition", (held_ns - failing_ns) / NS, "s", command),
        beside(
            "breaker: the same rate over all calls together, before that", (held_ns - together_ns) / NS, "s", command
        ),
        at_most(
            f"breaker: condition to the last ordinary call of {hosts} hosts", (last_ns - held_ns) / NS, "s", 1, command
        ),
        beside("breaker: condition to the hub's word", (opened_ns - held_ns) / NS, "s", command),
        beside("breaker: calls that were on their way at the hub's word", late, "calls", command),
        beside(f"breaker: probes granted in the {open_s:g} s after", len(probing), "calls", command),
        at_most("breaker: calls after that beyond the probes", later - len(probing), "calls", 0, command),
    ]


async def one_bad_host(
    bench: Bench, command: str, hosts: int = 8, rate: float = 120.0, span_s: float = 12.0
) -> list[Figure]:
    """One host, with most of the calls, fails: by the rate over all calls the breaker would open for everybody."""
    provider = bench.provider
    provider.set_mode(latency_ms=30, jitter_ms=20)
    provider.forget()
    async with bench.hosts(hosts) as deployment, listening(deployment, "provider") as told:
        # Short openings: a run that waits for long is unloaded, and another host might take it.
        await deployment.define("provider", breaker={"open_s": 1.0, "maximum_open_s": 2.0})
        bad = (await deployment.labels())[0]
        provider.set_mode(latency_ms=30, jitter_ms=20, fail_share=1.0, fail_hosts=(bad,))
        # As many calls as all others together, and then some.
        weights = [1.5 * (hosts - 1)] + [1.0] * (hosts - 1)
        batch, _ = await deployment.shape(span_s=span_s, rate=rate, weights=weights, patience_s=0.5)
        await asyncio.sleep(1.0 + span_s)
        state = (await deployment.client.dependency("provider")).breaker.state
        arrivals = provider.arrivals()
        provider.set_mode(latency_ms=30, jitter_ms=20)
        await deployment.client.cancel(batch)
    condition_ns(arrivals, of_all_together=True)  # it held for all calls together: that is what must not matter
    others = [arrival for arrival in arrivals if arrival.host != bad]
    wanted = rate * span_s * (hosts - 1) / sum(weights)
    opened = sum(each.news["state"] == "open" for each in told) + (state != "closed")
    good = sum(arrival.status == OK for arrival in others)
    return [
        at_most("breaker: one bad host with most calls: openings for the others", opened, "openings", 0, command),
        at_least("breaker: the others' calls meanwhile", good / wanted, "of those wanted", 0.9, command),
        beside("breaker: the bad host's calls that still went", len(arrivals) - len(others), "calls", command),
    ]
