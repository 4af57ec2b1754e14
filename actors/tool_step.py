"""One tool call of a run that is not recorded yet: who asks for what, and how its end is written down."""

import dataclasses
import functools
import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from actors.asked import Asked
from actors.attempts import NoMore, Outcome
from actors.contract import Tool
from actors.core.identity import idempotency_key
from actors.core.outcome import StepEnd
from actors.errors import PayloadTooLarge, step_failed
from actors.gatekeeper import Postponed
from actors.journal import Entry, Kind, Status, decode_error, encode_error
from actors.receipts import UNDONE, IntentFacts, Receipt, encode_facts, encode_receipt
from admission.passage import Passage
from cluster.keys import digest, effect_identity

if TYPE_CHECKING:
    from actors.engine import RunEngine

_LATER: Final = 0.1
_LONG_S: Final = 30.0
_CLASSES: Final = {StepEnd.TIMED_OUT: "GateTimeout", StepEnd.REFUSED: "NotAdmissible"}


@dataclass(slots=True)
class ToolStep:
    """A call that is not recorded yet.

    Attributes:
        engine: the run.
        path: the step.
        tool: what is called.
        arguments: digest of the canonical arguments.
        digest: what a replay knows the step by: of the arguments, and of the business key where there is one.
        business_key: the agent's own key.
        asked: the call as it waits and is tried.
        permission: what permitted it.
        approval: id of its approval.
        undoes: the step whose effect it compensates.
        undoes_record: identity of that effect's record.
        branch_only: its record is none of the lineage's but this branch's own.
        lost_calls: calls whose answer was lost and that were then proved not to have been applied.
    """

    engine: "RunEngine"
    path: str
    tool: Tool[Any, Any]
    arguments: bytes
    digest: bytes
    business_key: str
    asked: Asked
    permission: dict[str, str]
    approval: str = ""
    undoes: str = ""
    undoes_record: str = ""
    branch_only: bool = False
    lost_calls: int = 0

    @property
    def owner(self) -> str:
        """Who has the effect's record."""
        return f"{self.engine.claim.id}:{self.path}"

    @property
    def tenant(self) -> str:
        """Whose keys these are: the tenant's, or those of one simulated run and its children alone."""
        engine = self.engine
        simulated = f"simulated:{engine.lineage.partition('/')[0]}:" if engine.job.simulated else ""
        return f"{simulated}{engine.job.tenant}"

    @property
    def identity(self) -> str:
        """Of the effect's record: by the business key, or by what all branches of the lineage would ask here."""
        if self.business_key:
            return effect_identity(self.tenant, "key", self.business_key)
        branch = (self.engine.claim.id,) if self.branch_only else ()
        return effect_identity(self.tenant, "step", self.engine.lineage, self.path, self.tool.name, *branch)

    def key(self) -> str:
        """What the other side is given as the idempotency key."""
        if self.business_key:
            return digest("business key", self.tenant, self.business_key)
        lineage = self.engine.claim.id if self.branch_only else self.engine.lineage
        return idempotency_key(lineage, self.path, self.tool.name, self.arguments)

    # Writing

    def entry(self, kind: Kind, status: Status, payload: bytes, attempts: int, facts: bytes = b"") -> bytes:
        """An entry of this step."""
        engine = self.engine
        began_ms = engine.services.now_ms() - round((engine.services.clock() - self.asked.began) * 1000)
        return engine.entry(kind, self.path, self.tool.name, self.digest, status, payload, attempts, began_ms, facts)

    def intent(self, *, simulated: bool = False) -> bytes:
        """The entry that says that the effect is about to be caused.

        Raises:
            PayloadTooLarge: the arguments are more than the store is to hold.
        """
        options = self.tool.options
        written = self.tool.signature.dump(self.asked.values)
        self.engine.check_size(f"the arguments of tool {self.tool.name!r}", written)
        facts = IntentFacts(
            key=self.key(),
            identity=self.identity,
            arguments=msgspec.Raw(written),
            business_key=self.business_key,
            risk=options.risk.name.lower(),
            permission=self.permission,
            approval=self.approval,
            undoes=self.undoes,
            simulated=simulated,
            owner=options.effect.owner,
            settle_by_ms=self.engine.services.now_ms() + round(options.effect.settle_within_s * 1000),
        )
        return self.entry(Kind.INTENT, Status.OPEN, b"", 0, encode_facts(facts))

    async def withdraw(self, why: str, attempts: int = 0, error: tuple[str, str] | None = None) -> None:
        """Takes the intent back: nothing was applied, and nobody has to prove that."""
        said = {"why": why} | ({"error": ": ".join(error)} if error else {})
        await self.engine.write([self.entry(Kind.CALL, Status.OPEN, msgspec.json.encode(said), attempts)], 0)

    def checked(self, outcome: Outcome) -> Outcome:
        """The outcome, or, where its result is more than the store is to hold, the one that says so."""
        try:
            self.engine.check_size(f"the result of tool {self.tool.name!r}", outcome.payload)
        except PayloadTooLarge as too_large:
            return Outcome(
                outcome.attempts,
                error=("PayloadTooLarge", str(too_large)),
                end=StepEnd.INVALID_RESULT,
                ended_by="PENSTOCK_PAYLOAD_LIMIT_BYTES",
            )
        return outcome

    async def record(self, outcome: Outcome, facts: bytes = b"") -> Any:
        """Records how the step ended; its value, or its error.

        Raises:
            StepFailed: the error.
        """
        outcome = self.checked(outcome)
        error, end, by = outcome.error, outcome.end, outcome.ended_by
        payload = outcome.payload if error is None else encode_error(*error, self.path, end.value, by)
        status = Status.OK if error is None else Status.FAILED
        if self.undoes_record and error is None:
            await self._mark_undone()
        await self.engine.write([self.entry(Kind.CALL, status, payload, outcome.attempts, facts)], 1)
        if error is not None:
            raise step_failed(*error, self.path, end.value, by)
        return outcome.value

    async def _mark_undone(self) -> None:
        """Takes back the receipt of the effect that this one has undone, so that nobody inherits it. As long as this
        step is open no other branch can be promoted: so there is no moment in which one could.
        """
        engine = self.engine
        store, owner, fence = engine.services.store, f"{engine.claim.id}:{self.undoes}", engine.claim.fence
        receipt = encode_receipt(Receipt(UNDONE, by=f"step {self.path}"))
        await engine.services.committer.along(
            lambda: store.settle_effect(self.undoes_record, owner, fence, UNDONE, receipt)
        )

    # The gate

    async def admitted(self) -> Passage | None:
        """Waits at the gate; a wait that will be long unloads the run, when nothing else keeps it busy.

        Raises:
            NoMore: a bound of the step was reached first, or the call can never go.
        """
        engine, attempts, recorded = self.engine, self.engine.services.attempts, False
        if self.undoes:
            return await attempts.admit(self.asked, may_postpone=False)
        passage: Passage | None = None
        while True:
            engine.active += 1
            try:
                passage = await attempts.admit(self.asked, may_postpone=True)
                break
            except Postponed as postponed:
                # Not all at the same moment, and never before it can be of use.
                later_s = postponed.for_s * (1 + _LATER * engine.services.draw())
                for_s = later_s if postponed.for_s < math.inf else _LONG_S
                for_s = min(for_s, max(0.0, self.left_s()), _LONG_S)
                if not recorded:
                    # When the step began must outlive its being unloaded, or its bounds would begin anew each time.
                    waits = {"dependency": postponed.dependency, "why": postponed.hindrance.text}
                    await engine.write([self.entry(Kind.CALL, Status.OPEN, msgspec.json.encode(waits), 0)], 0)
                    recorded = True
                reason = f"{postponed.hindrance.kind} {postponed.dependency}"
            finally:
                engine.active -= 1
            await engine.wait_until(self.path, engine.services.now_ms() + round(for_s * 1000), reason)
        try:
            await engine.may_start()
        except BaseException:
            self.give_back(passage)
            raise
        return passage

    def left_s(self) -> float:
        """Seconds until the nearest bound of the whole step."""
        return min(self.asked.bounds(self.engine.services.clock()).values())

    def give_back(self, passage: Passage | None) -> None:
        """What the gate let through did not go."""
        if passage is not None and self.asked.gatekeeper is not None:
            self.asked.gatekeeper.undo(passage)

    # Hooks

    async def hook(self, which: str, *first: Any) -> Outcome | None:
        """Makes one of the tool's own questions; None where it has none. Its time is its own."""
        found = self.tool.call_of_hook(which, self.asked.values, *first)
        if found is None:
            return None
        hook, values = found
        attempts, now = self.engine.services.attempts, self.engine.services.clock()
        asked = dataclasses.replace(
            self.asked,
            tool=hook,
            values=values,
            repeated=False,
            began=now,
            run_deadline=math.inf,
            stuck=functools.partial(self.engine.stuck, self.path, hook.name, is_effect=False),
            rests=None,
            gatekeeper=None,
            held_s=0.0,
        )
        try:
            passage = await attempts.admit(asked, may_postpone=False)
        except NoMore as no_more:
            return no_more_outcome(no_more)
        return await attempts.perform(asked, passage)


