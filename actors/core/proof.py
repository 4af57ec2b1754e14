"""Proving a run's chain (:mod:`actors.core.chain`): what holds, what is broken and where, and what nobody can prove.

Pure: bytes in, findings out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from actors.core.chain import WORDS, Ended, checkpoint_facts, seal_of_end
from actors.journal import CHAIN_BYTES, Entry, decode_entry, first_link, link_of, seal
from cluster.lifecycle import TERMINAL

_FIRST_CHAINED_VERSION: Final = 2
_MOST_FINDINGS: Final = 20


class Break(StrEnum):
    """What is wrong with a chain."""

    CHANGED = "changed"
    MISSING = "missing"
    INSERTED = "inserted"
    MOVED = "moved"
    CUT_OFF = "cut_off"
    OUTCOME = "outcome_changed"
    UNSEALED = "seal_missing"
    ANCHOR = "anchor_not_found"
    SOURCE = "source_differs"


@dataclass(frozen=True)
class Finding:
    """One place where the chain does not hold.

    Attributes:
        what: what is wrong.
        place: of the entry, from 0, over archive and journal; None where no entry is meant.
        step: the entry's step and kind, as it says itself.
        text: for people.
    """

    what: Break
    place: int | None
    step: str
    text: str


@dataclass
class Proof:
    """What could be proved of a chain, what could not, and what is broken.

    Attributes:
        entries: how many there are.
        chained: how many of them are where they belong, unchanged.
        head: link of the last one (or of the job, without any), hex.
        findings: what is broken, the first place first; bounded.
        broken: how many places are.
        notes: what is not proved, and why.
        anchored: place of the entry that the owner's head names, -1 for the start; None without a head.
    """

    entries: int = 0
    chained: int = 0
    head: str = ""
    findings: list[Finding] = field(default_factory=list)
    broken: int = 0
    notes: list[str] = field(default_factory=list)
    anchored: int | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing is broken."""
        return self.broken == 0

    def add(self, what: Break, place: int | None, step: str, text: str) -> None:
        """One more thing that is broken."""
        self.broken += 1
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(Finding(what, place, step, text))


@dataclass(frozen=True)
class Chain:
    """A run's chain as the store has it.

    Attributes:
        run_id: the run.
        job: its job, as it is stored.
        archive: entries that checkpoints have replaced.
        journal: the others.
        parting: of a fork: where it parted from its source.
    """

    run_id: str
    job: bytes
    archive: Sequence[bytes]
    journal: Sequence[bytes]
    parting: "Parting | None" = None

    @property
    def entries(self) -> list[bytes]:
        """All of them, oldest first."""
        return [*self.archive, *self.journal]


@dataclass(frozen=True)
class Parting:
    """Where a fork parted from its source. Its own chain begins at its own job, which says all this but the last.

    Attributes:
        run_id: the source.
        link: the source's chain where they parted (hex).
        inherited: how many of the fork's first entries are the source's, chained anew.
        source: the source's chain, where it can still be read.
    """

    run_id: str
    link: str
    inherited: int
    source: Chain | None


@dataclass(frozen=True)
class Anchors:
    """What the run's record holds beside its chain.

    Attributes:
        head: the last link that an owner has anchored (hex); '' for none.
        at_rest: nothing but people's words can have followed it: the run waits, is unknown, or was ended by its owner.
        needs_seal: only an owner can have ended the run like this.
        seal: the owner's seal of the end (hex); '' for none.
        ended: what it must be of; None for a run that goes on.
    """

    head: str = ""
    at_rest: bool = False
    needs_seal: bool = False
    seal: str = ""
    ended: Ended | None = None


def prove(chain: Chain, anchors: Anchors, kept: str = "") -> Proof:
    """Verifies a run's chain, its head and its end.

    Args:
        chain: the entries and the job.
        anchors: what the record says beside them.
        kept: an anchor that somebody has kept elsewhere (:func:`anchor_of`, hex): it must be found as well.
    """
    proof = Proof()
    raws = chain.entries
    walk = _Walk(chain, raws, proof)
    walk.go()
    links = {walk.start.hex(): -1} | {link_of(raw).hex(): place for place, raw in enumerate(raws)}
    _prove_head(proof, anchors, links, raws, walk.dropped)
    _prove_end(proof, anchors, walk)
    if chain.parting is not None:
        _prove_parting(proof, raws, chain.parting, walk.dropped)
    if kept:
        _prove_kept(proof, kept, links, anchors, walk.dropped)
    return proof


def anchor_of(proof: Proof, ended: Ended | None) -> str:
    """What is to be kept elsewhere (hex), so that nobody can rewrite the run's past and its end unseen: the seal of its
    end, which depends on the whole chain, or the last link as long as it goes on (``confirmation_unknown`` is no end).
    """
    if ended is None or ended.state not in TERMINAL or not proof.head:
        return proof.head
    return seal_of_end(bytes.fromhex(proof.head), ended)


