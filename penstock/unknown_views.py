"""Effects whose outcome nobody can prove, as people see them. Pure: facts in, views out."""

import shlex
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from actors.contract import DEFAULT_SETTLE_WITHIN_S
from actors.job import JobRecord
from actors.journal import Entry, ErrorRecord, Kind
from actors.receipts import ASKED_AFTER, UNKNOWN, IntentFacts, Receipt, decode_intent_facts, decode_receipt
from cluster.records import EffectRecord, RunRecord


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What has been tried to get an effect done, and to find out whether it was.

    ``attempts`` is how often the tool was called, as far as its last host knew (None: it died before it could say so);
    ``last_error`` what came of it; ``reconciled`` how the other side answered, empty where it was not asked.
    """

    attempts: int | None = None
    last_error: str = ""
    reconciled: str = ""


class UnknownEffect(msgspec.Struct, frozen=True, kw_only=True):
    """An effect whose outcome nobody can prove. Times are epoch milliseconds by the store's clock.

    Attributes:
        run_id: its run, which waits for somebody's word.
        step: the step of the run.
        tool: what was called.
        owner: who is to settle it.
        state_version: of the run; what is said of the effect is said of this version.
        command: the command line that settles it, without what is to be said.
        since_ms: when it became unknown; ``for_s`` is how long ago that is.
        intended_ms: when the effect was about to be caused.
        settle_by_ms: when it should have been settled; ``overdue`` says that this is past.
        arguments: what the tool was called with, in order; credentials in them are masked.
        idempotency_key: what the other side was given, to look for.
        business_key: the agent's own key, where it gave one.
        undoes: the step whose effect this one was to undo.
        cancel_requested: why the run ends once this is settled; empty where it goes on.
        tried: what was tried.
    """

    run_id: str
    step: str
    tool: str
    agent: str
    batch: str
    custom_id: str
    tenant: str
    owner: str
    state_version: int
    command: str
    since_ms: int
    for_s: float
    intended_ms: int | None = None
    settle_by_ms: int | None = None
    overdue: bool = False
    risk: str = ""
    arguments: Any = None
    idempotency_key: str = ""
    business_key: str = ""
    undoes: str = ""
    cancel_requested: str = ""
    tried: Tried = Tried()

    @property
    def now_ms(self) -> int:
        """The moment at which this was read, by the store's clock."""
        return self.since_ms + round(self.for_s * 1000)


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody's word has come to: it is in the journal, and the run is queued.

    ``applied`` is None where nothing was said and a host looks once more.
    """

    run_id: str
    step: str
    tool: str
    applied: bool | None
    by: str
    why: str
    at_ms: int


class UnknownRun(NamedTuple):
    """An unknown run as it was read: ``entries`` is its journal, ``link`` the last bytes of that."""

    record: RunRecord
    job: JobRecord
    error: ErrorRecord | None
    entries: list[Entry]
    link: bytes


class Doubt(NamedTuple):
    """A step in doubt. ``entry`` is its last intent, None where the journal has none: the store has lost it. ``times``
    is how often the effect was about to be caused.
    """

    step: str
    tool: str
    entry: Entry | None
    times: int = 1

    @property
    def facts(self) -> IntentFacts:
        """What the intent says."""
        if self.entry is None or not self.entry.facts:
            return IntentFacts("", "")
        return decode_intent_facts(self.entry.facts)


def resolve_command(run_id: str, step: str, version: int | None = None) -> str:
    """The command line that settles an effect, ready for a shell, without what is to be said."""
    seen = "" if version is None else f" --version {version}"
    return f"penstock resolve {run_id} {shlex.quote(step)}{seen}"


def doubts(run: UnknownRun) -> list[Doubt]:
    """The steps of an unknown run whose effect is in doubt: one, unless it made several at once."""
    last: dict[str, Entry] = {}
    intents: dict[str, list[Entry]] = defaultdict(list)
    for entry in run.entries:
        last[entry.step] = entry
        if entry.kind == Kind.INTENT:
            intents[entry.step].append(entry)
    named = run.error.step if run.error else ""
    # What a person has said already is waiting to be obeyed, unless it is this very step that is in doubt again.
    found = [
        Doubt(step, entry.name, intents[step][-1] if intents[step] else None, len(intents[step]))
        for step, entry in last.items()
        if entry.kind == Kind.INTENT or (entry.kind == Kind.RESOLUTION and step == named)
    ]
    return found or [Doubt(named, "", None)]


def view_of(run: UnknownRun, doubt: Doubt, known: EffectRecord | None, now_ms: int) -> UnknownEffect:
    """One effect in doubt; ``known`` is its record in the store."""
    record, facts = run.record, doubt.facts
    settle_by_ms = facts.settle_by_ms or None
    if settle_by_ms is None and doubt.entry is not None:
        settle_by_ms = doubt.entry.ended_ms + round(DEFAULT_SETTLE_WITHIN_S * 1000)
    return UnknownEffect(
        run_id=record.id,
        step=doubt.step,
        tool=doubt.tool,
        agent=record.agent,
        batch=record.batch,
        custom_id=record.custom_id,
        tenant=run.job.tenant,
        owner=facts.owner or f"operators of {run.job.tenant}",
        state_version=record.version,
        command=resolve_command(record.id, doubt.step, record.version if doubt.times > 1 else None),
        since_ms=record.since_ms,
        for_s=max(0, now_ms - record.since_ms) / 1000,
        intended_ms=None if doubt.entry is None else doubt.entry.ended_ms,
        settle_by_ms=settle_by_ms,
        overdue=settle_by_ms is not None and settle_by_ms < now_ms,
        risk=facts.risk,
        arguments=msgspec.json.decode(facts.arguments) if doubt.entry is not None and doubt.entry.facts else None,
        idempotency_key=facts.key,
        business_key=facts.business_key,
        undoes=facts.undoes,
        cancel_requested=record.cancel,
        tried=_tried(run, doubt, known),
    )


def receipt_of(run_id: str, step: str, known: EffectRecord | None) -> Receipt | None:
    """What this step's last owner has left in the effect's record; None where that is nobody's, or another's."""
    if known is None or known.state != UNKNOWN or known.owner != f"{run_id}:{step}" or not known.receipt:
        return None
    return decode_receipt(known.receipt)


def _tried(run: UnknownRun, doubt: Doubt, known: EffectRecord | None) -> Tried:
    receipt = receipt_of(run.record.id, doubt.step, known)
    if receipt is not None and receipt.error is not None:
        said, attempts = ": ".join(receipt.error), receipt.attempts or None
    elif run.error is not None and run.error.step == doubt.step:
        said, attempts = f"{run.error.error_class}: {run.error.message}", None
    else:
        said, attempts = "its host died, or left, before it could say what came of it", None
    said, asked, answer = said.partition(ASKED_AFTER)
    return Tried(attempts=attempts, last_error=said, reconciled=f"asked {answer}" if asked else "")


def wanted(view: UnknownEffect, tenant: str | None, tool: str | None, batch: str | None) -> bool:
    """Whether it is one of those that somebody wants to see."""
    return tenant in (None, view.tenant) and tool in (None, view.tool) and batch in (None, view.batch)


def oldest_first(views: Iterable[UnknownEffect]) -> list[UnknownEffect]:
    """The longest unknown first."""
    return sorted(views, key=lambda view: (view.since_ms, view.run_id, view.step))
