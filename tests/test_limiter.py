"""Rate limits hold exactly: in any window, for any history of permits, refunds, settlements, stops and restarts."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admission.dependency import Limit
from admission.limiter import DERATE, SLOTS, RateLimiter, amount_of

HELD_S = 1.0
TINY = 1e-6

LIMITS = st.sampled_from(
    [
        (Limit("requests", 3, per=1),),
        (Limit("requests", 7, per=10),),
        (Limit("requests", 4, per=2), Limit("requests", 9, per=20)),
        (Limit("requests", 5, per=1), Limit("tokens", 100, per=10)),
        (Limit("requests", 10, per=10), Limit("input_tokens", 60, per=10), Limit("output_tokens", 30, per=4)),
    ]
)
COSTS = st.fixed_dictionaries(
    {"requests": st.sampled_from([1.0, 1.0, 2.0])},
    optional={"input_tokens": st.integers(0, 40).map(float), "output_tokens": st.integers(0, 25).map(float)},
)


@dataclass(eq=False)
class Permit:
    """One that is out, or was used: what it allows, since when, and what was really used of it."""

    granted: float
    cost: dict[str, float]
    actual: dict[str, float] = field(default_factory=dict)
    moment: float = 0.0
    entered: float = 0.0


def vector(limits: Iterable[Limit], cost: dict[str, float]) -> dict[str, float]:
    return {limit.resource: amount_of(cost, limit.resource) for limit in limits}


def most_in_any_window(uses: Iterable[tuple[float, float]], window_s: float) -> float:
    """The largest sum of amounts in any half-open window of this length: exact, by two pointers."""
    ordered = sorted(uses)
    worst = total = 0.0
    first = 0
    for moment, amount in ordered:
        total += amount
        while moment - ordered[first][0] >= window_s - 1e-9:
            total -= ordered[first][1]
            first += 1
        worst = max(worst, total)
    return worst


class World:
    """A limiter, its permits, and what was really used and when."""

    def __init__(self, limits: tuple[Limit, ...], period_s: float) -> None:
        self.limits = limits
        self.period_s = period_s
        self.now = 1000.0
        self.limiter = RateLimiter(limits, self.now, period_s=period_s)
        self.out: list[Permit] = []
        self.spent: list[Permit] = []
        self.kept = json.dumps(self.limiter.snapshot(self.now))
        self.kept_at = self.now
        self.granted_since: list[Permit] = []

    def take(self, cost: dict[str, float]) -> bool:
        wait_s = self.limiter.wait_s(self.now, cost)
        free = self.limiter.available(self.now)
        taken = self.limiter.take(self.now, cost)
        assert taken == (wait_s <= 1e-7), f"{taken} although it says {wait_s} s"
        if not taken:
            assert self.limiter.available(self.now) == free, "refused, and yet something was taken"
            return False
        permit = Permit(self.now, vector(self.limits, cost))
        self.out.append(permit)
        self.granted_since.append(permit)
        return True

    def use(self, number: int, share: float) -> None:
        permit = self.out.pop(number % len(self.out))
        permit.moment = permit.granted + share * (self.now - permit.granted)
        permit.actual = dict(permit.cost)
        self.limiter.used(self.now, permit.cost)
        permit.entered = self.now
        self.spent.append(permit)

    def settle(self, number: int, share: float) -> None:
        permit = self.spent[number % len(self.spent)]
        if permit.actual != permit.cost:
            return
        permit.actual = {name: share * amount for name, amount in permit.cost.items()}
        deltas = {name: permit.actual[name] - amount for name, amount in permit.cost.items()}
        self.limiter.settle(self.now, permit.entered, deltas)

    def assume(self, share: float) -> None:
        amounts = {name: share * free for name, free in self.limiter.available(self.now).items()}
        self.limiter.assume(self.now, amounts)
        self.spent.append(Permit(self.now, amounts, amounts | {"settled": 1.0}, self.now))

    def keep(self) -> None:
        self.kept, self.kept_at, self.granted_since = json.dumps(self.limiter.snapshot(self.now)), self.now, []

    def restart(self, share: float) -> None:
        """A successor goes on from what was kept; what is out stays usable for a while, and nobody reports it."""
        bursts = RateLimiter(self.limits, self.now, period_s=self.period_s).available(self.now)
        if any(permit.cost[name] > bursts[name] for permit in self.granted_since for name in bursts):
            self.keep()  # lent above the burst since then: a successor cannot know that (see RateLimiter.restore)
        self.limiter = RateLimiter(self.limits, self.now, period_s=self.period_s)
        self.limiter.restore(self.now, json.loads(self.kept), self.now - self.kept_at, held_s=HELD_S)
        for permit in self.out:
            permit.moment = permit.granted + share * (self.now + HELD_S - permit.granted)
            permit.actual = dict(permit.cost) | {"settled": 1.0}
            self.spent.append(permit)
        self.out = []
        self.keep()

    def check(self, share: float) -> None:
        """Also what is still out has been used by now, at some moment."""
        for permit in self.out:
            permit.moment = permit.granted + share * (self.now - permit.granted)
            permit.actual = dict(permit.cost)
        for limit in self.limits:
            uses = [(each.moment, each.actual.get(limit.resource, 0.0)) for each in self.spent + self.out]
            worst = most_in_any_window(uses, limit.window_s)
            assert worst <= limit.amount + TINY, f"{worst} of {limit}"


SHARE = st.sampled_from([0.0, 1.0, 0.5, 0.9])
NUMBER = st.integers(0, 5)
STEPS: dict[str, st.SearchStrategy[Any]] = {
    "drain": COSTS,
    "take": COSTS,
    "use": st.tuples(NUMBER, SHARE),
    "use_all": SHARE,
    "back": NUMBER,
    "settle": st.tuples(NUMBER, SHARE),
    "assume": SHARE,
    "stop": st.sampled_from([0.1, 3.0]),
    "keep": st.none(),
    "restart": SHARE,
}
HISTORY = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.97, 1.0, 1.02]),
        st.sampled_from(["drain", "drain", "take", "use_all", *STEPS]).flatmap(
            lambda name: st.tuples(st.just(name), STEPS[name])
        ),
    ),
    min_size=10,
    max_size=60,
)


@settings(max_examples=150)
@given(limits=LIMITS, period_s=st.sampled_from([0.05, 0.25, 2.0]), history=HISTORY, last=SHARE)
def test_no_window_ever_has_more_than_the_amount(
    limits: tuple[Limit, ...], period_s: float, history: list[tuple[float, tuple[str, Any]]], last: float
) -> None:
    world = World(limits, period_s)
    for windows, (what, how) in history:
        world.now += windows * limits[0].window_s
        if what in ("take", "drain"):
            most = 1 if what == "take" else 30
            while most and world.take(how):
                most -= 1
        elif what == "use_all":
            while world.out:
                world.use(0, how)
        elif what in ("use", "settle"):
            if world.out if what == "use" else world.spent:
                getattr(world, what)(*how)
        elif what == "back":
            if world.out:
                permit = world.out.pop(how % len(world.out))
                world.limiter.give_back(world.now, permit.cost)
        elif what == "stop":
            world.limiter.stop(world.now, how)
        elif what == "keep":
            world.keep()
        else:
            getattr(world, what)(how)
    world.check(last)


def at(limiter: RateLimiter, now: float, cost: dict[str, float]) -> bool:
    """Whether a call could go at another moment, if nothing happened before."""
    return copy.deepcopy(limiter).take(now, cost)


@given(limits=LIMITS, costs=st.lists(COSTS, min_size=1, max_size=30), part=st.floats(0, 0.999))
def test_nobody_who_comes_before_the_time_that_is_named_goes(
    limits: tuple[Limit, ...], costs: list[dict[str, float]], part: float
) -> None:
    limiter, now = RateLimiter(limits, 0.0), 0.0
    for cost in costs:
        wait_s = limiter.wait_s(now, cost)
        if wait_s > 1e-6:
            assert not at(limiter, now + part * wait_s - 1e-6, cost)
            assert limiter.scarce(now, cost) in limits
        else:
            assert limiter.scarce(now, cost) is None
        if any(amount_of(cost, name) > most for name, most in limiter.most().items()):
            assert not at(limiter, now + 1000, cost)
            continue
        # All that was taken has been used, so that the time that is named is also long enough.
        now += wait_s + max(limit.window_s for limit in limits) / SLOTS * 1e-6
        assert limiter.take(now, cost), f"not after {wait_s} s either"
        limiter.used(now, vector(limits, cost))


def test_whole_or_nothing() -> None:
    limiter = RateLimiter([Limit("requests", 10, per=1), Limit("tokens", 5, per=1)], 0.0, period_s=1)
    before = limiter.use(0.0)
    assert not limiter.take(0.0, {"requests": 1.0, "tokens": 6.0})
    assert limiter.use(0.0) == before
    assert limiter.take(0.0, {"requests": 1.0, "input_tokens": 2.0, "output_tokens": 3.0})
    assert [use["outstanding"] for use in limiter.use(0.0)] == [1.0, 5.0]


def test_what_is_given_back_can_be_taken_again() -> None:
    limiter = RateLimiter([Limit("requests", 4, per=1)], 0.0, period_s=1)
    for _ in range(50):
        assert all(limiter.take(0.0, {}) for _ in range(4))
        assert not limiter.take(0.0, {})
        limiter.give_back(0.0, {"requests": 4.0})
    assert limiter.use(0.0)[0]["available"] == 4.0


def test_less_use_than_was_reserved_is_room_at_once_and_more_is_none() -> None:
    limiter = RateLimiter([Limit("tokens", 100, per=10)], 0.0, period_s=10)
    cost = {"tokens": 100.0}
    assert limiter.take(0.0, cost)
    limiter.used(1.0, cost)
    assert not limiter.take(1.0, {"tokens": 10.0})
    limiter.settle(2.0, 0.0, {"tokens": -60.0})
    assert limiter.available(2.0)["tokens"] <= 60.0 + TINY
    limiter.settle(2.0, 1.0, {"tokens": -60.0})  # entered at 1: this is where it is taken from
    assert limiter.available(2.0)["tokens"] == pytest.approx(60.0)
    limiter.settle(2.0, 1.0, {"tokens": 50.0})
    assert limiter.available(2.0)["tokens"] == pytest.approx(10.0)
    limiter.settle(30.0, 1.0, {"tokens": -40.0})  # of a window that is over: no room in this one
    assert limiter.use(30.0)[0]["used"] == 0.0


def test_a_call_above_the_burst_is_lent_and_paid_for() -> None:
    limiter = RateLimiter([Limit("tokens", 100, per=10)], 0.0, period_s=0.25)
    burst = limiter.available(0.0)["tokens"]
    assert burst < 50
    assert limiter.take(0.0, {"tokens": 50.0})
    assert limiter.wait_s(0.0, {"tokens": burst}) == pytest.approx(50 / (DERATE * 10))
    assert limiter.most() == {"tokens": 100.0}
    assert not at(limiter, 1e6, {"tokens": 100.1})
    assert at(limiter, 1e6, {"tokens": 50.0})  # half of it is out for ever, as far as anybody has said


def test_most_and_rates_are_those_of_the_tightest_limit() -> None:
    limiter = RateLimiter([Limit("requests", 5, per=1), Limit("requests", 60, per=60)], 0.0)
    assert limiter.most() == {"requests": 5.0}
    assert limiter.rates() == {"requests": pytest.approx(DERATE * 1.0)}
    assert limiter.share({"requests": 1.0}) == 0.2


def served(limiter: RateLimiter, begin: float, until: float) -> int:
    """How many calls go when one is tried every hundredth of a second, each used at once."""
    count = 0
    for step in range(round((until - begin) * 100)):
        now = begin + step / 100
        if limiter.take(now, {}):
            limiter.used(now, {"requests": 1.0})
            count += 1
    return count


def test_the_limit_is_used_to_nearly_all_of_it() -> None:
    limiter = RateLimiter([Limit("requests", 100, per=10)], 0.0)
    assert served(limiter, 0, 100) >= 980


def test_after_a_stop_nothing_goes_and_then_less_and_then_all() -> None:
    limiter = RateLimiter([Limit("requests", 100, per=10)], 0.0)
    served(limiter, 0, 20)
    limiter.stop(20.0, 5.0)
    for storm in range(40):  # one event, however often it is said
        limiter.stop(20.0 + storm / 100, 5.0)
    assert limiter.stopped_until == pytest.approx(25.39)
    assert limiter.wait_s(21.0, {}) == pytest.approx(4.39)
    assert limiter.available(25.38) == {"requests": 0.0}
    assert not limiter.take(25.38, {})
    assert limiter.pace(25.39) == pytest.approx(0.7)
    # The pace, and the burst that was kept meanwhile.
    assert 0.75 * 99 - 4 <= served(limiter, 25.4, 35.4) <= 0.75 * 99 + 6
    limiter.stop(35.39, 0.1)
    assert limiter.pace(35.49) == pytest.approx(0.8 * 0.7, abs=0.01)
    for again in range(20):
        limiter.stop(40.0 + again, 0.5)
    assert limiter.pace(59.5) == pytest.approx(RateLimiter.SLOWEST, abs=0.02)
    assert limiter.pace(59.5 + 95) == 1.0
    assert served(limiter, 160, 180) == pytest.approx(198, abs=3)


def test_a_stop_and_a_pace_outlive_the_hub() -> None:
    limits = [Limit("requests", 100, per=10)]
    limiter = RateLimiter(limits, 0.0)
    limiter.stop(0.0, 5.0)
    plain = json.loads(json.dumps(limiter.snapshot(1.0)))
    later = RateLimiter(limits, 500.0)
    later.restore(500.0, plain, 2.0)
    assert later.stopped_until == pytest.approx(502.0)
    assert later.pace(502.0) == pytest.approx(0.7)
    much_later = RateLimiter(limits, 500.0)
    much_later.restore(500.0, plain, 60.0)
    assert much_later.stopped_until < 500.0


@pytest.mark.parametrize("gap_s", [None, 0.0, 0.2, 3.0, 100.0])
def test_a_successor_takes_what_was_out_and_what_could_have_been_for_used(gap_s: float | None) -> None:
    limits = [Limit("requests", 100, per=10)]
    limiter = RateLimiter(limits, 0.0)
    served_before = served(limiter, 0, 8)
    out = sum(limiter.take(8.0 + step / 10, {}) for step in range(5))
    assert out >= 4
    plain = json.loads(json.dumps(limiter.snapshot(8.5)))
    later = RateLimiter(limits, 70.0)
    later.restore(70.0, plain, gap_s, held_s=HELD_S)
    (use,) = later.use(70.0)
    if gap_s is None:
        assert use["used"] + use["outstanding"] == served_before + out
    elif gap_s < 10:
        worst = plain["ledgers"][0]["level"] + 10 * gap_s
        assert use["used"] + use["outstanding"] >= min(100.0, served_before + out - 10 * gap_s + worst - 1)
    else:
        assert use["used"] + use["outstanding"] == 100.0
    # What was out may be used until nobody has a permit of the old hub any more, and counts for a window after that.
    inherited = use["outstanding"]
    assert inherited >= out
    assert later.use(70.0 + HELD_S - 0.01)[0]["outstanding"] == inherited
    after = later.use(70.0 + HELD_S + 9.9)[0]
    assert (after["outstanding"], after["used"]) == (0.0, pytest.approx(inherited, abs=0.01))
    assert later.use(70.0 + HELD_S + 10.1)[0]["used"] == 0.0


def test_ledgers_of_limits_that_are_no_more_are_dropped_and_unknown_ones_begin_empty() -> None:
    limiter = RateLimiter([Limit("requests", 10, per=1), Limit("tokens", 50, per=1)], 0.0, period_s=1)
    limiter.take(0.0, {"tokens": 20.0})
    later = RateLimiter([Limit("tokens", 40, per=1), Limit("output_tokens", 5, per=1)], 0.0, period_s=1)
    later.restore(0.0, limiter.snapshot(0.0), None)
    taken = {use["resource"]: use["used"] + use["outstanding"] for use in later.use(0.0)}
    assert taken == {"tokens": 20.0, "output_tokens": 0.0}


@pytest.mark.parametrize(
    ("resource", "cost", "amount"),
    [
        ("requests", {}, 1.0),
        ("requests", {"requests": 3.0}, 3.0),
        ("tokens", {"input_tokens": 5.0, "output_tokens": 2.0}, 7.0),
        ("tokens", {"tokens": 4.0, "output_tokens": 2.0}, 4.0),
        ("output_tokens", {"input_tokens": 5.0}, 0.0),
    ],
)
def test_amounts(resource: str, cost: dict[str, float], amount: float) -> None:
    assert amount_of(cost, resource) == amount


def test_no_limits_let_everything_go() -> None:
    limiter = RateLimiter([], 0.0)
    assert (limiter.take(0.0, {}), limiter.available(0.0), limiter.share({})) == (True, {}, 0.0)
    limiter.stop(0.0, 1.0)
    assert not limiter.take(0.5, {})
    assert limiter.wait_s(0.5, {}) == 0.5


def test_a_clock_that_goes_on_for_long_leaves_nothing_behind() -> None:
    limiter = RateLimiter([Limit("requests", 3, per=1)], 0.0)
    for now in (0.0, 1e4, 1e7, 1e9):
        assert limiter.take(now, {})
        limiter.used(now, {"requests": 1.0})
        assert limiter.use(now)[0]["used"] == 1.0
        assert limiter.use(math.nextafter(now, math.inf))[0]["used"] == 1.0
