"""A store of a test's own, runs to put into it, and an audit that recounts everything that the scripts keep."""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NamedTuple

import redis
from pydantic import SecretStr

from admission.values import CLASS_SPAN, Value
from cluster import reader
from cluster.config import Retention, Settings
from cluster.keys import child_run_id, digest, job_run_id, partition_of
from cluster.lifecycle import TERMINAL, RunState
from cluster.records import Append, Claim, Finish, NewRun, Park
from cluster.store import Store

SERVED = ("echo", "1")
_ENDS = {state.value for state in TERMINAL}
_ENDED = {f"ended:{state}" for state in _ENDS}
_OF_APPROVALS = {"approvals", "decided"}
_PLAIN = {
    "queue", "unserved", "needs", "waiting", "timers", "unknown", "dead", "counts", "lineages", *_ENDED, *_OF_APPROVALS,
}  # fmt: skip


def settings_for(url: str, *, partitions: int = 1, **more: Any) -> Settings:
    return Settings(name=f"t-{uuid.uuid4().hex[:12]}", redis_url=SecretStr(url), partitions=partitions, **more)


def brief(seconds: float = 0.05) -> Retention:
    return Retention(succeeded_s=seconds, failed_s=seconds, cancelled_s=seconds, shed_s=seconds)


@contextlib.asynccontextmanager
async def opened(settings: Settings, *, patient: bool = False) -> AsyncIterator[Store]:
    store = await Store.open(settings, patient=patient)
    try:
        yield store
    finally:
        await store.close()


def new(
    store: Store,
    custom_id: str = "a",
    *,
    batch: str = "b",
    agent: str = "echo",
    rank: int = 2,
    job: bytes = b"job",
    deadline: str = "",
    max_wait: str = "",
    tenant: str = "default",
) -> NewRun:
    """A run of the only partition, or of the one that its id says."""
    run_id = job_run_id(f"batch:{batch}", custom_id, store.keys.partitions)
    known = digest(agent, job, deadline, max_wait)
    return NewRun(run_id, custom_id, agent, Value(rank).level, known, job, deadline, max_wait, tenant=tenant)


async def submit(store: Store, runs: Iterable[NewRun], *, batch: str = "b") -> list[int]:
    by_partition: dict[int, list[NewRun]] = defaultdict(list)
    for run in runs:
        by_partition[partition_of(run.id)].append(run)
    answers: list[int] = []
    for partition, group in by_partition.items():
        answers += [int(answer.made) for answer in await store.submit(batch, partition, group)]
    return answers


async def claim(store: Store, host: str = "h1", most: int = 100, served: tuple[str, ...] = SERVED) -> dict[str, Claim]:
    """Claims of all partitions by run id; the host must be in good standing."""
    found: dict[str, Claim] = {}
    for partition in store.partitions:
        answer = await store.claim(partition, host, most, served)
        assert answer is not None, f"{host} is fenced"
        found |= {each.id: each for each in answer[1]}
    return found


async def one(store: Store, host: str = "h1", custom_id: str = "a", **fields: Any) -> Claim:
    """Submits one run and claims it."""
    run = new(store, custom_id, **fields)
    assert await submit(store, [run], batch=fields.get("batch", "b")) == [1]
    return (await claim(store, host))[run.id]


async def append(store: Store, run: Claim, length: int, *entries: bytes, finished: int | None = None) -> str | None:
    steps = len(entries) if finished is None else finished
    said = await store.append(partition_of(run.id), [Append(run.id, run.fence, length, steps, list(entries))])
    return said.get(run.id)


async def finish(
    store: Store,
    run: Claim,
    state: RunState = RunState.SUCCEEDED,
    *,
    host: str = "h1",
    reason: str = "",
    output: bytes = b"1",
    error: bytes = b"",
) -> str | None:
    end = Finish(run.id, run.fence, state, reason, output, error)
    return (await store.finish(partition_of(run.id), host, [end])).get(run.id)


