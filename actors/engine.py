"""The run engine's shell: drives one claimed run on a host's event loop, step by step, from replay to its end."""

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any, Final, NoReturn

import msgspec

from actors.attempts import Outcome
from actors.contract import Agent, Tool
from actors.core.identity import Scope, idempotency_key
from actors.core.outcome import Unknown, after_crash
from actors.core.parking import Wait, parking
from actors.core.replay import Asked, Divergence, Replay
from actors.errors import PayloadTooLarge, RunAborted, StepFailed
from actors.job import decode_job
from actors.journal import ENTRY_VERSION, Entry, Kind, Status, decode_entry, decode_error, encode_entry, encode_error
from actors.run import Run
from actors.scope import SCOPE, wake
from actors.services import Services
from actors.verdict import Verdict, failed, unknown
from cluster.lifecycle import RunState
from cluster.records import Append, Claim, Finish, Park

PARK_WORTH_MS: Final = 1000
_QUIET_S: Final = 0.02
_LOG: Final = logging.getLogger("penstock.run")


class RunEngine:
    """One run on one host. Ends by telling the store an end, or by letting go (unloaded, fenced off, handed back)."""

    __slots__ = (
        "_branches",
        "_buffer",
        "_deadline",
        "_effects",
        "_idle",
        "_length",
        "_quiet_scheduled",
        "_task",
        "_verdict",
        "active",
        "agent",
        "cancel_reason",
        "checkpoint",
        "checkpoints",
        "claim",
        "job",
        "leaving",
        "parked_until_ms",
        "replay",
        "run",
        "services",
        "waits",
    )  # fmt: skip

    def __init__(self, claim: Claim, agent: Agent[Any, Any], services: Services) -> None:
        self.claim = claim
        self.agent = agent
        self.services = services
        self.run = Run(self)
        self.job = decode_job(claim.job)
        self.cancel_reason = claim.cancel
        self.leaving = False
        self.parked_until_ms: int | None = None
        self._length = len(claim.journal)
        self.replay: Replay | None = None
        self.checkpoint: bytes | None = None
        self.checkpoints = 0
        self._buffer: list[bytes] = []
        self.active = 0
        self._effects = 0
        self._idle: asyncio.Future[None] | None = None
        self.waits: dict[str, tuple[Wait, asyncio.Future[None]]] = {}
        self._branches: list[asyncio.Task[Any]] = []
        self._quiet_scheduled = False
        self._verdict: Verdict | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to drive the run."""
        loop = asyncio.get_running_loop()
        if self.claim.deadline_ms is not None:
            left_s = max(0, self.claim.deadline_ms - self.services.now_ms()) / 1000
            self._deadline = loop.call_later(left_s, self.request_cancel, "deadline_exceeded")
        self._task = loop.create_task(self._drive(), name=self.claim.id)

    # Driving

    async def _drive(self) -> None:
        try:
            verdict = await self._execute()
            if verdict is not None and not self.leaving:
                await self._end(verdict)
        except Exception:
            # A defect of ours: the run keeps its owner until this host is gone, and another one tries.
            _LOG.exception("run %s: the engine failed", self.claim.id)
        finally:
            if self._deadline is not None:
                self._deadline.cancel()
            self.services.gone(self)

    async def _execute(self) -> Verdict | None:
        """Runs the agent's code and says how the run ends; None when it is only leaving this host."""
        SCOPE.set(Scope(asyncio.current_task()))
        verdict: Verdict | None
        try:
            self._load_journal()
            if self.cancel_reason:
                self.request_cancel(self.cancel_reason)
            payload = self.agent.input.check(self.job.input)
            value = await self.agent.function(self.run, payload)
            verdict = self._success(value)
        except asyncio.CancelledError:
            verdict = None if self.leaving else self._verdict or failed("CancelledError", "the agent cancelled itself")
        except Divergence as error:
            verdict = failed("ReplayDivergence", str(error), error.step, "replay_divergence")
        except StepFailed as error:
            verdict = failed(error.error_class, error.message, error.step)
        except Exception as error:
            verdict = failed(type(error).__name__, str(error))
        finally:
            # What the agent started and did not await must not go on without it.
            for branch in self._branches:
                if not branch.done():
                    branch.cancel()
        return self._verdict or verdict

    def _load_journal(self) -> None:
        if not self.claim.journal:
            return
        replay = Replay(decode_entry(raw) for raw in self.claim.journal)
        self.claim = self.claim._replace(journal=[])
        if replay.checkpoint is not None:
            self.checkpoint = replay.checkpoint.payload
            self.checkpoints = int(replay.checkpoint.step)
            SCOPE.set(Scope(asyncio.current_task(), f"c{self.checkpoints}."))
        self.replay = replay

    def _success(self, value: Any) -> Verdict:
        if self.replay is not None:
            self.replay.verify_end()
        output = self.agent.output.dump(self.agent.output.check(value))
        if len(output) > self.services.payload_limit_bytes:
            raise PayloadTooLarge(self.too_large("the agent's result", len(output)))
        return Verdict(RunState.SUCCEEDED, "", output)

    async def _end(self, verdict: Verdict) -> None:
        """Tells the store the end, after the effects that are still under way have been recorded."""
        await self._effects_over()
        if self.leaving:
            return
        if self._buffer:
            await self.write([], 0)
        if not self.leaving:
            end = Finish(self.claim.id, self.claim.fence, verdict.state, verdict.reason, verdict.output, verdict.error)
            await self.services.committer.finish(end)

    # Steps

    async def step(self, path: str, tool: Tool[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One tool call: recorded, or made and then recorded."""
        values, args_digest = tool.signature.bind(args, kwargs)
        entry = self.ask(path, Kind.CALL, tool.name, args_digest)
        if entry is not None and entry.status != Status.OPEN:
            return _recorded(tool, entry)
        await self.may_start()
        effect = tool.options.risk.is_effect
        self.active += 1
        self._effects += effect
        started_ms = self.services.now_ms()
        try:
            if effect:
                await self._intend(path, tool, args_digest, entry, started_ms)
            outcome = await self.services.attempts.perform(
                tool, values, run_id=self.claim.id, step=path,
                key=functools.partial(self._key, path, tool.name, args_digest),
                tenant=self.job.tenant, repeated=entry is not None, lease_renewed=self.services.lease_renewed,
            )  # fmt: skip
            if outcome.unknown:
                self._abort(unknown(path, tool.name, outcome))
            error = outcome.error
            if len(outcome.payload) > self.services.payload_limit_bytes:
                error = "PayloadTooLarge", self.too_large(f"the result of tool {tool.name!r}", len(outcome.payload))
            payload = outcome.payload if error is None else encode_error(*error, path)
            status = Status.OK if error is None else Status.FAILED
            await self.write(
                [self.entry(Kind.CALL, path, tool.name, args_digest, status, payload, outcome.attempts, started_ms)], 1
            )
        finally:
            self.active -= 1
            self._effects -= effect
            self._step_over()
        if error is not None:
            raise StepFailed(*error, path)
        return outcome.value

    async def _intend(self, path: str, tool: Tool[Any, Any], args: bytes, entry: Entry | None, at_ms: int) -> None:
        """Records that an effect is about to be caused; after a crash in one, decides whether it may be sent again."""
        if entry is None:
            await self.write([self.entry(Kind.INTENT, path, tool.name, args, Status.OPEN, b"", 0, at_ms)], 0)
        elif isinstance(after_crash(idempotent=tool.options.idempotent), Unknown):
            lost = "HostLost", "its host died between intent and receipt, and the tool is not idempotent"
            self._abort(unknown(path, tool.name, Outcome(0, error=lost, unknown=True)))

    def value(self, path: str, name: str, produce: Callable[[], Any]) -> Any:
        """A recorded value. It is written with the next step, before anything that depends on it can be."""
        entry = self.ask(path, Kind.VALUE, name, b"")
        if entry is not None:
            return msgspec.json.decode(entry.payload)
        value = produce()
        now_ms = self.services.now_ms()
        self._buffer.append(self.entry(Kind.VALUE, path, name, b"", Status.OK, msgspec.json.encode(value), 1, now_ms))
        return value

    def checkpoint_state(self) -> Any:
        """The last checkpoint's state."""
        return None if self.checkpoint is None else msgspec.json.decode(self.checkpoint)

    # The journal

    @property
    def busy(self) -> bool:
        """Whether any step or wait is under way."""
        return bool(self.active or self.waits)

    @property
    def journal_length(self) -> int:
        """How many entries the journal has, as this owner believes."""
        return self._length

    def ask(self, path: str, kind: Kind, name: str, args_digest: bytes) -> Entry | None:
        """What the journal has for a step; None on new ground. A divergence ends the run."""
        if not self.replay:
            return None
        try:
            return self.replay.ask(path, Asked(kind, name, args_digest))
        except Divergence as error:
            # An agent may catch exceptions; this one it must not survive.
            self._abort(failed("ReplayDivergence", str(error), error.step, "replay_divergence"))

    def entry(
        self, kind: Kind, path: str, name: str, args: bytes, status: Status, payload: bytes, attempts: int, at_ms: int
    ) -> bytes:
        """An encoded journal entry of this run that ends now."""
        return encode_entry(
            Entry(ENTRY_VERSION, kind, path, name, args, status, payload, attempts, at_ms, self.services.now_ms())
        )

    async def write(self, entries: list[bytes], finished: int) -> None:
        """Appends entries, after the values that were produced since the last time, and obeys what the store says."""
        if self.leaving:
            raise RunAborted
        if self._buffer:
            entries = self._buffer + entries
            self._buffer = []
        claim = self.claim
        append = Append(claim.id, claim.fence, self._length, finished, entries)
        self._length += len(entries)
        said = await self.services.committer.append(append)
        if said is None:
            return
        if said == "CANCEL":
            self.request_cancel("cancelled")
        else:
            _LOG.warning("run %s: the store refused a write (%s): this host's ownership is over", claim.id, said)
            self.drop(hand_back=said == "GAP")
            raise RunAborted

    async def record(self, raw: bytes, finished: int = 1) -> None:
        """Appends an entry as a step of its own, so that the run is not unloaded meanwhile."""
        self.active += 1
        try:
            await self.write([raw], finished)
        finally:
            self.active -= 1
            self._step_over()

    def _key(self, path: str, tool: str, args: bytes) -> str:
        return idempotency_key(self.job.root or self.claim.id, path, tool, args)

    def too_large(self, what: str, size: int) -> str:
        """The text that names the limit and the fix."""
        return (
            f"{what} has {size} bytes, the limit is {self.services.payload_limit_bytes} "
            "(PENSTOCK_PAYLOAD_LIMIT_BYTES). Keep large data elsewhere and pass a reference to it"
        )

    # Waiting, cancelling, leaving

    async def waiting(self, path: str, future: "asyncio.Future[None]") -> None:
        """Awaits what ``waits[path]`` says; the run may be unloaded meanwhile, and then this does not return."""
        self._step_over()
        try:
            await future
        finally:
            self.waits.pop(path, None)
        self._boundary()

    def compacted(self, payload: bytes, number: int) -> None:
        """The journal is now just this checkpoint."""
        self.checkpoint, self.checkpoints, self._length = payload, number, 1
        self._buffer.clear()

    async def may_start(self) -> None:
        """The step boundary: nothing new starts in a run that is to end or to leave, or without a lease."""
        self._boundary()
        if not self.services.lease_holds():
            await self.services.lease_renewed()
            self._boundary()

    def _boundary(self) -> None:
        if self.leaving or self._verdict is not None:
            raise RunAborted

    def _step_over(self) -> None:
        if self._idle is not None and not self._effects and not self._idle.done():
            self._idle.set_result(None)
        if self._verdict is not None and not self._effects:
            self._stop_task()
        elif self.waits and not self.active and not self._quiet_scheduled:
            self._quiet_scheduled = True
            asyncio.get_running_loop().call_later(_QUIET_S, self._quiet)

    def _quiet(self) -> None:
        """Unloads the run when all that it does is wait."""
        self._quiet_scheduled = False
        if self.leaving or self._verdict is not None or self._task is None or self._task.done():
            return
        waits = [wait for wait, _ in self.waits.values()]
        parked = parking(waits, active_steps=self.active, now_ms=self.services.now_ms(), worth_ms=PARK_WORTH_MS)
        if parked is None:
            return
        self.leaving = True
        self.parked_until_ms = parked.due_ms
        park = Park(self.claim.id, self.claim.fence, parked.reason, parked.due_ms, parked.children)
        self.services.committer.park(park).add_done_callback(self._parked)

    def _parked(self, answer: "asyncio.Future[str | None]") -> None:
        if not answer.cancelled() and answer.exception() is None and answer.result() == "CANCEL":
            self.leaving = False
            self.request_cancel("cancelled")
        else:
            self._stop_task()

    def child_ended(self) -> None:
        """A child run has ended: the waits for children look again."""
        for wait, future in list(self.waits.values()):
            if wait.child is not None:
                wake(future)

    def request_cancel(self, reason: str) -> None:
        """Ends the run as cancelled at its next step boundary; an effect that is under way comes to its end first."""
        if self._verdict is None and not self.leaving:
            self.cancel_reason = reason
            self._verdict = Verdict(RunState.CANCELLED, reason)
            if not self._effects:
                self._stop_task()

    def drop(self, *, hand_back: bool = False) -> None:
        """Lets go of the run without a word to its record: it belongs to somebody else, or goes back to the queue."""
        if not self.leaving:
            self.leaving = True
            if hand_back:
                asyncio.get_running_loop().create_task(self._hand_back("its owner lost track of the journal"))
            self._stop_task()

    async def leave(self, reason: str) -> None:
        """Hands the run back at its next step boundary (drain). An effect that is under way is awaited."""
        await self._effects_over()
        if self.leaving or self._verdict is not None:
            return
        self.leaving = True
        await self._hand_back(reason)
        self._stop_task()

    async def _effects_over(self) -> None:
        while self._effects:
            if self._idle is None or self._idle.done():
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)

    async def _hand_back(self, reason: str) -> None:
        claim = self.claim
        await self.services.store.release(int(claim.id[:2], 16), self.services.host, reason, [(claim.id, claim.fence)])

    def branch_started(self, task: "asyncio.Task[Any] | None") -> None:
        """A task of the agent's own has asked for its first step."""
        if task is not None:
            self._branches.append(task)

    def _abort(self, verdict: Verdict) -> NoReturn:
        self._verdict = self._verdict or verdict
        self._stop_task()
        raise RunAborted

    def _stop_task(self) -> None:
        if self._task is not None and not self._task.done() and asyncio.current_task() is not self._task:
            self._task.cancel()


def _recorded(tool: Tool[Any, Any], entry: Entry) -> Any:
    if entry.status == Status.FAILED:
        error = decode_error(entry.payload)
        raise StepFailed(error.error_class, error.message, entry.step)
    return tool.signature.result.load(entry.payload)
