"""A gatekeeper's futures: nobody waits for ever, nothing leaks, and who gives up gives up the place too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from actors.gatekeeper import Gatekeeper, Postponed
from actors.messages import decode_report, encode_message
from admission.dependency import Breaker, Dependency, Limit, RetryBudget
from admission.exchange import Lease
from admission.hub import Hub
from admission.passage import Passage

ONE = {"requests": 1.0}


class Line:
    """A link to a pure hub in the same loop; it can be cut, and can hang."""

    def __init__(self, dependency: Dependency) -> None:
        self.hub = Hub(dependency, 1, asyncio.get_running_loop().time())
        self.is_cut = False
        self.reports = 0

    async def __call__(self, raw: bytes) -> bytes:
        self.reports += 1
        await asyncio.sleep(0)
        if self.is_cut:
            raise ConnectionError("cut")
        return encode_message(self.hub.exchange(asyncio.get_running_loop().time(), 0.5, decode_report(raw)))


def made(**fields: Any) -> tuple[Gatekeeper, Line]:
    dependency = Dependency("d", **fields)
    line = Line(dependency)
    return Gatekeeper(dependency, "h", line), line


async def pass_(keeper: Gatekeeper, rank: int = 2, *, may_postpone: bool = False) -> Passage:
    passage = keeper.try_pass(rank, ONE, True)
    return (
        passage
        if passage is not None
        else await asyncio.wait_for(keeper.passage(rank, ONE, True, may_postpone=may_postpone), 5)
    )


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)


async def test_after_the_first_exchange_calls_go_without_a_message() -> None:
    keeper, line = made()
    keeper.done(await pass_(keeper), "succeeded")
    before = line.reports
    for _ in range(1000):
        passage = keeper.try_pass(2, ONE, True)
        assert passage is not None
        keeper.done(passage, "succeeded")
    assert line.reports == before
    await keeper.close()


async def test_who_is_cancelled_gives_up_the_place_also_in_the_moment_of_the_grant() -> None:
    keeper, _ = made(max_concurrency=1)
    first = await pass_(keeper)
    before = asyncio.all_tasks()
    waiters = [asyncio.create_task(keeper.passage(2, ONE, True)) for _ in range(3)]
    await asyncio.sleep(0)
    keeper.done(first, "succeeded")  # the first one's future is set, and it is cancelled before it runs
    waiters[0].cancel()
    waiters[1].cancel()
    second = await asyncio.wait_for(waiters[2], 5)
    assert waiters[0].cancelled()
    assert (keeper.gate.in_flight, keeper.gate.line.waiting) == (1, 0)
    keeper.done(second, "succeeded")
    assert keeper.gate.in_flight == 0
    await asyncio.sleep(0)
    assert asyncio.all_tasks() <= before
    await keeper.close()


async def test_a_thousand_who_wait_are_one_task() -> None:
    keeper, _ = made(max_concurrency=1)
    first = await pass_(keeper)
    before = len(asyncio.all_tasks())
    waiters = [keeper.passage(2, ONE, True) for _ in range(1000)]
    group = asyncio.gather(*waiters, return_exceptions=True)
    await asyncio.sleep(0.3)
    assert keeper.gate.line.waiting == 1000
    assert len(asyncio.all_tasks()) == before + 1000, "those of the waiters themselves, and no more"
    group.cancel()
    with pytest.raises(asyncio.CancelledError):
        await group
    assert keeper.gate.line.waiting == 0
    keeper.done(first, "succeeded")
    await keeper.close()
    assert len(asyncio.all_tasks()) == 1


async def test_a_long_wait_is_postponed_for_those_who_can_and_also_when_the_news_comes_later() -> None:
    keeper, line = made(breaker=Breaker(open_s=60, maximum_open_s=60), max_concurrency=1)
    first = await pass_(keeper)
    may, must = (asyncio.create_task(keeper.passage(2, ONE, True, may_postpone=each)) for each in (True, False))
    await asyncio.sleep(0.05)
    line.hub.command("open", "ann", "maintenance", asyncio.get_running_loop().time())
    with pytest.raises(Postponed, match="maintenance") as caught:
        await asyncio.wait_for(may, 5)
    assert caught.value.hindrance.kind == "breaker"
    assert not must.done()
    with pytest.raises(Postponed):
        await keeper.passage(2, ONE, True, may_postpone=True)
    line.hub.command("close", "ann", "", asyncio.get_running_loop().time())
    keeper.done(first, "succeeded")
    keeper.done(await asyncio.wait_for(must, 5), "succeeded")
    assert keeper.gate.in_flight == 0
    await keeper.close()


async def test_retries_wait_for_the_budget_and_one_that_is_cancelled_gives_its_grant_back() -> None:
    keeper, line = made(retry_budget=RetryBudget(ratio=0, reserve=2, per_second=0))
    keeper.done(await pass_(keeper), "succeeded")
    await asyncio.wait_for(keeper.retry("t"), 5)
    await asyncio.wait_for(keeper.retry("t"), 5)
    waiting = asyncio.create_task(keeper.retry("t"))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    keeper.retry_helped("t")  # one that went was answered: the next may go in its place
    await asyncio.wait_for(waiting, 5)
    late = asyncio.create_task(keeper.retry("t"))
    await asyncio.sleep(0.05)
    late.cancel()
    await asyncio.wait({late})
    await keeper.close()
    assert line.hub.budgets is not None
    assert line.hub.budgets.view(asyncio.get_running_loop().time())["t"]["retries"] == 2


async def without_talk() -> Gatekeeper:
    """A gatekeeper that says nothing by itself: what is granted is what the test grants."""
    keeper, _ = made()
    await keeper.close()
    keeper.gate.accept(0.0, 0.0, Lease(1, 1, retries={}))
    return keeper


@pytest.mark.parametrize("how", ["granted", "another helped"])
async def test_who_is_cancelled_while_a_retry_is_granted_is_cancelled_and_counted_once(how: str) -> None:
    keeper = await without_talk()
    waiters = [asyncio.create_task(keeper.retry("t")) for _ in range(3)]
    await asyncio.sleep(0)
    waiters[0].cancel()  # its future is over, and it has not run yet
    later = asyncio.create_task(keeper.retry("t"))
    if how == "granted":
        keeper._grant_retries(keeper.gate.accept(0.0, 0.0, Lease(1, 2, retries={"t": 1})))
    else:
        keeper.retry_helped("t")
    await asyncio.wait(waiters, timeout=0.05)
    assert waiters[0].cancelled()
    assert waiters[1].done()
    assert not waiters[2].done()
    report, _ = keeper.gate.report(0.0)
    assert (report.retries_wanted, report.retries_returned, report.retries) == ({"t": 2}, {}, 1)
    keeper._grant_retries(keeper.gate.accept(0.0, 0.0, Lease(1, 3, retries={"t": 3})))
    await asyncio.wait_for(asyncio.gather(waiters[2], later), 5)
    report, _ = keeper.gate.report(0.0)
    assert (report.retries_wanted, report.retries_returned) == ({}, {"t": 1})


async def test_the_last_who_wants_a_retry_is_cancelled_while_it_is_granted() -> None:
    keeper = await without_talk()
    only = asyncio.create_task(keeper.retry("t"))
    await asyncio.sleep(0)
    later = asyncio.create_task(keeper.retry("t"))  # it comes before the one that is cancelled has run
    only.cancel()
    keeper._grant_retries(keeper.gate.accept(0.0, 0.0, Lease(1, 2, retries={"t": 1})))
    await asyncio.wait((only,), timeout=5)
    assert only.cancelled()
    report, _ = keeper.gate.report(0.0)
    assert (report.retries_wanted, report.retries_returned) == ({"t": 1}, {"t": 1})
    keeper._grant_retries(keeper.gate.accept(0.0, 0.0, Lease(1, 3, retries={"t": 1})))
    await asyncio.wait_for(later, 5)


async def test_without_a_hub_a_waiter_is_let_go_by_the_safe_share_or_waits_for_its_bound() -> None:
    keeper, line = made(rate=[Limit("requests", 200, per=1)])
    for _ in range(20):
        keeper.done(await pass_(keeper), "succeeded")
    line.is_cut = True
    await settled(lambda: not keeper._hub_answers)
    for _ in range(5):
        keeper.done(await pass_(keeper), "succeeded")
    await keeper.close()
    stranger, other = made()
    other.is_cut = True
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stranger.passage(2, ONE, True), 0.3)
    assert stranger.hindrance().kind == "hub"
    await stranger.close()


async def test_what_operators_have_set_holds_on_hosts_too(caplog: pytest.LogCaptureFixture) -> None:
    keeper, line = made()
    keeper.done(await pass_(keeper), "succeeded")
    changed = Dependency("d", breaker=Breaker(slow_call_s=0.5), maximum_retry_after_s=7)
    line.hub.redefine(changed, asyncio.get_running_loop().time())
    await settled(lambda: keeper.dependency == changed)
    assert keeper.gate.slow_call_s == 0.5
    line.hub.redefine(Dependency("d", breaker=None), asyncio.get_running_loop().time())
    await settled(lambda: (keeper.dependency.breaker, keeper.gate.slow_call_s) == (None, None))
    await keeper.close()
    keeper._take_over(Lease(1, 1, definition={"name": "d", "of a later version": 1}))
    assert keeper.dependency.breaker is None
    assert "of a later version" in caplog.text


async def test_closing_gives_all_back_and_leaves_no_task() -> None:
    keeper, line = made(rate=[Limit("requests", 100, per=1)])
    keeper.done(await pass_(keeper), "succeeded")
    await keeper.close()
    assert line.hub.hosts == {}
    assert len(asyncio.all_tasks()) == 1
    keeper.abandon()


async def test_news_are_obeyed_before_the_next_exchange() -> None:
    keeper, _ = made()
    keeper.done(await pass_(keeper), "succeeded")
    keeper.news({"epoch": 4096, "state": "open", "generation": 9, "not_before_s": 2.0, "why": "told"})
    assert keeper.try_pass(2, ONE, True) is None
    assert keeper.hindrance().text == "told"
    await keeper.close()
