"""What a fork takes over of another run's past. Pure.

A fork parts from its source at a step: it has everything that was recorded before that step's first entry, in the order
of the journal, also of other branches of concurrent tasks; and nothing that came after. Of what was under way at that
moment it has nothing either: a step whose end is not among those entries stays with the source, with its intent and
its approval. The fork's code asks for it anew, and the effect's own record tells it what became of it.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from actors.journal import ENTRY_VERSION, Entry, Kind, Status, decode_entry, encode_entry, link_of, seal
from actors.receipts import decode_intent_facts

START: Final = "start"
NOW: Final = "now"
APPROVAL_SUFFIX: Final = "!approval"
_SHOWN: Final = 8
_NO_STEPS: Final = frozenset({Kind.CHECKPOINT.value, Kind.ENDING.value})
_CLOSING: Final = frozenset({Kind.CALL.value, Kind.CHILD.value})


class NoForkPoint(Exception):
    """The run cannot be forked at this step; the text says why, and where it can."""


class ForkPoint(NamedTuple):
    """What a fork begins with.

    Attributes:
        archive: encoded entries before its last checkpoint.
        journal: encoded entries from there on.
        left_open: steps that had begun and not ended, and stay with the source.
        link: the source's chain at that point; None where the fork has nothing before it.
    """

    archive: tuple[bytes, ...]
    journal: tuple[bytes, ...]
    left_open: tuple[str, ...]
    link: bytes | None

    @property
    def inherited(self) -> int:
        """How many entries the fork has of its source."""
        return len(self.archive) + len(self.journal)

    def sealed(self, first: bytes) -> "ForkPoint":
        """The same with entries chained anew, from the fork's own first link on."""
        link, chained = first, []
        for raw in (*self.archive, *self.journal):
            chained.append(seal(link, raw))
            link = link_of(chained[-1])
        archived = len(self.archive)
        return self._replace(archive=tuple(chained[:archived]), journal=tuple(chained[archived:]))


def fork_point(source: str, archive: Sequence[bytes], journal: Sequence[bytes], at: str) -> ForkPoint:
    """What a fork at a step begins with.

    Args:
        source: the source's run id; the receipts that a fork inherits name it.
        archive: the source's encoded entries that checkpoints have replaced, oldest first.
        journal: those that came after them.
        at: the path of the step that the fork does not have any more; :data:`START` for a fork without any past,
            :data:`NOW` for one with everything that has been recorded so far.

    Raises:
        NoForkPoint: there is no such step, or what was before it is not so any more.
    """
    raws = [*archive, *journal]
    entries = [decode_entry(raw) for raw in raws]
    if at == START:
        return ForkPoint((), (), (), None)
    position = len(entries) if at == NOW else _position(entries, at)
    before = entries[:position]
    if any(entry.kind == Kind.ENDING for entry in before):
        raise NoForkPoint("the run had come to its end before that step: what follows only undoes what it has done")
    closed = {entry.step for entry in _last_by_step(before) if _closes(entry)}
    _refuse_undone(entries, closed)
    kept = [index for index, entry in enumerate(before) if _is_kept(entry, closed)]
    split = max((index for index in kept if before[index].kind == Kind.CHECKPOINT), default=0)
    left_open = [e.step for e in _last_by_step(before) if not _closes(e) and not _is_kept(e, closed)]
    return ForkPoint(
        tuple(_inherited(source, raws[index], before[index]) for index in kept if index < split),
        tuple(_inherited(source, raws[index], before[index]) for index in kept if index >= split),
        tuple(dict.fromkeys(step.removesuffix(APPROVAL_SUFFIX) for step in left_open)),
        link_of(raws[position - 1]) if position else None,
    )


def _position(entries: list[Entry], at: str) -> int:
    """Where the step's first entry is, or that of its approval."""
    for index, entry in enumerate(entries):
        if entry.kind not in _NO_STEPS and at in (entry.step, entry.step.removesuffix(APPROVAL_SUFFIX)):
            if at.endswith(APPROVAL_SUFFIX):
                raise NoForkPoint(f"it is the approval of a step: fork at step {at.removesuffix(APPROVAL_SUFFIX)}")
            return index
    # What has a suffix is none of the agent's own: an approval, the undoing of an effect.
    steps = list(dict.fromkeys(e.step for e in entries if e.kind not in _NO_STEPS and "!" not in e.step))
    raise NoForkPoint(_no_such_step(at, steps, dropped=bool(entries) and entries[0].kind == Kind.CHECKPOINT))


def _no_such_step(at: str, steps: list[str], *, dropped: bool) -> str:
    gone = "; steps before its last checkpoint are not kept" if dropped else ""
    if not steps:
        return f"it has no recorded steps{gone or ', or they are not kept any more'}: fork it at {START!r}"
    near = difflib.get_close_matches(at, [*steps, START, NOW], n=3, cutoff=0.5)
    if near:
        return f"it has no step {at!r}{gone}; did you mean {' or '.join(near)}?"
    shown = ", ".join(steps[:_SHOWN]) + (f" … {steps[-1]}" if len(steps) > _SHOWN else "")
    return f"it has no step {at!r}{gone}; it has {shown}; or {START!r}, or {NOW!r}"


def _last_by_step(entries: Iterable[Entry]) -> list[Entry]:
    """The last entry of each step."""
    return list({entry.step: entry for entry in entries if entry.kind not in _NO_STEPS}.values())


def _closes(entry: Entry) -> bool:
    return entry.kind in _CLOSING and entry.status != Status.OPEN


def _is_kept(entry: Entry, closed: set[str]) -> bool:
    if entry.kind in (Kind.CHECKPOINT, Kind.VALUE, Kind.TIMER):
        return True
    if entry.kind == Kind.APPROVAL and entry.status == Status.FAILED:
        # A denial is all that such a call has come to: its step has no other end.
        return True
    # An approval is of one action of one run: only one that has been used is a part of the past.
    step = entry.step.removesuffix(APPROVAL_SUFFIX) if entry.kind == Kind.APPROVAL else entry.step
    return step in closed


def _refuse_undone(entries: list[Entry], closed: set[str]) -> None:
    """A past in which an effect is applied that was undone later is no past to go on from.

    Raises:
        NoForkPoint: there is such an effect.
    """
    undoing: dict[str, str] = {}
    for entry in entries:
        if entry.kind == Kind.INTENT and entry.facts:
            undoing[entry.step] = decode_intent_facts(entry.facts).undoes
        elif _closes(entry) and entry.status == Status.OK and undoing.get(entry.step, "") in closed:
            step = undoing[entry.step]
            raise NoForkPoint(f"the effect of step {step} was undone later, by step {entry.step}: fork at step {step}")


def _inherited(source: str, raw: bytes, entry: Entry) -> bytes:
    """The entry as a fork has it: its receipt says whose it was first, and it is in a form that can be chained."""
    facts = _named_receipt(source, entry.facts) if entry.kind == Kind.CALL and entry.facts else entry.facts
    if entry.v == ENTRY_VERSION and facts is entry.facts:
        return raw
    return encode_entry(msgspec.structs.replace(entry, v=ENTRY_VERSION, facts=facts))


def _named_receipt(source: str, facts: bytes) -> bytes:
    receipt = msgspec.json.decode(facts)
    if not isinstance(receipt, dict) or "state" not in receipt or str(receipt.get("by", "")).startswith("run "):
        return facts
    return msgspec.json.encode(receipt | {"by": f"run {source}"})
