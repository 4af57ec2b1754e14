"""The effect protocol's shell: intent, begin, call, verify, settle, journal. What follows what is decided in
:mod:`actors.core.effect`.
"""

import asyncio
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from pydantic_core import to_jsonable_python

from actors import crash_points, simulated
from actors.asked import Interrupted
from actors.attempts import NoMore, Outcome
from actors.core.effect import Next, after_begin, reconcile_pause
from actors.core.outcome import StepEnd
from actors.effect_record import begin, conflict, is_void, lost_call, outcome_of, replicated, settle
from actors.errors import InvalidValue, ReadOnlyBranch, RunAborted
from actors.journal import Entry, Kind
from actors.promotion import REASON, right_to_effects
from actors.receipts import (
    APPLIED,
    ASKED_AFTER,
    NOT_APPLIED,
    UNKNOWN,
    Applied,
    Receipt,
    decode_receipt,
    decode_resolution,
    encode_receipt,
)
from actors.tool_step import ToolStep, no_more_outcome
from actors.verdict import unknown
from admission.passage import Passage
from cluster.records import EffectBegun

if TYPE_CHECKING:
    from collections.abc import Coroutine

_LOOK_AGAIN_MS: Final = 2000
_LONGEST_TEXT: Final = 300


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """The effect is another owner's at present, who may come to know more."""

    owner: str
    word: str


async def make(step: ToolStep, entry: Entry | None) -> Any:
    """Causes an effect, or finds out what became of it, and records that.

    Args:
        step: the call.
        entry: what the journal has of it: nothing, an open call (it has waited), its intent, or a person's word.
    """
    engine = step.engine
    if engine.job.simulated:
        return await engine.effect(simulated.effect(step, entry))
    answer: Any = None
    if entry is not None and entry.kind == Kind.RESOLUTION:
        settled, answer = await engine.effect(_resolved(step, entry))
        if settled:
            return answer
    elif entry is not None and entry.kind == Kind.INTENT:
        answer = await _entitled(step, _resumed(step))
        if not isinstance(answer, _Elsewhere):
            return answer
    return await _anew(step, answer)


async def _anew(step: ToolStep, elsewhere: _Elsewhere | None) -> Any:
    """Waits until nobody else is at the same effect and the gate lets it go; then causes it."""
    engine = step.engine
    while True:
        if engine.read_only:
            await right_to_effects(step)
        if elsewhere is not None and elsewhere.word != REASON:
            held_by = f"effect of run {elsewhere.owner}" + (" (unknown)" if elsewhere.word == "unknown" else "")
            left_s = step.left_s()
            if left_s <= 0:
                text = f"{held_by} had not come to an end in time"
                return await step.record(
                    Outcome(0, error=("EffectBusy", text), end=StepEnd.TIMED_OUT, ended_by="schedule_to_close")
                )
            wait_ms = min(_LOOK_AGAIN_MS, round(left_s * 1000) + 1)
            await engine.wait_until(step.path, engine.services.now_ms() + wait_ms, held_by, pokes=True)
            await engine.may_start()
        try:
            passage = await step.admitted()
        except NoMore as no_more:
            return await step.record(no_more_outcome(no_more))
        answer = await _entitled(step, _intended(step, passage))
        if not isinstance(answer, _Elsewhere):
            return answer
        elsewhere = answer


async def _entitled(step: ToolStep, work: "Coroutine[Any, Any, Any]") -> Any:
    """Makes an effect; where its branch has just lost the right to effects, nothing was sent, and it is to wait."""
    try:
        return await step.engine.effect(work)
    except ReadOnlyBranch:
        return _Elsewhere("", REASON)


# Beginning


async def _intended(step: ToolStep, passage: Passage | None) -> Any:
    """Records that an effect is about to be caused, and causes it."""
    engine = step.engine
    _reach("before_intent", step)
    begin_answer = begin(step)
    try:
        await engine.write([step.intent()], 0)
        _reach("after_intent", step)
        begun = await begin_answer
    except BaseException:
        # A record that was begun without an intent is void; whoever meets it finds that out.
        step.give_back(passage)
        raise
    _reach("after_begin", step)
    if begun.word in ("new", "mine") and not await replicated(step, step.left_s()):
        step.give_back(passage)
        await settle(step, Receipt(NOT_APPLIED))
        text = f"{step.tool.options.effect.replicas} replicas did not have its intent in time; nothing was sent"
        return await step.record(
            Outcome(0, error=("NotReplicated", text), end=StepEnd.TIMED_OUT, ended_by="replicas; schedule_to_close")
        )
    return await _go_on(step, begun, passage, intent_open=False)


async def _resumed(step: ToolStep) -> Any:
    """An effect whose intent is recorded, and whose outcome is not: its host died in between, or it was interrupted."""
    return await _go_on(step, await begin(step), None, intent_open=True)


