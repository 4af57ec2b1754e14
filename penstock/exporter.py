"""The exporter: what must be true whatever died, read from the store with each scrape, for Prometheus."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Self

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from actors.errors import PenstockError
from cluster import reader
from cluster.config import Settings
from cluster.errors import StoreError
from cluster.queue_reader import explanation
from cluster.store import Store
from penstock.dependencies import DependencyCalls
from penstock.metric_samples import Bounded, DeploymentFacts, samples_of
from penstock.queue_reading import explanation_of, queue_view
from penstock.queueing import queue_rules, queue_statistics
from telemetry.catalogue import METRICS, MetricKind

READ_WITHIN_S: Final = 5.0
_LABELS: Final = {name: metric.labels for name, metric in METRICS.items()}
_LOG: Final = logging.getLogger("penstock.exporter")


class ExporterError(PenstockError):
    """The exporter cannot serve where it was told to."""


class _Dependencies(DependencyCalls):
    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def store(self) -> Store:
        return self._store


async def read_facts(store: Store) -> DeploymentFacts:
    """Reads everything that metrics are made of; the time that it takes depends on partitions, not on runs.

    Raises:
        StoreError: the store cannot be read.
    """
    before = time.perf_counter()
    now_ms = await store.server_ms()
    ping_s = time.perf_counter() - before
    counts, partitions, said, rules = await asyncio.gather(
        reader.deployment_counts(store), queue_statistics(store), explanation(store), queue_rules(store)
    )
    dependencies, hosts, memory = await asyncio.gather(
        _Dependencies(store).dependencies(), store.hosts(), store.memory_use()
    )
    unknown, (approvals, expires) = await asyncio.gather(_first(store, "unknown"), _approvals(store))
    return DeploymentFacts(
        now_ms=now_ms,
        counts=counts,
        partitions=partitions,
        queue=queue_view(store.settings.name, now_ms, partitions, explanation_of(said), rules),
        dependencies=dependencies,
        hosts=hosts,
        lease_s=store.settings.lease_s,
        unknown_since_ms=unknown,
        approvals=approvals,
        approval_expires_ms=expires,
        memory=memory,
        ping_s=ping_s,
    )


async def _first(store: Store, index: str) -> int | None:
    """The lowest score in an index of all partitions; None where it is empty."""
    keys = [store.keys.of(partition, index) for partition in store.partitions]
    found = await asyncio.gather(*(store.command(key, "ZRANGE", key, 0, 0, "WITHSCORES") for key in keys))
    return min((int(float(first[1])) for first in found if first), default=None)


async def _approvals(store: Store) -> tuple[int, int | None]:
    keys = [store.keys.of(partition, "approvals") for partition in store.partitions]
    counts = await asyncio.gather(*(store.command(key, "ZCARD", key) for key in keys))
    return sum(counts), await _first(store, "approvals")


class _Scrape(Collector):
    """One scrape: asks the exporter's loop to read the store, and waits for it no longer than a deadline."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop
        self._bounded = Bounded()
        self._errors = 0
        self._one = threading.Lock()

    def describe(self) -> list[Metric]:
        """Nothing: or registering would read the store."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics; of a store that cannot be read only that it cannot."""
        with self._one:
            began = time.perf_counter()
            found: dict[str, dict[tuple[str, ...], float]] = {}
            try:
                found = self._read()
            except Exception as error:
                # Whatever it is, the scrape must say that nothing is known, and not hang or break off.
                self._errors += 1
                known = isinstance(error, StoreError | TimeoutError)
                _LOG.warning("the store cannot be read: %s", str(error) or type(error).__name__, exc_info=not known)
            found["penstock_up"] = {(): 1.0 if found else 0.0}
            found["penstock_exporter_errors_total"] = {(): self._errors}
            found["penstock_exporter_read_seconds"] = {(): time.perf_counter() - began}
        name = self._store.settings.name
        for metric, values in found.items():
            declared = METRICS[metric]
            kind = CounterMetricFamily if declared.kind is MetricKind.COUNTER else GaugeMetricFamily
            family = kind(metric, declared.help, labels=("deployment", *declared.labels))
            for labels, value in sorted(values.items()):
                family.add_metric((name, *labels), value)
            yield family

    def _read(self) -> dict[str, dict[tuple[str, ...], float]]:
        async def read() -> DeploymentFacts:
            async with asyncio.timeout(READ_WITHIN_S):
                return await read_facts(self._store)

        asked = asyncio.run_coroutine_threadsafe(read(), self._loop)
        facts = asked.result(READ_WITHIN_S + 1)
        return self._bounded.total(samples_of(facts), _LABELS)


def _nothing() -> None:
    """Nothing is to be stopped yet."""


class Exporter:
    """Serves ``/metrics`` of one deployment, in threads of its own; a context manager.

    Args:
        settings: of the deployment.
        host: the address to listen at.
        port: 0 for any that is free.
    """

    def __init__(self, settings: Settings, host: str = "127.0.0.1", port: int = 0) -> None:
        self._settings = settings
        self._host = host
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="penstock-exporter", daemon=True)
        self._store: Store | None = None
        self._stop_server: Callable[[], None] = _nothing

    def __enter__(self) -> Self:
        """Starts to serve.

        Raises:
            StoreError: the store cannot be reached.
            ExporterError: the address cannot be listened at.
        """
        self._thread.start()
        try:
            self._store = asyncio.run_coroutine_threadsafe(Store.open(self._settings), self._loop).result()
            registry = CollectorRegistry()
            registry.register(_Scrape(self._store, self._loop))
            try:
                server, thread = start_http_server(self._port, self._host, registry)
            except (OSError, OverflowError) as error:
                raise ExporterError(
                    f"metrics cannot be served at {self._host}:{self._port}: {error}. Choose another --port"
                ) from None
        except BaseException:
            self._close()
            raise

        def stop_server() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._stop_server, self._port = stop_server, server.server_port
        return self

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/metrics"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it."""
        self._stop_server()
        self._close()

    def _close(self) -> None:
        if self._store is not None:
            asyncio.run_coroutine_threadsafe(self._store.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
