"""The admission controller without Ray: observes, has the law decide, and publishes. The actor is around it."""

import asyncio
import json
import logging
import math
from collections.abc import Mapping
from typing import Any, Final

from actors import admission_facts
from actors.admission_file import parsed
from admission.admission_definition import AdmissionDefinition
from admission.admission_policy import DEFAULT_PERIOD_MS, AdmissionPolicy, as_plain
from admission.queue_controller import Decision, DependencyState, HostState, Observations, QueueController
from admission.queue_statistics import PartitionStatistics, from_plain
from admission.queue_view import view
from cluster import admission
from cluster.admission_rules import rules_in_force, rules_number
from cluster.config import Settings
from cluster.errors import StoreError
from cluster.store import Store
from cluster.tasks import KeptTasks

PERIOD_S: Final = DEFAULT_PERIOD_MS / 1000
IDLE_PERIOD_S: Final = 1.0
"""Where nothing is queued and nothing comes, doors need no news: they go by what comes since the last policy."""
_TELL_S: Final = 1.0
_KEEP_S: Final = 5.0
_LOG: Final = logging.getLogger("penstock.admission")


class AdmissionRuntime:
    """One deployment's admission controller on the current event loop.

    It computes and publishes, and never decides about a single run: while it is gone doors go on with the last policy.
    Of two that run at once the later one keeps its record, and the other one ends.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store: Store
        self.controller: QueueController
        self.superseded = False
        self._loop = asyncio.get_running_loop()
        self._clock_base_ms = 0.0
        self._epoch = 0
        self._definition = AdmissionDefinition()
        self._rules_number = 0
        self._outages: admission_facts.Outages
        self._heard: list[PartitionStatistics] = []
        self._seen: Observations | None = None
        self._seldom_at = self._told_at = self._kept_at = -math.inf
        self._changed = asyncio.Event()
        self._tasks = KeptTasks(_LOG, lambda: "admission controller")

    async def start(self) -> None:
        """Begins a new epoch, goes on from what the last controller knew, and publishes once a period."""
        self.store = await Store.open(self.settings, patient=True)
        self._outages = admission_facts.Outages(self.store)
        record = await self.store.epoch(self.store.keys.admission)
        assert record is not None  # whoever begins is the last to have begun
        self._epoch = record.epoch
        self._set_clock(record.server_ms)
        self.controller = QueueController(len(self.store.partitions))
        if record.state:
            try:
                self.controller.restore(json.loads(record.state))
            except ValueError as error:
                # What is estimated is learned again within minutes; nothing else is lost.
                _LOG.error("what the last admission controller knew cannot be read: %s", error)
        await self._exchange(AdmissionPolicy(), {}, "")
        await self.step()
        for work in (self._steps(), self._listen()):
            self._tasks.start(work)
        _LOG.info("admission controller: epoch %d, %d partitions", self._epoch, len(self.store.partitions))

    def now_ms(self) -> int:
        """The store's clock, as estimated at the last exchange."""
        return int(self._clock_base_ms + self._loop.time() * 1000)

    def _set_clock(self, server_ms: int) -> None:
        self._clock_base_ms = server_ms - self._loop.time() * 1000

    # One period

    async def _steps(self) -> None:
        while not self.superseded:
            began = self._loop.time()
            try:
                await self.step()
            except StoreError as error:
                _LOG.warning("admission: this period is left out: %s", error)
            except Exception:
                # Doors would go on with an old policy; a period that goes wrong must not end all that follow.
                _LOG.exception("admission: this period is left out")
            wanted = IDLE_PERIOD_S if self._quiet() else PERIOD_S
            try:
                async with asyncio.timeout_at(max(self._loop.time() + PERIOD_S / 10, began + wanted)):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()

    async def step(self) -> None:
        """Observes, decides, publishes, and sheds what waits for longer than it may."""
        seen = await self._observe()
        decision = self.controller.step(self.now_ms(), seen)
        self._seen = seen
        await self._publish(decision)
        await self._write()

    async def _observe(self) -> Observations:
        now_ms, now = self.now_ms(), self._loop.time()
        if now - self._seldom_at >= _TELL_S:
            await self._read_rules()
            self._seldom_at = now
        hosts, outages, memory = await asyncio.gather(
            admission_facts.hosts(self.store), self._outages.look(now_ms), self.store.memory_use()
        )
        return Observations(
            partitions=self._heard,
            hosts={host.name: HostState(float(host.slots), not host.claims) for host in hosts if host.lives},
            dependencies={each.dependency: DependencyState(each.until_ms, each.agents) for each in outages},
            memory=memory,
            definition=self._definition,
        )

    async def _read_rules(self) -> None:
        if await rules_number(self.store) == self._rules_number:
            return
        record = await rules_in_force(self.store)
        if record is None:
            return
        said = parsed(record.text, f"rules {record.version}")
        self._rules_number = record.number
        if said.definition is None:
            why = "; ".join(said.problems)
            _LOG.error("rules %s for admission cannot be read here, those before stay: %s", record.version, why)
            return
        self._definition = said.definition
        _LOG.info("rules %s for admission, set by %s, hold from now on", record.version, record.by)

    async def _publish(self, decision: Decision) -> None:
        policy = decision.policy
        await self._exchange(policy, decision.places, json.dumps(as_plain(policy), allow_nan=False))
        shed = await asyncio.gather(
            *(admission.evict(self.store, partition, most) for partition, most in decision.evict.items()),
            return_exceptions=True,
        )
        for partition, answer in zip(decision.evict, shed, strict=True):
            if isinstance(answer, BaseException):
                _LOG.warning("admission: partition %d could not shed: %s", partition, answer)
            elif answer:
                _LOG.info("admission: %d runs of partition %d shed", answer, partition)

    async def _exchange(self, policy: AdmissionPolicy, places: Mapping[int, Mapping[str, int]], text: str) -> None:
        shares = {rank: each.share for rank, each in enumerate(policy.classes)}
        capped = policy.tenant_default.places >= 0 or any(each.places >= 0 for each in policy.tenants.values())
        exchanges = (
            admission.exchange(
                self.store, partition, policy.v, text, shares=shares, capped=capped, places=places.get(partition)
            )
            for partition in self.store.partitions
        )
        answers = await asyncio.gather(*exchanges, return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        if len(failed) == len(answers):
            raise failed[0]
        if failed:
            _LOG.warning("admission: %d of %d partitions did not answer: %s", len(failed), len(answers), failed[0])
        self._heard = [from_plain(each.statistics) for each in answers if not isinstance(each, BaseException)]
        self._set_clock(max(each.at_ms for each in self._heard))

    def _quiet(self) -> bool:
        """Whether nothing is queued, and nothing has come since the period before."""
        before = self.controller.heard
        return all(
            each.queued == each.aside == 0 and each.offered == earlier.offered
            for said in self._heard
            if said.partition in before
            for each, earlier in zip(said.classes, before[said.partition].classes, strict=True)
        )

    # What others see, and the next controller

    async def _write(self) -> None:
        now = self._loop.time()
        if now - self._told_at < _TELL_S or self._seen is None:
            return
        state: dict[str, Any] | None = None
        if now - self._kept_at >= _KEEP_S:
            state = self.controller.snapshot()
        told = json.dumps(view(self.controller, self._seen), allow_nan=False)
        kept = "" if state is None else json.dumps(state, allow_nan=False)
        record = await self.store.epoch(self.store.keys.admission, self._epoch, kept, told)
        if record is None:
            self.superseded = True
            _LOG.warning("another admission controller has begun; this one publishes nothing more")
            return
        self._told_at = now
        if state is not None:
            self._kept_at = now

    async def _listen(self) -> None:
        """Operators' rules hold at once; the look once a second is the net below."""
        async for _ in self.store.listen(self.store.keys.admission_channel):
            self._seldom_at = -math.inf
            self._changed.set()

    # Leaving

    async def stop(self) -> None:
        """Keeps what it knows a last time, and closes."""
        if not self.superseded:
            self._told_at = self._kept_at = -math.inf
            await self._write()
        await self.abandon()

    async def abandon(self) -> None:
        """Closes everything and tells nobody."""
        self.superseded = True
        await self._tasks.end()
        await self.store.close()
