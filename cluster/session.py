"""Everything about starting Ray and connecting to it, in one place.

Ray takes much of what matters here from environment variables, reads some of them once when it is imported and
inherits the rest to the processes that it starts. So nothing but this and :mod:`cluster.ray_environment` sets a
``RAY_`` variable, and Ray is imported by the functions that need it: what only talks to the store never loads it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from cluster import janitor
from cluster.processes import ProcessRecord
from cluster.ray_environment import (
    HEALTH_CHECKS,
    LOOPBACK,
    QUIET,
    children_hear_interrupts,
    children_outlive_hangup,
    environment,
    held_signals,
    is_loopback,
    own_sigterm,
    prepare_environment,
    stay_on_loopback,
)

__all__ = ["Connection", "LocalRay", "RaySessionError", "check_listening", "connect", "disconnect", "draining_nodes"]

log = logging.getLogger("penstock.ray")

NAMESPACE = "penstock"
OBJECT_STORE_BYTES = 100 * 1024 * 1024  # we pass no large objects through Ray


class RaySessionError(RuntimeError):
    """Ray cannot be started or reached; the message says where and what to do."""


# ----------------------------------------------------------------------------------------------------- connection


class Connection:
    """This process as a driver of a Ray cluster; a context manager that disconnects."""

    def __init__(self, address: str, namespace: str) -> None:
        self.address = address
        self.namespace = namespace

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        disconnect()


def connect(
    address: str, *, namespace: str = NAMESPACE, runtime_env: Mapping[str, Any] | None = None, timeout_s: float = 5.0
) -> Connection:
    """Connect this process to the Ray cluster at ``ip:port`` (its GCS), quietly.

    Raises RaySessionError when nothing listens there within ``timeout_s`` (Ray itself would try for minutes), or when
    this process is connected already, to whatever it is.
    """
    check_listening(address, timeout_s=timeout_s)
    loopback = is_loopback(address)
    prepare_environment(loopback=loopback)
    import ray

    if ray.is_initialized():
        raise RaySessionError("this process is connected to a Ray cluster already: disconnect() first")
    stay_on_loopback(loopback)
    with held_signals(), own_sigterm():
        ray.init(
            address=address,
            namespace=namespace,
            runtime_env=dict(runtime_env) if runtime_env else None,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    return Connection(address, namespace)


def check_listening(address: str, *, timeout_s: float = 5.0) -> None:
    """Raise RaySessionError unless something listens at a cluster's ``ip:port``; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise RaySessionError(f"{address!r} is no address of a Ray cluster: expected ip:port, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
    except OSError as error:
        raise RaySessionError(f"no Ray cluster answers at {address} ({error}): is it running, and reachable?") from None


def disconnect() -> None:
    """End this process's connection, if it has one. The cluster and its detached actors live on."""
    if "ray" not in sys.modules:
        return
    import ray

    ray.shutdown()  # also where connecting has failed half-way: that counts as not initialized, yet holds its node


_gcs_clients: dict[str, Any] = {}
_gcs_warned = False


def draining_nodes(*, timeout_s: float = 1.0) -> dict[str, int]:
    """Nodes that Ray is draining: node id (hex) → deadline in ms since the epoch (0: none). About 1 ms.

    For a process connected to Ray. It stands on a private part of Ray: where that has changed, and while the GCS does
    not answer, the dict is empty, so nobody may conclude from it that a node stays.
    """
    global _gcs_warned
    try:
        import ray
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        address = ray.get_runtime_context().gcs_address
        client = _gcs_clients.get(address)
        if client is None:
            client = _gcs_clients[address] = GcsClient(address=address)
        return {str(node): int(deadline) for node, deadline in client.get_draining_nodes(timeout=timeout_s).items()}
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        if not _gcs_warned:
            log.warning("this Ray does not tell which nodes it drains (%s): notice will come late", error)
            _gcs_warned = True
    except Exception as error:
        log.debug("draining nodes are not known now: %s", error)
    return {}


# -------------------------------------------------------------------------------------------------- local cluster


