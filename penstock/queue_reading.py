"""What is known of the queue, put together: the store's counters, and what the controller has said. Pure."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from admission.admission_definition import AdmissionDefinition
from admission.queue_statistics import PartitionStatistics
from admission.values import CLASSES
from penstock.queue_views import (
    ClassView,
    ControllerView,
    DrainView,
    PauseView,
    QueueView,
    SheddingView,
    TenantView,
)

FRESH_MS: Final = 5000
MOST_TENANTS: Final = 100
_KINDS: Final = ("refused", "shed", "would")
_RATE: Final = re.compile(r"[0-9.e+-]+/s of ")


class _Drain(msgspec.Struct, frozen=True):
    hosts: int = 0
    draining: int = 0
    slots: float = 0.0
    busy: float = 0.0
    efficiency: float = 0.0
    rate: float | None = None


class _Class(msgspec.Struct, frozen=True):
    wait_ms: float | None = None
    load: float | None = None
    refused: str = ""


class _Tenant(msgspec.Struct, frozen=True):
    tenant: str = ""
    wait_ms: dict[str, float | None] = {}
    used_ms: float | None = None
    over_until_ms: int | None = None


class _Shedding(msgspec.Struct, frozen=True):
    what: str = ""
    reason: str = ""
    value_class: str = msgspec.field(name="class", default="")
    per_s: float = 0.0


class Explanation(msgspec.Struct, frozen=True):
    """What the controller says of the queue (``admission/queue_view.py`` writes it); the parts that are shown."""

    policy: int = 0
    at_ms: int = 0
    definition: str = ""
    drain: _Drain = _Drain()
    classes: tuple[_Class, ...] = ()
    tenants: tuple[_Tenant, ...] = ()
    shedding: tuple[_Shedding, ...] = ()
    dependencies: dict[str, Any] = {}
    memory: float | None = None
    words: tuple[str, ...] = ()


_DECODER: Final = msgspec.json.Decoder(Explanation)


def explanation_of(raw: bytes) -> Explanation | None:
    """What the controller has said; None where it has said nothing, or nothing that this version understands."""
    try:
        return _DECODER.decode(raw) if raw else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def queue_view(
    name: str,
    now_ms: int,
    partitions: Sequence[PartitionStatistics],
    said: Explanation | None,
    rules: AdmissionDefinition,
    tenant: str | None = None,
) -> QueueView:
    """The queue, of all tenants or of one."""
    age_s = None if said is None else max(0.0, (now_ms - said.at_ms) / 1000)
    fresh = said is not None and now_ms - said.at_ms <= FRESH_MS
    known = said if said is not None and fresh else Explanation()
    paused = pauses(partitions)
    classes = [_class(rank, partitions, known, rules) for rank in range(len(CLASSES))]
    return QueueView(
        name=name,
        now_ms=now_ms,
        controller=ControllerView(fresh=fresh, age_s=age_s, policy=max((each.v for each in partitions), default=0)),
        rules=rules.version,
        dry_run=rules.dry_run,
        queued=sum(each.queued for each in classes),
        aside=sum(each.aside for each in classes),
        running=sum(each.running for each in partitions),
        drain=DrainView(**msgspec.structs.asdict(known.drain)),
        classes=classes,
        tenants=_tenants(partitions, known, rules, tenant),
        shedding=_shedding(partitions, known if fresh else None),
        paused=paused,
        dependencies=known.dependencies,
        memory=known.memory,
        notes=_notes(said, age_s, paused, fresh=fresh),
    )


def pauses(partitions: Sequence[PartitionStatistics]) -> list[PauseView]:
    """What is paused, the whole queue first."""
    notes: dict[str, str] = {}
    count: dict[str, int] = {}
    for each in partitions:
        for what, note in each.held.items():
            notes.setdefault(what, note)
            count[what] = count.get(what, 0) + 1
    return [_pause(what, notes[what], count[what], len(partitions)) for what in sorted(notes, key=_pause_order)]


def _pause_order(what: str) -> tuple[bool, str]:
    return what != "queue", what


def _pause(what: str, note: str, count: int, partitions: int) -> PauseView:
    try:
        said = json.loads(note)
    except ValueError:
        said = {}
    said = said if isinstance(said, dict) else {}
    at_ms = said.get("at_ms")
    return PauseView(
        what=what,
        by=str(said.get("by", "")),
        why=str(said.get("why", "")),
        since_ms=at_ms if isinstance(at_ms, int) else None,
        partitions=None if count == partitions else count,
    )


def _class(
    rank: int, partitions: Iterable[PartitionStatistics], known: Explanation, rules: AdmissionDefinition
) -> ClassView:
    counts = [each.classes[rank] for each in partitions]
    rule = rules.of_class(rank)
    mine = known.classes[rank] if rank < len(known.classes) else _Class()
    return ClassView(
        name=CLASSES[rank],
        queued=sum(each.queued for each in counts),
        aside=sum(each.aside for each in counts),
        started=sum(each.started for each in counts),
        wait_s=_seconds(mine.wait_ms),
        max_wait_s=rule.max_wait,
        share=rule.share,
        load=mine.load,
        refused=mine.refused,
    )


def _tenants(
    partitions: Iterable[PartitionStatistics], known: Explanation, rules: AdmissionDefinition, only: str | None
) -> list[TenantView]:
    queued: dict[str, int] = {}
    running: dict[str, int] = {}
    cost_ms: dict[str, int] = {}
    for each in partitions:
        for name, said in each.tenants.items():
            queued[name] = queued.get(name, 0) + said.queued
            running[name] = running.get(name, 0) + said.running
            cost_ms[name] = cost_ms.get(name, 0) + sum(said.queued_ms)
    told = {each.tenant: each for each in known.tenants}
    if only is None:
        here = [name for name in queued if queued[name] or running[name]]
        shown = sorted(here, key=lambda name: (-queued[name], -running[name], name))[:MOST_TENANTS]
    else:
        shown = [only]
    views: list[TenantView] = []
    for name in shown:
        rule, mine = rules.of_tenant(name), told.get(name, _Tenant())
        views.append(
            TenantView(
                tenant=name,
                queued=queued.get(name, 0),
                running=running.get(name, 0),
                queued_s=cost_ms.get(name, 0) / 1000,
                weight=rule.weight,
                waits_s={each: _seconds(wait_ms) for each, wait_ms in mine.wait_ms.items()},
                max_queued=rule.max_queued,
                max_running=rule.max_running,
                used_s=_seconds(mine.used_ms),
                over_until_ms=mine.over_until_ms or None,
            )
        )
    return views


def _shedding(partitions: Iterable[PartitionStatistics], known: Explanation | None) -> list[SheddingView]:
    totals: dict[tuple[str, str, str], int] = {}
    for each in partitions:
        for kind in _KINDS:
            for reason, counts in getattr(each, kind).items():
                for rank, count in enumerate(counts):
                    if count:
                        key = kind, reason, CLASSES[rank]
                        totals[key] = totals.get(key, 0) + count
    rates = {(each.what, each.reason, each.value_class): each.per_s for each in known.shedding} if known else None
    views = [
        SheddingView(
            what=what, reason=reason, value_class=name, total=totals[what, reason, name],
            per_s=None if rates is None else rates.get((what, reason, name), 0.0),
        )
        for what, reason, name in totals
    ]  # fmt: skip
    return sorted(views, key=lambda each: (-(each.per_s or 0.0), -each.total, each.what, each.reason, each.value_class))


def with_rates(view: QueueView, before: QueueView | None) -> QueueView:
    """The view with rates of what was counted since another one, where the controller does not tell any."""
    if before is None or view.controller.fresh or view.now_ms <= before.now_ms:
        return view
    for_s = (view.now_ms - before.now_ms) / 1000
    had = {(each.what, each.reason, each.value_class): each.total for each in before.shedding}
    rows = [
        msgspec.structs.replace(
            each, per_s=max(0, each.total - had.get((each.what, each.reason, each.value_class), 0)) / for_s
        )
        for each in view.shedding
    ]
    return msgspec.structs.replace(view, shedding=rows)


def _notes(said: Explanation | None, age_s: float | None, paused: Sequence[PauseView], *, fresh: bool) -> list[str]:
    notes = [str(each) for each in paused]
    if age_s is None:
        notes.append(
            "no admission controller has said anything yet: nothing is predicted, and everything is accepted. It "
            "starts with `penstock up`"
        )
    elif not fresh:
        notes.append(
            f"the admission controller has said nothing for {age_s:.0f} s: doors go by what it said last, and by what "
            "is queued in their own partition; waits and rates are not known. Ray starts it again: `penstock doctor`"
        )
    elif said is not None:
        # Pauses are said above, with who and why; what is shed has lines of its own, and a dry run is in the headline.
        notes += [
            word
            for word in said.words
            if not word.endswith(" is paused") and not word.startswith("dry run") and not _RATE.match(word)
        ]
    return notes


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
