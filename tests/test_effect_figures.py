"""The figures about effects at a small size: they measure what they say, and kills of hosts double and lose nothing."""

from collections.abc import Iterator

import pytest

from benchmarks import effects
from benchmarks.bench import Bench, run
from benchmarks.effect_agents import WORLD_VARIABLE
from benchmarks.figures import Figure
from cluster import session
from cluster.embedded import EmbeddedValkey
from cluster.session import LocalRay

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def bench(valkey: EmbeddedValkey, ray_cluster: LocalRay) -> Iterator[Bench]:
    """The session's store and Ray cluster; the world of the agents is in that store."""
    variables = {WORLD_VARIABLE: valkey.url}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(WORLD_VARIABLE, valkey.url)
        with session.connect(ray_cluster.address, runtime_env={"env_vars": variables}):
            yield Bench(valkey.url, valkey.pid or 0)


def named(figures: list[Figure], *words: str) -> Figure:
    """The figure whose name has these words."""
    (found,) = (figure for figure in figures if all(word in figure.name for word in words))
    return found


def test_effects_under_kills_are_made_once_or_are_called_unknown(bench: Bench) -> None:
    figures = run(effects.kills(bench, count=450, every_s=1.3))
    assert named(figures, "hosts killed").measured >= 1, "nothing was killed"
    assert [figure.name for figure in figures if figure.holds is False] == []


def test_an_effect_waits_for_the_store_twice_more_than_a_read(bench: Bench) -> None:
    assert named(run(effects.waits(bench)), "group commits").holds


def test_a_run_goes_on_soon_after_its_approval(bench: Bench) -> None:
    assert named(run(effects.approval(bench, runs=2)), "worst").measured < 2


def test_effects_have_a_price(bench: Bench) -> None:
    found = named(run(effects.throughput(bench, runs=60, at_once=40, rounds=1)), "W1 with effects over W1 without")
    assert 0.2 < found.measured < 2