def tool_step(
    engine: "RunEngine",
    path: str,
    tool: Tool[Any, Any],
    values: list[Any],
    arguments: bytes,
    entry: Entry | None,
    business_key: str = "",
) -> ToolStep:
    """The step of a call. ``entry`` is what the journal has of it: nothing, that it has waited, or its intent."""
    services, is_effect = engine.services, tool.options.risk.is_effect
    now, now_ms = services.clock(), services.now_ms()
    waited_s = 0.0 if entry is None else max(0, now_ms - entry.started_ms) / 1000
    deadline_ms = engine.claim.deadline_ms
    asked = Asked(
        tool,
        values,
        run_id=engine.claim.id,
        step=path,
        agent=engine.claim.agent,
        tenant=engine.job.tenant,
        rank=engine.rank,
        key=str,
        repeated=False,
        began=now - waited_s,
        run_deadline=math.inf if deadline_ms is None else now + (deadline_ms - now_ms) / 1000,
        lease_renewed=services.lease_renewed,
        stuck=functools.partial(engine.stuck, path, tool.name, is_effect=is_effect),
        rests=engine.rests if is_effect else None,
    )
    step = ToolStep(engine, path, tool, arguments, keyed(arguments, business_key), business_key, asked, {})
    asked.key = step.key
    return step


def keyed(arguments: bytes, business_key: str) -> bytes:
    """What a replay knows a step by."""
    if not business_key:
        return arguments
    return hashlib.blake2b(arguments + business_key.encode(), digest_size=16).digest()


def no_more_outcome(no_more: NoMore) -> Outcome:
    """A step that was not let through."""
    return Outcome(0, error=(_CLASSES[no_more.end], str(no_more)), end=no_more.end, ended_by=no_more.by)


def recorded(tool: Tool[Any, Any], entry: Entry) -> Any:
    """What the journal says that the step came to.

    Raises:
        StepFailed: its error.
    """
    if entry.status == Status.FAILED:
        error = decode_error(entry.payload)
        raise step_failed(error.error_class, error.message, entry.step, error.end, error.ended_by)
    return recorded_payload(tool, entry.payload)


def recorded_payload(tool: Tool[Any, Any], payload: bytes) -> Any:
    """A recorded result as the tool's type."""
    return tool.signature.result.load(payload)
