"""The benchmarks at a small size: they run, measure what they say, and write it; the bounds are wide on purpose."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import workloads
from benchmarks.bench import Bench, run
from benchmarks.figures import Figure, show, write
from cluster.embedded import EmbeddedValkey
from cluster.session import LocalRay


@pytest.fixture(scope="module")
def figures(valkey: EmbeddedValkey, ray_cluster: LocalRay) -> Iterator[dict[str, Figure]]:
    """What a small round of every workload measures."""
    from cluster.session import connect, disconnect

    connect(ray_cluster.address)
    bench = Bench(valkey.url, valkey.pid or 0)
    found: list[Figure] = []
    found += run(workloads.throughput(bench, runs=60, at_once=40, rounds=1))
    found += run(workloads.many(bench, 50, 0.05, 1.3, "W2 small", memory=True))
    found += run(workloads.latency(bench, runs=5))
    found += run(workloads.recovery(bench, runs=20, seconds=0.2, rounds=1))
    found += run(workloads.submission(bench, count=2_000))
    yield {figure.name: figure for figure in found}
    disconnect()


def named(figures: dict[str, Figure], start: str) -> Figure:
    """The figure whose name starts so."""
    return next(figure for name, figure in figures.items() if name.startswith(start))


def test_every_workload_measures_something(figures: dict[str, Figure]) -> None:
    # Processor time is counted in ticks: of so little work there may be none.
    coarse = ("memory", "processors")
    assert all(figure.measured > 0 for name, figure in figures.items() if not any(word in name for word in coarse))
    assert all(figure.measured >= 0 for name, figure in figures.items() if "processors" in name)
    assert 0 < named(figures, "W1 share of the floor").measured < 2
    assert named(figures, "W2 small over the ideal").measured >= 1


def test_runs_of_a_killed_host_go_on_soon(figures: dict[str, Figure]) -> None:
    assert named(figures, "W4 runs that moved").measured > 0
    assert named(figures, "W4 over the ideal").measured < 3


def test_figures_are_shown_and_written(
    figures: dict[str, Figure], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(list(figures.values()), "small")
    write(list(figures.values()), tmp_path / "figures" / "small.json")
    assert "W1 durable steps" in capsys.readouterr().out
    written = json.loads((tmp_path / "figures" / "small.json").read_text())
    assert len(written) == len(figures)
    assert set(written[0]) == {"name", "measured", "unit", "target", "holds", "command"}
