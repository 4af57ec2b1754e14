"""The queue as people see and hold it: how deep it is, how long runs wait, what is shed; what is paused."""

import asyncio
import difflib
from collections.abc import AsyncGenerator
from typing import Final

from actors.admission_file import parsed
from admission.admission_definition import AdmissionDefinition
from admission.queue_statistics import PartitionStatistics, from_plain
from admission.values import CLASSES
from cluster import admission, reader
from cluster.admission_rules import rules_in_force
from cluster.queue_reader import explanation, partition_queues
from cluster.store import Store
from penstock.admission_rules import LONGEST_REASON
from penstock.dependencies import operator
from penstock.errors import ClientError, InvalidText
from penstock.queue_reading import explanation_of, pauses, queue_view, with_rates
from penstock.queue_views import PauseView, QueueView

_LOOK_S: Final = 1.0
_LONGEST_NAME: Final = 256


class CannotPause(ClientError):
    """What was to be paused is not there."""


class QueueCalls:
    """What a client can ask of the queue, and hold in it."""

    @property
    def store(self) -> Store:
        """The open store."""
        raise NotImplementedError

    async def queue(self, tenant: str | None = None) -> QueueView:
        """The queue: depth, drain rate, predicted waits, what is shed and why, what is paused.

        Args:
            tenant: tell of this one only; by default of those with the most queued, 100 at most.
        """
        store = self.store
        now_ms, partitions, said, rules = await asyncio.gather(
            store.server_ms(), queue_statistics(store), explanation(store), queue_rules(store)
        )
        return queue_view(store.settings.name, now_ms, partitions, explanation_of(said), rules, tenant)

    async def watch_queue(self, tenant: str | None = None, *, period_s: float = _LOOK_S) -> AsyncGenerator[QueueView]:
        """The same again and again, for ever; rates are counted here while no controller tells them."""
        before: QueueView | None = None
        while True:
            view = await self.queue(tenant)
            yield with_rates(view, before)
            before = view
            await asyncio.sleep(period_s)

    async def pause(
        self,
        *,
        tenant: str | None = None,
        agent: str | None = None,
        value_class: str | None = None,
        by: str | None = None,
        why: str = "",
    ) -> PauseView:
        """Has nothing started any more of a tenant, an agent or a class, or of the whole queue. Jobs are still accepted
        and wait; what runs goes on. It holds, without a controller too, until :meth:`resume`.

        Args:
            tenant: of this tenant.
            agent: of this agent.
            value_class: of this class.
            by: who wants it; by default the user and machine.
            why: the reason, for everybody who looks.

        Raises:
            CannotPause: no host has ever served the agent.
            InvalidText: there is no such class, more than one thing was named, or a name or the reason is too long.
        """
        what = _what(tenant, agent, value_class)
        if agent is not None:
            await self._check_agent(agent)
        if len(why) > LONGEST_REASON:
            raise InvalidText(f"the reason has {len(why):,} characters, at most {LONGEST_REASON:,} are kept")
        who, now_ms = operator() if by is None else by, await self.store.server_ms()
        await admission.pause(self.store, what, {"by": who, "why": why, "at_ms": now_ms})
        return PauseView(what=what, by=who, why=why, since_ms=now_ms)

    async def resume(
        self, *, tenant: str | None = None, agent: str | None = None, value_class: str | None = None
    ) -> bool:
        """Ends a pause: runs are started again, in their order. Whether it was paused.

        Raises:
            InvalidText: there is no such class, or more than one thing was named.
        """
        return await admission.resume(self.store, _what(tenant, agent, value_class))

    async def paused(self) -> list[PauseView]:
        """What is paused."""
        return pauses(await queue_statistics(self.store))

    async def _check_agent(self, agent: str) -> None:
        known = sorted(await reader.catalog(self.store))
        if agent not in known:
            close = difflib.get_close_matches(agent, known, n=1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            there_are = ", ".join(known) if known else "none: start a deployment with `penstock up --app MODULE`"
            raise CannotPause(f"nothing was paused: there is no agent {agent!r}; {meant}known agents: {there_are}")


def _what(tenant: str | None, agent: str | None, value_class: str | None) -> str:
    """What is meant, as the store names it.

    Raises:
        InvalidText: more than one thing is, or one that there cannot be.
    """
    given = {"tenant": tenant, "agent": agent, "class": value_class}
    named = {kind: name for kind, name in given.items() if name is not None}
    if len(named) > 1:
        raise InvalidText(f"{' and '.join(named)} cannot be paused together: pause one after the other")
    if value_class is not None and value_class not in CLASSES:
        raise InvalidText(f"there is no class {value_class!r}; classes: {', '.join(CLASSES)}")
    for kind, name in named.items():
        if not name or not name.isprintable() or len(name) > _LONGEST_NAME:
            raise InvalidText(f"{name!r:.80} can be no {kind}'s name: 1 to {_LONGEST_NAME} printable characters")
        return f"{kind}:{name}"
    return "queue"


async def queue_statistics(store: Store) -> list[PartitionStatistics]:
    """What all partitions have counted."""
    return [from_plain(each.statistics) for each in await partition_queues(store)]


async def queue_rules(store: Store) -> AdmissionDefinition:
    """The rules in force; the defaults where there are none, or none that this version understands."""
    record = await rules_in_force(store)
    said = None if record is None else parsed(record.text, record.version).definition
    return AdmissionDefinition() if said is None else said
