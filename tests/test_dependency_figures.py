"""The figures about dependencies at a small size: they run and measure what they say. Bounds are wide on purpose."""

from collections.abc import Iterator

import pytest

from benchmarks.bench import run
from benchmarks.dependencies import PARTS, command_of
from benchmarks.dependency_figures import breaker, hot_path, hub_kill, rates, storms
from benchmarks.dependency_figures.bench import Bench, running
from benchmarks.dependency_figures.load import Shape, zipf
from benchmarks.figures import Figure
from benchmarks.provider.arrivals import Arrival
from benchmarks.provider.conduct import FAILED, NS, OK
from cluster.embedded import EmbeddedValkey

COMMAND = "test"


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """A store, a provider, and a Ray node for two hosts."""
    with running(hosts=2) as found:
        yield found


def measured(figures: list[Figure], *words: str) -> float:
    """The figure whose name has these words."""
    (found,) = (figure.measured for figure in figures if all(word in figure.name for word in words))
    return found


# ------------------------------------------------------------------------------------------------------ with hosts


@pytest.mark.ray
def test_a_limit_is_kept_and_made_use_of(bench: Bench) -> None:
    figures = run(rates.rate_error(bench, COMMAND, hosts=(2,), simulated=(), limit=200, window_s=3.0, span_s=5.0))
    assert measured(figures, "error: 2 hosts, worst window") <= 1
    assert measured(figures, "error: 2 hosts, use") > 0.7
    assert measured(figures, "aiolimiter", "full burst", "worst window") > 1.2, "the comparison shows nothing"


@pytest.mark.ray
def test_the_breaker_opens_for_all_hosts(bench: Bench) -> None:
    figures = run(breaker.opening(bench, COMMAND, hosts=2, rate=60, well_s=1.0, open_s=4.0))
    assert measured(figures, "condition to the last ordinary call") < 3
    assert measured(figures, "beyond the probes") <= 2


@pytest.mark.ray
@pytest.mark.figures
def test_one_bad_host_is_nobody_elses_trouble(bench: Bench) -> None:
    figures = run(breaker.one_bad_host(bench, COMMAND, hosts=2, rate=60, span_s=2.0))
    assert measured(figures, "openings for the others") == 0
    assert measured(figures, "the others' calls") > 0.6


@pytest.mark.ray
@pytest.mark.figures
def test_a_retry_storm_does_not_come_up(bench: Bench) -> None:
    figures = run(
        storms.retry_storm(
            bench, COMMAND, hosts=2, rate=30, well_s=1.0, down_s=3.0, after_s=4.5, naive_rate=10, naive_down_s=2.0
        )
    )
    # In so short a time the budget's reserve counts: it is what a burst of failures may use.
    assert measured(figures, storms.BUDGET, "attempts") < 1.5
    assert measured(figures, storms.BOTH, "attempts") < 0.5
    assert measured(figures, storms.BOTH, "goodput") < 6
    assert measured(figures, storms.NAIVE, "attempts") > 2, "the comparison shows nothing"


@pytest.mark.ray
@pytest.mark.figures
def test_a_known_quota_is_not_exceeded(bench: Bench) -> None:
    figures = run(
        storms.too_many_requests(bench, COMMAND, hosts=2, amount=100, window_s=2.0, unknown_s=2.0, known_s=3.0)
    )
    assert measured(figures, "unknown") > 0, "there was no storm"
    assert measured(figures, "got a 429 once") < 0.1
    assert measured(figures, "before a Retry-After") == 0


@pytest.mark.ray
def test_a_killed_hub_lets_nothing_through(bench: Bench) -> None:
    figures = run(
        hub_kill.hub_kill(bench, COMMAND, hosts=2, limit=500, window_s=10.0, kills=1, every_s=6.0, first_s=2.0)
    )
    assert measured(figures, "worst window") <= 1
    assert measured(figures, "s from a kill") > 0.2
    assert measured(figures, "from the restart back") < 4


# --------------------------------------------------------------------------------------------------- without hosts


def test_a_pass_costs_no_message(valkey: EmbeddedValkey) -> None:
    figures = run(hot_path.measure(valkey.url, COMMAND, steps=300, rounds=1, calls=2000))
    assert measured(figures, "Ray calls") < 0.1
    assert abs(measured(figures, "store commands a call more")) < 0.5
    assert measured(figures, "99th percentile") < 200


def test_simulated_hosts_keep_a_limit() -> None:
    figures = rates.simulated_hosts(8, 300, 10.0, COMMAND)
    assert measured(figures, "worst window") <= 1
    assert measured(figures, "use") > 0.9


def test_demand_of_a_shape_moves_and_stays_as_large() -> None:
    shape = Shape(hosts=["a", "b", "c"], start_at=0, span_s=300, rate=30, weights=zipf(3), move_s=60)
    turns = list(shape.rates())
    assert [until for until, _ in turns] == [60, 120, 180, 240, 300]
    assert all(sum(rates.values()) == pytest.approx(30) for _, rates in turns)
    assert len({max(rates, key=lambda host: rates[host]) for _, rates in turns}) > 1
    made = [list(shape.moments(host, "arm")) for host in shape.hosts]
    assert sum(map(len, made)) == pytest.approx(9000, rel=0.05)
    assert all(at < 300 for each in made for at, _ in each)
    assert made[0] == list(shape.moments("a", "arm"))


def test_the_breakers_condition_is_found_in_the_providers_record() -> None:
    def answer(at_s: float, status: int, host: str = "a") -> Arrival:
        return Arrival(round(at_s * NS), round(at_s * NS) + 1, status, host, 1, 0, "normal", 0.0)

    well = [answer(second, OK) for second in range(15)]
    failing = [answer(15 + number / 10, FAILED) for number in range(40)]
    # Calls of the last ten seconds: n failed and those that were well, 20 in all, at least half of them failed.
    held_ns = breaker.condition_ns(well + failing)
    inside = [each for each in well + failing if held_ns - 10 * NS < each.ended_ns <= held_ns]
    assert len(inside) == 20
    with pytest.raises(ValueError, match="never"):
        breaker.condition_ns(well)
    one_bad = failing + [answer(15 + number / 10, OK, "b") for number in range(20)]
    assert breaker.condition_ns(one_bad, of_all_together=True)
    with pytest.raises(ValueError, match="never"):
        breaker.condition_ns(one_bad)


def test_goodput_is_back_when_it_stays() -> None:
    rate = 10.0
    moments = [round(second / 10 * NS) for second in range(20, 300) if not 80 <= second < 100]
    took_s = storms.recovery_s(moments, 0, 30 * NS, rate)
    assert took_s == pytest.approx(9.9, abs=0.3)


def test_every_part_has_a_command() -> None:
    assert list(PARTS) == ["rate-error", "hot-path", "breaker", "retry-storm", "429-storm", "hub-kill"]
    assert command_of("breaker") == "make figures-dependencies PART=breaker"
