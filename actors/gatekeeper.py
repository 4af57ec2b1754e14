"""One dependency's gate on a host: the pure gate, its waiters as futures, and the talk with the hub.

A call that may go goes without a message. One task per gate talks to the hub, once a period while there is anything to
say, and lets those that wait go; a waiter has no task of its own.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Final

import msgspec
from aiolimiter import AsyncLimiter

from actors.messages import decode_lease, encode_message
from actors.scope import wake
from admission.dependency import Dependency, from_plain
from admission.exchange import ANSWER_WITHIN_S, Lease, News
from admission.gate import Gate
from admission.line import Waiter
from admission.passage import Hindrance, Passage

Link = Callable[[bytes], Awaitable[bytes]]
"""Carries a report to a hub and its lease back; raises when no hub answers."""

WORTH_POSTPONING_S: Final = 3.0
_SAFE_STEP_S: Final = 0.1
_EARLIEST_S: Final = 0.01
_PATIENCE_PERIODS: Final = 4
_SMOOTH_OVER: Final = 0.8
_STEPS: Final = 16
_LOG: Final = logging.getLogger("penstock.gate")


class Postponed(Exception):
    """A call cannot go for long: its run had better be unloaded meanwhile. ``for_s``: how long, in seconds."""

    def __init__(self, dependency: str, hindrance: Hindrance, for_s: float) -> None:
        super().__init__(hindrance.text)
        self.dependency = dependency
        self.hindrance = hindrance
        self.for_s = for_s


class Gatekeeper:
    """Lets calls to one dependency go, or makes them wait.

    Args:
        dependency: as the app declares it; what the hub says of it later takes its place.
        host: this host's identity.
        link: to the hub.
    """

    def __init__(self, dependency: Dependency, host: str, link: Link) -> None:
        self.dependency = dependency
        self._loop = asyncio.get_running_loop()
        breaker = dependency.breaker
        self.gate = Gate(host, self._loop.time(), slow_call_s=None if breaker is None else breaker.slow_call_s)
        self._link = link
        self._retries: dict[str, deque[asyncio.Future[None]]] = {}
        self._talking: asyncio.Task[None] | None = None
        self._sooner: asyncio.Future[None] | None = None
        self._asked_at = -1.0
        self._hub_answers = True
        self._closed = False

    # Going

    def try_pass(self, rank: int, cost: dict[str, float], may_probe: bool) -> Passage | None:
        """Lets a call go at once, or says that it has to wait (see :meth:`passage`)."""
        if self._talking is None:
            self._begin_to_talk()
        return self.gate.try_pass(self._loop.time(), rank, cost, may_probe)

    async def passage(
        self, rank: int, cost: dict[str, float], may_probe: bool, *, may_postpone: bool = False
    ) -> Passage:
        """Waits for its turn. Whoever waits with a bound cancels this.

        Raises:
            Postponed: it will take long; only if ``may_postpone``.
        """
        if may_postpone and (postponed := self._postponed()) is not None:
            raise postponed
        future: asyncio.Future[None] = self._loop.create_future()
        granted: list[Passage] = []
        waiter = self.gate.wait(self._loop.time(), rank, cost, may_probe, _Token(future, granted, may_postpone))
        self._begin_to_talk()
        if not self.gate.saturated:
            self._talk_sooner()
        try:
            await future
        except BaseException:
            self.gate.give_up(waiter)
            if granted:
                # Its turn came in the same moment in which it was cancelled: the next one goes instead.
                self.gate.undo(granted[0])
                self._let_go()
            raise
        return granted[0]

    def done(self, passage: Passage, result: str, usage: dict[str, float] | None = None) -> None:
        """A call has ended; see :meth:`admission.gate.Gate.done`."""
        self.gate.done(self._loop.time(), passage, result, usage)
        if self.gate.line.waiting:
            self._let_go()

    def undo(self, passage: Passage) -> None:
        """A call did not go after all."""
        self.gate.undo(passage)
        if self.gate.line.waiting:
            self._let_go()

    def stop(self, seconds: float) -> None:
        """The other side asked to be left alone."""
        self.gate.stop(self._loop.time(), seconds)
        self._talk_sooner()

    def rename(self, host: str) -> None:
        """This host has another identity from now on."""
        self.gate.rename(host)
        self._talk_sooner()

    def hindrance(self) -> Hindrance:
        """What holds back those that wait."""
        return self.gate.hindrance(self._loop.time())

    @property
    def limits_tokens(self) -> bool:
        """Whether calls have to say how many tokens they take."""
        balance = self.gate.balance
        if self.gate.lease is None or balance is None:
            return any(limit.resource != "requests" for limit in self.dependency.rate)
        return any(resource != "requests" for resource in balance)

    # Retries

    async def retry(self, tenant: str) -> None:
        """Waits until the budget has a retry for this tenant. Whoever waits with a bound cancels this."""
        lease = self.gate.lease
        if lease is not None and lease.retries is None:
            self.gate.retried()
            return
        future: asyncio.Future[None] = self._loop.create_future()
        waiting = self._retries.setdefault(tenant, deque())
        waiting.append(future)
        self.gate.want_retry(tenant)
        self._begin_to_talk()
        try:
            await future
        except BaseException:
            if future.done() and not future.cancelled():
                self.gate.return_retry(tenant)
            elif future in waiting:  # else it was passed over already, and counted then
                waiting.remove(future)
                self.gate.want_retry(tenant, -1)
            raise
        self.gate.retried()

    def retry_helped(self, tenant: str) -> None:
        """A retry was answered: it was no load in vain, and the next one that waits may go in its place.

        Without this, calls that failed in an outage would wait for the trickle of the budget long after its end.
        """
        future = self._next_waiting(tenant)
        if future is not None:
            self.gate.want_retry(tenant, -1)
            wake(future)
        elif self.gate.lease is not None and self.gate.lease.retries is not None:
            self.gate.return_retry(tenant)

    def _next_waiting(self, tenant: str) -> "asyncio.Future[None] | None":
        """The first that still waits, taken out. Those that were cancelled and have not run since want nothing more."""
        waiting = self._retries.get(tenant, deque())
        while waiting:
            future = waiting.popleft()
            if not future.done():
                return future
            self.gate.want_retry(tenant, -1)
        return None

    def _grant_retries(self, granted: dict[str, int]) -> None:
        for tenant, count in granted.items():
            for _ in range(count):
                future = self._next_waiting(tenant)
                if future is None:
                    self.gate.return_retry(tenant)
                else:
                    wake(future)
        if self.gate.lease is not None and self.gate.lease.retries is None:
            for tenant, waiting in self._retries.items():
                self.gate.want_retry(tenant, -len(waiting))
                while waiting:
                    wake(waiting.popleft())

    # Letting go

    def _let_go(self) -> None:
        """All that may go now."""
        now = self._loop.time()
        while self.gate.line.waiting and (found := self.gate.next(now)) is not None:
            self._admit(*found)

    def _admit(self, waiter: Waiter, passage: Passage) -> None:
        token: _Token = waiter.token
        if token.future.done():
            self.gate.undo(passage)
            return
        token.granted.append(passage)
        token.future.set_result(None)

    def _postponed(self) -> Postponed | None:
        """Whether nothing goes for so long that waiting in memory is not worth it."""
        hindrance = self.hindrance()
        if hindrance.for_s is None or hindrance.for_s < WORTH_POSTPONING_S:
            return None
        return Postponed(self.dependency.name, hindrance, hindrance.for_s)

    def _postpone_all(self) -> None:
        postponed = self._postponed() if self.gate.line.waiting else None
        if postponed is None:
            return
        for waiter in list(self.gate.line):
            if waiter.token.may_postpone and not waiter.token.future.done():
                waiter.token.future.set_exception(Postponed(postponed.dependency, postponed.hindrance, postponed.for_s))

    async def _let_go_evenly(self, period_s: float) -> None:
        """Spreads what a lease lets go over the period: a burst at its begin would be one for the other side too.

        aiolimiter paces this: one waiter (this task), amounts of one, and permits that the hub has counted already, so
        that its burst cannot break a limit. Where amounts differ or are given back, the hub's buckets decide.
        """
        gate = self.gate
        permits = min(gate.line.waiting, gate.affordable())
        if gate.balance is None or permits < 2:
            self._let_go()
            return
        burst = max(1.0, permits / _STEPS)
        pace = AsyncLimiter(burst, burst / permits * period_s * _SMOOTH_OVER)
        while gate.line.waiting:
            await pace.acquire()
            found = gate.next(self._loop.time())
            if found is None:
                return
            self._admit(*found)

    # Talking

    def _begin_to_talk(self) -> None:
        if self._talking is None and not self._closed:
            # Not by the loop, and not in the context of the agent that happens to be the first to come.
            talk = self._talk()
            self._talking = asyncio.Task(
                talk, loop=self._loop, name=f"gate of {self.dependency.name}", context=Context()
            )

    def _talk_sooner(self) -> None:
        if self._sooner is not None:
            wake(self._sooner)

    async def _talk(self) -> None:
        """Talks until nothing has happened for a while; then gives back what this host has."""
        quiet = 0
        try:
            while quiet < _PATIENCE_PERIODS:
                quiet = quiet + 1 if self.gate.idle else 0
                await self._exchange_while_living()
                lease = self.gate.lease
                period_s = 0.25 if lease is None else lease.period_s
                if not self._hub_answers:
                    self.gate.live_safely(self._loop.time())
                    period_s = min(period_s, 0.1)
                began = self._loop.time()
                await self._let_go_evenly(period_s)
                await self._pause(began + period_s - self._loop.time())
            await self._exchange(leaving=True)
        finally:
            self._talking = None
            if not self._closed and not self.gate.idle:
                self._begin_to_talk()

    async def _pause(self, seconds: float) -> None:
        """Waits for the next period, or for somebody who cannot wait so long."""
        if seconds <= 0:
            return
        lease = self.gate.lease
        self._sooner = self._loop.create_future()
        due = self._loop.call_later(seconds, wake, self._sooner)
        if lease is None or (self.gate.line.waiting and not self.gate.saturated and lease.not_before_s <= 0):
            # Somebody came while we were talking: the answer says nothing of that yet.
            self._loop.call_later(min(seconds, _EARLIEST_S), wake, self._sooner)
        try:
            await self._sooner
        finally:
            self._sooner = None
            due.cancel()
        too_early_s = self._asked_at + _EARLIEST_S - self._loop.time()
        if too_early_s > 0:
            await asyncio.sleep(too_early_s)

    async def _exchange_while_living(self) -> None:
        """The exchange; where the answer takes long, what is safe goes meanwhile, as soon as the lease is over."""
        exchange = asyncio.Task(self._exchange(), loop=self._loop)
        try:
            while not (await asyncio.wait((exchange,), timeout=_SAFE_STEP_S))[0]:
                self.gate.live_safely(self._loop.time())
                self._let_go()
        except BaseException:
            exchange.cancel()
            raise
        exchange.result()

    async def _exchange(self, *, leaving: bool = False) -> None:
        sent_at = self._asked_at = self._loop.time()
        report, since = self.gate.report(sent_at, leaving=leaving)
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                lease = decode_lease(await self._link(encode_message(report)))
        except asyncio.CancelledError:
            self.gate.lost(since)
            raise
        except (Exception, msgspec.DecodeError) as error:
            self.gate.lost(since)
            if self._hub_answers:
                _LOG.warning("no hub of %s answers (%s): living on what is safe", self.dependency.name, error)
            self._hub_answers = False
            return
        if not self._hub_answers:
            _LOG.warning("the hub of %s answers again", self.dependency.name)
        self._hub_answers = True
        granted = self.gate.accept(sent_at, self._loop.time(), lease)
        if self.gate.lease is lease:
            self._take_over(lease)
        self._grant_retries(granted)
        self._postpone_all()

    def _take_over(self, lease: Lease) -> None:
        """What operators have set, or another host's app declares, holds here too."""
        if lease.definition is None:
            return
        try:
            self.dependency = from_plain(lease.definition)
        except ValueError as error:
            # A hub of a later version may know more than this host: limits hold all the same, since the hub counts.
            name = self.dependency.name
            _LOG.warning("dependency %s: what its hub says of it cannot be read; as it was: %s", name, error)
            return
        breaker = self.dependency.breaker
        self.gate.slow_call_s = None if breaker is None else breaker.slow_call_s

    def news(self, told: dict[str, object]) -> None:
        """What the hub has told everybody."""
        self.gate.news(self._loop.time(), msgspec.convert(told, News))
        self._postpone_all()
        if self.gate.line.waiting:
            self._talk_sooner()

    async def close(self) -> None:
        """Gives back what this host has, as far as a hub still hears it."""
        self._closed = True
        if self._talking is not None:
            self._talking.cancel()
            await asyncio.wait((self._talking,))
        if self.gate.lease is not None and self._hub_answers:
            await self._exchange(leaving=True)

    def abandon(self) -> None:
        """Stops talking and tells nobody."""
        self._closed = True
        if self._talking is not None:
            self._talking.cancel()


@dataclass(frozen=True, slots=True)
class _Token:
    future: "asyncio.Future[None]"
    granted: list[Passage]
    may_postpone: bool
