"""Undoing a run that has failed or was cancelled: its applied effects, in reverse order, each by an effect of its own.

How the run ends is written down before the first of them begins, so that whoever goes on after a failure undoes the
rest and does not run the agent's code again.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from actors import effects
from actors.errors import InvalidValue, ReadOnlyBranch, StepFailed, described
from actors.journal import Entry, Kind, Status, decode_entry, decode_error, encode_error_record
from actors.promotion import has_right
from actors.receipts import APPLIED, IntentFacts, decode_intent_facts, decode_receipt
from actors.tool_step import tool_step
from actors.verdict import HOSTS_LOST, Verdict
from cluster import reader
from cluster.lifecycle import RunState

if TYPE_CHECKING:
    from actors.contract import Tool
    from actors.engine import RunEngine

UNDO: Final = "!undo"
ENDING_STEP: Final = "end"
_NO_WAY: Final = "nothing declared undoes it"
_NO_RIGHT: Final = "another branch has the right to effects"


class AppliedEffect(NamedTuple):
    """An effect of a run that has a receipt which says that it was applied."""

    intent: Entry
    facts: IntentFacts
    call: Entry

    def __str__(self) -> str:
        return f"{self.call.name} at step {self.call.step}"

    @property
    def inherited_from(self) -> str:
        """Whose effect it is, where it is another run's: that one, and others, may count on it."""
        by = decode_receipt(self.call.facts).by
        return by if by.startswith("run ") else ""


def applied_effects(entries: list[Entry]) -> list[AppliedEffect]:
    """The applied effects that a journal tells of, oldest first; those that undo others are not among them."""
    intents: dict[str, Entry] = {}
    found: dict[str, AppliedEffect] = {}
    for entry in entries:
        if entry.kind == Kind.INTENT and entry.facts:
            intents[entry.step] = entry
        elif entry.kind == Kind.CALL and entry.step in intents and entry.status != Status.OPEN:
            intent = intents.pop(entry.step)
            facts = decode_intent_facts(intent.facts)
            if (
                not facts.undoes
                and not facts.simulated
                and entry.facts
                and decode_receipt(entry.facts).state == APPLIED
            ):
                found[entry.step] = AppliedEffect(intent, facts, entry)
    return list(found.values())


async def undone(engine: "RunEngine", verdict: Verdict) -> Verdict:
    """Undoes what can be undone; the verdict, with what was and what is still applied.

    Raises:
        RunAborted: the run is another host's, or nobody knows whether an effect was undone: then the engine has a
            verdict that says so.
    """
    entries = [decode_entry(raw) for raw in await _journal(engine)]
    applied = applied_effects(entries)
    if not applied:
        return verdict
    if not await has_right(engine):
        # The branch that may cause effects may count on them: its end decides.
        mine = [f"{each} ({_NO_RIGHT})" for each in reversed(applied) if not each.inherited_from]
        return _told(verdict, [], mine) if mine else verdict
    last = {entry.step: entry for entry in entries}
    # What hosts die of is not tried again: it may be the very tool.
    ways = {} if verdict.reason == HOSTS_LOST else {each.call.step: _way(engine, each) for each in applied}
    if any(ways.values()) and not any(entry.kind == Kind.ENDING for entry in entries):
        await _write_ending(engine, verdict)
    gone: list[str] = []
    left: list[str] = []
    for effect in reversed(applied):
        tool = ways.get(effect.call.step)
        if tool is None:
            left.append(f"{effect} ({_why_not(engine, effect)})" if ways else str(effect))
            continue
        why = await _undo(engine, effect, tool, last.get(effect.call.step + UNDO))
        (left if why else gone).append(f"{effect} ({why})" if why else str(effect))
    return _told(verdict, gone, left)


async def _journal(engine: "RunEngine") -> list[bytes]:
    store, run_id = engine.services.store, engine.claim.id
    return await reader.archive(store, run_id) + await reader.journal(store, run_id)


def _way(engine: "RunEngine", effect: AppliedEffect) -> "Tool[Any, Any] | None":
    tool = None if effect.inherited_from else engine.services.tools.get(effect.call.name)
    return tool if tool is not None and tool.options.effect.compensate is not None else None


def _why_not(engine: "RunEngine", effect: AppliedEffect) -> str:
    if effect.inherited_from:
        return f"it was caused by {effect.inherited_from}"
    known = effect.call.name in engine.services.tools
    return _NO_WAY if known else f"no tool {effect.call.name!r} in the app that this host serves"


async def _write_ending(engine: "RunEngine", verdict: Verdict) -> None:
    at_ms = engine.services.now_ms()
    payload = msgspec.json.encode(verdict)
    await engine.write(
        [engine.entry(Kind.ENDING, ENDING_STEP, verdict.state.value, b"", Status.OK, payload, 1, at_ms)], 0
    )


async def _undo(engine: "RunEngine", effect: AppliedEffect, tool: "Tool[Any, Any]", entry: Entry | None) -> str:
    """Why one effect could not be undone; '' when it is. ``entry`` is what the journal has of its undoing."""
    if entry is not None and entry.status != Status.OPEN and entry.kind != Kind.RESOLUTION:
        return "" if entry.status == Status.OK else decode_error(entry.payload).message
    try:
        signature = tool.signature
        result = signature.result.load(effect.call.payload) if effect.call.status == Status.OK else None
        made = tool.call_of_hook("compensate", signature.load(bytes(effect.facts.arguments)), result)
        assert made is not None
        hook, values = made
        step = tool_step(engine, effect.call.step + UNDO, hook, values, effect.call.digest, entry)
    except InvalidValue as error:
        return f"its arguments and result do not fit its compensation: {error}"
    # Another branch that has caused the same anew undoes that, and not this.
    step.undoes, step.undoes_record, step.branch_only = effect.call.step, effect.facts.identity, True
    # The run is over: neither its deadline nor the time that the effect itself had bounds this.
    now = engine.services.clock()
    step.asked = dataclasses.replace(step.asked, began=now, run_deadline=math.inf, key=step.key)
    try:
        await effects.make(step, entry)
    except StepFailed as failed:
        return ": ".join(described(failed))
    except ReadOnlyBranch:
        return _NO_RIGHT
    return ""


def _told(verdict: Verdict, gone: list[str], left: list[str]) -> Verdict:
    error = decode_error(verdict.error) if verdict.error else None
    record = encode_error_record(error, verdict.state.value, verdict.reason, gone, left)
    reason = verdict.reason
    if gone or any(_NO_WAY not in each for each in left):
        said = [f"{len(gone)} undone"] if gone else []
        said += [f"still applied: {', '.join(left)}"] if left else []
        reason = f"{reason or verdict.state.value}; effects: {'; '.join(said)}"
    return Verdict(verdict.state, reason[:1000], verdict.output, record)


def compensates(verdict: Verdict) -> bool:
    """Whether a run that ends so undoes its effects."""
    return verdict.state in (RunState.FAILED, RunState.CANCELLED)