async def _go_on(step: ToolStep, begun: EffectBegun, passage: Passage | None, *, intent_open: bool) -> Any:
    if begun.word in ("busy", "conflict") and await is_void(step, begun.owner):
        begun = await begin(step, void_owner=begun.owner)
    # The record's key, and not the step's own: what was undone is caused anew under another one.
    step.asked.key = lambda: begun.key
    options = step.tool.options
    following = after_begin(
        begun.word,
        intent_open=intent_open,
        idempotent=options.idempotent,
        can_ask=options.effect.reconcile is not None,
        has_business_key=bool(step.business_key),
    )
    if following is Next.CALL:
        if intent_open:
            passage = await _let_through_again(step, uncertain=False)
        return await _called(step, passage)
    if following is Next.CALL_AGAIN:
        step.asked.repeated = True
        if begun.receipt:
            # It was unknown, and a person wants it tried again: how long they took is not the step's own time.
            step.asked.began = step.engine.services.clock()
        return await _called(step, await _let_through_again(step, uncertain=True))
    step.give_back(passage)
    if following is Next.ASK:
        return await _asked_after(step, lost_call(begun, "its host died, or left, between intent and receipt"))
    if following is Next.INHERIT:
        return await _inherited(step, begun)
    if following is Next.WAIT:
        await step.withdraw(f"{begun.owner} is at the same effect ({begun.word})")
        return _Elsewhere(begun.owner, begun.word)
    if following is Next.REFUSE:
        return await step.record(conflict(step, begun))
    if following is Next.STOP:
        # Another branch has caused what this one would cause here otherwise: a person has to say what is to be.
        step.engine.abort(unknown(step.path, step.tool.name, conflict(step, begun)))
    if following is Next.UNKNOWN:
        why = "its host died between intent and receipt, and the tool is neither idempotent nor reconcilable"
        return await _ended(step, lost_call(begun, why))
    step.engine.drop()
    raise RunAborted


async def _let_through_again(step: ToolStep, *, uncertain: bool) -> Passage | None:
    """The gate, for an effect whose intent is open.

    Raises:
        RunAborted: the run is to end or to leave first; the intent stays open, or is taken back where nothing was sent.
    """
    engine = step.engine
    if not uncertain and engine.is_to_end and not step.undoes:
        await settle(step, Receipt(NOT_APPLIED))
        await step.withdraw("the run is to end, and nothing was sent")
        raise RunAborted
    try:
        with engine.rests.rest(uncertain=True):
            return await engine.services.attempts.admit(step.asked, may_postpone=False)
    except Interrupted:
        raise RunAborted from None
    except NoMore as no_more:
        if not uncertain:
            await _ended(step, no_more_outcome(no_more))
        error = ("Unconfirmed", str(no_more))
        await _ended(step, Outcome(0, error=error, unknown=True, end=StepEnd.UNKNOWN, ended_by=no_more.by))
        raise AssertionError("an outcome that is an error raises") from None


# Calling


async def _called(step: ToolStep, passage: Passage | None) -> Any:
    engine = step.engine
    while True:
        await engine.may_call()
        _reach("before_call", step)
        outcome = await engine.services.attempts.perform(step.asked, passage)
        _reach("after_call", step)
        if outcome.interrupted:
            if not outcome.ambiguous:
                await settle(step, Receipt(NOT_APPLIED, error=outcome.error, attempts=outcome.attempts))
                await step.withdraw("interrupted between two attempts", outcome.attempts, outcome.error)
            raise RunAborted
        if outcome.error is None:
            return await _verified(step, outcome)
        if outcome.unknown and step.tool.options.effect.reconcile is not None:
            return await _asked_after(step, outcome)
        return await _ended(step, outcome)


async def _verified(step: ToolStep, outcome: Outcome, by: str = "tool", evidence: Any = None) -> Any:
    """The tool says that it was done: is there evidence?"""
    found = await step.hook("verify", outcome.value)
    if found is not None:
        if found.error is not None:
            text = f"the tool says that it was done, and verify does not see it: {': '.join(found.error)}"
            doubt = Outcome(outcome.attempts, error=("Unverified", text), unknown=True, end=StepEnd.UNKNOWN)
            return await _ended(step, doubt)
        evidence = to_jsonable_python(found.value)
    return await _ended(step, outcome, by=by, evidence=evidence)


async def _asked_after(step: ToolStep, lost: Outcome) -> Any:
    """Asks the other side, read-only, what became of a call whose answer was lost."""
    engine, clock = step.engine, step.engine.services.clock
    began = clock()
    counts_from, tries, said = began + step.tool.options.effect.lands_within_s, 0, ""
    while True:
        asked_at, tries = clock(), tries + 1
        found = await step.hook("reconcile")
        assert found is not None
        if found.error is not None:
            said = ": ".join(found.error)
        elif isinstance(found.value, Applied):
            outcome = _result_of(step, found.value, lost.attempts)
            return await _verified(step, outcome, "reconcile", to_jsonable_python(found.value.evidence))
        elif found.value is not None:
            said = f"reconcile returned {type(found.value).__name__}: Applied(...) or None is expected"
        elif asked_at >= counts_from:
            return await _not_there(step, lost, tries)
        else:
            said = "not there yet"
        pause_s = reconcile_pause(tries, clock(), counts_from, began)
        if pause_s is None:
            error, message = lost.error or ("", "")
            text = f"{message}{ASKED_AFTER}{tries} times, the last answer: {said[:_LONGEST_TEXT]}"
            doubt = Outcome(lost.attempts, error=(error, text), unknown=True, end=StepEnd.UNKNOWN)
            return await _ended(step, doubt, "reconcile")
        try:
            with engine.rests.rest(uncertain=True):
                await asyncio.sleep(pause_s)
        except Interrupted:
            raise RunAborted from None


