"""The run engine's shell: drives one claimed run on a host's event loop, step by step, from replay to its end."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, NoReturn, Protocol

import msgspec
from pydantic_core import to_json

from actors.attempts import Attempts, Outcome
from actors.committer import Committer
from actors.contract import Agent, Tool
from actors.core.identity import Scope
from actors.core.outcome import Unknown, after_crash
from actors.core.parking import Wait, parking
from actors.core.replay import Asked, Divergence, Replay
from actors.errors import ChildFailed, InvalidValue, PayloadTooLarge, PenstockError, RunAborted, StepFailed
from actors.job import child_run, decode_job
from actors.journal import ENTRY_VERSION, Entry, Kind, Status, decode_entry, decode_error, encode_entry, encode_error
from actors.run import SCOPE, Run
from actors.schema import canonical_digest
from cluster.keys import child_run_id, digest
from cluster.lifecycle import TERMINAL, RunState
from cluster.records import Append, Claim, Finish, Park
from cluster.store import Store

PARK_WORTH_MS: Final = 1000
_QUIET_S: Final = 0.02
_LOG: Final = logging.getLogger("penstock.run")


class Services(Protocol):
    """What a host gives to the runs on it."""

    host: str
    store: Store
    committer: Committer
    attempts: Attempts
    payload_limit_bytes: int

    def now_ms(self) -> int:
        """The server's time as this host estimates it."""

    def draw(self) -> float:
        """A uniform random number in [0, 1)."""

    def lease_holds(self) -> bool:
        """Whether this host may still start anything."""

    async def lease_renewed(self) -> None:
        """Returns when it may again."""

    async def child_outcome(self, run_id: str) -> tuple[RunState, bytes, bytes] | None:
        """State, output and error of a run; None when there is none."""

    def gone(self, engine: "RunEngine") -> None:
        """The run holds no slot of this host any more."""


class Verdict(msgspec.Struct, frozen=True):
    """How a run is to end."""

    state: RunState
    reason: str
    output: bytes = b""
    error: bytes = b""


