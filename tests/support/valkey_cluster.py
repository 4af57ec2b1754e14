"""Three real servers in cluster mode: each owns a third of the slots, none has a replica."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import redis

from cluster.embedded import EmbeddedValkey
from cluster.valkey_conf import choose_port

SLOTS = 16_384


class ValkeyCluster:
    """A Valkey cluster over one directory per node; `start()` returns when every node says cluster_state:ok."""

    def __init__(self, directory: Path, *, nodes: int = 3) -> None:
        password = secrets.token_urlsafe(24)
        # Their default, port + 10000, would be among the ports that kernels give to clients.
        self._bus_ports = [choose_port() for _ in range(nodes)]
        self.nodes = [
            _node(directory / f"node-{index}", password, bus_port) for index, bus_port in enumerate(self._bus_ports)
        ]

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    @property
    def url(self) -> str:
        """One node is enough to find the others."""
        return self.nodes[0].url

    def start(self, timeout_s: float = 30.0) -> None:
        try:
            for node in self.nodes:
                node.start()
            self._join()
            self._wait(timeout_s)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def _join(self) -> None:
        share = SLOTS // len(self.nodes)
        for index, node in enumerate(self.nodes):
            last = SLOTS - 1 if node is self.nodes[-1] else (index + 1) * share - 1
            with redis.Redis.from_url(node.url) as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", index * share, last)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        with redis.Redis.from_url(self.url) as client:
            for node, bus_port in zip(self.nodes[1:], self._bus_ports[1:], strict=True):
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus_port)

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for node in self.nodes:
            with redis.Redis.from_url(node.url) as client:
                while True:
                    said = client.execute_command("CLUSTER", "INFO")
                    facts = said if isinstance(said, dict) else _parse(said)
                    if facts["cluster_state"] == "ok" and facts["cluster_known_nodes"] == str(len(self.nodes)):
                        break
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"the cluster did not form within {timeout_s} s: {facts}")
                    time.sleep(0.05)


def _node(directory: Path, password: str, bus_port: int) -> EmbeddedValkey:
    return EmbeddedValkey(
        directory,
        password=password,
        extra_settings={
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": "2000",
            "cluster-port": str(bus_port),
        },
    )


def _parse(said: bytes | str) -> dict[str, str]:
    text = said.decode() if isinstance(said, bytes) else said
    return dict(line.split(":", 1) for line in text.split() if ":" in line)