class LocalRay:
    """A Ray cluster of several nodes on this machine, on loopback only, owned by this process.

    ``python_path`` is where workers find code, besides the root of the source tree: their PYTHONPATH is the quickest
    way, a ``runtime_env`` costs an agent's round trip and a fresh worker for each actor. ``extra_environment`` is given
    to all of Ray's processes. The head is node 0.

    On Linux the raylets and the GCS are killed by the kernel when the thread that started them ends, so call
    :meth:`start` and :meth:`add_node` from the main thread. What else there is then ends by the :mod:`cluster.janitor`.
    """

    def __init__(
        self,
        *,
        nodes: int = 2,
        cpus_per_node: float = 1,
        object_store_bytes: int = OBJECT_STORE_BYTES,
        python_path: Sequence[Path] = (),
        extra_environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        if nodes < 1:
            raise ValueError(f"nodes: {nodes} is too few, a cluster needs at least 1")
        self._wanted_nodes = nodes
        self._cpus_per_node = cpus_per_node
        self._object_store_bytes = object_store_bytes
        self._python_path = [Path(path).absolute() for path in python_path]
        self._extra_environment = dict(extra_environment)
        self._cluster: Any = None
        self._nodes: list[Any] = []
        self._dead: set[int] = set()
        self._directory: Path | None = None
        self._janitor: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalRay:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """ip:port of the GCS, for :func:`connect`."""
        return str(self._started().address)

    @property
    def directory(self) -> Path:
        """Ray's own directory of this cluster: sockets, logs. Every process of the cluster has it in RAY_TMPDIR."""
        if self._directory is None:
            raise RaySessionError("this local Ray cluster does not run: start() it first")
        return self._directory

    @property
    def node_ids(self) -> dict[int, str]:
        """Node id (hex) by index, of the nodes that were not killed."""
        return {index: str(node.node_id) for index, node in enumerate(self._nodes) if index not in self._dead}

    def start(self) -> None:
        """Start all nodes and return when they have joined. Raises RaySessionError with the directory of the logs."""
        if self._cluster is not None:
            return
        if threading.current_thread() is not threading.main_thread():
            raise RaySessionError("start a local Ray cluster from the main thread: Ray binds its processes to it")
        prepare_environment(loopback=True)
        # Short, because paths of unix sockets below it may have 107 bytes; private, because logs are in it.
        base = "/tmp" if os.access("/tmp", os.W_OK) else None  # noqa: S108 - mkdtemp makes it private
        self._directory = Path(tempfile.mkdtemp(prefix="ps-", dir=base))
        (self._directory / "ray").mkdir(mode=0o700)
        self._janitor = subprocess.Popen(
            [sys.executable, "-I", "-S", str(janitor.__file__), str(self._directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            with self._ray_environment():
                self._start_nodes()
        except BaseException as error:
            directory = self._directory
            # The logs tell why it failed; nobody asks them about a start that was broken off.
            self.stop(keep_directory=isinstance(error, Exception) and any((directory / "ray").iterdir()))
            if isinstance(error, Exception):
                raise RaySessionError(
                    f"the local Ray cluster did not start: {error}; see the logs in {directory}"
                ) from error
            raise

    def _start_nodes(self) -> None:
        from ray.cluster_utils import Cluster

        stay_on_loopback(True)
        self._cluster = Cluster()
        self._add_node(
            include_dashboard=False,
            no_monitor=True,  # the autoscaler: there is nothing to scale here
            dashboard_agent_listen_port=0,  # its default is one fixed port, so that a second cluster would clash
            temp_dir=str(self.directory / "ray"),
            _system_config={**HEALTH_CHECKS, **QUIET},
        )
        for _ in range(self._wanted_nodes - 1):
            self._add_node()

    def _add_node(self, **arguments: Any) -> None:
        with own_sigterm(), children_outlive_hangup(), children_hear_interrupts():
            node = self._cluster.add_node(
                num_cpus=self._cpus_per_node,
                node_ip_address=LOOPBACK,
                object_store_memory=self._object_store_bytes,
                include_log_monitor=False,
                **arguments,
            )
        self._nodes.append(node)

    def add_node(self) -> int:
        """Start one more node and wait until it has joined; returns its index."""
        self._started()
        with self._ray_environment():
            self._add_node()
        return len(self._nodes) - 1

    def kill_node(self, index: int) -> None:
        """SIGKILL a node's raylet, as when its machine dies, and reap it: unreaped it would keep its workers alive.

        Not for the head (index 0), which has the GCS and usually the driver.
        """
        if index == 0:
            raise ValueError("index: node 0 is the head, with the GCS of the cluster; kill another one")
        process = self._raylet(index)
        process.kill()
        process.wait()
        self._dead.add(index)
        self._cluster.remove_node(self._nodes[index], allow_graceful=False)

    def reap(self) -> list[int]:
        """Indices of nodes whose raylet has died since the last call; they count as killed from now on.

        To be called now and then by whoever keeps a cluster for long: a dead raylet that nobody reaps keeps its workers
        alive.
        """
        found = [index for index in self.node_ids if self._raylet(index).poll() is not None]
        for index in found:
            self._dead.add(index)
            if index:
                self._cluster.remove_node(self._nodes[index], allow_graceful=False)
        return found

    def records(self) -> list[ProcessRecord]:
        """What this process has started itself: GCS, raylets, API server. All others are children of raylets."""
        processes = (info.process for node in self._nodes for infos in node.all_processes.values() for info in infos)
        found = (ProcessRecord.of(process.pid) for process in processes)
        return [record for record in found if record is not None]

    def stop(self, *, keep_directory: bool = False) -> None:
        """End the cluster: its own processes only, and all of them. Disconnects this process from it."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            disconnect()
            with self._ray_environment():
                try:
                    cluster.shutdown()
                except AssertionError as error:  # Ray's way to say that a process of a node is still there
                    log.warning("Ray left processes behind: %s", error)
        self._nodes, self._dead = [], set()
        if self._janitor is not None:
            self._janitor.communicate(janitor.KEEP_DIRECTORY if keep_directory else b"")
        self._janitor = self._directory = None

    def _started(self) -> Any:
        if self._cluster is None:
            raise RaySessionError("this local Ray cluster does not run: start() it first")
        return self._cluster

    def _raylet(self, index: int) -> subprocess.Popen[bytes]:
        if index in self._dead or not 0 <= index < len(self._nodes):
            raise ValueError(f"index: {index} is no living node; there are {sorted(self.node_ids)}")
        process: subprocess.Popen[bytes] = self._nodes[index].all_processes["raylet"][0].process
        return process

    def _ray_environment(self) -> contextlib.AbstractContextManager[None]:
        """What all processes of the cluster inherit. RAY_TMPDIR keeps them from the file by which Ray finds "the"
        cluster of a machine, which is somebody else's.
        """
        root = Path(__file__).resolve().parents[1]
        paths = [*(str(path) for path in self._python_path)]
        if (root / "pyproject.toml").exists():
            paths.insert(0, str(root))
        if inherited := os.environ.get("PYTHONPATH"):
            paths.append(inherited)
        return environment(
            {
                **self._extra_environment,
                "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
                "RAY_TMPDIR": str(self.directory),
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            }
        )
