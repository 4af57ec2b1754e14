"""The run engine's shell: drives one claimed run on a host's event loop, step by step, from replay to its end."""

import asyncio
import contextlib
import logging
from typing import Any, Final, NoReturn

import msgspec

from actors.compensation import compensates, undone
from actors.contract import Agent
from actors.core.identity import Scope
from actors.core.parking import Wait, parking
from actors.core.replay import Asked, Divergence, Replay
from actors.errors import RunAborted
from actors.execution import Phase
from actors.job import decode_job, rank_of
from actors.journal import Entry, Kind, decode_entry
from actors.recording import Recording
from actors.resolutions import close_resolved
from actors.run import Run
from actors.scope import SCOPE, wake
from actors.services import Services
from actors.verdict import Verdict, failed, failure, hosts_lost, sealed_end, unproven
from cluster.keys import partition_of
from cluster.lifecycle import RunState
from cluster.records import Claim, Park

PARK_WORTH_MS: Final = 1000
_QUIET_S: Final = 0.02
_LOG: Final = logging.getLogger("penstock.run")


class RunEngine(Recording):
    """One run on one host. Ends by telling the store an end, or by letting go (unloaded, fenced off, handed back)."""

    __slots__ = (
        "_deadline", "_parking", "_quiet_scheduled", "agent", "checkpoint", "checkpoints", "has_effects", "host", "job",
        "lineage", "parked_until_ms", "pretended", "rank", "replay", "run", "waits",
    )  # fmt: skip

    def __init__(self, claim: Claim, agent: Agent[Any, Any], services: Services) -> None:
        super().__init__(claim, services)
        self.agent = agent
        self.host = services.host
        self.run = Run(self)
        self.job = decode_job(claim.job)
        self.lineage = self.job.root or claim.id
        self.rank = rank_of(self.job.value)
        self.replay: Replay | None = None
        self.checkpoint: bytes | None = None
        self.checkpoints = 0
        self.has_effects = False
        self.pretended: dict[str, tuple[bytes, str, bytes]] = {}
        self.waits: dict[str, tuple[Wait, asyncio.Future[None]]] = {}
        self.parked_until_ms: int | None = None
        self._parking: asyncio.Future[str | None] | None = None
        self._quiet_scheduled = False
        self._deadline: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to drive the run."""
        loop = asyncio.get_running_loop()
        if self.claim.deadline_ms is not None:
            left_s = max(0, self.claim.deadline_ms - self.services.now_ms()) / 1000
            self._deadline = loop.call_later(left_s, self.request_cancel, "deadline_exceeded")
        self._task = loop.create_task(self._drive(), name=self.claim.id)

    # Driving

    async def _drive(self) -> None:
        verdict = await self._execute()
        if self._phase is Phase.EXECUTING:
            await self._close(verdict)

    async def _execute(self) -> Verdict | None:
        """Runs the agent's code and says how the run ends; None when it is only leaving this host."""
        self._phase = Phase.EXECUTING
        SCOPE.set(Scope(asyncio.current_task(), self))
        try:
            self._load_journal()
            if self._ends_before_it_starts():
                return None
            payload = self.agent.input.restore(self.job.input)
            return self._success(await self.agent.function(self.run, payload))
        except asyncio.CancelledError:
            if self._verdict is not None or self.leaving or self._departing:
                return None
            if self.services.closing():
                self.leaving = True
                return None
            return failed("CancelledError", "the agent cancelled itself")
        except GeneratorExit:
            raise
        except BaseException as error:
            # Also SystemExit and KeyboardInterrupt: an agent's code must not end the host.
            return failure(error)

    def _ends_before_it_starts(self) -> bool:
        """Whether nothing is to be run. A cancelled run's open effect is made certain first, which runs its code; what
        hosts die of runs no more.
        """
        if self.claim.losses >= self.services.max_losses:
            self._verdict = hosts_lost(self.claim.losses)
            return True
        if self.replay is not None and self.replay.ending is not None:
            self._verdict = msgspec.json.decode(self.replay.ending.payload, type=Verdict)
            return True
        if self.claim.cancel:
            self.request_cancel(self.claim.cancel)
        elif self.claim.deadline_ms is not None and self.claim.deadline_ms <= self.services.now_ms():
            # Now, and not as soon as the loop gets to it: the code must come to its open effect before it is stopped.
            self.request_cancel("deadline_exceeded")
        if self.leaving or self._departing:
            return True
        return self._verdict is not None and (self.replay is None or self.replay.open_effect() is None)

    def _load_journal(self) -> None:
        if not self.claim.journal:
            return
        replay = Replay(decode_entry(raw) for raw in self.claim.journal)
        self.claim = self.claim._replace(journal=[])
        if replay.checkpoint is not None:
            self.compacted(replay.checkpoint.payload, int(replay.checkpoint.step), self._length)
        self.replay = replay
        self.has_effects = replay.has_effects

    def _success(self, value: Any) -> Verdict:
        if self.replay is not None:
            self.replay.verify_end()
        output = self.agent.output.dump(self.agent.output.check(value))
        self.check_size("the agent's result", output)
        return Verdict(RunState.SUCCEEDED, "", output)

    async def _close(self, verdict: Verdict | None) -> None:
        """Ends the run or lets go of it; the agent's code is over, or is given up."""
        self._phase = Phase.CLOSING
        for branch in tuple(self._branches):
            # What the agent started and did not await must not go on without it.
            branch.cancel()
        try:
            if self._parking is not None:
                # Something woke the run while the store was being told to unload it: which came first?
                await asyncio.wait((self._parking,))
            while self._effects:
                await asyncio.wait(tuple(self._effects))
            if not self.leaving:
                await self._conclude(self._verdict or verdict)
        except Exception:
            # A defect of ours: the host hands back what it owns and nobody drives.
            _LOG.exception("run %s: the engine failed", self.claim.id)
        finally:
            self._phase = Phase.CLOSED
            for timer in (self._deadline, self._again):
                if timer is not None:
                    timer.cancel()
            if self._closed is not None:
                wake(self._closed)
            self.services.gone(self)

    async def _conclude(self, verdict: Verdict | None) -> None:
        if self._buffer and verdict is not None and not self._journal_lost:
            with contextlib.suppress(RunAborted):
                await self.write([], 0)
        if self.leaving:
            return
        if verdict is None or self._journal_lost:
            await self._hand_back()
            return
        ending = None if self.replay is None else self.replay.ending
        # What is only pretended needs no proof.
        proved = self.replay is None or ending is not None or self.job.simulated
        opened = None if proved or self.replay is None else self.replay.open_effect()
        if opened is not None and verdict.state is not RunState.CONFIRMATION_UNKNOWN:
            verdict = unproven(opened, verdict)
        if self.replay is not None and ending is None and verdict.state is not RunState.CONFIRMATION_UNKNOWN:
            await close_resolved(self, self.replay.resolutions())
        if self.has_effects and compensates(verdict):
            after = await self._undone(verdict)
            if after is None:
                return
            verdict = after
        await self.services.committer.finish(sealed_end(self.claim, self.agent.version, self._link, verdict))

    async def _undone(self, verdict: Verdict) -> Verdict | None:
        """The verdict once the run's effects are undone; None when another host has the run."""
        try:
            return await undone(self, verdict)
        except RunAborted:
            doubt = self._verdict
            return doubt if doubt is not None and doubt.state is RunState.CONFIRMATION_UNKNOWN else None

    async def _hand_back(self) -> None:
        self.leaving = True
        partition, runs = partition_of(self.claim.id), [(self.claim.id, self.claim.fence)]
        release = self.services.store.release
        await self.services.committer.insist(lambda: release(partition, self.host, self._departing, runs))

    # What steps need

    def ask(self, path: str, kind: Kind, name: str, args_digest: bytes) -> Entry | None:
        """What the journal has for a step; None on new ground. A divergence ends the run."""
        if not self.replay:
            return None
        try:
            return self.replay.ask(path, Asked(kind, name, args_digest))
        except Divergence as error:
            self.diverged(error)

    def diverged(self, error: Divergence) -> NoReturn:
        """An agent may catch exceptions; this one it must not survive."""
        self.abort(failure(error))

    async def may_start(self, *, resumes: bool = False) -> None:
        """The step boundary: nothing new starts in a run that is to end or to leave, or without a lease.

        An effect that was under way when its host died is resumed even in a run that is to be cancelled.
        """
        self._boundary(resumes)
        if not self.services.lease_holds():
            await self.services.lease_renewed()
            self._boundary(resumes)

    def _boundary(self, resumes: bool = False) -> None:
        if self.leaving or self._departing or self._phase is not Phase.EXECUTING:
            raise RunAborted
        if self._verdict is not None and not (resumes and self._verdict.state is RunState.CANCELLED):
            raise RunAborted

    async def may_call(self) -> None:
        """The last moment before an effect is sent: nobody else may own the run by now."""
        if not self.services.lease_holds():
            await self.services.lease_renewed()
        if self.leaving:
            raise RunAborted

    @property
    def is_to_end(self) -> bool:
        """Whether it has been decided how the run ends, whatever its code does."""
        return self._verdict is not None

    def compacted(self, payload: bytes, number: int, length: int = 1) -> None:
        """The journal begins with this checkpoint; steps are numbered anew from it."""
        self.checkpoint, self.checkpoints, self._length = payload, number, length
        self._buffer.clear()
        SCOPE.set(Scope(asyncio.current_task(), self, f"c{number}."))

    @property
    def busy(self) -> bool:
        """Whether any step or wait is under way."""
        return bool(self.active or self.waits)

    # Waiting

    async def waiting(self, path: str, future: "asyncio.Future[None]") -> None:
        """Awaits what ``waits[path]`` says; the run may be unloaded meanwhile, and then this does not return."""
        self.step_over()
        try:
            await future
        finally:
            self.waits.pop(path, None)
            self.step_over()
        self._boundary()

    async def wait_until(self, path: str, due_ms: int, reason: str, *, pokes: bool = False) -> None:
        """Awaits a moment; the run may be unloaded meanwhile, and then this does not return.

        With ``pokes`` it may return earlier: whoever waits so looks again.
        """
        left_ms = due_ms - self.services.now_ms()
        if left_ms <= 0:
            return
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        timer = loop.call_later(left_ms / 1000, wake, future)
        self.waits[path] = (Wait(None, due_ms, reason, pokes), future)
        try:
            await self.waiting(path, future)
        finally:
            timer.cancel()

    def child_ended(self) -> None:
        """A child run has ended: the waits for children look again."""
        for wait, future in list(self.waits.values()):
            if wait.child is not None:
                wake(future)

    def poked(self) -> None:
        """Something that this run waits for may have come true."""
        for wait, future in list(self.waits.values()):
            if wait.pokes:
                wake(future)

    def step_over(self) -> None:
        """A step has ended, or a wait has begun or ended: is waiting all that the run still does?"""
        if self.waits and not self.active and not self._quiet_scheduled:
            self._quiet_scheduled = True
            asyncio.get_running_loop().call_later(_QUIET_S, self._quiet)

    def _quiet(self) -> None:
        """Unloads the run when all that it does is wait."""
        self._quiet_scheduled = False
        if self.leaving or self._phase is not Phase.EXECUTING:
            return
        if self._verdict is not None or self._departing:
            self._stop()
            return
        waits = [wait for wait, _ in self.waits.values()]
        parked = parking(waits, active_steps=self.active, now_ms=self.services.now_ms(), worth_ms=PARK_WORTH_MS)
        if parked is None:
            return
        self.leaving = True
        self.parked_until_ms = parked.due_ms
        park = Park(self.claim.id, self.claim.fence, parked.reason, parked.due_ms, parked.children, self.head)
        self._parking = self.services.committer.park(park)
        self._parking.add_done_callback(self._parked)

    def _parked(self, answer: "asyncio.Future[str | None]") -> None:
        if answer.cancelled() or answer.exception() is not None:
            self.leaving, self._departing = False, "the store refused to unload it"
        elif answer.result() == "CANCEL":
            self.leaving, self._verdict = False, Verdict(RunState.CANCELLED, "cancelled")
        self._parking = None
        self._stop()