class _Walk:
    """One way along a chain."""

    def __init__(self, chain: Chain, raws: list[bytes], proof: Proof) -> None:
        self.start = first_link(chain.run_id, chain.job)
        self.dropped = ""
        self.unchained = 0
        self._raws = raws
        self._proof = proof
        # What an entry that is out of its place may be chained to.
        self._places: Mapping[bytes, int] | None = None

    def go(self) -> None:
        """Verifies each entry against the one before it; after one that does not hold it goes on from that one."""
        proof, link = self._proof, self._begin()
        proof.entries = len(self._raws)
        for place, raw in enumerate(self._raws):
            entry = _decoded(raw)
            if entry is None:
                proof.add(Break.CHANGED, place, "?", "this is no journal entry (any more)")
            elif entry.v < _FIRST_CHAINED_VERSION:
                self._unchained(place, entry)
            elif _fits(link, raw):
                proof.chained += 1
            else:
                self._broken(place, raw, entry)
            link = link_of(raw)
        if self.unchained:
            proof.notes.append(f"{_entries(self.unchained)} from before there was a chain (version 1): not chained")
        proof.head = link.hex() if len(link) == CHAIN_BYTES else ""

    def _begin(self) -> bytes:
        """What the first entry is chained to."""
        raws, notes = self._raws, self._proof.notes
        if not raws:
            return self.start
        first = _decoded(raws[0])
        if first is None or first.v < _FIRST_CHAINED_VERSION or seal(self.start, raws[0]) == raws[0]:
            return self.start
        facts = checkpoint_facts(first)
        if facts is not None and not facts.kept:
            self.dropped = first.step
            before = _entries(facts.replaced)
            notes.append(f"checkpoint {first.step} has dropped {before} before it: proved from there on")
            self.start = _unhex(facts.after)
        return self.start

    def _unchained(self, place: int, entry: Entry) -> None:
        proof = self._proof
        self.unchained += 1
        if place != self.unchained - 1:
            proof.add(Break.INSERTED, place, _name(entry), "an entry without a chain, after entries that have one")
        elif any(entry.chain):
            proof.add(Break.CHANGED, place, _name(entry), "it says that it is older than the chain, and has a link")

    def _broken(self, place: int, raw: bytes, entry: Entry) -> None:
        """Says what must have happened, by the link that the entry really is chained to."""
        proof, name = self._proof, _name(entry)
        if proof.broken >= _MOST_FINDINGS:
            proof.add(Break.CHANGED, place, name, "")
            return
        belongs = self._belongs_after(raw)
        if belongs is None:
            facts = checkpoint_facts(entry)
            if facts is not None and _fits(_unhex(facts.after), raw):
                text = f"what it replaced is missing before it ({_entries(facts.replaced)}"
                proof.add(Break.MISSING, place, name, f"{text}{', kept in the archive)' if facts.kept else ')'}")
                return
            before = "the job was" if place == 0 else "what is before it was"
            text = f"it was changed, or {before} changed, or entries are missing before it"
            proof.add(Break.CHANGED, place, name, f"{text}: its hash does not fit")
        elif raw in self._raws[:place]:
            proof.add(Break.INSERTED, place, name, f"it is there twice: entry {self._raws.index(raw)} is the same")
        elif belongs < place - 1:
            text = f"it follows entry {belongs}, or the job" if belongs < 0 else f"it follows entry {belongs}"
            proof.add(Break.INSERTED, place, name, f"{text}: what is between them was inserted, or moved here")
        else:
            proof.add(Break.MOVED, place, name, f"it follows entry {belongs}, and stands before it: it was moved")

    def _belongs_after(self, raw: bytes) -> int | None:
        if self._places is None:
            self._places = {
                self.start: -1, **{link_of(each): place for place, each in reversed(list(enumerate(self._raws)))}
            }  # fmt: skip
        for link, place in self._places.items():
            if _fits(link, raw):
                return place
        return None


def _prove_head(proof: Proof, anchors: Anchors, links: Mapping[str, int], raws: Sequence[bytes], dropped: str) -> None:
    """Whether the chain goes on to what its owner says was its end."""
    if not anchors.head:
        proof.notes.append("no owner has anchored the head: a tail that was cut off would not be seen")
        return
    place = proof.anchored = links.get(anchors.head)
    if place is None:
        if dropped and not anchors.at_rest:
            proof.notes.append(
                f"the head was anchored before checkpoint {dropped}: a tail that was cut off is not seen"
            )
            return
        text = f"the chain does not lead to the head that its owner has anchored ({anchors.head[:8]}…)"
        proof.add(Break.CUT_OFF, None, "", f"{text}: entries at the end are missing, or the head was changed")
        return
    later = raws[place + 1 :]
    if not anchors.at_rest:
        if later:
            since = f"{_entries(len(later))} came after the head was anchored"
            proof.notes.append(f"{since}: that more of them were cut off would not be seen")
        return
    for number, raw in enumerate(later, place + 1):
        entry = _decoded(raw)
        if entry is None or entry.kind not in WORDS:
            name = "?" if entry is None else _name(entry)
            proof.add(Break.INSERTED, number, name, "it comes after the head that the run's owner has anchored")