class RunEngine:
    """One run on one host. Ends by telling the store an end, or by letting go (unloaded, fenced off, handed back)."""

    __slots__ = (
        "_active", "_branches", "_buffer", "_checkpoint", "_checkpoints", "_deadline", "_effects", "_idle", "_length",
        "_quiet_scheduled", "_replay", "_task", "_verdict", "_waits", "agent", "cancel_reason", "claim", "job",
        "leaving", "parked_until_ms", "run", "services",
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
        self._replay: Replay | None = None
        self._checkpoint: bytes | None = None
        self._checkpoints = 0
        self._buffer: list[bytes] = []
        self._active = 0
        self._effects = 0
        self._idle: asyncio.Future[None] | None = None
        self._waits: dict[str, tuple[Wait, asyncio.Future[None]]] = {}
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
            verdict = None if self.leaving else self._verdict or _failed("CancelledError", "the agent cancelled itself")
        except Divergence as error:
            verdict = _failed("ReplayDivergence", str(error), error.step, "replay_divergence")
        except StepFailed as error:
            verdict = _failed(error.error_class, error.message, error.step)
        except Exception as error:
            verdict = _failed(type(error).__name__, str(error))
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
            self._checkpoint = replay.checkpoint.payload
            self._checkpoints = int(replay.checkpoint.step)
            SCOPE.set(Scope(asyncio.current_task(), f"c{self._checkpoints}."))
        self._replay = replay

    def _success(self, value: Any) -> Verdict:
        if self._replay is not None:
            self._replay.verify_end()
        output = self.agent.output.dump(self.agent.output.check(value))
        if len(output) > self.services.payload_limit_bytes:
            raise PayloadTooLarge(self._too_large("the agent's result", len(output)))
        return Verdict(RunState.SUCCEEDED, "", output)

    async def _end(self, verdict: Verdict) -> None:
        """Tells the store the end, after the effects that are still under way have been recorded."""
        await self._effects_over()
        if self.leaving:
            return
        if self._buffer:
            await self._write([], 0)
        if not self.leaving:
            end = Finish(self.claim.id, self.claim.fence, verdict.state, verdict.reason, verdict.output, verdict.error)
            await self.services.committer.finish(end)

    # Steps

    async def step(self, path: str, tool: Tool[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One tool call: recorded, or made and then recorded."""
        values, args_digest = tool.signature.bind(args, kwargs)
        entry = self._ask(path, Kind.CALL, tool.name, args_digest) if self._replay else None
        if entry is not None and entry.status != Status.OPEN:
            return _recorded(tool, entry)
        await self._may_start()
        effect = tool.options.risk.is_effect
        self._active += 1
        self._effects += effect
        started_ms = self.services.now_ms()
        try:
            if effect:
                await self._intend(path, tool, args_digest, entry, started_ms)
            outcome = await self.services.attempts.perform(
                tool, values, run_id=self.claim.id, step=path, key=self._key(path, tool.name, args_digest),
                tenant=self.job.tenant, repeated=entry is not None,
            )  # fmt: skip
            if outcome.unknown:
                self._abort(_unknown(path, tool.name, outcome))
            error = outcome.error
            if len(outcome.payload) > self.services.payload_limit_bytes:
                error = "PayloadTooLarge", self._too_large(f"the result of tool {tool.name!r}", len(outcome.payload))
            payload = outcome.payload if error is None else encode_error(*error, path)
            status = Status.OK if error is None else Status.FAILED
            await self._write(
                [self._entry(Kind.CALL, path, tool.name, args_digest, status, payload, outcome.attempts, started_ms)], 1
            )
        finally:
            self._active -= 1
            self._effects -= effect
            self._step_over()
        if error is not None:
            raise StepFailed(*error, path)
        return outcome.value

    async def _intend(self, path: str, tool: Tool[Any, Any], args: bytes, entry: Entry | None, at_ms: int) -> None:
        """Records that an effect is about to be caused; after a crash in one, decides whether it may be sent again."""
        if entry is None:
            await self._write([self._entry(Kind.INTENT, path, tool.name, args, Status.OPEN, b"", 0, at_ms)], 0)
        elif isinstance(after_crash(idempotent=tool.options.idempotent), Unknown):
            lost = "HostLost", "its host died between intent and receipt, and the tool is not idempotent"
            self._abort(_unknown(path, tool.name, Outcome(0, error=lost, unknown=True)))

    def value(self, path: str, name: str, produce: Callable[[], Any]) -> Any:
        """A recorded value. It is written with the next step, before anything that depends on it can be."""
        entry = self._ask(path, Kind.VALUE, name, b"") if self._replay else None
        if entry is not None:
            return msgspec.json.decode(entry.payload)
        value = produce()
        now_ms = self.services.now_ms()
        self._buffer.append(self._entry(Kind.VALUE, path, name, b"", Status.OK, msgspec.json.encode(value), 1, now_ms))
        return value

    async def sleep(self, path: str, seconds: float) -> None:
        """A durable timer."""
        if not 0 <= seconds <= 3660 * 86400:
            raise InvalidValue(f"run.sleep({seconds!r}): give seconds from 0 to ten years")
        entry = self._ask(path, Kind.TIMER, "sleep", canonical_digest(seconds)) if self._replay else None
        if entry is None:
            await self._may_start()
            now_ms = self.services.now_ms()
            due_ms = now_ms + round(seconds * 1000)
            await self._record_wait(
                self._entry(
                    Kind.TIMER, path, "sleep", canonical_digest(seconds), Status.OPEN, str(due_ms).encode(), 1, now_ms
                )
            )
        else:
            due_ms = int(entry.payload)
        left_ms = due_ms - self.services.now_ms()
        if left_ms > 0:
            await self._wait(path, Wait(None, due_ms), left_ms / 1000)

    async def spawn(self, path: str, agent: Agent[Any, Any], payload: Any) -> Any:
        """A child run: made once, awaited unloaded."""
        plain = agent.input.plain(agent.input.check(payload))
        args_digest = canonical_digest(plain)
        entry = self._ask(path, Kind.CHILD, agent.name, args_digest) if self._replay else None
        child = child_run_id(self.claim.id, path)
        at_ms = entry.started_ms if entry else self.services.now_ms()
        if entry is None:
            await self._may_start()
            await self._record_wait(
                self._entry(Kind.CHILD, path, agent.name, args_digest, Status.OPEN, child.encode(), 1, at_ms), 0
            )
        elif entry.status != Status.OPEN:
            return _child_result(agent, entry)
        while (outcome := await self.services.child_outcome(child)) is None or outcome[0] not in TERMINAL:
            wait = asyncio.get_running_loop().create_future()
            self._waits[path] = (Wait(child, None), wait)
            if outcome is None:
                root = self.job.root or self.claim.id
                new = child_run(child, path, agent.name, plain, self.job, root)
                if not await self.services.store.submit_child(new, parent=self.claim.id, fence=self.claim.fence):
                    self.drop()
                    raise RunAborted
            await self._waiting(path, wait)
        state, output, error = outcome
        ok = state is RunState.SUCCEEDED
        if not ok and not error:
            error = encode_error(state.value, f"child run {child} ended as {state.value}", path)
        closed = Entry(
            ENTRY_VERSION, Kind.CHILD, path, agent.name, args_digest, Status.OK if ok else Status.FAILED,
            output if ok else error, 1, at_ms, self.services.now_ms(),
        )  # fmt: skip
        await self._record_wait(encode_entry(closed))
        return _child_result(agent, closed)

    def checkpoint_state(self) -> Any:
        """The last checkpoint's state."""
        return None if self._checkpoint is None else msgspec.json.decode(self._checkpoint)

    async def checkpoint(self, state: Any) -> None:
        """Replaces the journal by ``state``; steps are numbered anew from here."""
        task = asyncio.current_task()
        if SCOPE.get().owner is not task or self._active or self._waits:
            raise PenstockError(
                f"run {self.claim.id}: checkpoint() while a step is under way, or from another task than the agent's "
                "own. Await all steps first"
            )
        await self._may_start()
        if self._replay:
            self._replay.verify_end()
        payload = to_json(state)
        if len(payload) > self.services.payload_limit_bytes:
            raise PayloadTooLarge(self._too_large("the checkpoint", len(payload)))
        number = self._checkpoints + 1
        now_ms = self.services.now_ms()
        raw = self._entry(Kind.CHECKPOINT, str(number), "checkpoint", b"", Status.OK, payload, 1, now_ms)
        answer = await self.services.store.compact(self.claim.id, self.claim.fence, self._length, raw)
        if answer != "OK":
            self.drop()
            raise RunAborted
        self._checkpoint, self._checkpoints, self._length = payload, number, 1
        self._buffer.clear()
        SCOPE.set(Scope(task, f"c{number}."))

    # The journal

    def _ask(self, path: str, kind: Kind, name: str, args_digest: bytes) -> Entry | None:
        assert self._replay is not None
        try:
            return self._replay.ask(path, Asked(kind, name, args_digest))
        except Divergence as error:
            # An agent may catch exceptions; this one it must not survive.
            self._abort(_failed("ReplayDivergence", str(error), error.step, "replay_divergence"))

    def _entry(
        self, kind: Kind, path: str, name: str, args: bytes, status: Status, payload: bytes, attempts: int, at_ms: int
    ) -> bytes:
        return encode_entry(
            Entry(ENTRY_VERSION, kind, path, name, args, status, payload, attempts, at_ms, self.services.now_ms())
        )

    async def _write(self, entries: list[bytes], finished: int) -> None:
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

    async def _record_wait(self, raw: bytes, finished: int = 1) -> None:
        self._active += 1
        try:
            await self._write([raw], finished)
        finally:
            self._active -= 1
            self._step_over()

    def _key(self, path: str, tool: str, args: bytes) -> str:
        """The step's idempotency key: the same wherever and however often the step is made."""
        return digest(self.job.root or self.claim.id, path, tool, args)

    def _too_large(self, what: str, size: int) -> str:
        return (
            f"{what} has {size} bytes, the limit is {self.services.payload_limit_bytes} "
            "(PENSTOCK_PAYLOAD_LIMIT_BYTES). Keep large data elsewhere and pass a reference to it"
        )

    # Waiting, cancelling, leaving

    async def _wait(self, path: str, wait: Wait, for_s: float) -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        timer = loop.call_later(for_s, _wake, future)
        self._waits[path] = (wait, future)
        try:
            await self._waiting(path, future)
        finally:
            timer.cancel()

    async def _waiting(self, path: str, future: "asyncio.Future[None]") -> None:
        self._step_over()
        try:
            await future
        finally:
            self._waits.pop(path, None)
        self._boundary()

    async def _may_start(self) -> None:
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
        elif self._waits and not self._active and not self._quiet_scheduled:
            self._quiet_scheduled = True
            asyncio.get_running_loop().call_later(_QUIET_S, self._quiet)

    def _quiet(self) -> None:
        """Unloads the run when all that it does is wait."""
        self._quiet_scheduled = False
        if self.leaving or self._verdict is not None or self._task is None or self._task.done():
            return
        waits = [wait for wait, _ in self._waits.values()]
        parked = parking(waits, active_steps=self._active, now_ms=self.services.now_ms(), worth_ms=PARK_WORTH_MS)
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
        for wait, future in list(self._waits.values()):
            if wait.child is not None:
                _wake(future)

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


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _failed(error_class: str, message: str, step: str = "", reason: str = "failed") -> Verdict:
    return Verdict(RunState.FAILED, reason, b"", encode_error(error_class, message, step))


def _unknown(path: str, tool: str, outcome: Outcome) -> Verdict:
    why = ": ".join(outcome.error or ())
    message = f"tool {tool!r}: {why}. Nobody can prove whether its effect happened"
    error = encode_error("ConfirmationUnknown", message, path)
    return Verdict(RunState.CONFIRMATION_UNKNOWN, f"effect {tool} at step {path}", b"", error)


def _recorded(tool: Tool[Any, Any], entry: Entry) -> Any:
    if entry.status == Status.FAILED:
        error = decode_error(entry.payload)
        raise StepFailed(error.error_class, error.message, entry.step)
    return tool.signature.result.load(entry.payload)


def _child_result(agent: Agent[Any, Any], entry: Entry) -> Any:
    if entry.status == Status.FAILED:
        error = decode_error(entry.payload)
        raise ChildFailed(error.error_class, error.message, entry.step)
    return agent.output.load(entry.payload)
