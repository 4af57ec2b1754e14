"""A host without Ray: claims runs, drives them, keeps its lease, takes over from the dead. The actor is around it."""

import asyncio
import json
import logging
import os
import random
import socket
import uuid
from collections.abc import Callable
from typing import Final

from actors.approval_keys import keyring
from actors.attempts import Attempts
from actors.authority import Authority
from actors.claiming import Claiming
from actors.committer import Committer
from actors.dependency_uses import DependencyUses
from actors.engine import RunEngine
from actors.gatekeeper import Link
from actors.host_gates import HostGates
from actors.host_load import HostLoad
from actors.hub_link import unreachable
from actors.journal import Kind, decode_entry
from actors.placement import home_partitions
from actors.reaper import Reaper
from actors.registry import App, not_simulated
from actors.scope import number_branches
from actors.timers import Timers
from actors.wait_notes import WaitNotes
from actors.watch import Watch
from actors.watchdog import Watchdog, forget_old_notes
from cluster import reader
from cluster.config import Settings
from cluster.errors import StoreError
from cluster.keys import partition_of
from cluster.store import Store
from cluster.tasks import KeptTasks, end

_POLLED_PARTITIONS: Final = 16
_STRAYS_EVERY_BEATS: Final = 10
_LOG: Final = logging.getLogger("penstock.host")


