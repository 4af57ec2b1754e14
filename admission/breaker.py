"""When do calls to a dependency stop, and how do they begin again? One machine for the whole cluster.

A call to a service that is down costs its caller a time-out, and the service the load under which it cannot come back.
A breaker (Nygard, "Release It!", 2007) watches the outcomes and stops calls before they are made. What differs here
from the breakers that libraries keep in each process:

- **One state for all hosts.** N processes with a breaker each need N times the failures before all have stopped, and
  send N probes into a service that just gets up.
- **Evidence from more than one host.** A breaker turns a partial failure into a total one, and a host with a broken
  network would turn its own failure into everybody's. Where more than one host has calls in the window, the rate must
  hold with any one of them left out.
- **A rate over time, not failures in a row**: ten slots, with a minimum of calls and a rate of slow calls as in
  resilience4j. What says nothing of the dependency's health (429s, cancellations, our own refusals) is not reported.
- **Probes by permits, 1 → 2 → 4.** Half-open breakers that let everybody through for a moment are a thundering herd.

Transitions, all made by :meth:`BreakerMachine.tick` and the ``force`` methods. Every one increases ``generation``, so
that results of calls that were let through before it are dropped; the window and the probes begin anew.

| from    | to      | when                                                                                          |
|---------|---------|-----------------------------------------------------------------------------------------------|
| closed  | open    | the evidence holds                                                                            |
| open    | probing | ``until`` is reached; never where an operator forced it open                                  |
| probing | open    | a probe failed, or had no result within 60 s, or a stage was as slow as opens a closed one    |
| probing | closed  | the probes of all three stages succeeded                                                      |
| any     | open    | ``force_open``, until forced otherwise                                                        |
| any     | closed  | ``force_close``                                                                               |
| any     | probing | ``force_probe``, from the first stage                                                         |

It stays open for ``open_s`` * 2^(openings - 1), at most ``maximum_open_s``, times a jitter in [0.8, 1.2], so that the
breakers of many clusters do not probe at one moment. ``openings`` counts those in a row since it was last closed.
Probing lasts until somebody has something to probe with.
"""

from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar, Final, Self

from admission.dependency import Breaker, duration_text
from admission.evidence import SLOTS, Counts, Window, failed_of, slow_of

STAGES: Final = (1, 2, 4)
_JITTER_FROM: Final = 0.8
_JITTER_TO: Final = 1.2


