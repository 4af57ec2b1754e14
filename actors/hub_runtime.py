"""A hub without Ray: keeps one dependency's state in the store, obeys operators, tells news. The actor is around it."""

import asyncio
import json
import logging
import math
import random
from typing import Any, Final

from pydantic import ValidationError

from actors.messages import decode_report, encode_message
from admission.dependency import Dependency, as_plain, from_plain
from admission.hub import Hub
from admission.hub_record import news, restore, view
from cluster.config import Settings
from cluster.errors import StoreError
from cluster.store import Store
from cluster.tasks import KeptTasks

_IDLE_PERIOD_S: Final = 2.0
_BURY_EVERY_S: Final = 1.0
_LOG: Final = logging.getLogger("penstock.hub")


class Superseded(Exception):
    """Another hub has begun for the same dependency: this one grants nothing more."""


class HubRuntime:
    """One dependency's hub on the current event loop."""

    def __init__(self, settings: Settings, dependency: Dependency) -> None:
        self.settings = settings
        self.declared = dependency
        self.store: Store
        self.hub: Hub
        self.superseded = False
        self._loop = asyncio.get_running_loop()
        self._clock_base_ms = 0.0
        self._override = ""
        self._command = ""
        self._command_done = ""
        self._active = asyncio.Event()
        self._buried_at = -math.inf
        self._writing = asyncio.Lock()
        self._tasks = KeptTasks(_LOG, lambda: f"hub of {self.declared.name}")
        self._keep = self._tasks.start

    async def start(self) -> None:
        """Begins a new epoch, and goes on from what the last hub has left."""
        self.store = await Store.open(self.settings, patient=True)
        name = self.declared.name
        keys = self.store.keys
        await self.store.command(keys.dependencies, "SADD", keys.dependencies, name)
        record = await self.store.hub(name)
        assert record is not None  # whoever begins is the last to have begun
        now = self._loop.time()
        self._clock_base_ms = record.server_ms - now * 1000
        self.hub = Hub(self._overridden(record.override), record.epoch, now)
        self._restore(now, record.state, record.server_ms)
        self._command = self._command_done
        self._obey(record.override, record.command)
        await self._write()
        for work in (self._keep_state(), self._listen()):
            self._keep(work)
        _LOG.info("hub of %s: epoch %d", name, record.epoch)

    def _restore(self, now: float, raw: str, server_ms: int) -> None:
        if not raw:
            return
        try:
            state = json.loads(raw)
            gap_s = max(0.0, (server_ms - state["at_ms"]) / 1000)
            restore(self.hub, now, state["restore"], gap_s)
            self._command_done = str(state.get("command_done", ""))
        except (KeyError, TypeError, ValueError) as error:
            # A dependency's state is worth less than its being served: the worst is assumed for one window instead.
            _LOG.error("hub of %s: its state cannot be read (%r); limits count as used up", self.declared.name, error)
            self.hub = Hub(self.hub.dependency, self.hub.epoch, now)
            self.hub.limiter.assume(now, {limit.resource: limit.amount for limit in self.hub.dependency.rate})

    # What hosts ask

    def exchange(self, raw: bytes) -> bytes:
        """A host's report in, its lease out.

        Raises:
            Superseded: another hub has begun.
        """
        if self.superseded:
            raise Superseded(f"another hub of {self.declared.name} has begun")
        self._active.set()
        answer = self.hub.exchange(self._loop.time(), random.random(), decode_report(raw))  # noqa: S311 - jitter
        self._tell()
        return encode_message(answer)

    async def define(self, plain: dict[str, Any]) -> None:
        """The app's declaration has changed; what operators have set stays above it."""
        self.declared = from_plain(plain)
        self.hub.redefine(self._overridden(self._override), self._loop.time())
        await self._write()

    def _tell(self) -> None:
        """Tells all hosts what cannot wait, ahead of their next exchange."""
        told = news(self.hub, self._loop.time())
        if told is not None:
            channel = self.store.keys.dependencies_channel
            text = json.dumps(told)
            _LOG.warning(
                "dependency %s: %s, %s", self.declared.name, told["state"], told["why"] or "nothing holds calls back"
            )
            self._keep(self.store.publish(channel, f"news {self.declared.name} {text}"))
            self._keep(self._write())

    # Operators

    def _overridden(self, override: str) -> Dependency:
        self._override = override
        if not override:
            return self.declared
        try:
            return from_plain(as_plain(self.declared) | json.loads(override))
        except (ValidationError, ValueError, TypeError) as error:
            _LOG.error(
                "dependency %s: what operators have set is not valid, and is ignored: %s", self.declared.name, error
            )
            return self.declared

    def _obey(self, override: str, command: str) -> None:
        now = self._loop.time()
        if override != self._override:
            self.hub.redefine(self._overridden(override), now)
            _LOG.info("dependency %s: operators have set %s", self.declared.name, override or "nothing any more")
        if command and command != self._command:
            self._command = command
            try:
                wanted = json.loads(command)
                if wanted["id"] == self._command_done:
                    return
                self.hub.command(wanted["do"], str(wanted.get("by", "")), str(wanted.get("reason", "")), now)
                self._command_done = str(wanted["id"])
                _LOG.warning("dependency %s: %s by %s", self.declared.name, wanted["do"], wanted.get("by", ""))
            except (KeyError, TypeError, ValueError) as error:
                _LOG.error("dependency %s: a command that cannot be obeyed: %s", self.declared.name, error)
        self._tell()

    # The store

    async def _keep_state(self) -> None:
        """Writes the state once a period while hosts come, and seldom while they do not."""
        while not self.superseded:
            with_hosts = bool(self.hub.hosts)
            try:
                await self._write()
                await self._bury_the_dead()
            except StoreError as error:
                _LOG.warning("hub of %s: its state could not be kept: %s", self.declared.name, error)
            if with_hosts:
                await asyncio.sleep(self.hub.period_s)
                continue
            self._active.clear()
            try:
                async with asyncio.timeout(_IDLE_PERIOD_S):
                    await self._active.wait()
            except TimeoutError:
                pass

    async def _write(self) -> None:
        async with self._writing:
            now = self._loop.time()
            self.hub.tick(now, random.random())  # noqa: S311 - jitter
            now_ms = round(self._clock_base_ms + now * 1000)
            state = view(self.hub, now, now_ms) | {"command_done": self._command_done, "override": self._override}
            record = await self.store.hub(self.declared.name, self.hub.epoch, json.dumps(state, allow_nan=False))
        if record is None:
            self.superseded = True
            _LOG.warning("hub of %s: another one has begun; this one grants nothing more", self.declared.name)
            return
        self._clock_base_ms = record.server_ms - self._loop.time() * 1000
        self._obey(record.override, record.command)

    async def _bury_the_dead(self) -> None:
        """Hosts that are silent and that the store has no lease of are gone: nothing is kept for them."""
        now = self._loop.time()
        if now - self._buried_at < _BURY_EVERY_S:
            return
        silent = [name for name, host in self.hub.hosts.items() if now - host.heard > self.hub.lifetime_s]
        if not silent:
            return
        self._buried_at = now
        living = await self.store.hosts()
        for name in silent:
            host = self.hub.hosts.get(name)
            if host is not None and name not in living and self._loop.time() - host.heard > self.hub.lifetime_s:
                self.hub.bury(self._loop.time(), name)

    async def _listen(self) -> None:
        """Operators' wishes are obeyed at once; the next write is the net below."""
        async for message in self.store.listen(self.store.keys.dependencies_channel):
            if message is None or message[1] == f"changed {self.declared.name}":
                await self._write()

    # Leaving

    async def stop(self) -> None:
        """Keeps the state a last time and closes."""
        if not self.superseded:
            await self._write()
        await self.abandon()

    async def abandon(self) -> None:
        """Closes everything and tells nobody."""
        self.superseded = True
        await self._tasks.end()
        await self.store.close()
