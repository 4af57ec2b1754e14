"""Global rate limits: never more than a limit in any window, whatever the hosts do with their permits.

Two rules decide together, for every limit:

- *Pace* (GCRA, ITU-T I.371: the generic cell rate algorithm, as a theoretical arrival time): calls are spread evenly,
  with little burst, a little below the limit, so that the second rule seldom has to stop anybody for long.
- *Ledger*: what was used within the last window, in slots, plus every permit that is out and may still be used, is
  never more than the amount. A permit that is out counts until its host has said whether it was used, so the law holds
  for any window and for any behaviour of hosts. GCRA alone does not give it once reservations are settled late: what
  is given back for an old call is no room in this window.

aiolimiter is not used for this: it can admit twice its rate in one second, orders waiters by amount and cannot give
back. Pure: time is an argument (seconds of one monotonic clock).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from admission.dependency import Cost, Limit

SLOTS: Final = 256
DERATE: Final = 0.99
_TINY: Final = 1e-9


class _Bucket:
    """One limit's pace and ledger."""

    __slots__ = (
        "_at", "_inherited", "_inherited_until", "_largest", "_largest_at", "_slots", "amount", "burst", "limit",
        "outstanding", "rate", "theoretical", "total", "width_s",
    )  # fmt: skip

    def __init__(self, limit: Limit, now: float, period_s: float) -> None:
        self.limit = limit
        self.amount = limit.amount
        self.rate = DERATE * limit.amount / limit.window_s
        # Hosts come once a period: what two periods bring, beside one whole call, would be lost between them.
        self.burst = min(limit.amount, 1.0 + 2 * self.rate * period_s)
        self.theoretical = now
        self.width_s = limit.window_s / SLOTS
        self.outstanding = 0.0
        self.total = 0.0
        # One slot more than a window has: what is in the oldest one may be younger than a window.
        self._slots = [0.0] * (SLOTS + 1)
        self._at = math.floor(now / self.width_s)
        # Permits of a predecessor: out until nobody can use them any more.
        self._inherited, self._inherited_until = 0.0, -math.inf
        # The largest cost above the burst that was lent within the last window.
        self._largest, self._largest_at = 0.0, -math.inf

    @property
    def key(self) -> str:
        """Names the limit in snapshots, whatever its amount is then."""
        return f"{self.limit.resource}/{self.limit.window_s:g}"

    def forget(self, now: float) -> None:
        """Drops what is older than the window."""
        if self._inherited and now >= self._inherited_until:
            inherited, self._inherited = self._inherited, 0.0
            self.used(self._inherited_until, inherited)
        at = math.floor(now / self.width_s)
        steps = at - self._at
        if steps <= 0:
            return
        slots = self._slots
        if steps > SLOTS:
            slots[:] = [0.0] * (SLOTS + 1)
            self.total = 0.0
        else:
            for passed in range(self._at + 1, at + 1):
                self.total -= slots[passed % (SLOTS + 1)]
                slots[passed % (SLOTS + 1)] = 0.0
            # Sums of floats drift; an empty ledger is exactly empty.
            self.total = max(self.total, 0.0) if self.total > _TINY else 0.0
        self._at = at

    def room(self, now: float) -> float:
        """What the ledger still lets out."""
        self.forget(now)
        return self.amount - self.total - self.outstanding

    def paced(self, now: float, pace: float) -> float:
        """What the pace lets out now."""
        level = self.burst - max(0.0, self.theoretical - now) * self.rate * pace
        return max(0.0, level)

    def wait_s(self, now: float, cost: float, pace: float) -> float:
        """Seconds until ``cost`` may go: zero when it may now; the pace's and the ledger's, whichever is longer."""
        if cost <= 0:
            return 0.0
        needed = min(cost, self.burst)
        paced_s = self.theoretical - now - (self.burst - needed) / (self.rate * pace)
        missing = cost - self.room(now)
        if missing <= _TINY:
            return max(0.0, paced_s)
        for age in range(SLOTS, -1, -1):
            missing -= self._slots[(self._at - age) % (SLOTS + 1)]
            if missing <= _TINY:
                return max(paced_s, (self._at - age + SLOTS + 1) * self.width_s - now)
        return max(paced_s, self.limit.window_s)

    def take(self, now: float, cost: float, pace: float) -> None:
        """A permit is out."""
        self.theoretical = max(self.theoretical, now) + cost / (self.rate * pace)
        self.outstanding += cost
        if cost > self.burst and cost >= self._recent_largest(now):
            self._largest, self._largest_at = cost, now

    def _recent_largest(self, now: float) -> float:
        return self._largest if now - self._largest_at <= self.limit.window_s else 0.0

    def give_back(self, cost: float, pace: float) -> None:
        """A permit that was not used and never will be."""
        self.outstanding = max(0.0, self.outstanding - cost)
        self.theoretical -= cost / (self.rate * pace)

    def used(self, now: float, cost: float) -> None:
        """A permit has been used, just now or a little earlier."""
        self.forget(now)
        self.outstanding = max(0.0, self.outstanding - cost)
        self.enter(cost)

    def enter(self, cost: float) -> None:
        """Use that no permit stands for."""
        self._slots[self._at % (SLOTS + 1)] += cost
        self.total += cost

    def settle(self, now: float, entered: float, delta: float, pace: float) -> None:
        """A call that was entered at that moment has used more or less than was reserved for it."""
        self.forget(now)
        self.theoretical += delta / (self.rate * pace)
        if delta >= 0:
            self.enter(delta)
            return
        if entered <= now - self.limit.window_s:
            return  # it is no part of this window any more
        at = math.floor(entered / self.width_s)
        # Never in a younger slot than it was entered: that would leave room when the older one is dropped.
        given = min(-delta, self._slots[at % (SLOTS + 1)])
        self._slots[at % (SLOTS + 1)] -= given
        self.total -= given

    def snapshot(self, now: float, pace: float) -> dict[str, Any]:
        """The ledger, its slots from the oldest to the newest."""
        self.forget(now)
        slots = [round(self._slots[(self._at - age) % (SLOTS + 1)], 3) for age in range(SLOTS, -1, -1)]
        level = self.paced(now, pace)
        return {"out": round(self.outstanding, 3), "slots": slots, "largest": self._recent_largest(now), "level": level}

    def refill(self, now: float, plain: Mapping[str, Any], gap_s: float | None, held_s: float) -> None:
        """Takes a ledger over, ``gap_s`` later. Of the time in between the worst is assumed."""
        self.forget(now)
        shift = math.floor((gap_s or 0.0) / self.width_s)
        for age, used in zip(range(SLOTS, -1, -1), plain["slots"], strict=False):
            if age + shift <= SLOTS:
                self._slots[(self._at - age - shift) % (SLOTS + 1)] += used
                self.total += used
        self._largest, self._largest_at = float(plain.get("largest", 0.0)), now
        # What the pace could have let out at once is what it had kept by then.
        burst = min(self.burst, float(plain.get("level", self.burst))) + self._largest
        worst = 0.0 if gap_s is None else burst + self.amount / self.limit.window_s * gap_s
        # Its users may still have it: it counts as used from the moment on at which nobody can use it any more.
        self._inherited = max(0.0, min(float(plain["out"]) + worst, self.amount - self.total))
        self._inherited_until = now + held_s
        self.outstanding += self._inherited