class BreakerState(StrEnum):
    """Whether calls go through: all of them, none, or a few probes."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


class BreakerMachine:
    """The breaker of one dependency. `now` is monotonic, in seconds; nothing happens between two calls of a method.

    Attributes:
        policy: what was declared; :meth:`change_policy` changes it.
        state: closed, open or probing.
        generation: increases with every transition.
        since: when the state began.
        reason: why the state began; while probing, why it was opened. Empty where nothing ever happened.
        until: when an open one begins to probe; None where it is not open, or was forced open.
        openings: consecutive ones, without those that were forced.
        by: the operator who forced the state; empty where none did.
        has_others: there is more than one source, so that what only one has said is not enough to open.
    """

    probe_timeout_s: ClassVar[float] = 60.0

    def __init__(self, policy: Breaker, now: float = 0.0) -> None:
        self.policy = policy
        self.state = BreakerState.CLOSED
        self.generation = 0
        self.since = now
        self.reason = ""
        self.until: float | None = None
        self.openings = 0
        self.by = ""
        self.has_others = False
        self._window = Window(policy.window_s / SLOTS)
        self._probes = _Probes()

    # ------------------------------------------------------------------------------------------------- evidence

    def record(
        self, now: float, source: str, *, succeeded: int = 0, failed: int = 0, slow: int = 0, generation: int
    ) -> None:
        """Takes note of calls that ended. Those of another generation are dropped.

        Args:
            now: the present.
            source: the host that made them.
            succeeded: those that were answered, the slow ones among them.
            failed: those that were not, or badly.
            slow: those that took longer than ``slow_call_s``.
            generation: the one under which they were let through.

        Raises:
            ValueError: a number is below zero, or more were slow than succeeded.
        """
        if min(succeeded, failed, slow) < 0 or slow > succeeded:
            raise ValueError(
                f"{source} reported {succeeded} succeeded, {failed} failed and {slow} slow calls: "
                "numbers are not below zero, and slow calls are among those that succeeded"
            )
        if generation != self.generation:
            return
        if self.state is BreakerState.PROBING:
            self._probes.answered(succeeded, failed, slow)
        elif self.state is BreakerState.CLOSED and succeeded + failed:
            self._window.add(now, source, Counts(succeeded + failed, failed, slow))

    def counts(self, now: float) -> Counts:
        """Calls, failed and slow ones, of the window that ends now."""
        return self._window.advance(now)

    def forget(self, source: str) -> None:
        """Drops what a host reported: it has left, and says nothing more of the dependency."""
        self._window.forget(source)

    # ------------------------------------------------------------------------------------------------- transitions

    def tick(self, now: float, draw: float) -> bool:
        """Makes the transition that time or evidence demand, if any.

        Args:
            now: the present.
            draw: a uniform random number in [0, 1), for the jitter.

        Returns:
            Whether the state changed.
        """
        if self.state is BreakerState.CLOSED:
            evidence = self._evidence(now)
            return evidence is not None and self._open(now, draw, evidence)
        if self.state is BreakerState.OPEN:
            if self.until is None or now < self.until:
                return False
            return self._enter(BreakerState.PROBING, now, self.reason)
        failure = self._probe_failure(now)
        if failure is not None:
            return self._open(now, draw, failure)
        if not self._probes.stage_succeeded:
            return False
        if self._probes.next_stage():
            return False
        return self._close(now, "the probes succeeded", "")

    def force_open(self, now: float, by: str, reason: str) -> None:
        """Stops all calls until an operator says otherwise."""
        self._enter(BreakerState.OPEN, now, reason, by=by)

    def force_close(self, now: float, by: str) -> None:
        """Lets all calls through, as if nothing had happened before."""
        self._close(now, "closed by hand" if by else "", by)

    def force_probe(self, now: float, by: str) -> None:
        """Begins to probe at once, with one call."""
        reason = "probed by hand" if self.state is BreakerState.CLOSED else self.reason
        self._enter(BreakerState.PROBING, now, reason, by=by)

    def change_policy(self, policy: Breaker) -> None:
        """Goes on under another policy, in the same state and with the same evidence. An open time that is now too long
        is cut; one that is too short is left.
        """
        if policy.window_s != self.policy.window_s:
            self._window = self._window.resized(policy.window_s / SLOTS)
        self.policy = policy
        if self.until is not None:
            self.until = min(self.until, self.since + policy.maximum_open_s * _JITTER_TO)

    def _enter(self, state: BreakerState, now: float, reason: str, *, by: str = "", until: float | None = None) -> bool:
        self.state, self.since, self.reason, self.by, self.until = state, now, reason, by, until
        self.generation += 1
        self._window.clear()
        self._probes = _Probes()
        return True

    def _open(self, now: float, draw: float, reason: str) -> bool:
        self.openings += 1
        # No failure in a row is doubled a thousand times, and 2.0 ** 1024 is no number.
        doubled_s = self.policy.open_s * 2.0 ** min(self.openings - 1, 1000)
        jitter = _JITTER_FROM + (_JITTER_TO - _JITTER_FROM) * draw
        until = now + min(doubled_s, self.policy.maximum_open_s) * jitter
        return self._enter(BreakerState.OPEN, now, reason, until=until)

    def _close(self, now: float, reason: str, by: str) -> bool:
        self.openings = 0
        return self._enter(BreakerState.CLOSED, now, reason, by=by)

    def _evidence(self, now: float) -> str | None:
        """Why it must open; None where it need not."""
        total, policy = self._window.advance(now), self.policy
        if total.calls < policy.minimum_calls:
            return None
        if self.has_others and len(self._window.by_source) == 1:
            return None  # the others have not said anything yet
        window = duration_text(policy.window_s)
        if self._window.reaches(failed_of, policy.failure_rate):
            rate = f"breaker.failure_rate={policy.failure_rate:g}"
            return f"{total.failed} of {total.calls} calls in {window} failed ({rate})"
        if policy.slow_call_s is not None and self._window.reaches(slow_of, policy.slow_call_rate):
            rate = f"breaker.slow_call_rate={policy.slow_call_rate:g}"
            slow_call = duration_text(policy.slow_call_s)
            return f"{total.slow} of {total.calls} calls in {window} took longer than {slow_call} ({rate})"
        return None

    # ------------------------------------------------------------------------------------------------- probes

    @property
    def stage(self) -> int:
        """How many probes the present stage has; 0 while not probing."""
        return self._probes.size if self.state is BreakerState.PROBING else 0

    @property
    def probes_in_the_air(self) -> int:
        """Probes that were given and have neither a result nor been returned."""
        return self._probes.in_the_air

    def probes_available(self, now: float) -> int:
        """Permits of the present stage that can be given; none once it is known to have failed."""
        if self.state is not BreakerState.PROBING or self._probe_failure(now) is not None:
            return 0
        return self._probes.available

    def probes_given(self, now: float, n: int) -> None:
        """Takes note that n permits went to hosts.

        Raises:
            ValueError: more than are available.
        """
        available = self.probes_available(now)
        if not 0 <= n <= available:
            raise ValueError(f"{n} probes cannot be given: {available} are available")
        self._probes.give(now, n)

    def probes_returned(self, n: int) -> None:
        """Takes note that n permits were not used: they can be given again.

        Raises:
            ValueError: n is below zero.
        """
        if n < 0:
            raise ValueError(f"{n} probes cannot be returned")
        self._probes.returned(n)

    def _probe_failure(self, now: float) -> str | None:
        """Why the present stage has failed; None where it has not."""
        probes = self._probes
        if probes.failed:
            return "a probe failed"
        if probes.oldest is not None and now - probes.oldest >= self.probe_timeout_s:
            return f"a probe had no result within {duration_text(self.probe_timeout_s)}"
        # Without this, a dependency that is only slow would be opened and closed for ever.
        slow_call_s = self.policy.slow_call_s
        if slow_call_s is not None and probes.slow / probes.size >= self.policy.slow_call_rate:
            return f"{probes.slow} of {probes.size} probes took longer than {duration_text(slow_call_s)}"
        return None

    # ------------------------------------------------------------------------------------------------- snapshots

    def snapshot(self, now: float) -> dict[str, Any]:
        """Everything :meth:`restore` needs, as JSON data; times are relative to `now`, in seconds."""
        return {
            "state": self.state.value,
            "generation": self.generation,
            "since_s": now - self.since,
            "reason": self.reason,
            "until_s": None if self.until is None else self.until - now,
            "openings": self.openings,
            "by": self.by,
            "window": self._window.snapshot(now),
            "probes": self._probes.snapshot(now),
        }

    @classmethod
    def restore(cls, policy: Breaker, plain: Mapping[str, Any], now: float) -> Self:
        """The machine of a snapshot. Where time has passed since, give the present time less that.

        Raises:
            ValueError: it is no snapshot of a breaker.
        """
        machine = cls(policy)
        try:
            machine.state = BreakerState(plain["state"])
            machine.generation = int(plain["generation"])
            machine.since = now - float(plain["since_s"])
            machine.reason = str(plain["reason"])
            machine.until = None if plain["until_s"] is None else now + float(plain["until_s"])
            machine.openings = int(plain["openings"])
            machine.by = str(plain["by"])
            machine._window = Window.restore(plain["window"], now).resized(policy.window_s / SLOTS)
            machine._probes = _Probes.restore(plain["probes"], now)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"no snapshot of a breaker: {error!r}") from error
        return machine


class _Probes:
    """The probes of one time of probing: given, answered and returned, stage after stage."""

    __slots__ = ("_given", "_stage", "failed", "slow", "succeeded")

    def __init__(self) -> None:
        self._stage = 0
        self._given: deque[float] = deque()  # when, of each one in the air; oldest first
        self.succeeded = 0
        self.failed = 0
        self.slow = 0

    @property
    def size(self) -> int:
        return STAGES[self._stage]

    @property
    def in_the_air(self) -> int:
        return len(self._given)

    @property
    def oldest(self) -> float | None:
        return self._given[0] if self._given else None

    @property
    def available(self) -> int:
        return self.size - self.in_the_air - self.succeeded

    @property
    def stage_succeeded(self) -> bool:
        return self.succeeded == self.size

    def give(self, now: float, n: int) -> None:
        self._given.extend([now] * n)

    def answered(self, succeeded: int, failed: int, slow: int) -> None:
        """Results count for as many as are in the air: for the oldest, so that none of the others fails too soon."""
        failed = min(failed, self.in_the_air)
        succeeded = min(succeeded, self.in_the_air - failed)
        self.failed += failed
        self.succeeded += succeeded
        self.slow += min(slow, succeeded)
        for _ in range(failed + succeeded):
            self._given.popleft()

    def returned(self, n: int) -> None:
        """The newest: otherwise one host that returns what it gets would hide for ever that another's was lost."""
        for _ in range(min(n, self.in_the_air)):
            self._given.pop()

    def next_stage(self) -> bool:
        """Whether there is one."""
        if self._stage + 1 == len(STAGES):
            return False
        self._stage += 1
        self.succeeded = self.slow = 0
        return True

    def snapshot(self, now: float) -> dict[str, Any]:
        return {
            "stage": self._stage,
            "given_s": [now - at for at in self._given],
            "succeeded": self.succeeded,
            "failed": self.failed,
            "slow": self.slow,
        }

    @classmethod
    def restore(cls, plain: Mapping[str, Any], now: float) -> Self:
        probes = cls()
        probes._stage = STAGES.index(STAGES[int(plain["stage"])])
        probes._given.extend(now - float(age) for age in plain["given_s"])
        probes.succeeded, probes.failed, probes.slow = (int(plain[each]) for each in ("succeeded", "failed", "slow"))
        return probes
