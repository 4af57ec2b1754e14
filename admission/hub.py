"""A hub: all that the cluster knows of one dependency, and what each host may do with it. Pure.

Hosts come once a period, say what they have, what they want and how their calls went, and get permits (see
``admission/exchange.py``). What a host has is out and counts as used until it says otherwise; what a silent host could
be doing is assumed. So neither a lost message nor a lost host nor a lost hub lets more through than the limits allow.
"""

import math
from collections.abc import Mapping
from typing import Final

from admission.breaker import BreakerMachine, BreakerState
from admission.budget import Budgets
from admission.dependency import Breaker, Dependency, as_plain
from admission.exchange import ANSWER_WITHIN_S, LEFT_ALONE, RANKS, Lease, Report, added
from admission.hub_hosts import HostFacts, Told, Totals, safe_rates
from admission.limiter import RateLimiter, amount_of
from admission.places import Places
from admission.split import Deficits, quantum

FORGET_S: Final = 30.0
_LONGEST_PERIOD_S: Final = 0.25
_SHORTEST_PERIOD_S: Final = 0.05
_LATENESS_S: Final = 0.4
_REDEFINITIONS: Final = 4096
NEVER: Final = Breaker(failure_rate=1.0, minimum_calls=10**9)


def period_of(dependency: Dependency) -> float:
    """How often hosts come, in seconds: a quarter, or more often where a window is short."""
    shortest = min((limit.window_s for limit in dependency.rate), default=math.inf)
    return min(_LONGEST_PERIOD_S, max(_SHORTEST_PERIOD_S, shortest / 60))


def lifetime_of(period_s: float) -> float:
    """How long a lease holds: over two periods, since a hub hears only then that the last one was taken, and over a
    late message; and no longer, since without a hub nothing safe goes before its end.
    """
    return 2 * period_s + _LATENESS_S


