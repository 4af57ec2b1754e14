"""Shared fixtures: real servers and a real Ray cluster, each started once and only for the tests that ask for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from valkey_cluster import ValkeyCluster

from cluster.embedded import EmbeddedValkey

if TYPE_CHECKING:
    from cluster.session import LocalRay

ROOT = Path(__file__).parents[1]
RAY_FIXTURES = frozenset({"ray_cluster", "ray_driver"})

# Shared machines are slow now and then: a deadline would fail tests for that. In CI the examples are always the same.
settings.register_profile(
    "penstock",
    deadline=None,
    max_examples=60,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("penstock")


def pytest_configure() -> None:
    """Ctrl-C is tested here, and a shell without job control has its background commands ignore it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """One embedded store for the whole session, so take keys of your own: a name of your own for each test."""
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def emptied_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("emptied-valkey")) as server:
        yield server


@pytest.fixture
def redis_url(emptied_valkey: EmbeddedValkey) -> Iterator[str]:
    """A store that is emptied after each test: audits read all keys, and those of a thousand tests would take long."""
    yield emptied_valkey.url
    with redis.Redis.from_url(emptied_valkey.url) as client:
        client.flushall()


@pytest.fixture(scope="session")
def valkey_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    """Three servers in cluster mode."""
    servers = ValkeyCluster(tmp_path_factory.mktemp("valkey-cluster"))
    servers.start()
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[LocalRay]:
    """Two Ray nodes with one CPU each, shared by the session: kill hosts on it, but no nodes."""
    from cluster.session import LocalRay

    cluster = LocalRay(nodes=2, cpus_per_node=1, python_path=[ROOT / "examples", ROOT / "tests" / "support"])
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def ray_driver(ray_cluster: LocalRay) -> Iterator[LocalRay]:
    """The shared cluster, with this process connected to it."""
    from cluster.session import connect, disconnect

    connect(ray_cluster.address)
    yield ray_cluster
    disconnect()


@pytest.fixture(autouse=True)
def no_accidental_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that does not say that it needs Ray cannot start it."""
    if RAY_FIXTURES & set(request.fixturenames) or request.node.get_closest_marker("ray"):
        return

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            f"{request.node.name} may not start Ray: use the fixture ray_cluster or ray_driver, or mark it 'ray'"
        )

    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr("ray._private.node.Node.__init__", refuse)
