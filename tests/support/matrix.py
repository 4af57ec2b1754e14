"""The crash matrix: one run for each cell, struck at its point; how it ends is compared with the table in the docs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import strikes
from deployment import ROOT, until_hosts
from pydantic import SecretStr
from strikes import APPLIED, CUT, FAULTS, FROZEN, KILLED, POINTS, SENT, STORE_KILLED, TIMEOUT, Strike

from actors.journal import Entry, Kind, decode_entry, decode_error
from actors.receipts import decode_intent_facts, decode_receipt
from actors.supervisor import deploy, shutdown
from cluster import reader, session
from cluster.config import Settings
from cluster.embedded import EmbeddedValkey
from cluster.keys import job_run_id
from cluster.lifecycle import TERMINAL, RunState
from cluster.records import RunRecord
from cluster.session import LocalRay
from penstock import Client
from refund_desk.running import RunningWorld, running_world

APP = "matrix_app"
KINDS = ("idempotent", "reconcilable", "neither")
TABLE = ROOT / "docs" / "effects.md"
ENDS = TERMINAL | {RunState.CONFIRMATION_UNKNOWN}
PATIENCE_S = 30.0
POLL_S = 0.01
# The tools' timeout is 1.5 s: what is held for longer is given up, and lands within their 2.5 s.
LATE_MS = 1000
TOO_LATE_MS = 2000
_EXPECTED = re.compile(r"(succeeded|unknown) x(\d)(?:-(\d))?")


class Cell(NamedTuple):
    """One strike: where, what, and at which kind of tool."""

    point: str
    fault: str
    kind: str

    def __str__(self) -> str:
        return f"{self.point}, {self.fault}, {self.kind}"


class End(NamedTuple):
    """How a cell may end: the run's state, and how often its effect may have been applied."""

    state: str
    applied: frozenset[int]


class Found(NamedTuple):
    """How a cell ended."""

    cell: Cell
    state: str
    applied: int
    listed: bool
    took_s: float


def table(path: Path = TABLE) -> dict[Cell, End]:
    """The ends that the docs promise."""
    ends: dict[Cell, End] = {}
    columns: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        parts = [part.strip().strip("`") for part in line.strip().strip("|").split("|")]
        if parts[:2] == ["point", "tool"]:
            columns = parts
        elif columns and parts[0] in POINTS:
            for column, text in zip(columns[2:-1], parts[2:-1], strict=True):
                said = _EXPECTED.fullmatch(text)
                assert said, f"{path}: {text!r} in the row of {parts[:2]}"
                least, most = int(said[2]), int(said[3] or said[2])
                ends[Cell(parts[0], column, parts[1])] = End(said[1], frozenset(range(least, most + 1)))
    wanted = {Cell(point, fault, kind) for point in POINTS for fault in FAULTS for kind in KINDS}
    assert ends.keys() == wanted, f"{path}: {sorted(wanted ^ ends.keys())} are missing or too many"
    return ends


def conduct_of(cell: Cell) -> dict[str, float | str]:
    """What the world has to do so that a strike inside the call is what it is called."""
    if cell.point == SENT:
        if cell.fault == CUT:
            return {"closes": "before", "hold_ms": LATE_MS / 2}
        return {"hold_ms": TOO_LATE_MS if cell.fault == TIMEOUT else LATE_MS}
    if cell.point == APPLIED:
        if cell.fault == CUT:
            return {"closes": "after"}
        return {"answer_ms": TOO_LATE_MS if cell.fault == TIMEOUT else LATE_MS}
    return {}


