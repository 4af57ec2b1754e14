"""May this be tried again, seen over all callers? Retries as a share of calls, so that they cannot become the load.

A policy of retries bounds one step. When a dependency fails for everybody, every step uses its policy to the end, and
the dependency that was too slow gets four times its load: the retries keep alive what they were to overcome. A
budget bounds them together. Every first attempt pays in a share of a retry, every retry takes a whole one; with a
share of 0.1, a dependency that fails outright sees at most 1.1 times its normal load, and one that fails now and
then gets all its retries.

Sources: "Handling Overload" in Site Reliability Engineering (Beyer and others, O'Reilly 2016, chapter 21): a client
retries at most 10 % of its requests; RetryBudget in Finagle (Twitter): a token bucket of the calls of the last ten
seconds with a trickle per second, so that a caller with few calls can retry too. Here one budget is kept for each
tenant and dependency over all hosts.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping
from math import floor
from typing import Any, Final, Self

from admission.dependency import RetryBudget

SLOTS: Final = 10
SLOT_S: Final = 1.0
MAXIMUM_TENANTS: Final = 1000
_ROUNDING: Final = 1e-9
"""Ten times 0.1 is a whole retry, though not in floats."""


class BudgetLedger:
    """The retries that one tenant may make against one dependency: a token bucket. `now` is monotonic, in seconds.

    The law: in any interval, retries taken (less those given back) are at most what was kept at its begin + ``ratio`` *
    calls in it + ``per_second`` * its length; the latter only while fewer calls than that pay in. Kept are at most
    ``reserve``, or ``ratio`` * the calls of the last ten seconds where that is more: where both are below one, there is
    no retry.

    Attributes:
        policy: what was declared.
        total_calls: calls since the beginning.
        total_retries: retries taken since the beginning, less those given back.
    """

    __slots__ = ("_kept", "_recent", "_settled_at", "_slots", "policy", "total_calls", "total_retries")

    def __init__(self, policy: RetryBudget, *, kept: float | None = None) -> None:
        self.policy = policy
        self.total_calls = 0
        self.total_retries = 0
        self._kept = policy.reserve if kept is None else kept
        self._settled_at: float | None = None
        self._slots: deque[tuple[int, int]] = deque()  # (index of the slot, its calls), oldest first
        self._recent = 0  # the sum of the slots

    def calls(self, now: float, n: int) -> None:
        """Pays in for n first attempts. Retries pay nothing in.

        Raises:
            ValueError: n is below zero.
        """
        _at_least_zero(n, "calls")
        here = floor(self._settle(now) / SLOT_S)
        if not n:
            return
        self.total_calls += n
        self._recent += n
        if self._slots and self._slots[-1][0] == here:
            self._slots[-1] = (here, self._slots[-1][1] + n)
        else:
            self._slots.append((here, n))
        self._keep(self._kept + self.policy.ratio * n)

    def available(self, now: float) -> float:
        """Retries that could be taken now; fractions of one are still being paid in."""
        self._settle(now)
        return self._kept

    def take(self, now: float, n: int) -> int:
        """Takes up to n whole retries, and returns how many were granted.

        Raises:
            ValueError: n is below zero.
        """
        _at_least_zero(n, "retries")
        self._settle(now)
        granted = min(n, floor(self._kept + _ROUNDING))
        self._kept = max(0.0, self._kept - granted)
        self.total_retries += granted
        return granted

    def give_back(self, now: float, n: int) -> None:
        """Returns retries that were taken and not made. What was never taken cannot be given back: it is left out.

        Raises:
            ValueError: n is below zero.
        """
        _at_least_zero(n, "retries")
        self._settle(now)
        returned = min(n, self.total_retries)
        self.total_retries -= returned
        self._keep(self._kept + returned)

    def change_policy(self, now: float, policy: RetryBudget) -> None:
        """Goes on under another policy: what is kept stays, up to the new bound."""
        self._settle(now)
        self.policy = policy
        self._keep(self._kept)

    def snapshot(self, now: float) -> dict[str, Any]:
        """Everything :meth:`restore` needs, as JSON data; times are relative to `now`."""
        here = floor(self._settle(now) / SLOT_S)
        return {
            "kept": self._kept,
            "slots": [[here - index, calls] for index, calls in self._slots],
            "total_calls": self.total_calls,
            "total_retries": self.total_retries,
        }

    @classmethod
    def restore(cls, policy: RetryBudget, plain: Mapping[str, Any], now: float) -> Self:
        """The ledger of a snapshot. Where time has passed since, give the present time less that.

        Raises:
            ValueError: it is no snapshot of a ledger.
        """
        try:
            ledger = cls(policy, kept=float(plain["kept"]))
            here = floor(now / SLOT_S)
            ledger._slots.extend((here - int(age), int(calls)) for age, calls in plain["slots"])
            ledger._recent = sum(calls for _, calls in ledger._slots)
            ledger.total_calls = int(plain["total_calls"])
            ledger.total_retries = int(plain["total_retries"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no snapshot of a retry budget: {error!r}") from error
        ledger._settle(now)
        return ledger

    def _settle(self, now: float) -> float:
        """Brings the ledger to `now`, and returns it; where the clock went back, the latest moment before.

        The bound only falls from one call to the next, so that to look at it once, at the end, is exact.
        """
        before = now if self._settled_at is None else self._settled_at
        self._settled_at = at = max(before, now)
        oldest = floor(at / SLOT_S) - SLOTS + 1
        trickled = 0.0
        while self._slots and self._slots[0][0] < oldest:
            drops_out_at = max(before, (self._slots[0][0] + SLOTS) * SLOT_S)
            trickled += self._trickle * (drops_out_at - before)
            before = drops_out_at
            self._recent -= self._slots.popleft()[1]
        self._keep(self._kept + trickled + self._trickle * (at - before))
        return at

    @property
    def _trickle(self) -> float:
        """Retries a second that come by themselves: for callers whose calls pay in less, and not on top of more."""
        policy = self.policy
        return policy.per_second if policy.ratio * self._recent < policy.per_second * SLOTS * SLOT_S else 0.0

    def _keep(self, retries: float) -> None:
        self._kept = min(retries, max(self.policy.reserve, self.policy.ratio * self._recent))


class Budgets:
    """The ledgers of all tenants of one dependency.

    At most `maximum_tenants` are kept. Beyond that, the one that was used least recently is forgotten, and the newcomer
    takes over what it had kept (at most ``reserve``): however many tenants come by turns, forgetting makes no retries.
    """

    def __init__(self, policy: RetryBudget, *, maximum_tenants: int = MAXIMUM_TENANTS) -> None:
        if maximum_tenants < 1:
            raise ValueError(f"maximum_tenants {maximum_tenants} is below 1")
        self.policy = policy
        self._maximum_tenants = maximum_tenants
        self._ledgers: OrderedDict[str, BudgetLedger] = OrderedDict()  # least recently used first

    @property
    def tenants(self) -> tuple[str, ...]:
        """Those that have a ledger, least recently used first."""
        return tuple(self._ledgers)

    def calls(self, tenant: str, now: float, n: int) -> None:
        """As :meth:`BudgetLedger.calls`."""
        self._ledger(tenant, now).calls(now, n)

    def available(self, tenant: str, now: float) -> float:
        """As :meth:`BudgetLedger.available`. To look is no use: nobody is forgotten for it."""
        ledger = self._ledgers.get(tenant)
        return self._opening_balance(now) if ledger is None else ledger.available(now)

    def take(self, tenant: str, now: float, n: int) -> int:
        """As :meth:`BudgetLedger.take`."""
        return self._ledger(tenant, now).take(now, n)

    def give_back(self, tenant: str, now: float, n: int) -> None:
        """As :meth:`BudgetLedger.give_back`. A tenant that was forgotten has nothing to give back."""
        if tenant in self._ledgers:
            self._ledger(tenant, now).give_back(now, n)

    def change_policy(self, now: float, policy: RetryBudget) -> None:
        """As :meth:`BudgetLedger.change_policy`, for all tenants."""
        self.policy = policy
        for ledger in self._ledgers.values():
            ledger.change_policy(now, policy)

    def view(self, now: float) -> dict[str, dict[str, float]]:
        """For people: what each tenant has, its calls and its retries."""
        return {
            tenant: {
                "available": ledger.available(now),
                "calls": ledger.total_calls,
                "retries": ledger.total_retries,
            }
            for tenant, ledger in self._ledgers.items()
        }

    def snapshot(self, now: float) -> dict[str, Any]:
        """Everything :meth:`restore` needs, as JSON data; times are relative to `now`."""
        return {"tenants": [[tenant, ledger.snapshot(now)] for tenant, ledger in self._ledgers.items()]}

    @classmethod
    def restore(
        cls, policy: RetryBudget, plain: Mapping[str, Any], now: float, *, maximum_tenants: int = MAXIMUM_TENANTS
    ) -> Self:
        """The ledgers of a snapshot; see :meth:`BudgetLedger.restore`.

        Raises:
            ValueError: it is no snapshot of budgets.
        """
        budgets = cls(policy, maximum_tenants=maximum_tenants)
        try:
            pairs = [(str(tenant), ledger) for tenant, ledger in plain["tenants"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no snapshot of retry budgets: {error!r}") from error
        for tenant, ledger in pairs[-maximum_tenants:]:
            budgets._ledgers[tenant] = BudgetLedger.restore(policy, ledger, now)
        return budgets

    def _ledger(self, tenant: str, now: float) -> BudgetLedger:
        ledger = self._ledgers.get(tenant)
        if ledger is None:
            ledger = BudgetLedger(self.policy, kept=self._opening_balance(now))
            if len(self._ledgers) >= self._maximum_tenants:
                self._ledgers.popitem(last=False)
            self._ledgers[tenant] = ledger
        self._ledgers.move_to_end(tenant)
        return ledger

    def _opening_balance(self, now: float) -> float:
        if len(self._ledgers) < self._maximum_tenants:
            return self.policy.reserve
        oldest = next(iter(self._ledgers.values()))
        return min(self.policy.reserve, oldest.available(now))


def _at_least_zero(n: int, what: str) -> None:
    if n < 0:
        raise ValueError(f"{n} {what}: a number cannot be below zero")