async def park(
    store: Store, run: Claim, due_ms: int | None, *children: str, host: str = "h1", reason: str = "timer"
) -> str | None:
    parking = Park(run.id, run.fence, reason, due_ms, children)
    return (await store.park(partition_of(run.id), host, [parking])).get(run.id)


FAR_MS = 4_000_000_000_000
MISSING = "00-0123456789abcdef01234567"


async def state_of(store: Store, run_id: str) -> str:
    record = await reader.record(store, run_id)
    return record.state.value if record else "missing"


def child_of(parent: Claim, step: str = "0", **fields: Any) -> NewRun:
    run_id = child_run_id(parent.id, step)
    return NewRun(run_id, f"{parent.id}:{step}", "echo", 249, fields.get("digest", "d"), b"child", "", "")


async def next_message(store: Store, channel: str, act: Callable[[], Awaitable[Any]]) -> str:
    messages = store.listen(channel)
    assert await anext(messages) is None
    await act()
    async with asyncio.timeout(5):
        told = await anext(messages)
    await messages.aclose()  # type: ignore[attr-defined]
    assert told is not None
    assert told[0] == channel
    return told[1]


class Node(NamedTuple):
    """One primary of a cluster at loopback."""

    id: str
    url: str
    slots: tuple[range, ...]


def primaries(url: str) -> list[Node]:
    with redis.Redis.from_url(url) as client:
        said: bytes | str = client.execute_command("CLUSTER", "NODES")
    nodes: list[Node] = []
    for line in (said.decode() if isinstance(said, bytes) else said).splitlines():
        node, address, flags, *_ = words = line.split()
        port = address.partition("@")[0].rpartition(":")[2]
        ends = [(int(word.partition("-")[0]), int(word.rpartition("-")[2])) for word in words[8:] if "[" not in word]
        if "master" in flags:
            slots = tuple(range(first, last + 1) for first, last in ends)
            nodes.append(Node(node, re.sub(r":\d+/", f":{port}/", url), slots))
    return nodes