class HostRuntime:
    """Runs agents on the current event loop. ``label`` is the stable name; each life has an identity of its own."""

    def __init__(
        self,
        settings: Settings,
        app: App,
        label: str,
        *,
        node: str = "",
        watchdog: bool = True,
        links: Callable[[str], Link] | None = None,
    ) -> None:
        self.settings = settings
        self.app = app
        self.label = label
        self.host = ""
        self._registered = ""
        self.runs: dict[str, RunEngine] = {}
        self.tools = {tool.name: tool for tool in app.tools}
        self.payload_limit_bytes = settings.payload_limit_bytes
        self.max_losses = settings.max_losses
        self.approval_keys = keyring(settings.approval_keys)
        self.store: Store
        self.committer: Committer
        self.attempts: Attempts
        self.authority: Authority
        self.gates: HostGates
        self._waits: WaitNotes
        self._uses: DependencyUses
        self._links = links or unreachable
        self._node = node or socket.gethostname()
        self.loop = asyncio.get_running_loop()
        self._clock_base_ms = 0.0
        self._lease_until = 0.0
        self._lease_ok = asyncio.Event()
        self._tasks = KeptTasks(_LOG, lambda: f"host {self.host}")
        self.keep = self._tasks.start
        self._claiming = Claiming(self)
        self.load = HostLoad(settings.slots_per_host, lambda: len(self.runs), self._claiming.freed)
        self._listening: asyncio.Task[None] | None = None
        self._watch = Watch(settings.watch_address, self._lost)
        self._watched: tuple[str, ...] = ()
        self._watch_at: tuple[str, int] = ("", 0)
        self._reaper: Reaper
        self._timers: Timers
        self._beats = self._poll_from = 0
        self._stopped = False
        self.drains = f"host {label} drains"
        self._leaving = self._marked = False
        self._heart: asyncio.Task[None] | None = None
        self._watchdog = Watchdog(settings, self) if watchdog else None

    # What runs ask of their host (engine.Services)

    def now_ms(self) -> int:
        """The server's clock as estimated at the last heartbeat."""
        return int(self._clock_base_ms + self.loop.time() * 1000)

    def clock(self) -> float:
        """Seconds of this host's clock, that only goes on."""
        return self.loop.time()

    def draw(self) -> float:
        """A uniform random number in [0, 1)."""
        return random.random()  # noqa: S311 - jitter and agents' dice, no secret

    def closing(self) -> bool:
        """Whether this host is being closed, or its event loop is: the loop cancels all tasks at once."""
        return self._stopped or self._heart is None or self._heart.done() or self._heart.cancelling() > 0

    def lease_holds(self) -> bool:
        """Whether this host may start anything: nobody can have taken its runs yet."""
        return self.loop.time() < self._lease_until

    async def lease_renewed(self) -> None:
        """Returns when the lease holds again."""
        while not self.lease_holds():
            self._lease_ok.clear()
            await self._lease_ok.wait()

    async def has_open_intent(self, run_id: str, path: str) -> bool:
        """Whether a run's journal has an intent at a step that is not closed."""
        entries = [decode_entry(raw) for raw in await reader.journal(self.store, run_id)]
        last = next((entry for entry in reversed(entries) if entry.step == path), None)
        return last is not None and last.kind == Kind.INTENT

    def gone(self, engine: RunEngine) -> None:
        """A run has left its slot."""
        if self.runs.get(engine.claim.id) is engine:
            del self.runs[engine.claim.id]
        if engine.parked_until_ms is not None:
            self._timers.at(partition_of(engine.claim.id), engine.parked_until_ms)
        self._claiming.freed()

    # Life

    async def start(self) -> None:
        """Connects, registers, and begins to claim."""
        number_branches(self.loop)
        self.store = await Store.open(self.settings, patient=True, on_reconnected=self._reconnected)
        self.authority = Authority(self.store, self.settings)
        await self.authority.open(self.app.tools)
        self.committer = Committer(self.store, lambda: self.host)
        self._timers = Timers(self.store, self.now_ms, self.keep)
        self._reaper = Reaper(self.store, self.keep)
        self._new_identity()
        self.gates = HostGates(self.app.dependencies, self.host, self._links)
        self.attempts = Attempts(self.loop.time, self.draw, self.gates.keepers)
        self._waits = WaitNotes(self.store, lambda: self.host, self.attempts)
        self._uses = DependencyUses(self.store, self.attempts)
        self._watch_at = await self._watch.start(self.host)
        await self.store.set_fields(self.store.keys.catalog, self.app.catalog())
        await self._register()
        self.load.start()
        if self._watchdog is not None:
            self._watchdog.start()
        self._heart = self.keep(self._heartbeats())
        for work in (
            self._claiming.claim_for_ever(),
            self._reaper.bury_namesakes(self.label, self.host),
            forget_old_notes(self.store, self.now_ms()),
        ):
            self.keep(work)
        _LOG.info("host %s serves %s", self.host, ", ".join(sorted(self.app.agents)))

    def _new_identity(self) -> None:
        self.host = f"{self.label}~{uuid.uuid4().hex[:8]}"
        self._watch.rename(self.host)
        if self._listening is not None:
            self.keep(end([self._listening]))
        self._listening = self.keep(self._listen(self.host))

    async def _register(self) -> None:
        info = {
            "label": self.label,
            "node": self._node,
            "pid": os.getpid(),
            "watch": list(self._watch_at),
            "slots": self.settings.slots_per_host,
            "agents": {agent.name: agent.version for agent in self.app.agents.values()},
            "not_simulated": not_simulated(self.app.tools),
            "since_ms": await self.store.server_ms(),
        }
        await self._beat(json.dumps(info))

    async def _beat(self, info: str = "") -> None:
        sent, host = self.loop.time(), self.host
        known = self._registered == host
        beat = await self.store.heartbeat(host, info, self.load.report())
        heard = self.loop.time()
        if not beat.standing:
            if known:
                await self.identity_lost(host)
            elif not self._claiming.lock.locked():
                # A name that nobody has heard of yet is not lost. Where nobody is about to register it, that failed.
                await self._register()
            return
        if host != self.host:
            return
        self._registered = host
        self._clock_base_ms = beat.server_ms - (sent + heard) / 2 * 1000
        # Whoever was late itself cannot tell: maybe the store was away, and then all are late and about to say so.
        late = heard >= self._lease_until
        self._lease_until = sent + self.settings.lease_s
        self._lease_ok.set()
        for dead in beat.expired:
            if dead != self.host and not late:
                self._reaper.reap_soon(dead, if_expired=True)
        if beat.draining != self._marked:
            self._marked = beat.draining
            if self._marked:
                self.keep(self._hand_back_all())
            self._claiming.look_everywhere()
        self._claiming.home = home_partitions(self.host, beat.live, len(self.store.partitions))
        if beat.live != self._watched:
            await self._watch_others(beat.live)

    async def _watch_others(self, live: tuple[str, ...]) -> None:
        hosts = await self.store.hosts()
        addresses = {host: tuple(hosts[host]["watch"]) for host in live if host in hosts and hosts[host].get("watch")}
        self._watch.update(addresses)
        if self.host in addresses:
            self._watched = live

    async def _heartbeats(self) -> None:
        while True:
            await asyncio.sleep(self.settings.heartbeat_s)
            try:
                await self._beat()
                if not self.lease_holds():
                    # The answer took longer than the lease (the store was away): do not stand still for another period.
                    await self._beat()
                await self._poll()
                await self._waits.write(self.loop.time(), self.now_ms())
                await self._uses.write(self.now_ms())
            except StoreError as error:
                _LOG.warning("host %s: heartbeat failed: %s", self.host, error)
            except Exception:
                # Whatever it was: without a heartbeat all that this host does would stop.
                _LOG.exception("host %s: heartbeat failed", self.host)

    async def _poll(self) -> None:
        """The net below the messages: some partitions a beat, all of them in turn."""
        count = min(_POLLED_PARTITIONS, len(self.store.partitions))
        chosen = [(self._poll_from + i) % len(self.store.partitions) for i in range(count)]
        self._poll_from = (self._poll_from + count) % len(self.store.partitions)
        await self.authority.refresh()
        queued = await asyncio.gather(*(self._timers.look(partition) for partition in chosen))
        self._claiming.look([partition for partition, waiting in zip(chosen, queued, strict=True) if waiting])
        for engine in list(self.runs.values()):
            engine.child_ended()
            engine.poked()
        self._beats += 1
        if self._beats % _STRAYS_EVERY_BEATS == 0:
            await self._claiming.release_strays()

    def _lost(self, host: str) -> None:
        self._reaper.reap_soon(host)

    async def identity_lost(self, lost: str) -> None:
        """Others have taken this host for dead: all that it had is theirs. It comes back as somebody new."""
        async with self._claiming.lock:
            if self.host != lost:
                return
            _LOG.warning("host %s was declared dead; %d runs dropped, coming back anew", lost, len(self.runs))
            for engine in list(self.runs.values()):
                engine.drop()
            self._new_identity()
            self.gates.rename(self.host)
            await self._register()
        # Whoever declared it dead may have died before all partitions knew.
        self._reaper.reap_soon(lost)
        self._claiming.look_everywhere()

    def _reconnected(self) -> None:
        self.keep(self._claiming.release_strays())

    # Messages and timers

    async def _listen(self, host: str) -> None:
        wake, mine = self.store.keys.wake_channel, self.store.keys.host_channel(host)
        dependencies, policy = self.store.keys.dependencies_channel, self.store.keys.policy_channel
        async for message in self.store.listen(wake, mine, policy, *([dependencies] if self.gates.keepers else [])):
            if message is None:
                self._claiming.look_everywhere()
                self.keep(self.authority.told())
                continue
            channel, text = message
            if channel == policy:
                self.keep(self.authority.told())
                continue
            if channel == wake:
                self._claiming.woken(text)
                continue
            if channel == dependencies:
                self.gates.hear(text)
                continue
            word, _, run_id = text.partition(" ")
            engine = self.runs.get(run_id)
            if word == "drain":
                self.keep(self._beat())
            elif engine is not None and word == "cancel":
                engine.request_cancel("cancelled")
            elif engine is not None and word == "child":
                engine.child_ended()
            elif engine is not None and word == "poke":
                engine.poked()

    # Leaving

    @property
    def draining(self) -> bool:
        """Whether this host claims nothing: for good, or for as long as its mark in the store says so."""
        return self._leaving or self._marked

    async def drain(self) -> int:
        """Claims nothing more, whatever the store says, and hands all runs back at their next step boundaries.

        Returns how many there were. Effects that are under way come to their end first.
        """
        self._leaving = True
        return await self._hand_back_all()

    async def _hand_back_all(self) -> int:
        async with self._claiming.lock:
            engines = list(self.runs.values())
        for engine in engines:
            engine.depart(self.drains)
        await asyncio.gather(*(engine.closed() for engine in engines))
        return len(engines)

    async def stop(self) -> None:
        """Drains, gives its lease up and closes everything."""
        await self.drain()
        await self.gates.close()
        if self._heart is not None:
            # A beat after the lease is given up would make this host come back under a new identity.
            await end([self._heart])
        for partition in self.store.partitions:
            await self.store.reap(partition, self.host)
        await self.store.forget_host(self.host)
        await self.abandon()

    async def abandon(self) -> None:
        """Closes everything and tells nobody."""
        if self._stopped:
            return
        self._stopped = True
        if self._watchdog is not None:
            self._watchdog.stop()
        for engine in list(self.runs.values()):
            engine.drop()
        self.gates.abandon()
        self.load.stop()
        self._timers.close()
        self.committer.close()
        await self._tasks.end()
        await self._watch.stop()
        self.attempts.close()
        await self.store.close()