class Hub:
    """One dependency's state. ``epoch`` numbers the hub's incarnations."""

    def __init__(self, dependency: Dependency, epoch: int, now: float) -> None:
        self.dependency = dependency
        self.epoch = epoch
        self.hosts: dict[str, HostFacts] = {}
        self.totals = Totals()
        self.period_s = period_of(dependency)
        self.lifetime_s = lifetime_of(self.period_s)
        self.limiter = RateLimiter(dependency.rate, now, period_s=self.period_s)
        self.breaker = BreakerMachine(dependency.breaker or NEVER, now)
        self.budgets = None if dependency.retry_budget is None else Budgets(dependency.retry_budget)
        self.retry_after: tuple[float, float] | None = None
        self.retries_waiting: dict[str, dict[str, int]] = {}
        self._deficits = Deficits()
        self.places = Places()
        self.told: tuple[object, ...] = ()
        self.redefinitions = 0

    @property
    def permit_epoch(self) -> int:
        """Numbers what permits are of: another incarnation, or another declaration, takes none of them back."""
        return self.epoch * _REDEFINITIONS + self.redefinitions

    # Time

    def tick(self, now: float, draw: float) -> None:
        """What happens by itself: breakers that begin to probe, hosts that have gone silent."""
        self.breaker.has_others = sum(now - host.heard <= self.lifetime_s for host in self.hosts.values()) > 1
        generation = self.breaker.generation
        if self.breaker.tick(now, draw) or self.breaker.generation != generation:
            self._start_anew(now)
        for name, host in list(self.hosts.items()):
            if host.own is not None:
                host.own.tick(now, draw)
            safe_since = max(host.assumed, host.told[0].at + self.lifetime_s) if host.told else math.inf
            if now > safe_since:
                # It has not taken a lease for so long that it lives on its safe share, or is about to.
                rates = host.most_safe
                self.limiter.assume(now, {each: rate * (now - safe_since) for each, rate in rates.items()})
                host.assumed = now
            silent_s = now - host.heard
            if silent_s <= self.lifetime_s + ANSWER_WITHIN_S:
                continue
            self._silence(now, name, host)
            if silent_s > FORGET_S and not host.told:
                # Of others the store knows whether they are dead, or live and cannot reach us (see bury).
                self.bury(now, name)

    def _start_anew(self, now: float) -> None:
        """What holds for all has changed: what hosts have found for themselves before says nothing any more."""
        for host in self.hosts.values():
            if host.own is not None:
                host.own.force_close(now, "")

    def bury(self, now: float, name: str) -> None:
        """A host that is gone for good: what it had is taken for used, and nothing more is kept for it."""
        host = self.hosts.pop(name, None)
        if host is not None:
            self._silence(now, name, host)
            self.breaker.forget(name)

    def _silence(self, now: float, name: str, host: HostFacts) -> None:
        """Takes what a host had for used, and its wishes for none: nobody waits for what it does not fetch."""
        if host.out:
            self.limiter.used(now, host.out)
            host.out = {}
        host.demand, host.waiting, host.probes_wanted, host.wanted_places = {}, {}, 0, 0
        self.retries_waiting.pop(name, None)
        self._deficits.forget(name)

    # Operators

    def command(self, do: str, by: str, reason: str, now: float) -> None:
        """Obeys an operator: ``open``, ``close`` or ``probe``.

        Raises:
            ValueError: it is none of these.
        """
        if do == "open":
            self.breaker.force_open(now, by, reason)
        elif do == "close":
            self.breaker.force_close(now, by)
            self._start_anew(now)
        elif do == "probe":
            self.breaker.force_probe(now, by)
        else:
            raise ValueError(f"{do!r} is no command: open, close or probe")

    def redefine(self, dependency: Dependency, now: float) -> None:
        """Takes another declaration over and keeps what is known: ledgers of limits that stay, the breaker's state."""
        if dependency == self.dependency:
            return
        kept = self.limiter.snapshot(now)
        self.dependency = dependency
        self.period_s = period_of(dependency)
        self.lifetime_s = lifetime_of(self.period_s)
        self.limiter = RateLimiter(dependency.rate, now, period_s=self.period_s)
        # Hosts go on with what they have until they see the next epoch, or until their leases are over.
        self.limiter.restore(now, kept, None, held_s=self.lifetime_s + ANSWER_WITHIN_S)
        for host in self.hosts.values():
            host.out, host.safe, host.own = {}, {}, None
            host.told = [Told(-1, each.at, each.places, each.safe) for each in host.told]
        self.redefinitions += 1
        self.breaker.change_policy(dependency.breaker or NEVER)
        if dependency.breaker is None:
            self.breaker.force_close(now, "")
        if dependency.retry_budget is None:
            self.budgets = None
        elif self.budgets is None:
            self.budgets = Budgets(dependency.retry_budget)
        else:
            self.budgets.change_policy(now, dependency.retry_budget)

    # The exchange

    def exchange(self, now: float, draw: float, report: Report) -> Lease:
        """Takes a host's report in and answers with what it may do.

        Args:
            now: the hub's clock.
            draw: a uniform random number in [0, 1), for the breaker's open time.
            report: what the host says; one that is older than the last is not taken in.
        """
        self.tick(now, draw)
        host = self.hosts.get(report.host)
        if host is None:
            host = self.hosts[report.host] = HostFacts(-1, now, now)
        if host.own is None and self.dependency.breaker is not None:
            host.own = BreakerMachine(self.dependency.breaker, now)
        if report.sequence > host.sequence:
            host.sequence, host.heard = report.sequence, now
            self._take_note(now, host, report)
            self._take_permits(now, host, report)
            self._take_outcomes(now, host, report)
            self._take_wishes(now, host, report)
            self.tick(now, draw)
        if report.leaving:
            self._leave(now, report.host, host)
            none = dict.fromkeys(self.limiter.resources, 0.0)
            return Lease(
                self.permit_epoch,
                report.sequence,
                concurrency=0,
                permits=none if none else None,
                period_s=self.period_s,
                most=self.limiter.most(),
            )
        return self._lease(now, host, report)

    def _take_note(self, now: float, host: HostFacts, report: Report) -> None:
        """Which of the leases it was told does the host go by?"""
        if report.epoch == self.permit_epoch:
            host.told = [each for each in host.told if each.sequence >= report.held]
        elif report.epoch and not any(each.places >= report.places for each in host.told):
            host.told.insert(0, Told(-1, now, report.places, {}))

    def _take_permits(self, now: float, host: HostFacts, report: Report) -> None:
        if report.epoch != self.permit_epoch:
            # Permits of an earlier hub: its successor has taken them for used.
            self.limiter.used(now, host.out)
            host.out = {}
            host.entered.clear()
            return
        back = {name: min(amount, host.out.get(name, 0.0)) for name, amount in report.returned.items()}
        self.limiter.give_back(now, back)
        left = {
            name: min(report.balance.get(name, 0.0), amount) for name, amount in added(host.out, back, -1.0).items()
        }
        used = added(added(host.out, back, -1.0), left, -1.0)
        self.limiter.used(now, used)
        host.out = left
        host.entered.append((report.sequence, now))
        for told_by, deltas in report.settled:
            self.limiter.settle(now, host.entered_at(told_by), deltas)

    def _take_outcomes(self, now: float, host: HostFacts, report: Report) -> None:
        totals = self.totals
        for outcomes in report.outcomes:
            counts = {"succeeded": outcomes.succeeded, "failed": outcomes.failed, "slow": outcomes.slow}
            self.breaker.record(now, report.host, generation=outcomes.generation, **counts)
            if host.own is not None:
                host.own.record(now, report.host, generation=outcomes.own, **counts)
            totals.succeeded += outcomes.succeeded
            totals.failed += outcomes.failed
            totals.slow += outcomes.slow
        totals.rate_limited += report.rate_limited
        totals.retries += report.retries
        totals.abandoned += report.abandoned
        if report.stop_s > 0:
            stop_s = min(report.stop_s, self.dependency.maximum_retry_after_s)
            self.retry_after = (stop_s, now)
            self.limiter.stop(now, stop_s)
        if report.probes_returned:
            self._breaker_of(host).probes_returned(report.probes_returned)

    def _take_wishes(self, now: float, host: HostFacts, report: Report) -> None:
        host.in_flight = report.in_flight
        host.demand, host.waiting, host.probes_wanted = {}, {}, 0
        for each in report.demands:
            share = self.limiter.share(each.cost) * each.calls
            host.demand[each.rank] = host.demand.get(each.rank, 0.0) + share
            if each.rank < len(RANKS):
                host.waiting[each.rank] = host.waiting.get(each.rank, 0) + each.calls
                host.probes_wanted += each.probes
        wanted = sum(each.calls for each in report.demands)
        host.wanted_places = report.in_flight + math.ceil(wanted - 1e-9)
        if not host.demand:
            self._deficits.forget(report.host)
        if self.budgets is not None:
            for tenant, calls in report.calls.items():
                self.budgets.calls(tenant, now, calls)
            for tenant, count in report.retries_returned.items():
                self.budgets.give_back(tenant, now, count)
            self.retries_waiting[report.host] = dict(report.retries_wanted)

    def _leave(self, now: float, name: str, host: HostFacts) -> None:
        self.limiter.give_back(now, host.out)
        host.out, host.safe, host.told = {}, {}, []
        if host.in_flight == 0:
            self.bury(now, name)

    def _breaker_of(self, host: HostFacts) -> BreakerMachine:
        """The breaker that decides for a host: everybody's, unless only this host has trouble."""
        if self.breaker.state is not BreakerState.CLOSED or host.own is None:
            return self.breaker
        return host.own if host.own.state is not BreakerState.CLOSED else self.breaker

    def _lease(self, now: float, host: HostFacts, report: Report) -> Lease:
        breaker = self._breaker_of(host)
        lease = Lease(
            self.permit_epoch,
            report.sequence,
            state=breaker.state.value,
            generation=self.breaker.generation,
            own=0 if host.own is None else host.own.generation,
            lifetime_s=self.lifetime_s,
            period_s=self.period_s,
            most=self.limiter.most(),
        )
        if report.epoch != self.permit_epoch:
            lease.definition = as_plain(self.dependency)
        if breaker.state is BreakerState.OPEN:
            lease.why = breaker.reason if breaker is self.breaker else f"for this host only: {breaker.reason}"
            lease.not_before_s = math.inf if breaker.until is None else max(0.0, breaker.until - now)
        stopped_s = self.limiter.stopped_until - now
        if stopped_s > lease.not_before_s:
            lease.why, lease.stopped, lease.not_before_s = LEFT_ALONE, True, stopped_s
        limited = bool(self.dependency.rate)
        lease.permits = dict.fromkeys(self.limiter.resources, 0.0) if limited else None
        if lease.not_before_s <= 0:
            if breaker.state is BreakerState.PROBING:
                self._grant_probes(now, breaker, host, report, lease)
            elif limited:
                self._grant(now, report.host, host, report, lease)
        elif host.demand:
            lease.saturated = True
        self._grant_places(now, host, report, lease)
        self._grant_retries(now, report, lease)
        if limited:
            host.safe = lease.safe = safe_rates(host, self.hosts.values(), self.limiter.rates(), self.period_s)
        host.tell(Told(report.sequence, now, lease.concurrency or 0, lease.safe or {}))
        return lease

    def _grant(self, now: float, name: str, host: HostFacts, report: Report, lease: Lease) -> None:
        limiter = self.limiter
        demands = sorted(report.demands, key=lambda each: each.rank)
        if not demands:
            return
        first = demands[0].cost
        # How much there is, seen by what this host wants: as a share of the limits, like the demands.
        available = self._possible(now, first) * limiter.share(first)
        wanted = {each: facts.demand for each, facts in self.hosts.items() if facts.demand}
        part = quantum(available, wanted, name)
        heaviest = limiter.share(demands[0].largest)
        allowance = self._deficits.credit(name, part, max(heaviest, sum(host.demand.values())))
        granted: dict[str, float] = {}
        for each in demands:
            share = limiter.share(each.cost)
            fits = each.calls if share <= 0 else min(each.calls, allowance / share + 1e-9)
            # Whoever was given more than it was owed owes, and gets nothing.
            count = max(0, math.floor(min(fits, self._possible(now, each.cost)) + 1e-9))
            take = self._vector(each.cost, count)
            is_owed = allowance + 1e-9 >= limiter.share(each.largest)
            # What is larger than the pace ever lets out at once would take many turns to save for, and lose the rest.
            is_next = part > 0 and limiter.is_large(each.largest) and self._deficits.leads(name, wanted)
            if count == 0 and each.calls >= 1 and (is_owed or is_next):
                # One call may be more than the pace lets out at once: the limiter lends, and others wait for it.
                count, take, share = 1, self._vector(each.largest, 1), limiter.share(each.largest)
            if count == 0 or not limiter.take(now, take):
                break
            granted = added(granted, take)
            allowance -= count * share
            self._deficits.served(name, count * share)
            left = host.demand.get(each.rank, 0.0) - count * share
            host.demand[each.rank] = max(0.0, left)
            if count + 1 <= each.calls:
                break
        host.out = added(host.out, granted)
        host.served += limiter.share({"requests": 0.0} | granted)
        lease.permits = added(dict.fromkeys(limiter.resources, 0.0), granted)
        lease.saturated = any(left > 1e-9 for left in host.demand.values())
        if lease.saturated:
            scarce = limiter.scarce(now, demands[0].largest)
            lease.scarce = "" if scarce is None else str(scarce)

    def _possible(self, now: float, cost: Mapping[str, float]) -> float:
        """How many calls of this cost the limits let out now; fractions too."""
        free = self.limiter.available(now)
        return min((free[name] / take for name, take in self._vector(cost, 1).items() if take > 0), default=math.inf)

    def _vector(self, cost: Mapping[str, float], count: float) -> dict[str, float]:
        """What so many calls take of the limited resources."""
        return {name: amount_of(cost, name) * count for name in self.limiter.resources}

    def _grant_probes(self, now: float, breaker: BreakerMachine, host: HostFacts, report: Report, lease: Lease) -> None:
        """Probes go to calls that may be repeated. Where there have been none for long, one other call goes: else a
        dependency of which only such calls are made would stay closed to everybody for ever.
        """
        lease.why = f"probing after: {breaker.reason}"
        wanted = sum(each.probes for each in report.demands)
        waiting = [each for each in report.demands if each.rank < len(RANKS) and each.calls >= 1]
        patience_s = (self.dependency.breaker or NEVER).maximum_open_s
        if not wanted and waiting and now - breaker.since >= patience_s:
            wanted = int(not any(facts.probes_wanted for facts in self.hosts.values()))
            lease.any_probe = bool(wanted)
        count = min(breaker.probes_available(now), wanted)
        if not waiting or count <= 0:
            return
        if lease.permits is not None:
            take = self._vector(waiting[0].largest, count)
            if not self.limiter.take(now, take):
                return
            lease.permits = take
            host.out = added(host.out, take)
        lease.probes = count
        breaker.probes_given(now, count)

    def _grant_places(self, now: float, host: HostFacts, report: Report, lease: Lease) -> None:
        total = self.dependency.max_concurrency
        if total is None:
            return
        places = self.places.of(report.host, self.hosts, total, now, self.period_s, report.places)
        host.places = lease.concurrency = places
        if host.places < host.wanted_places and not lease.scarce:
            lease.scarce = f"{total} calls at once (max_concurrency)"

    def _grant_retries(self, now: float, report: Report, lease: Lease) -> None:
        if self.budgets is None:
            return
        lease.retries = {}
        waiting = self.retries_waiting.setdefault(report.host, {})
        for tenant, count in report.retries_wanted.items():
            granted = self.budgets.take(tenant, now, count)
            waiting[tenant] = count - granted
            if granted:
                lease.retries[tenant] = granted