class Audit:
    """All keys of a deployment, read at once, and whether they agree with each other."""

    def __init__(self, store: Store) -> None:
        assert store.settings.redis_url is not None
        url = store.settings.redis_url.get_secret_value()
        self.runs: dict[str, dict[str, str]] = {}
        self.approvals: dict[str, dict[str, str]] = {}
        self.holders: dict[str, dict[str, str]] = {}
        self.sorted: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
        self.sets: dict[str, dict[str, set[str]]] = defaultdict(dict)
        self.counts: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
        self.lists: dict[str, dict[str, list[bytes]]] = defaultdict(dict)
        self.admission: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
        self.ttl_ms: dict[str, dict[str, int]] = defaultdict(dict)
        for each in [node.url for node in primaries(url)] if store.clustered else [url]:
            with redis.Redis.from_url(each) as client:
                for raw in client.scan_iter(match=f"{store.keys.name}:{{p*", count=1000):
                    self._read(client, raw.decode())

    def _read(self, client: Any, key: str) -> None:
        found = re.fullmatch(r"[^{]*:\{p([0-9a-f]{2})\}:(.*)", key, re.DOTALL)
        assert found, key
        partition, what = found.groups()
        self.ttl_ms[partition][what] = client.pttl(key)
        kind = client.type(key)
        if kind == b"hash":
            fields = {name.decode(): value for name, value in client.hgetall(key).items()}
            if what.startswith("approval:"):
                self.approvals[what.removeprefix("approval:")] = {
                    name: value.decode(errors="replace") for name, value in fields.items()
                }
            elif what.startswith("run:"):
                self.runs[what.removeprefix("run:")] = {
                    name: value.decode(errors="replace") for name, value in fields.items()
                }
            elif what.startswith("holders:"):
                self.holders[what.removeprefix("holders:")] = {name: value.decode() for name, value in fields.items()}
            elif what in ("load", "fair", "admission", "held", "places"):
                self.admission[partition][what] = {name: value.decode() for name, value in fields.items()}
            else:
                assert what == "counts" or what.startswith("batch:"), key
                self.counts[partition][what] = {name: int(value) for name, value in fields.items()}
        elif kind == b"zset":
            assert what in _PLAIN or what.startswith(("aside:", "decided:")), key
            self.sorted[partition][what] = {m.decode(): s for m, s in client.zrange(key, 0, -1, withscores=True)}
        elif kind == b"set":
            assert what == "needs" or what.startswith(("owned:", "children:", "approvals:", "branches:")), key
            self.sets[partition][what] = {member.decode() for member in client.smembers(key)}
        elif kind == b"list":
            assert (
                what == "doomed"
                or what.startswith(("journal:", "archive:", "promotions:"))
                or (what.startswith("batch:") and what.endswith(":runs"))
            ), key
            self.lists[partition][what] = client.lrange(key, 0, -1)

    def places(self, run_id: str) -> set[str]:
        """The indices that a run is in, without the timers."""
        partition = run_id[:2]
        found = {name for name, members in self.sorted[partition].items() if run_id in members}
        found |= {name for name, members in self.sets[partition].items() if run_id in members}
        return {
            name
            for name in found
            if name not in ("timers", "lineages") and not name.startswith(("children:", "approvals:", "branches:"))
        }

    def journal(self, run_id: str) -> list[bytes]:
        return self.lists[run_id[:2]].get(f"journal:{run_id}", [])

    def timer(self, run_id: str) -> int | None:
        score = self.sorted[run_id[:2]].get("timers", {}).get(run_id)
        return None if score is None else int(score)

    def check(self) -> None:
        """Everything agrees; assertions name the run and what is wrong with it."""
        for run_id, run in self.runs.items():
            self._check_run(run_id, run)
        for approval_id, approval in self.approvals.items():
            self._check_approval(approval_id, approval)
        self._check_members()
        self._check_counts()
        self._check_load()
        self._check_lineages()
        for partition, members in self.sets.items():
            aside = {n.removeprefix("aside:") for n in self.sorted[partition] if n.startswith("aside:")}
            assert members.get("needs", set()) == aside, (partition, members.get("needs"), aside)

    def _check_load(self) -> None:
        """What is queued and running is what the counters say."""
        wanted: dict[str, Counter[str]] = defaultdict(Counter)
        for run_id, run in self.runs.items():
            found, rank = wanted[run_id[:2]], int(run["order"]) // CLASS_SPAN
            if run["state"] == "running":
                found["running"] += 1
                found[f"t:running:{run['tenant']}"] += 1
            elif run["state"] == "queued":
                where = "aside" if run_id in self.sorted[run_id[:2]].get("unserved", {}) else "queued"
                found[f"c:{rank}:{where}"] += 1
                found[f"c:{rank}:{where}_ms"] += int(run["cost"])
                if where == "queued":
                    found[f"t:queued_ms{rank}:{run['tenant']}"] += int(run["cost"])
                found[f"t:queued:{run['tenant']}"] += 1
                found["bytes"] += int(run["size"])
        for partition in self.admission.keys() | wanted.keys():
            load = self.admission[partition].get("load", {})
            counted = {
                name: int(value)
                for name, value in load.items()
                if re.match(r"running|bytes|t:(queued|running)|c:.:(queued|aside)", name) and int(value)
            }
            assert counted == dict(+wanted[partition]), partition

    def _check_run(self, run_id: str, run: dict[str, str]) -> None:
        state = run["state"]
        bounds: list[int] = [int(run["deadline"])] if run["deadline"] else []
        wanted: set[str]
        if state == "queued":
            wanted = {"queue"}
            if run_id in self.sorted[run_id[:2]].get("unserved", {}):
                wanted = {"unserved", f"aside:{run['need']}"}
                assert self.sorted[run_id[:2]]["unserved"][run_id] == float(run["order"])
            else:
                assert self.sorted[run_id[:2]]["queue"][run_id] == float(run["order"]), run_id
            if run["max_wait"] and "started_ms" not in run:
                bounds.append(int(run["accepted_ms"]) + int(run["max_wait"]))
            if "torn" in run:
                bounds = []
        elif state == "running":
            wanted, bounds = {f"owned:{run['host']}"}, []
        elif state == "waiting":
            wanted = {"waiting"}
            bounds += [int(run["due"])] if run["due"] else []
        elif state == "confirmation_unknown":
            wanted, bounds = {"unknown"}, []
        else:
            assert state in _ENDS, state
            wanted, bounds = {f"ended:{state}"}, []
            assert self.ttl_ms[run_id[:2]][f"run:{run_id}"] > 0, f"{run_id} would stay for ever"
            assert self.ttl_ms[run_id[:2]].get(f"journal:{run_id}", 1) > 0
        parent = self.runs.get(run.get("parent", ""), {}).get("state")
        if parent in _ENDS - {"succeeded"} and state not in _ENDS | {"confirmation_unknown"}:
            going = "cancel" in run or run_id.encode() in self.lists[run_id[:2]].get("doomed", [])
            assert going, f"{run_id} is {state}, and its parent has {parent}"
        assert self.places(run_id) == wanted, (run_id, run, self.places(run_id))
        assert self.timer(run_id) == (min(bounds) if bounds else None), (run_id, run, self.timer(run_id))

    def _check_approval(self, approval_id: str, approval: dict[str, str]) -> None:
        """An approval is in the index that its state says, and goes with its run."""
        partition, state, run_id = approval_id[1:3], approval["state"], approval["run"]
        assert run_id[:2] == partition
        assert approval_id in self.sets[partition][f"approvals:{run_id}"], approval
        pending = self.sorted[partition].get("approvals", {}).get(approval_id)
        assert pending == (float(approval["expires"]) if state == "pending" else None), (approval_id, approval)
        assert (state == "pending") == ("closed" not in approval), (approval_id, approval)
        said = [name for name in approval if name.startswith("by:")]
        assert int(approval["said"]) == len(said), approval
        assert ("use" in approval) == (state == "used"), approval
        run = self.runs.get(run_id, {}).get("state")
        if run in _ENDS:
            assert state not in ("pending", "approved"), (approval_id, approval, run)
            assert self.ttl_ms[partition][f"approval:{approval_id}"] > 0, f"{approval_id} would stay for ever"
            assert self.ttl_ms[partition][f"approvals:{run_id}"] > 0

    def _check_members(self) -> None:
        """No index names a run that is not there."""
        for indices in self.sorted.values():
            for name, members in indices.items():
                if name not in {"dead", "lineages", *_ENDED, *_OF_APPROVALS} and not name.startswith("decided:"):
                    assert members.keys() <= self.runs.keys(), (name, members)

    def lineage(self, run_id: str) -> str:
        """The run it descends from, and the steps of child runs from there to it."""
        run = self.runs[run_id]
        return run.get("lineage") or (run["custom_id"] if "parent" in run else run_id)

    def _check_lineages(self) -> None:
        """Of all runs with one lineage at most one may cause effects."""
        entitled = Counter(self.lineage(run_id) for run_id, run in self.runs.items() if "readonly" not in run)
        assert not (twice := {lineage for lineage, runs in entitled.items() if runs > 1}), twice

    def _check_counts(self) -> None:
        wanted: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for run_id, run in self.runs.items():
            steps = len(self.journal(run_id))
            for where in ("counts", f"batch:{run['batch']}" if run["batch"] else None):
                if where:
                    counted = wanted[run_id[:2], where]
                    counted[run["state"]] += 1
                    counted["migrations"] += int(run.get("migrations", 0))
                    counted["journal"] += steps
                    if where != "counts":
                        counted["total"] += 1
                        counted["migrated_runs"] += "migrations" in run
        for partition, hashes in self.counts.items():
            for where, counters in hashes.items():
                plain = {n: c for n, c in counters.items() if c and n not in ("arrivals", "steps")}
                expected = {n: c for n, c in wanted[partition, where].items() if c and n != "journal"}
                assert plain == expected, (partition, where, plain, expected)
                assert all(count >= 0 for count in counters.values()), counters
