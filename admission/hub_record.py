"""What hosts, people and the next incarnation are told of a hub: news, a view, a snapshot. Pure."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from admission.breaker import BreakerMachine, BreakerState
from admission.budget import Budgets
from admission.dependency import as_plain
from admission.exchange import ANSWER_WITHIN_S, LEFT_ALONE, RANKS
from admission.hub import NEVER, Hub
from admission.hub_hosts import HostFacts, Told, Totals


def news(hub: Hub, now: float) -> dict[str, Any] | None:
    """What hosts must know before they come again, when it has changed since the last time."""
    stopped = now < hub.limiter.stopped_until
    facts = (hub.breaker.state, hub.breaker.generation, stopped and hub.limiter.stopped_until)
    if facts == hub.told:
        return None
    first, hub.told = not hub.told, facts
    if first and hub.breaker.state is BreakerState.CLOSED and not stopped:
        return None
    until = hub.breaker.until if hub.breaker.state is BreakerState.OPEN else None
    open_s = 0.0 if hub.breaker.state is not BreakerState.OPEN else math.inf if until is None else until - now
    return {
        "epoch": hub.permit_epoch,
        "state": hub.breaker.state.value,
        "generation": hub.breaker.generation,
        "not_before_s": max(0.0, open_s, hub.limiter.stopped_until - now),
        "stopped": stopped and not open_s,
        "why": LEFT_ALONE if stopped and not open_s else hub.breaker.reason,
    }


def view(hub: Hub, now: float, now_ms: int) -> dict[str, Any]:
    """The state as JSON-like data, for people (``penstock deps``) and in ``restore`` for the next hub."""

    def at_ms(moment: float) -> int:
        return round(now_ms + (moment - now) * 1000)

    calls, failed, slow = hub.breaker.counts(now)
    breaker, until = hub.breaker, hub.breaker.until
    stopped = hub.limiter.stopped_until
    waiting = {rank: sum(host.waiting.get(i, 0) for host in hub.hosts.values()) for i, rank in enumerate(RANKS)}
    return {
        "v": 1,
        "name": hub.dependency.name,
        "epoch": hub.epoch,
        "at_ms": now_ms,
        "definition": as_plain(hub.dependency),
        "breaker": {
            "state": breaker.state.value,
            "since_ms": at_ms(breaker.since),
            "reason": breaker.reason,
            "until_ms": None if until is None else at_ms(until),
            "openings": breaker.openings,
            "by": breaker.by,
            "calls": calls,
            "failed": failed,
            "slow": slow,
        },
        "limits": hub.limiter.use(now),
        "concurrency": {
            "max": hub.dependency.max_concurrency,
            "in_flight": sum(host.in_flight for host in hub.hosts.values()),
        },
        "pace": round(hub.limiter.pace(now), 3),
        "not_before_ms": at_ms(stopped) if stopped > now else None,
        "retry_after": None
        if hub.retry_after is None
        else {"seconds": round(hub.retry_after[0], 3), "at_ms": at_ms(hub.retry_after[1])},
        "waiting": waiting,
        "hosts": [_host_view(hub, now, name, host) for name, host in sorted(hub.hosts.items())],
        "budgets": _budgets_view(hub, now),
        "totals": asdict(hub.totals),
        "restore": snapshot(hub, now),
    }


def _host_view(hub: Hub, now: float, name: str, host: HostFacts) -> dict[str, Any]:
    own = hub.breaker if host.own is None or host.own.state is BreakerState.CLOSED else host.own
    return {
        "host": name,
        "in_flight": host.in_flight,
        "places": host.places if hub.dependency.max_concurrency is not None else None,
        "waiting": round(sum(host.waiting.values())),
        "permits": round(min(host.out.values(), default=0.0), 3),
        "breaker": own.state.value,
        "silent_ms": round((now - host.heard) * 1000),
    }


def _budgets_view(hub: Hub, now: float) -> dict[str, Any]:
    if hub.budgets is None:
        return {}
    found: dict[str, Any] = hub.budgets.view(now)
    for waiting in hub.retries_waiting.values():
        for tenant, count in waiting.items():
            if tenant in found:
                found[tenant]["waiting"] = found[tenant].get("waiting", 0) + count
    return found


def snapshot(hub: Hub, now: float) -> dict[str, Any]:
    """What the next incarnation needs; times relative to now."""
    return {
        "redefinitions": hub.redefinitions,
        "limiter": hub.limiter.snapshot(now),
        "breaker": hub.breaker.snapshot(now),
        "budgets": None if hub.budgets is None else hub.budgets.snapshot(now),
        "hosts": {name: {"safe": host.most_safe, "places": host.most_places} for name, host in hub.hosts.items()},
        "totals": asdict(hub.totals),
    }


def restore(hub: Hub, now: float, plain: Mapping[str, Any], gap_s: float) -> None:
    """Goes on from a snapshot that is ``gap_s`` old. What hosts may have done since then is taken to have been
    done, and they keep their places and safe shares until they come or are forgotten.
    """
    held_s = hub.lifetime_s + ANSWER_WITHIN_S
    hub.limiter.restore(now, plain["limiter"], gap_s, held_s)
    hub.places.learns_until = now + held_s
    hub.breaker = BreakerMachine.restore(hub.dependency.breaker or NEVER, plain["breaker"], now - gap_s)
    if hub.dependency.retry_budget is not None and plain.get("budgets") is not None:
        hub.budgets = Budgets.restore(hub.dependency.retry_budget, plain["budgets"], now - gap_s)
    for name, facts in plain.get("hosts", {}).items():
        host = hub.hosts[name] = HostFacts(-1, now - hub.lifetime_s, now)
        host.safe, host.places = dict(facts["safe"]), int(facts["places"])
        host.told = [Told(-1, host.heard, host.places, host.safe)]
    hub.totals = Totals(**plain.get("totals", {}))
