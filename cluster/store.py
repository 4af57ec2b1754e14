"""The store as its users see it: typed calls over the scripts, in partitions, on one server or a cluster."""

import asyncio
import itertools
import json
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from redis.exceptions import RedisError

from cluster import scripts
from cluster.config import Settings
from cluster.doors import submitted
from cluster.effect_calls import EffectCalls
from cluster.errors import StoreError, StoreFull, StoreUnavailable, StoreUnsuitable
from cluster.keys import Keys, partition_of
from cluster.lane import Argument, Moved
from cluster.lifecycle import RunState
from cluster.records import (
    Append,
    BatchCounts,
    Claim,
    Finish,
    Fired,
    Heartbeat,
    HubRecord,
    NewRun,
    Park,
    RunRecord,
    Submitted,
)
from cluster.scripts import Script
from cluster.topology import Topology

_LOG: Final = logging.getLogger("penstock.store")
_MOVES: Final = 20
_FULL_PAUSE_S: Final = 0.5


class Store(EffectCalls):
    """A deployment's state in Redis or Valkey. Open it inside the event loop that uses it.

    Every method may raise :class:`StoreUnavailable`; then the call may or may not have happened, and making the same
    call again is safe (``claim`` excepted: see :meth:`owned`).
    """

    def __init__(self, settings: Settings, topology: Topology, keys: Keys, *, patient: bool = False) -> None:
        self.settings = settings
        self.keys = keys
        self._topology = topology
        self._patient = patient
        self._retention = settings.retention.argument

    @classmethod
    async def open(
        cls, settings: Settings, *, patient: bool = False, on_reconnected: Callable[[], None] | None = None
    ) -> "Store":
        """Connects, and settles with the store what all processes of the deployment must agree on.

        Args:
            settings: needs ``redis_url``.
            patient: True for hosts: calls wait for the store to come back instead of failing after a time.
            on_reconnected: called after a lost connection has been made again.

        Raises:
            StoreUnavailable: nobody answers.
            StoreUnsuitable: no URL, wrong password, or the deployment has another number of partitions.
        """
        if settings.redis_url is None:
            raise StoreUnsuitable(
                "no store is configured and no local deployment is running. Start one with `penstock up`, or set "
                "PENSTOCK_REDIS_URL"
            )
        topology = await Topology.open(
            settings.redis_url.get_secret_value(),
            timeout_s=math.inf if patient else settings.store_timeout_s,
            replicas=settings.store_replicas,
            on_reconnected=on_reconnected,
        )
        store = cls(settings, topology, Keys(settings.name, settings.partitions), patient=patient)
        try:
            await store._agree()
        except BaseException:
            await topology.close()
            raise
        return store

    async def _agree(self) -> None:
        key = self.keys.deployment
        await self.command(key, "HSETNX", key, "partitions", self.settings.partitions)
        partitions = int(await self.command(key, "HGET", key, "partitions"))
        if partitions != self.settings.partitions:
            if "partitions" in self.settings.model_fields_set:
                raise StoreUnsuitable(
                    f"deployment {self.settings.name!r} has {partitions} partitions, and this process was told "
                    f"{self.settings.partitions}. The number is fixed for the life of a deployment: unset "
                    "PENSTOCK_PARTITIONS, or choose another PENSTOCK_NAME"
                )
            self.keys = Keys(self.settings.name, partitions)

    @property
    def clustered(self) -> bool:
        """Whether the store is a cluster."""
        return self._topology.clustered

    @property
    def partitions(self) -> range:
        """All partitions."""
        return range(self.keys.partitions)

    async def close(self) -> None:
        """Closes every connection."""
        await self._topology.close()

    async def call(self, script: Script, partition: int, *arguments: Argument) -> Any:
        """Calls a partition's script, wherever the partition is now."""
        key = self.keys.queues[partition]
        for _ in self._tries():
            try:
                return await self._topology.lane(key).call(script, key, self._retention, *arguments)
            except Moved:
                await self._topology.refresh()
        raise StoreUnavailable(f"no node of the store's cluster serves partition {partition:02x}")

    async def command(self, key: str, *arguments: Argument) -> Any:
        """Sends a plain command to the server that holds ``key``; only commands that may be sent twice."""
        for _ in self._tries():
            try:
                return await self._topology.lane(key).command(*arguments)
            except Moved:
                await self._topology.refresh()
        raise StoreUnavailable(f"no node of the store's cluster serves the slot of {key}")

    async def call_keys(self, script: Script, keys: Sequence[str], *arguments: Argument) -> Any:
        """Calls a script of no partition; its keys share a slot."""
        for _ in self._tries():
            try:
                return await self._topology.lane(keys[0]).call_keys(script, keys, *arguments)
            except Moved:
                await self._topology.refresh()
        raise StoreUnavailable(f"no node of the store's cluster serves the slot of {keys[0]}")

    def _tries(self) -> Iterator[int]:
        """How often to look for a partition's server: a patient store looks until it is there."""
        return itertools.count() if self._patient else iter(range(_MOVES))

    # Submitting and cancelling

    async def submit(self, batch: str, partition: int, runs: Sequence[NewRun]) -> list[Submitted]:
        """Makes runs of one partition, or refuses them; one answer a run."""
        arguments: list[Argument] = [batch, "", ""]
        for run in runs:
            arguments.extend(run)
        return [submitted(answer) for answer in await self.call(scripts.SUBMIT, partition, *arguments)]

    async def submit_child(self, run: NewRun, *, parent: str, fence: int) -> bool:
        """Makes a child run; False when the caller does not own the parent any more."""
        while True:
            try:
                answer = await self.call(scripts.SUBMIT, partition_of(parent), "", parent, fence, *run)
                return bool(answer != b"STALE")
            except StoreFull:
                if not self._patient:
                    raise
                await asyncio.sleep(_FULL_PAUSE_S)

    async def note_batch(self, batch: str, at_ms: int) -> None:
        """Enters a batch into the index of batches (first submission wins), and takes forgotten ones out of it."""
        key = self.keys.batches
        await self.command(key, "ZADD", key, "NX", at_ms, batch)
        # Two out for one in at most: the index stays as large as what is kept, and no call has to clear it.
        longest_ms = self.settings.retention.milliseconds_of("")
        for old in await self.command(key, "ZRANGEBYSCORE", key, "-inf", at_ms - longest_ms, "LIMIT", 0, 2):
            counts = [self.keys.of(partition, f"batch:{old.decode()}") for partition in self.partitions]
            found = await asyncio.gather(*(self.command(each, "EXISTS", each) for each in counts))
            if old.decode() != batch and not any(found):
                await self.command(key, "ZREM", key, old)

    async def cancel(self, partition: int, reason: str, run_ids: Sequence[str]) -> list[str]:
        """Cancels runs of one partition; the words of ``cancel.lua`` for each."""
        answers = await self.call(scripts.CANCEL, partition, reason, *run_ids)
        return [answer.decode() for answer in answers]

    # What hosts do

    async def claim(
        self, partition: int, host: str, most: int, served: Sequence[str], worst: int | None = None
    ) -> tuple[int, list[Claim]] | None:
        """Claims up to ``most`` runs, of levels up to ``worst``; the best level that is left (-1: nothing is) and the
        claims, or None when this identity is declared dead.
        """
        answer = await self.call(scripts.CLAIM, partition, host, most, "" if worst is None else worst, *served)
        if answer == b"FENCED":
            return None
        return answer[0], [_claim(item) for item in answer[1:]]

    async def append(self, partition: int, appends: Iterable[Append]) -> dict[str, str]:
        """Appends journal entries of many runs; exceptions by run id: STALE, READONLY, GAP or CANCEL."""
        arguments: list[Argument] = []
        for run_id, fence, length, finished, entries, intents in appends:
            arguments += (run_id, fence, length, finished, intents, len(entries), *entries)
        return _exceptions(await self.call(scripts.APPEND, partition, *arguments))

    async def compact(self, run_id: str, fence: int, length: int, entry: bytes, *, archive: bool = False) -> str:
        """Replaces a run's journal by one checkpoint entry, and keeps the old one apart if asked; OK, STALE or GAP."""
        answer = await self.call(scripts.COMPACT, partition_of(run_id), run_id, fence, length, entry, int(archive))
        return str(answer.decode())

    async def finish(self, partition: int, host: str, ends: Iterable[Finish]) -> dict[str, str]:
        """Ends runs; exceptions by run id: STALE."""
        arguments: list[Argument] = []
        for run_id, fence, state, reason, output, error, head, seal in ends:
            arguments += (run_id, fence, host, state.value, reason, output, error, head, seal)
        return _exceptions(await self.call(scripts.FINISH, partition, *arguments))

    async def park(self, partition: int, host: str, parks: Iterable[Park]) -> dict[str, str]:
        """Unloads runs; exceptions by run id: STALE or CANCEL."""
        arguments: list[Argument] = []
        for run_id, fence, reason, due_ms, children, head in parks:
            due: Argument = "" if due_ms is None else due_ms
            arguments += (run_id, fence, host, reason, due, head, len(children), *children)
        return _exceptions(await self.call(scripts.PARK, partition, *arguments))

    async def fire(self, partition: int, most: int = 1000) -> Fired:
        """Queues what is due and ends what is past its bound; what there was and what is to come."""
        fired, following, queued = await self.call(scripts.FIRE, partition, most)
        return Fired(fired, None if following < 0 else following, queued)

    async def reap(self, partition: int, host: str, most: int = 500) -> int:
        """Takes a dead host's runs of one partition away from it, all of them; how many moved."""
        moved: int = 0
        while True:
            now, left = await self.call(scripts.REAP, partition, host, most)
            moved += now
            if not left:
                return moved

    async def release(self, partition: int, host: str, reason: str, runs: Iterable[tuple[str, int | None]]) -> int:
        """Hands runs back to the queue; how many moved. A fence of None means: if this host owns it at all."""
        arguments: list[Argument] = [host, reason]
        for run_id, fence in runs:
            arguments += (run_id, "" if fence is None else fence)
        moved: int = await self.call(scripts.RELEASE, partition, *arguments)
        return moved

    async def owned(self, partition: int, host: str) -> set[str]:
        """The runs that the store holds to be this host's: after a lost answer to a claim, compare."""
        key = self.keys.of(partition, f"owned:{host}")
        return {member.decode() for member in await self.command(key, "SMEMBERS", key)}

    # Hosts and their leases

    async def heartbeat(self, host: str, info: str = "", load: str = "") -> Heartbeat:
        """Renews a lease, or registers with ``info``; tells the host's ``load`` (both JSON objects)."""
        keys = (*self.keys.hosts, self.keys.loads)
        lease_ms = int(self.settings.lease_s * 1000)
        answer = await self.call_keys(scripts.HEARTBEAT, keys, host, lease_ms, info, load)
        word, expired, draining, live, now = answer
        return Heartbeat(
            word == b"OK",
            tuple(item.decode() for item in expired),
            bool(draining),
            tuple(i.decode() for i in live),
            now,
        )

    async def hosts(self) -> dict[str, dict[str, Any]]:
        """Registered hosts: id → info and the load that they told last, with ``lease_left_ms`` (negative: expired) and
        ``draining``.
        """
        leases, infos, draining = self.keys.hosts
        clock, scores, facts, marks, loads = await asyncio.gather(
            self.command(leases, "TIME"),
            self.command(leases, "ZRANGE", leases, 0, -1, "WITHSCORES"),
            self.command(leases, "HGETALL", infos),
            self.command(leases, "SMEMBERS", draining),
            self.fields(self.keys.loads),
        )
        now = _server_ms(clock)
        expiry = {scores[i].decode(): int(float(scores[i + 1])) for i in range(0, len(scores), 2)}
        drained = {mark.decode() for mark in marks}
        found: dict[str, dict[str, Any]] = {}
        for i in range(0, len(facts), 2):
            host = facts[i].decode()
            left = expiry.get(host, now) - now
            load = json.loads(loads.get(host, "{}"))
            found[host] = {**json.loads(facts[i + 1]), **load, "lease_left_ms": left, "draining": host in drained}
        return found

    async def condemn_host(self, host: str, *, if_expired: bool = False) -> bool:
        """Declares a host dead, before its runs are taken from it: it can renew its lease no more. False when that was
        to be only ``if_expired``, and it has renewed it.
        """
        leases, infos, _ = self.keys.hosts
        return bool(await self.call_keys(scripts.CONDEMN, [leases, infos], host, int(if_expired)))

    async def forget_host(self, host: str) -> None:
        """Removes a host whose runs have all been taken over, or which has left empty-handed."""
        leases, infos, draining = self.keys.hosts
        await self.command(leases, "ZREM", leases, host)
        await self.command(leases, "HDEL", infos, host)
        await self.command(leases, "HDEL", self.keys.loads, host)
        await self.command(leases, "SREM", draining, host)

    async def mark_draining(self, host: str, *, draining: bool) -> None:
        """Asks a host to drain (or to stop draining); it learns it at once or with its next heartbeat."""
        key = self.keys.hosts[2]
        await self.command(key, "SADD" if draining else "SREM", key, host)
        await self.publish(self.keys.host_channel(host), "drain")

    # Hubs

    async def hub(self, name: str, epoch: int | None = None, state: str = "") -> HubRecord | None:
        """Begins a hub's life (no epoch), or keeps its state; what there is, or None when a later hub has begun."""
        return await self.epoch(self.keys.dependency(name), epoch, state)

    async def epoch(
        self, key: str, epoch: int | None = None, state: str = "", explanation: str = ""
    ) -> HubRecord | None:
        """The same for whatever there may be one of at a time, whose record is at ``key``; what is '' stays as it was.
        ``explanation`` is for people.
        """
        answer = await self.call_keys(scripts.HUB, [key], "" if epoch is None else epoch, state, explanation)
        if answer == b"STALE":
            return None
        number, kept, override, command, now = answer
        return HubRecord(number, kept.decode(), override.decode(), command.decode(), now)

    # Facts of the deployment

    async def memory_use(self) -> float | None:
        """How full the fullest server of the store is, from 0 to 1; None where none has a limit, or none answers."""
        return await self._topology.memory_use()

    async def publish(self, channel: str, message: str) -> None:
        """Tells listeners something; nobody may rely on it being heard."""
        await self.command(channel, "PUBLISH", channel, message)

    async def set_fields(self, key: str, fields: dict[str, str]) -> None:
        """Writes fields of one of the deployment's own hashes (catalog, notes)."""
        await self.command(key, "HSET", key, *(part for pair in fields.items() for part in pair))

    async def fields(self, key: str) -> dict[str, str]:
        """Reads one of the deployment's own hashes."""
        flat = await self.command(key, "HGETALL", key)
        return {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}

    async def server_ms(self) -> int:
        """The server's clock, epoch milliseconds."""
        return _server_ms(await self.command(self.keys.deployment, "TIME"))

    async def listen(self, *channels: str) -> AsyncIterator[tuple[str, str] | None]:
        """Messages as (channel, text), for ever. None says: listening (again), something may have been missed."""
        while True:
            client = self._topology.any_client()
            pubsub = client.pubsub(ignore_subscribe_messages=True)
            try:
                await pubsub.subscribe(*channels)
                yield None
                async for message in pubsub.listen():
                    yield message["channel"].decode(), message["data"].decode()
            except (RedisError, OSError) as error:
                _LOG.debug("listening was interrupted: %s", error)
            finally:
                for closing in (pubsub.aclose, client.aclose, client.connection_pool.disconnect):
                    try:
                        await closing()
                    except (RedisError, OSError) as error:
                        _LOG.debug("closing a listener: %s", error)
            await asyncio.sleep(0.2)
            await self._topology.refresh()


def _server_ms(answer: list[bytes]) -> int:
    return int(answer[0]) * 1000 + int(answer[1]) // 1000


def _exceptions(flat: list[bytes]) -> dict[str, str]:
    return {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)} if flat else {}


def _claim(item: list[Any]) -> Claim:
    (
        run_id, fence, agent, custom_id, batch, job, migrations, deadline, accepted, parent, cancel, journal, losses,
        readonly,
    ) = item  # fmt: skip
    return Claim(
        run_id.decode(), fence, agent.decode(), custom_id.decode(), batch.decode(), job, int(migrations),
        int(deadline) if deadline else None, int(accepted), parent.decode(), cancel.decode(), journal, losses,
        bool(readonly),
    )  # fmt: skip


__all__ = ["BatchCounts", "RunRecord", "RunState", "Store", "StoreError"]