async def _not_there(step: ToolStep, lost: Outcome, tries: int) -> Any:
    """It is proved that nothing was applied: the effect is caused anew, or the step has failed."""
    engine = step.engine
    error = lost.error or ("", "")
    await settle(step, Receipt(NOT_APPLIED, "reconcile", error=error, attempts=lost.attempts))
    said = f"{error[1]}; reconcile was asked {tries} times: it was not applied"
    await step.withdraw(said[:_LONGEST_TEXT], lost.attempts)
    if engine.leaving or (engine.is_to_end and not step.undoes):
        raise RunAborted
    step.lost_calls += 1
    if step.lost_calls >= engine.services.attempts.most_attempts(step.asked):
        outcome = Outcome(lost.attempts, error=(error[0], said), end=StepEnd.ATTEMPTS_EXHAUSTED)
        return await step.record(outcome, encode_receipt(Receipt(NOT_APPLIED, "reconcile", error=error)))
    try:
        passage = await engine.services.attempts.admit(step.asked, may_postpone=False)
    except NoMore as no_more:
        return await step.record(no_more_outcome(no_more))
    return await _intended(step, passage)


def _result_of(step: ToolStep, found: Applied[Any], attempts: int) -> Outcome:
    result = step.tool.signature.result
    try:
        value = result.check(found.result)
        return Outcome(attempts, value, result.dump(value))
    except InvalidValue as error:
        return Outcome(
            attempts, error=("InvalidValue", str(error)), end=StepEnd.INVALID_RESULT, ended_by="reconcile's result"
        )


# Ending


async def _ended(step: ToolStep, outcome: Outcome, by: str = "tool", evidence: Any = None) -> Any:
    """Settles the effect's record, then records the step; or ends the run's driving, when nobody knows."""
    outcome = step.checked(outcome)
    if outcome.unknown:
        await settle(step, Receipt(UNKNOWN, by, error=outcome.error, attempts=outcome.attempts))
        step.engine.abort(unknown(step.path, step.tool.name, outcome))
    # A result that cannot be taken is none that was not applied.
    applied = outcome.error is None or outcome.end is StepEnd.INVALID_RESULT
    receipt = Receipt(
        APPLIED if applied else NOT_APPLIED,
        by,
        msgspec.Raw(outcome.payload) if outcome.error is None else msgspec.UNSET,
        outcome.error,
        evidence,
        outcome.attempts,
        key="" if step.asked.key() == step.key() else step.asked.key(),
    )
    await settle(step, receipt)
    await replicated(step, math.inf)
    _reach("after_settle", step)
    facts = encode_receipt(msgspec.structs.replace(receipt, result=msgspec.UNSET))
    try:
        return await step.record(outcome, facts)
    finally:
        _reach("after_journal", step)


async def _inherited(step: ToolStep, begun: EffectBegun) -> Any:
    """It has been applied: by another branch, under the same business key, or by this run before its host died."""
    receipt = decode_receipt(begun.receipt)
    mine = begun.owner == step.owner
    by = receipt.by if mine else f"run {begun.owner.partition(':')[0]}"
    inherited = msgspec.structs.replace(receipt, by=by, result=msgspec.UNSET)
    return await step.record(outcome_of(step, receipt), encode_receipt(inherited))


async def _resolved(step: ToolStep, entry: Entry) -> tuple[bool, Any]:
    """A person has said what became of it: whether that ends the step, and its value."""
    said = decode_resolution(entry.payload)
    store = step.engine.services.store
    record = await store.effect(step.identity)
    theirs = record is not None and record.owner != step.owner
    by = f"person {said.by}"
    if not said.applied:
        if theirs:
            # It is to be caused in this branch too: as this branch's own effect.
            step.branch_only = True
        elif record is not None and record.state != APPLIED:
            # A late owner may have learned that it was applied: then its receipt is inherited, whatever people say.
            await settle(step, Receipt(NOT_APPLIED, by, evidence=said.evidence, why=said.why))
        return False, None
    receipt = Receipt(APPLIED, by, said.result, None, said.evidence, entry.attempts, said.why)
    if record is not None and not theirs:
        await settle(step, receipt)
    facts = encode_receipt(msgspec.structs.replace(receipt, result=msgspec.UNSET))
    return True, await step.record(outcome_of(step, receipt), facts)


def _reach(point: str, step: ToolStep) -> None:
    crash_points.reach(point, step.tool.name, step.engine.claim.id)