def _prove_end(proof: Proof, anchors: Anchors, walk: _Walk) -> None:
    """Whether the record says of the run's end what its owner said."""
    if anchors.ended is None:
        return
    state = anchors.ended.state
    if not anchors.seal:
        if anchors.needs_seal and not walk.unchained:
            text = f"the run is {state}, which only its owner can have said, and its end has no seal"
            proof.add(Break.UNSEALED, None, "", f"{text}: it was removed, or the run ended before there were seals")
        else:
            proof.notes.append(f"ended by the store ({state}: {anchors.ended.reason}): no owner has sealed its end")
        return
    # A host that ends itself does not know how far the journal has come: it seals with the start of the chain.
    head = _unhex(anchors.head) if anchors.head else first_link(anchors.ended.run_id, anchors.ended.job)
    if len(head) != CHAIN_BYTES or seal_of_end(head, anchors.ended) != anchors.seal:
        parts = "state, reason, output, error, job, agent, version, batch, custom id or parent"
        proof.add(Break.OUTCOME, None, "", f"the seal of its end does not fit: {parts} (or seal or head) was changed")


def _prove_parting(proof: Proof, raws: Sequence[bytes], parting: Parting, dropped: str) -> None:
    """Whether a fork's first entries are those that its source had there."""
    source, whose = parting.source, f"run {parting.run_id}"
    mine = f"its first {_entries(parting.inherited)} are" if parting.inherited > 1 else "its first entry is"
    mine = f"{mine} that run's" if parting.inherited else "it has nothing of it"
    if dropped and parting.inherited:
        proof.notes.append(f"forked from {whose}; checkpoint {dropped} has dropped what it had of that run")
        return
    if source is None:
        proof.notes.append(f"forked from {whose}, which cannot be read any more: {mine}, as its job says")
        return
    theirs = source.entries
    links = [first_link(source.run_id, source.job).hex(), *(link_of(raw).hex() for raw in theirs)]
    if parting.link not in links:
        first = None if not theirs else _decoded(theirs[0])
        facts = None if first is None else checkpoint_facts(first)
        if facts is not None and not facts.kept:
            proof.notes.append(f"forked from {whose}, which has dropped that past since: {mine}, as its job says")
        else:
            text = f"the place where it parted from {whose} is not in that run's chain (any more)"
            proof.add(Break.SOURCE, None, "", text)
        return
    left = [_essence(raw) for raw in theirs[: links.index(parting.link)]]
    for place, raw in enumerate(raws[: parting.inherited]):
        essence = _essence(raw)
        if essence not in left:
            entry = _decoded(raw)
            name = "?" if entry is None else _name(entry)
            proof.add(
                Break.SOURCE, place, name, f"it is said to be inherited from {whose}, which has no such entry there"
            )
            return
        del left[: left.index(essence) + 1]
    proof.notes.append(f"forked from {whose}: {mine}")


def _essence(raw: bytes) -> tuple[object, ...] | None:
    """What a fork takes over of an entry unchanged: neither its link, nor whose receipt it was first."""
    entry = _decoded(raw)
    if entry is None:
        return None
    return (
        entry.kind, entry.step, entry.name, entry.digest, entry.status, entry.payload, entry.attempts,
        entry.started_ms, entry.ended_ms,
    )  # fmt: skip


def _prove_kept(proof: Proof, kept: str, links: Mapping[str, int], anchors: Anchors, dropped: str) -> None:
    wanted = kept.strip().lower()
    if wanted in links:
        since = proof.entries - 1 - links[wanted]
        proof.notes.append(f"the anchor that was kept is in the chain, {_entries(since)} before its end")
        return
    if anchors.ended is not None and wanted == anchor_of(proof, anchors.ended):
        proof.notes.append("the anchor that was kept is the seal of this end")
        return
    older = f", or it is older than checkpoint {dropped}, which has dropped the past" if dropped else ""
    text = f"the anchor that was kept ({wanted[:8]}…) is not in the chain: it was rewritten, or cut off{older}"
    proof.add(Break.ANCHOR, None, "", text)


def _fits(link: bytes, raw: bytes) -> bool:
    """Whether an entry is unchanged and chained to this link."""
    return len(link) == CHAIN_BYTES and seal(link, raw) == raw


def _decoded(raw: bytes) -> Entry | None:
    try:
        return decode_entry(raw)
    except ValueError:
        return None


def _name(entry: Entry) -> str:
    return f"{entry.kind} {entry.name} at step {entry.step}" if entry.step else entry.kind


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count:,} entries"


def _unhex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
