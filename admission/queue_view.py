"""What people are told of the queue: depth, drain, predicted waits, what is shed and why. Pure.

JSON-like data, for ``penstock queue`` and pages; nobody decides by it.
"""

from collections.abc import Mapping
from typing import Any, Final

from admission.admission_definition import AdmissionDefinition
from admission.admission_policy import AdmissionPolicy, AgentPolicy
from admission.queue_controller import Observations, QueueController
from admission.queue_law import STORE, Tally, predicted
from admission.values import CLASSES

MOST_TENANTS: Final = 100
"""So many tenants are shown, those with the most queued first."""
_NOTHING: Final = Tally()
_ANY_AGENT: Final = AgentPolicy()


def view(controller: QueueController, seen: Observations) -> dict[str, Any]:
    """How things are, after :meth:`QueueController.step`. Durations end in ``_ms``, rates in ``_per_s``; a wait is None
    where it cannot be predicted.
    """
    policy = controller.policy
    return {
        "v": 1,
        "policy": policy.v,
        "at_ms": policy.at_ms,
        "dry_run": policy.dry_run,
        "definition": seen.definition.version,
        "drain": _drain(controller, seen),
        "classes": [_class(controller, rank) for rank in range(len(CLASSES))],
        "tenants": _tenants(controller, seen.definition),
        "shedding": _shedding(controller),
        "dependencies": {
            name: {"until_ms": state.until_ms, "agents": sorted(state.agents)}
            for name, state in sorted(seen.dependencies.items())
        },
        "memory": seen.memory,
        "paused": _paused(controller),
        "words": words(controller, seen),
    }


def _drain(controller: QueueController, seen: Observations) -> dict[str, Any]:
    drain = controller.drain
    return {
        "hosts": len(seen.hosts),
        "draining": sum(host.draining for host in seen.hosts.values()),
        "slots": round(drain.slots, 3),
        "busy": drain.busy,
        "efficiency": round(drain.efficiency, 3),
        "rate": None if drain.rate is None else round(drain.rate, 3),
        "lost_ms": drain.lost_for_ms(controller.policy.at_ms),
    }


def _class(controller: QueueController, rank: int) -> dict[str, Any]:
    policy = controller.policy
    mine, drain = policy.classes[rank], policy.drain
    wait = predicted(policy, _NOTHING, policy.at_ms, rank, 1.0, _ANY_AGENT)
    known = drain is not None
    counts = [said.classes[rank] for said in controller.heard.values()]
    refused = STORE if not mine.open else wait.reason if known and wait.wait_ms > mine.max_wait_ms else ""
    return {
        "class": CLASSES[rank],
        "queued": mine.queued,
        "queued_ms": round(mine.own_ms),
        "aside": sum(each.aside for each in counts),
        "started": sum(each.started for each in counts),
        "wait_ms": round(wait.wait_ms) if known else None,
        "max_wait_ms": mine.max_wait_ms,
        "share": mine.share,
        "load": None if not drain else round(controller.loads.pace[rank] / drain, 3),
        "room": round(mine.room, 3),
        "refused": refused,
    }


def _tenants(controller: QueueController, definition: AdmissionDefinition) -> list[dict[str, Any]]:
    queued_ms: dict[str, list[int]] = {}
    queued: dict[str, int] = {}
    running: dict[str, int] = {}
    for said in controller.heard.values():
        for name, tenant in said.tenants.items():
            had = queued_ms.setdefault(name, [0] * len(CLASSES))
            queued_ms[name] = [old + new for old, new in zip(had, tenant.queued_ms, strict=True)]
            queued[name] = queued.get(name, 0) + tenant.queued
            running[name] = running.get(name, 0) + tenant.running
    shown = sorted(queued, key=lambda name: (-queued[name], -running[name], name))[:MOST_TENANTS]
    policy = controller.policy
    rows: list[dict[str, Any]] = []
    for name in shown:
        if not queued[name] and not running[name]:
            continue
        rule = definition.of_tenant(name)
        hour = controller.costs.get(name)
        waits = {
            CLASSES[rank]: _tenant_wait(policy, rank, name, queued_ms)
            for rank in range(len(CLASSES))
            if queued_ms[name][rank]
        }
        rows.append(
            {
                "tenant": name,
                "queued": queued[name],
                "queued_ms": sum(queued_ms[name]),
                "running": running[name],
                "weight": rule.weight,
                "wait_ms": waits,
                "max_queued": rule.max_queued,
                "max_running": rule.max_running,
                "used_ms": None if hour is None else hour.used_ms,
                "over_until_ms": policy.tenant(name).until_ms,
            }
        )
    return rows


def _tenant_wait(policy: AdmissionPolicy, rank: int, name: str, queued_ms: Mapping[str, list[int]]) -> int | None:
    """How long the next run of a tenant would wait: fair queueing serves of each other one, meanwhile, what it has, or
    its weight's part of what this one has.
    """
    if policy.drain is None or policy.classes[rank].own_ms <= 0:
        return None if policy.drain is None else 0
    weight, own_ms = policy.tenant(name).weight, queued_ms[name][rank]
    ahead_ms = float(own_ms)
    for other, had in queued_ms.items():
        if other != name:
            ahead_ms += min(float(had[rank]), own_ms * policy.tenant(other).weight / weight)
    part = min(1.0, ahead_ms / policy.classes[rank].own_ms)
    return round(predicted(policy, _NOTHING, policy.at_ms, rank, part, _ANY_AGENT).wait_ms)


def _shedding(controller: QueueController) -> list[dict[str, Any]]:
    rates = sorted(controller.rates.rates.items(), key=lambda each: -each[1])
    return [
        {
            "what": kind,
            "reason": reason,
            "class": CLASSES[rank],
            "per_s": round(rate, 3),
            "total": controller.rates.totals.get((kind, reason, rank), 0),
        }
        for (kind, reason, rank), rate in rates
    ]


def _paused(controller: QueueController) -> dict[str, str]:
    held: dict[str, str] = {}
    for said in controller.heard.values():
        held.update(said.held)
    return dict(sorted(held.items()))


def words(controller: QueueController, seen: Observations) -> list[str]:
    """The same in a few lines: what is out of the ordinary, the worst first."""
    policy, lines = controller.policy, []
    if policy.drain is None:
        lines.append("no host was ever there: nothing is predicted, and everything is accepted up to the bounds")
    if policy.floor_ms:
        lost_s = controller.drain.lost_for_ms(policy.at_ms) / 1000
        lines.append(f"all hosts are lost for {lost_s:.0f} s: runs that may not wait for 30 s are refused")
    elif controller.drain.efficiency < 0.5:
        part = controller.drain.efficiency
        lines.append(f"only {part:.0%} of the hosts' slots are busy while runs wait: `penstock why` of a queued run")
    closed = [CLASSES[rank] for rank, each in enumerate(policy.classes) if not each.open]
    if closed and seen.memory is not None:
        lines.append(f"the store's memory is {seen.memory:.0%} full: {', '.join(closed)} is closed")
    for name, state in sorted(seen.dependencies.items()):
        lines.append(f"{name} is not to be called: {', '.join(sorted(state.agents)) or 'no known agent'} waits for it")
    for what in _paused(controller):
        lines.append(f"{what} is paused")
    if policy.dry_run:
        lines.append("dry run: nothing is refused or evicted")
    for row in _shedding(controller)[:10]:
        verb = {"refused": "refused", "shed": "shed", "would": "would be refused"}[row["what"]]
        lines.append(f"{row['per_s']:g}/s of {row['class']} {verb}: {row['reason']}")
    return lines