@dataclass
class Matrix:
    """A deployment whose hosts can be struck at every point."""

    cluster: LocalRay
    settings: Settings
    world: RunningWorld
    server: EmbeddedValkey
    directory: Path
    variables: dict[str, str]
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 1_000_000)))

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with Client(settings=self.settings) as client:
            yield client

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        with session.connect(self.cluster.address, runtime_env={"env_vars": self.variables}):
            yield

    async def found(self, client: Client, cell: Cell) -> Found:
        """Has one run struck, waits until all is over, and looks."""
        loop = asyncio.get_running_loop()
        number = next(self.numbers)
        action = f"cell-{number}"
        await until_hosts(client.store, 2)
        began = loop.time()
        if conduct := conduct_of(cell):
            self.world.order(action, conduct)
        strikes.order(self.directory, Strike(number, cell.point, cell.fault, f"pay_{cell.kind}", self.server.pid or 0))
        job = {"custom_id": action, "agent": "pays-once", "input": {"kind": cell.kind, "action": action}}
        job["grants"] = ["write"]
        await client.submit([job], batch=action)
        run_id = job_run_id(f"batch:{action}", action, client.store.keys.partitions)
        pid = await self._struck(number)
        if cell.fault == FROZEN:
            await self._thawed(client, run_id, pid)
        record = await self._ended(client, run_id)
        witness = await asyncio.to_thread(self.world.witness, action, quiet_s=PATIENCE_S)
        record = await self._ended(client, run_id)
        state = "unknown" if record.state is RunState.CONFIRMATION_UNKNOWN else record.state.value
        listed = await self._consistent(client, record, witness.applied)
        return Found(cell, state, witness.applied, listed, loop.time() - began)

    async def _struck(self, number: int) -> int:
        async with asyncio.timeout(PATIENCE_S):
            while (pid := strikes.struck_pid(self.directory, number)) is None:  # noqa: ASYNC110 - a file
                await asyncio.sleep(POLL_S)
        return pid

    async def _thawed(self, client: Client, run_id: str, pid: int) -> None:
        """Lets the frozen host go on when another one has its run, and waits until it has come back anew."""
        frozen = await self._record(client, run_id)
        async with asyncio.timeout(PATIENCE_S):
            try:
                while (await self._record(client, run_id)).fence == frozen.fence:  # noqa: ASYNC110 - a store
                    await asyncio.sleep(POLL_S)
            finally:
                os.kill(pid, signal.SIGCONT)
        await until_hosts(client.store, 2, without=[frozen.host])

    async def _record(self, client: Client, run_id: str) -> RunRecord:
        record = await reader.record(client.store, run_id)
        assert record is not None
        return record

    async def _ended(self, client: Client, run_id: str) -> RunRecord:
        async with asyncio.timeout(PATIENCE_S):
            while (record := await self._record(client, run_id)).state not in ENDS:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
        return record

    async def _consistent(self, client: Client, record: RunRecord, applied: int) -> bool:
        """What journal and record say of the effect must be what the run's state says; whether it is listed."""
        store = client.store
        journal = [decode_entry(raw) for raw in await reader.journal(store, record.id)]
        step = [entry for entry in journal if entry.step == "1"]
        intent = next(entry for entry in reversed(step) if entry.kind == Kind.INTENT)
        effect = await store.effect(decode_intent_facts(intent.facts).identity)
        assert effect is not None
        unknown = await reader.run_ids(store, RunState.CONFIRMATION_UNKNOWN, 10_000)
        if record.state is RunState.CONFIRMATION_UNKNOWN:
            assert (journal[-1].kind, journal[-1].step) == (Kind.INTENT, "1"), journal[-1]
            assert decode_error(record.error).step == "1"
            # A late owner may have come to know that it was applied; what nobody knows is never called applied.
            assert effect.state == "unknown" or (effect.state == "applied" and applied), effect
            return record.id in unknown
        if record.state is RunState.SUCCEEDED:
            assert _receipt_state(step[-1]) == effect.state == "applied"
        return record.id in unknown


def _receipt_state(entry: Entry) -> str:
    assert entry.kind == Kind.CALL
    return decode_receipt(entry.facts).state


@contextlib.contextmanager
def matrix_at(cluster: LocalRay, directory: Path, *, name: str, **more_settings: Any) -> Iterator[Matrix]:
    """A matrix for the time of a `with` block, with a store of its own that is restarted whenever it dies."""
    nobody, silent = socket.socket(), socket.socket()
    (directory / "strikes").mkdir()
    with (
        nobody,
        silent,
        EmbeddedValkey(directory / "valkey") as server,
        running_world(directory) as world,
    ):
        server.supervise(backoff_s=0.05, backoff_limit_s=0.05)
        for each in (nobody, silent):
            each.bind(("127.0.0.1", 0))
        silent.listen(1024)  # the kernel takes connections and nobody ever reads from them
        variables = {
            "REFUND_DESK_WORLD_URL": world.url,
            strikes.DIRECTORY: str(directory / "strikes"),
            "NOBODY_URL": f"http://127.0.0.1:{nobody.getsockname()[1]}",
            "SILENT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        fields: dict[str, Any] = {"partitions": 2, "lease_s": 1.5, "heartbeat_s": 0.4} | more_settings
        settings = Settings(name=name, redis_url=SecretStr(server.url), home=directory, **fields)
        matrix = Matrix(cluster, settings, world, server, directory / "strikes", variables)
        with matrix.connected():
            deploy(settings, APP)
        try:
            yield matrix
        finally:
            with matrix.connected():
                shutdown(settings)


__all__ = [
    "FAULTS",
    "KILLED",
    "KINDS",
    "POINTS",
    "STORE_KILLED",
    "Cell",
    "End",
    "Found",
    "Matrix",
    "matrix_at",
    "table",
]