class RateLimiter:
    """All limits of one dependency: a request takes of several resources, whole or not at all.

    Args:
        limits: what holds.
        now: the present.
        period_s: how often hosts come for permits.
    """

    def __init__(self, limits: Sequence[Limit], now: float, *, period_s: float = 0.25) -> None:
        self._buckets = [_Bucket(limit, now, period_s) for limit in limits]
        self.resources: frozenset[str] = frozenset(limit.resource for limit in limits)
        self.stopped_until = -math.inf
        self._pace = 1.0
        self._paced_at = now

    RESUME: Final = 0.7
    SLOWEST: Final = 0.1
    RECOVERY_PER_S: Final = 0.01

    # Stopping and resuming

    def pace(self, now: float) -> float:
        """The share of the full pace that is in force: less than 1 for some time after the other side said stop."""
        return min(1.0, self._pace + max(0.0, now - self._paced_at) * self.RECOVERY_PER_S)

    def stop(self, now: float, seconds: float) -> None:
        """The other side wants to be left alone; afterwards it goes on at 0.7 of the pace, and recovers."""
        until = now + seconds
        if now >= self.stopped_until:
            # A storm of answers is one event: only what comes after a resumption slows down further.
            self._pace = max(self.SLOWEST, self.pace(now) * self.RESUME)
        self.stopped_until = max(self.stopped_until, until)
        self._paced_at = self.stopped_until

    # Permits

    def most(self) -> dict[str, float]:
        """The most that one call can take, by resource: more would wait for ever."""
        return self._least(lambda bucket: bucket.amount)

    def is_large(self, cost: Cost) -> bool:
        """Whether a call takes more of something than the pace ever lets out at once."""
        return any(amount_of(cost, each.limit.resource) > each.burst for each in self._buckets)

    def available(self, now: float) -> dict[str, float]:
        """What could go now, by resource."""
        if now < self.stopped_until:
            return dict.fromkeys(self.resources, 0.0)
        pace = self.pace(now)
        return self._least(lambda bucket: max(0.0, min(bucket.room(now), bucket.paced(now, pace))))

    def share(self, cost: Cost) -> float:
        """The largest share of any limit that a cost is: what hosts are compared by (dominant resource fairness)."""
        return max((amount_of(cost, each.limit.resource) / each.amount for each in self._buckets), default=0.0)

    def wait_s(self, now: float, cost: Cost) -> float:
        """Seconds until a call may go; 0 when it may now."""
        pace = self.pace(now)
        waits = [each.wait_s(now, amount_of(cost, each.limit.resource), pace) for each in self._buckets]
        return max(0.0, self.stopped_until - now, *waits)

    def scarce(self, now: float, cost: Cost) -> Limit | None:
        """The limit that a call waits for; None when none holds it up."""
        pace = self.pace(now)
        worst, found = _TINY, None
        for bucket in self._buckets:
            wait_s = bucket.wait_s(now, amount_of(cost, bucket.limit.resource), pace)
            if wait_s > worst:
                worst, found = wait_s, bucket.limit
        return found

    def take(self, now: float, cost: Cost) -> bool:
        """Lets a call's permit out, of all resources or of none."""
        if now < self.stopped_until:
            return False
        pace = self.pace(now)
        costs = [amount_of(cost, bucket.limit.resource) for bucket in self._buckets]
        for bucket, amount in zip(self._buckets, costs, strict=True):
            if amount <= 0:
                continue
            # More than the burst at once is a debt that later calls wait for; the ledger still holds.
            if bucket.room(now) + _TINY < amount or bucket.paced(now, pace) + _TINY < min(amount, bucket.burst):
                return False
        for bucket, amount in zip(self._buckets, costs, strict=True):
            bucket.take(now, amount, pace)
        return True

    def used(self, now: float, amounts: Mapping[str, float]) -> None:
        """Permits that were out have been used; amounts by resource, nothing is implied."""
        for bucket in self._buckets:
            bucket.used(now, amounts.get(bucket.limit.resource, 0.0))

    def give_back(self, now: float, amounts: Mapping[str, float]) -> None:
        """Permits that were out have not been used and will not be."""
        pace = self.pace(now)
        for bucket in self._buckets:
            bucket.give_back(amounts.get(bucket.limit.resource, 0.0), pace)

    def assume(self, now: float, amounts: Mapping[str, float]) -> None:
        """Use that nobody has asked for: hosts that cannot reach the hub live on a share of their own."""
        pace = self.pace(now)
        for bucket in self._buckets:
            bucket.take(now, amounts.get(bucket.limit.resource, 0.0), pace)
            bucket.used(now, amounts.get(bucket.limit.resource, 0.0))

    def settle(self, now: float, entered: float, deltas: Mapping[str, float]) -> None:
        """Corrects what was reserved for calls that were entered as used then: actual minus reserved, by resource."""
        pace = self.pace(now)
        for bucket in self._buckets:
            bucket.settle(now, entered, deltas.get(bucket.limit.resource, 0.0), pace)

    def rates(self) -> dict[str, float]:
        """Units a second, by resource, that the limits allow over time."""
        return self._least(lambda bucket: bucket.rate)

    def _least(self, of: Callable[["_Bucket"], float]) -> dict[str, float]:
        """The least that any limit of a resource says, by resource."""
        found: dict[str, float] = {}
        for bucket in self._buckets:
            name = bucket.limit.resource
            found[name] = min(found.get(name, math.inf), of(bucket))
        return found

    # Looking and keeping

    def use(self, now: float) -> list[dict[str, Any]]:
        """Each limit and how much of it is used, out, and free now; for people."""
        free = self.available(now)
        return [
            {
                "resource": bucket.limit.resource,
                "amount": bucket.amount,
                "per": bucket.limit.window_s,
                "used": round(bucket.total, 3),
                "outstanding": round(bucket.outstanding, 3),
                "available": round(free[bucket.limit.resource], 3),
            }
            for bucket in self._buckets
        ]

    def snapshot(self, now: float) -> dict[str, Any]:
        """JSON-like data; times relative to now."""
        pace = self.pace(now)
        ledgers = [{"limit": bucket.key} | bucket.snapshot(now, pace) for bucket in self._buckets]
        return {"ledgers": ledgers, "pace": pace, "stopped_s": max(0.0, self.stopped_until - now)}

    def restore(self, now: float, plain: Mapping[str, Any], gap_s: float | None, held_s: float = 0.0) -> None:
        """Goes on from a snapshot that is ``gap_s`` old: what was out then, and all that the limits allow since then,
        is taken to be out for ``held_s`` and to be used then: so long hosts may still use permits of before. Ledgers of
        limits that are no more are dropped. ``gap_s`` is None where nothing has happened since the snapshot.

        One thing a snapshot cannot know: a call that was lent more than the burst after it, and more than any other
        in the window before.
        """
        ledgers = {ledger["limit"]: ledger for ledger in plain.get("ledgers", ())}
        for bucket in self._buckets:
            ledger = ledgers.get(bucket.key)
            if ledger is not None:
                bucket.refill(now, ledger, gap_s, held_s)
        self._pace, self._paced_at = float(plain.get("pace", 1.0)), now
        stopped_s = float(plain.get("stopped_s", 0.0)) - (gap_s or 0.0)
        if stopped_s > 0:
            self.stopped_until = self._paced_at = now + stopped_s


def amount_of(cost: Cost, resource: str) -> float:
    """What a call takes of a resource: one request, and tokens as far as they are named; ``tokens`` is their sum."""
    if resource == "requests":
        return cost.get("requests", 1.0)
    if resource == "tokens" and "tokens" not in cost:
        return cost.get("input_tokens", 0.0) + cost.get("output_tokens", 0.0)
    return cost.get(resource, 0.0)


def beyond(reserved: Cost, used: Cost, resources: Iterable[str]) -> dict[str, float]:
    """How much more of these resources was used than was reserved, or less, as far as it is known and is anything."""
    found: dict[str, float] = {}
    for name in resources:
        if name == "tokens" and "input_tokens" in used and "output_tokens" in used:
            found[name] = used["input_tokens"] + used["output_tokens"] - amount_of(reserved, name)
        elif name in used:
            found[name] = used[name] - amount_of(reserved, name)
    return {name: amount for name, amount in found.items() if abs(amount) > _TINY}
