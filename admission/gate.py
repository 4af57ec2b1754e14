"""The host's half of a hub: decides in memory, with permits that were prepaid, whether a call may go. Pure.

A call that may go costs a few comparisons and no message. Others wait here, by class and then by arrival; nobody
overtakes a more valuable call, and a large one is not starved by small ones behind it. What is not known is not done:
without a lease a call waits, and when no hub answers, the host lives on a safe share of the limits.
"""

import math
from typing import Any, Final

from admission.exchange import LEFT_ALONE, RANKS, Demand, Lease, News, Report, added
from admission.limiter import amount_of, beyond
from admission.line import Line, Waiter
from admission.passage import Hindrance, Passage, Since

FORESEEN: Final = len(RANKS)
_TINY: Final = 1e-9
_MEMORY: Final = 0.3
_AHEAD: Final = 1.25


class Gate:
    """One dependency's gate on one host.

    Args:
        host: this host's identity.
        now: the present, in seconds of this host's clock; every method wants the same clock.
        slow_call_s: calls that take longer are slow; None for never.
    """

    def __init__(self, host: str, now: float, *, slow_call_s: float | None = None) -> None:
        self.host = host
        self.slow_call_s = slow_call_s
        self.in_flight = 0
        self.lease: Lease | None = None
        self.balance: dict[str, float] | None = {}
        self.line = Line()
        self._expires = -math.inf
        self._not_before = -math.inf
        self._probes = 0
        self._probes_unused = 0
        self._balances = 0
        self._left = False
        self._sequence = 0
        self._renamed_at = -1
        self._reported_at = now
        self._since = Since()
        self._arrivals = 0
        self._foreseen = 0.0
        self._mean: dict[str, float] = {}
        self._safe: dict[str, float] | None = None
        self._safe_at = 0.0
        self._stop_until = -math.inf
        self._stop_told = -math.inf
        self._stop_in_report = -math.inf
        self._retries_wanted: dict[str, int] = {}

    # Going

    def try_pass(self, now: float, rank: int, cost: dict[str, float], may_probe: bool) -> Passage | None:
        """Lets a call go at once, or says that it has to wait."""
        if self.line.waiting and self.line.is_before(rank):
            return None
        return self._go(now, cost, may_probe)

    def _go(self, now: float, cost: dict[str, float], may_probe: bool) -> Passage | None:
        lease = self.lease
        if lease is None or now >= self._expires or now < self._not_before:
            return None
        if lease.state != "closed" and (self._probes <= 0 or not (may_probe or lease.any_probe)):
            return None
        if lease.concurrency is not None and self.in_flight >= lease.concurrency:
            return None
        balance = self.balance
        if balance is not None:
            for name, left in balance.items():
                if left + _TINY < amount_of(cost, name):
                    return None
            for name in balance:
                balance[name] -= amount_of(cost, name)
        is_probe = lease.state != "closed"
        if is_probe:
            self._probes -= 1
        self.in_flight += 1
        self._arrivals += 1
        return Passage(lease.generation, lease.own, now, cost, is_probe, self._balances, self._sequence)

    def impossible(self, cost: dict[str, float]) -> str:
        """What a call takes that no waiting could ever give it, in words; '' when it can be given."""
        for name, most in self.lease.most.items() if self.lease else ():
            if amount_of(cost, name) > most:
                return f"it takes {amount_of(cost, name):g} {name}, and the limit is {most:g}"
        return ""

    def wait(self, now: float, rank: int, cost: dict[str, float], may_probe: bool, token: Any) -> Waiter:
        """Queues a call by its class."""
        waiter = Waiter(rank, cost, may_probe, now, token)
        self.line.put(waiter)
        return waiter

    def give_up(self, waiter: Waiter) -> None:
        """The call does not want to go any more."""
        self.line.leave(waiter)

    def next(self, now: float) -> tuple[Waiter, Passage] | None:
        """The first of those that wait, when it may go: the caller lets it, or takes it back by :meth:`undo`.

        While probing, those that may not probe are passed over.
        """
        waiter = next(self.line.heads(), None)
        if self.lease is not None and self.lease.state == "probing":
            waiter = self.line.first_probe() or waiter
        passage = None if waiter is None else self._go(now, waiter.cost, waiter.may_probe)
        if waiter is None or passage is None:
            return None
        self.line.leave(waiter)
        return waiter, passage

    def undo(self, passage: Passage) -> None:
        """The call did not go after all: nothing of it has reached anybody."""
        if passage.over:
            return
        passage.over = True
        self.in_flight -= 1
        self._give_probe_back(passage)
        if self.balance is None or passage.balance != self._balances:
            return  # what it was taken from is over, and counts as used
        if passage.reported == self._sequence:
            for name in self.balance:
                self.balance[name] += amount_of(passage.cost, name)
        else:
            # The hub has entered it as used: it takes it out again, and gives it to whoever is next.
            unused = {name: -amount_of(passage.cost, name) for name in self.balance}
            self._since.settled.append((passage.reported + 1, unused))

    def _give_probe_back(self, passage: Passage) -> None:
        """A probe that said nothing of the dependency: another call may go in its place."""
        lease = self.lease
        if passage.is_probe and lease and (lease.generation, lease.own) == (passage.generation, passage.own):
            self._probes_unused += 1

    # Having gone

    def first_attempt(self, tenant: str) -> None:
        """A step's first attempt goes: it pays into the retry budget."""
        calls = self._since.calls
        calls[tenant] = calls.get(tenant, 0) + 1

    def done(self, now: float, passage: Passage, result: str, actual: dict[str, float] | None = None) -> None:
        """A call has ended.

        Args:
            now: the present.
            passage: its passage; later words about the same one are ignored.
            result: ``succeeded``, ``failed``, ``rate_limited``, ``abandoned`` (it did not stop when it had to) or
                ``ignored`` (a cancellation, an error of our own: it says nothing of the dependency).
            actual: what it really used, as far as that is known.
        """
        if passage.over:
            return
        passage.over = True
        self.in_flight -= 1
        if result in ("rate_limited", "ignored"):
            self._give_probe_back(passage)
        slow = self.slow_call_s is not None and now - passage.began > self.slow_call_s
        self._since.ended(passage, result, slow=slow)
        if actual is not None and self.balance is not None:
            deltas = beyond(passage.cost, actual, self.balance)
            if deltas:
                # What is not reported yet is told and settled by the same report.
                self._since.settled.append((passage.reported + 1, deltas))

    def stop(self, now: float, seconds: float) -> None:
        """The other side asked to be left alone: this host stops at once, and tells the hub."""
        self._stop_until = max(self._stop_until, now + seconds)
        self._not_before = max(self._not_before, self._stop_until)

    # Retries

    def want_retry(self, tenant: str, count: int = 1) -> None:
        """A retry waits for the budget; -1 when it has been granted, or is not wanted any more."""
        self._retries_wanted[tenant] = max(0, self._retries_wanted.get(tenant, 0) + count)

    def retried(self) -> None:
        """A retry goes."""
        self._since.retries += 1

    def return_retry(self, tenant: str) -> None:
        """A granted retry that nobody wants any more."""
        returned = self._since.retries_returned
        returned[tenant] = returned.get(tenant, 0) + 1

    # Talking to the hub

    @property
    def idle(self) -> bool:
        """Whether there is nothing to tell and nothing to ask."""
        return not (self.in_flight or self.line.waiting or self._arrivals or any(self._retries_wanted.values()))

    @property
    def saturated(self) -> bool:
        """Whether coming early would bring nothing."""
        return self.lease is not None and self.lease.saturated

    def report(self, now: float, *, leaving: bool = False) -> tuple[Report, Since]:
        """What to tell the hub; and, to be given to :meth:`lost`, what must be told again when it does not arrive."""
        elapsed_s = max(now - self._reported_at, 1e-3)
        period_s = 0.25 if self.lease is None else self.lease.period_s
        weight = 1.0 - (1.0 - _MEMORY) ** min(10.0, elapsed_s / period_s)
        self._foreseen += weight * (self._arrivals / elapsed_s * period_s - self._foreseen)
        self._arrivals, self._sequence = 0, self._sequence + 1
        since, self._since = self._since, Since()
        if now >= self._expires and self.balance is not None and self._safe is None:
            self._new_balance(dict.fromkeys(self.balance, 0.0))
        demands = [] if leaving else self._demands(now)
        returned = self._surplus(leaving) if self._safe is None else {}
        self._stop_in_report = self._stop_until if self._stop_until > self._stop_told else -math.inf
        probes = self._probes + self._probes_unused
        self._probes = self._probes_unused = 0
        report = Report(
            self.host,
            self._sequence,
            epoch=0 if self.lease is None else self.lease.epoch,
            demands=demands,
            balance=dict(self.balance or {}) if self._safe is None else {},
            returned=returned,
            in_flight=self.in_flight,
            outcomes=list(since.outcomes.values()),
            rate_limited=since.rate_limited,
            retries=since.retries,
            abandoned=since.abandoned,
            settled=since.settled,
            stop_s=max(0.0, self._stop_in_report - now),
            calls=since.calls,
            retries_wanted={tenant: count for tenant, count in self._retries_wanted.items() if count},
            retries_returned=since.retries_returned,
            probes_returned=probes,
            leaving=leaving,
            held=0 if self.lease is None else self.lease.sequence,
            places=0 if self.lease is None else self.lease.concurrency or 0,
        )
        self._reported_at = now
        if leaving:
            # The hub keeps nothing for it from now on, whether its answer arrives or not.
            self._left, self._expires = True, -math.inf
        return report, since

    def _demands(self, now: float) -> list[Demand]:
        demands = list(self.line.demands())
        if demands:
            self._mean = demands[-1].cost
        ahead = self._foreseen * _AHEAD - self.affordable()
        if ahead > 0.5 and now < self._expires:
            demands.append(Demand(FORESEEN, math.ceil(ahead), self._mean, self._mean))
        return demands

    def affordable(self) -> float:
        """How many more calls could go by what this host has."""
        if self.balance is None:
            room = None if self.lease is None else self.lease.concurrency
            return math.inf if room is None else max(0, room - self.in_flight)
        return min(
            (left / amount_of(self._mean, name) for name, left in self.balance.items() if amount_of(self._mean, name)),
            default=math.inf,
        )

    def _surplus(self, leaving: bool) -> dict[str, float]:
        """What this host has and will not need: it goes back to everybody."""
        balance = self.balance
        if not balance or (self.line.waiting and not leaving):
            return {}
        kept = 0.0 if leaving else 2 * _AHEAD * self._foreseen + 1
        returned: dict[str, float] = {}
        for name, left in balance.items():
            keep = kept * amount_of(self._mean, name)
            if left > keep:
                returned[name] = left - keep
                balance[name] = keep
        return returned

    def lost(self, since: Since) -> None:
        """A report did not arrive, or its answer did not: its evidence is told again. What was returned is gone."""
        self._since.again(since)

    def accept(self, sent_at: float, now: float, lease: Lease) -> dict[str, int]:
        """Takes a lease; retries that it grants, by tenant. An overtaken lease is nothing, and one for another name."""
        old = self.lease
        if lease.sequence <= self._renamed_at:
            return {}
        if old is not None and (lease.epoch, lease.sequence) <= (old.epoch, old.sequence):
            return {}
        anew = old is None or lease.epoch != old.epoch or self._safe is not None
        self._safe = None
        self._left = False
        self.lease = lease
        self._expires = sent_at + lease.lifetime_s
        self._probes = lease.probes
        # A time that the hub does not know of yet, because this host has just heard it, stays.
        self._not_before = max(now + lease.not_before_s, self._stop_until if self._stop_until > now else -math.inf)
        # What was heard after the report was sent is told by the next one.
        self._stop_told = max(self._stop_told, self._stop_in_report)
        # Every limited resource has a balance, whatever the lease grants of it: what has none would not be limited.
        granted = dict.fromkeys(lease.most, 0.0) | (lease.permits or {})
        if not granted:
            self.balance = None
        elif anew or self.balance is None:
            self._new_balance(granted)
        else:
            self.balance = added(self.balance, granted)
        for tenant, count in (lease.retries or {}).items():
            self.want_retry(tenant, -count)
        return lease.retries or {}

    def rename(self, host: str) -> None:
        """This host is somebody new to everybody: what its earlier name was given is that name's, and counts as used.

        What is under way goes on and is told under the new name. Where anything is limited, nothing more goes until the
        hub has answered that one: it may bury the earlier name any moment, and give its places and its safe share away.
        """
        self.host = host
        self._renamed_at = self._sequence
        self._safe = None
        if self.balance is not None:
            self._new_balance(dict.fromkeys(self.balance, 0.0))
        if self.balance is not None or (self.lease is not None and self.lease.concurrency is not None):
            self._left, self._expires = True, -math.inf

    def _new_balance(self, balance: dict[str, float]) -> None:
        """What was taken from the balance before is not given back to this one."""
        self.balance = balance
        self._balances += 1

    def news(self, now: float, news: News) -> bool:
        """What the hub has told everybody, ahead of the next lease; whether it changes anything."""
        lease = self.lease
        if lease is None or news.epoch < lease.epoch or news.generation < lease.generation:
            return False
        if news.state == "closed" and lease.state == "closed":
            self._not_before = max(self._not_before, now + news.not_before_s)
            lease.stopped = lease.stopped or news.stopped
            return news.not_before_s > 0
        lease.state, lease.generation, lease.why, lease.stopped = news.state, news.generation, news.why, news.stopped
        self._not_before = max(now + news.not_before_s, self._stop_until)
        self._probes = 0
        return True

    # Without a hub

    def live_safely(self, now: float) -> None:
        """No hub answers and the lease is over: permits trickle in at the safe rate that the last lease gave.

        An open breaker stays open, and concurrency stays where it was. A host that never had a lease has no share.
        """
        lease = self.lease
        if lease is None or self._left or now < self._expires:
            return
        period_s = lease.period_s
        if self.balance is not None:
            if self._safe is None:
                self._safe = dict.fromkeys(lease.safe or {}, 0.0)
                self._new_balance(dict.fromkeys(self.balance, 0.0))
                self._safe_at = max(self._expires, now - period_s)
            for name, rate in (lease.safe or {}).items():
                most = max(
                    rate * 2 * period_s, max((amount_of(each.cost, name) for each in self.line.heads()), default=1.0)
                )
                balance = self.balance or {}
                balance[name] = min(most, balance.get(name, 0.0) + rate * (now - self._safe_at))
                self.balance = balance
            self._safe_at = now
        self._expires = now + 2 * period_s

    @property
    def is_safe_mode(self) -> bool:
        """Whether this host lives on its safe share."""
        return self._safe is not None

    # Explaining

    def hindrance(self, now: float) -> Hindrance:
        """What holds back those that wait."""
        lease = self.lease
        if lease is None:
            return Hindrance("hub", "no word from the dependency's hub yet", None)
        left_s = self._not_before - now
        if left_s > 0:
            stopped = self._stop_until >= self._not_before or lease.stopped
            return Hindrance("retry_after" if stopped else "breaker", lease.why or LEFT_ALONE, left_s)
        if lease.state == "probing":
            return Hindrance("breaker", lease.why or "probing", None)
        if now >= self._expires:
            return Hindrance("hub", "the lease is over and no hub answers", None)
        if lease.concurrency is not None and self.in_flight >= lease.concurrency:
            return Hindrance("concurrency", lease.scarce or "max_concurrency", None)
        if self.is_safe_mode:
            return Hindrance("limit", "no hub answers: a safe share of the limits", None)
        return Hindrance("limit", lease.scarce or "permits are on their way", None)
