"""Which server holds which partition: one server, or the nodes of a Redis Cluster."""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import redis.asyncio as redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import RedisClusterException, RedisError, SlotNotCoveredError

from cluster.errors import StoreUnavailable, StoreUnsuitable
from cluster.lane import Lane, Moved

_LOG: Final = logging.getLogger("penstock.store")
_HANDSHAKE_S: Final = 5.0
_LOOK_AGAIN_S: Final = 0.05


def _pool(url: str, **options: Any) -> redis.ConnectionPool:
    # RESP2: answers of scripts are the same in both protocols, and no push messages come between them.
    try:
        return redis.ConnectionPool.from_url(
            url,
            protocol=2,
            socket_connect_timeout=_HANDSHAKE_S,
            retry=Retry(NoBackoff(), 0),
            driver_info=DriverInfo(name="penstock"),
            **options,
        )
    except ValueError:
        # Its text may quote a part of the password.
        raise StoreUnsuitable(
            "the store's URL cannot be read. Set PENSTOCK_REDIS_URL to redis://[user:password@]host:port/0 (rediss:// "
            "for TLS), with every character of the password that is no letter or digit percent-encoded"
        ) from None


async def is_cluster(url: str) -> bool:
    """Whether the server at ``url`` runs in cluster mode.

    Raises:
        StoreUnavailable: nobody answers there.
        StoreUnsuitable: the server refuses us, or the URL is none.
    """
    client = redis.Redis(connection_pool=_pool(url))
    try:
        async with asyncio.timeout(_HANDSHAKE_S):
            info: dict[str, Any] = await client.info("cluster")
    except (redis.AuthenticationError, redis.ResponseError) as error:
        raise StoreUnsuitable(
            f"the store refuses us: {error}. Check the user and password in PENSTOCK_REDIS_URL"
        ) from None
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreUnavailable(
            f"no store answers ({type(error).__name__}: {error}). Start one with `penstock up`, or set "
            "PENSTOCK_REDIS_URL"
        ) from None
    finally:
        await client.aclose()
        await client.connection_pool.disconnect()
    return bool(int(info.get("cluster_enabled", 0)))


class Topology:
    """Lanes by slot. Build it with :meth:`open` inside the loop that uses it."""

    def __init__(self, url: str, cluster: RedisCluster | None, lane_options: dict[str, Any]) -> None:
        self._url = url
        self._cluster = cluster
        self._lane_options = lane_options
        self._lanes: dict[str, Lane] = {}
        self._refreshing: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        timeout_s: float = math.inf,
        answer_timeout_s: float = 5.0,
        replicas: int = 0,
        on_reconnected: Callable[[], None] | None = None,
    ) -> "Topology":
        """Connects and finds out whether the store is a cluster."""
        options: dict[str, Any] = {
            "timeout_s": timeout_s,
            "answer_timeout_s": answer_timeout_s,
            "replicas": replicas,
            "on_reconnected": on_reconnected,
        }
        cluster = None
        options["transactions"] = not await is_cluster(url)
        if not options["transactions"]:
            options["elsewhere"] = True
            cluster = RedisCluster.from_url(url, socket_connect_timeout=_HANDSHAKE_S)
            try:
                await cluster.initialize()
            except (RedisError, RedisClusterException, OSError) as error:
                await cluster.aclose()
                raise StoreUnavailable(f"the store's cluster does not say who serves what: {error}") from None
        return cls(url, cluster, options)

    @property
    def clustered(self) -> bool:
        """Whether the store is a cluster."""
        return self._cluster is not None

    def lane(self, key: str) -> Lane:
        """The lane to the server that holds ``key``."""
        if self._cluster is None:
            return self._lanes.get("") or self._open_lane("", self._url)
        try:
            node = self._cluster.get_node_from_key(key)
        except SlotNotCoveredError:
            node = None
        if node is None:
            raise Moved(f"no node of the store's cluster serves the slot of {key}")
        return self._lanes.get(node.name) or self._open_lane(node.name, self._node_url(node.host, node.port))

    async def memory_use(self) -> float | None:
        """How full the fullest server is, from 0 to 1; None where none has a limit, or none answers."""
        if self._cluster is None:
            lanes = [self.lane("")]
        else:
            nodes = self._cluster.get_primaries()
            lanes = [self._lanes.get(n.name) or self._open_lane(n.name, self._node_url(n.host, n.port)) for n in nodes]
        answers = await asyncio.gather(*(lane.command("INFO", "memory") for lane in lanes), return_exceptions=True)
        uses = [_memory_use(answer) for answer in answers if isinstance(answer, bytes)]
        return max((use for use in uses if use is not None), default=None)

    def _open_lane(self, name: str, url: str) -> Lane:
        # A lane has its own time-outs. redis-py's would end each connection that is idle for 5 s, wrap each write in a
        # task, and (asyncio.wait_for, Python 3.11) swallow a cancellation that comes with the write's end.
        pool = _pool(url, socket_timeout=None)

        def connect() -> AbstractConnection:
            connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
            return connection

        lane = self._lanes[name] = Lane(connect, **self._lane_options)
        return lane

    def _node_url(self, host: str, port: int | str) -> str:
        from urllib.parse import urlsplit, urlunsplit

        parts = urlsplit(self._url)
        credentials = parts.netloc.rpartition("@")[0]
        bracketed = f"[{host}]" if ":" in host else host
        netloc = f"{credentials}@{bracketed}:{port}" if credentials else f"{bracketed}:{port}"
        return urlunsplit(parts._replace(netloc=netloc))

    async def refresh(self) -> None:
        """Asks the cluster again who serves what; several askers share one look."""
        if self._cluster is None:
            await asyncio.sleep(_LOOK_AGAIN_S)
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())
        await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        assert self._cluster is not None
        try:
            await self._cluster.nodes_manager.initialize()
        except (RedisError, RedisClusterException, OSError) as error:
            _LOG.warning("the store's cluster does not say who serves what: %s", error)
        await asyncio.sleep(_LOOK_AGAIN_S)

    def any_client(self) -> redis.Redis:
        """A plain client to some server, for listening: messages reach every node of a cluster."""
        if self._cluster is None:
            return redis.Redis(connection_pool=_pool(self._url))
        nodes: Sequence[Any] = self._cluster.get_primaries()
        return redis.Redis(connection_pool=_pool(self._node_url(nodes[0].host, nodes[0].port)))

    async def close(self) -> None:
        """Closes every connection."""
        if self._refreshing is not None and not self._refreshing.done():
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        for lane in self._lanes.values():
            await lane.close()
        self._lanes.clear()
        if self._cluster is not None:
            await self._cluster.aclose()


def _memory_use(info: bytes) -> float | None:
    said = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    most = int(said.get("maxmemory", 0))
    return int(said["used_memory"]) / most if most else None
