"""The chain of a journal: every single hand that touches it is found, and what nobody can prove is said."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actors.core.chain import CheckpointFacts, Ended, encode_checkpoint_facts, is_of_trail, seal_of_end
from actors.core.proof import Anchors, Break, Chain, Parting, Proof, anchor_of, prove
from actors.journal import Entry, Kind, Status, decode_entry, encode_entry, first_link, link_of, seal

RUN = "00-0123456789abcdef01234567"
JOB = b"a job, as it was accepted"


def entry(number: int, kind: Kind = Kind.CALL, *, facts: bytes = b"", v: int = 2, payload: bytes = b"1") -> bytes:
    made = Entry(v, kind, str(number), "tool", b"digest", Status.OK, payload, 1, 1000 + number, 1001 + number, facts)
    return encode_entry(made)


def chained(raws: Sequence[bytes], link: bytes) -> list[bytes]:
    made = []
    for raw in raws:
        made.append(seal(link, raw))
        link = link_of(made[-1])
    return made


def journal(count: int, *, link: bytes | None = None, first: int = 0) -> list[bytes]:
    raws = [entry(first + number, payload=b"%d" % number) for number in range(count)]
    return chained(raws, first_link(RUN, JOB) if link is None else link)


def end(head: bytes, **changes: Any) -> Anchors:
    ended = Ended(RUN, JOB, "agent", "1", "batch", "id", "", "succeeded", "", b'"done"', b"")
    seal_ = seal_of_end(head, ended)
    return Anchors(head.hex(), at_rest=True, needs_seal=True, seal=seal_, ended=ended._replace(**changes))


def whole(entries: Sequence[bytes]) -> Anchors:
    return end(link_of(entries[-1]) if entries else first_link(RUN, JOB))


def proved(entries: Sequence[bytes], anchors: Anchors = Anchors(), kept: str = "", **chain: Any) -> Proof:  # noqa: B008
    fields: dict[str, Any] = {"run_id": RUN, "job": JOB, "archive": [], "journal": entries}
    return prove(Chain(**(fields | chain)), anchors, kept)


def kinds(proof: Proof) -> list[tuple[Break, int | None]]:
    return [(finding.what, finding.place) for finding in proof.findings]


def test_a_whole_chain_holds() -> None:
    entries = journal(5)
    proof = proved(entries, whole(entries))
    assert proof.holds
    assert (proof.entries, proof.chained, proof.anchored) == (5, 5, 4)
    assert proof.head == link_of(entries[-1]).hex()
    assert proof.notes == []


def test_a_run_without_steps_is_proved_by_its_seal() -> None:
    assert proved([], end(first_link(RUN, JOB))).holds
    assert kinds(proved([], end(first_link(RUN, JOB), output=b'"more"'))) == [(Break.OUTCOME, None)]
    assert not proved([], end(first_link(RUN, JOB)), job=b"another job").holds


def test_what_is_wrong_is_named() -> None:
    entries = journal(6)
    changed = encode_entry(msgspec.structs.replace(decode_entry(entries[2]), payload=b'"more"'))
    other = chained([entry(9)], b"0" * 16)[0]
    cases: list[tuple[list[bytes], list[tuple[Break, int | None]]]] = [
        ([*entries[:2], changed, *entries[3:]], [(Break.CHANGED, 2)]),
        ([*entries[:2], *entries[3:]], [(Break.CHANGED, 2)]),
        (entries[1:], [(Break.CHANGED, 0)]),
        ([*entries[:2], other, *entries[2:]], [(Break.CHANGED, 2), (Break.INSERTED, 3)]),
        ([*entries[:3], entries[1], *entries[3:]], [(Break.INSERTED, 3), (Break.INSERTED, 4)]),
        (
            [entries[0], entries[2], entries[1], *entries[3:]],
            [(Break.MOVED, 1), (Break.INSERTED, 2), (Break.INSERTED, 3)],
        ),
        ([*entries[:2], b"nonsense", *entries[2:]], [(Break.CHANGED, 2), (Break.INSERTED, 3)]),
        (entries[:-1], [(Break.CUT_OFF, None)]),
        ([], [(Break.CUT_OFF, None)]),
    ]
    for tampered, wanted in cases:
        proof = proved(tampered, whole(entries))
        assert kinds(proof) == wanted, proof.findings
        assert all(finding.text for finding in proof.findings)


def test_another_job_is_found_at_the_first_entry() -> None:
    entries = journal(3)
    proof = proved(entries, whole(entries), job=b"another job")
    assert kinds(proof) == [(Break.CHANGED, 0)]
    assert "job" in proof.findings[0].text


def test_more_findings_than_anybody_reads_are_counted() -> None:
    entries = [seal(b"%016d" % number, raw) for number, raw in enumerate(journal(50))]
    proof = proved(entries)
    assert len(proof.findings) == 20
    assert proof.broken == 50


@pytest.mark.parametrize(
    "change",
    [
        {"state": "failed"}, {"reason": "because"}, {"output": b'"none"'}, {"error": b"{}"}, {"job": b"x"},
        {"agent": "other"}, {"version": "2"}, {"batch": "c"}, {"custom_id": "jd"}, {"parent": RUN},
        {"batch": "batchid", "custom_id": ""},
    ],
)  # fmt: skip
def test_an_outcome_that_was_changed_is_found(change: dict[str, Any]) -> None:
    entries = journal(2)
    assert kinds(proved(entries, end(link_of(entries[-1]), **change))) == [(Break.OUTCOME, None)]


def test_an_end_that_only_an_owner_can_say_needs_a_seal() -> None:
    entries = journal(2)
    anchors = whole(entries)
    bare = Anchors(anchors.head, needs_seal=True, ended=anchors.ended)
    assert kinds(proved(entries, bare)) == [(Break.UNSEALED, None)]
    cancelled = Anchors(anchors.head, ended=anchors.ended and anchors.ended._replace(state="cancelled", reason="asked"))
    proof = proved(entries, cancelled)
    assert proof.holds
    assert proof.notes == ["ended by the store (cancelled: asked): no owner has sealed its end"]


def test_a_head_that_is_no_link_is_no_crash() -> None:
    entries = journal(2)
    for head in ("", "no hex", "00", "00" * 16, "00" * 100):
        broken = dataclasses.replace(whole(entries), head=head)
        assert (Break.OUTCOME, None) in kinds(proved(entries, broken))


def test_an_end_that_was_sealed_without_a_head() -> None:
    """By a host that ended itself and did not know how far the journal had come."""
    start = first_link(RUN, JOB)
    sealed = dataclasses.replace(end(start), head="")
    for count in (0, 3):
        proof = proved(journal(count), sealed)
        assert proof.holds
        assert proof.notes == ["no owner has anchored the head: a tail that was cut off would not be seen"]
    changed = dataclasses.replace(end(start, output=b"2"), head="")
    assert kinds(proved(journal(3), changed)) == [(Break.OUTCOME, None)]
    # Taking away the head of an end that was sealed with it is no way around it.
    assert not proved(journal(2), dataclasses.replace(whole(journal(3)), head="")).holds


def test_only_words_of_people_may_follow_an_anchored_head() -> None:
    entries = journal(3)
    at_rest = Anchors(link_of(entries[-1]).hex(), at_rest=True)
    word = seal(link_of(entries[-1]), entry(3, Kind.RESOLUTION))
    assert proved([*entries, word], at_rest).holds
    step = seal(link_of(entries[-1]), entry(3))
    assert kinds(proved([*entries, step], at_rest)) == [(Break.INSERTED, 3)]
    assert kinds(proved([*entries, word, seal(link_of(word), entry(4))], at_rest)) == [(Break.INSERTED, 4)]


def test_a_run_that_goes_on_may_have_more_than_its_head() -> None:
    entries = journal(5)
    proof = proved(entries, Anchors(link_of(entries[1]).hex()))
    assert proof.holds
    assert proof.anchored == 1
    assert proof.notes == [
        "3 entries came after the head was anchored: that more of them were cut off would not be seen"
    ]
    assert kinds(proved(entries[:1], Anchors(link_of(entries[1]).hex()))) == [(Break.CUT_OFF, None)]
    assert "no owner has anchored" in proved(entries).notes[0]


# Entries from before the chain


def test_entries_of_the_first_version_are_not_chained() -> None:
    old = [encode_entry(msgspec.structs.replace(decode_entry(entry(number)), v=1)) for number in range(2)]
    old = [msgspec.msgpack.encode(msgspec.msgpack.decode(raw)[:10]) for raw in old]
    new = journal(3, link=link_of(old[-1]), first=2)
    proof = proved([*old, *new], Anchors(link_of(new[-1]).hex(), at_rest=True))
    assert proof.holds
    assert (proof.entries, proof.chained) == (5, 3)
    assert "2 entries from before there was a chain" in proof.notes[0]
    assert kinds(proved([*new, *old])) == [(Break.MOVED, 0), (Break.INSERTED, 3), (Break.INSERTED, 4)]
    disguised = encode_entry(msgspec.structs.replace(decode_entry(journal(1)[0]), v=1))
    assert kinds(proved([disguised, *journal(3)[1:]])) == [(Break.CHANGED, 0)]


# Checkpoints


def checkpoint(number: int, before: Sequence[bytes], *, kept: bool) -> bytes:
    facts = encode_checkpoint_facts(CheckpointFacts(link_of(before[-1]).hex(), len(before), kept))
    return seal(link_of(before[-1]), entry(number, Kind.CHECKPOINT, facts=facts))


def test_a_checkpoint_that_kept_the_past_needs_it() -> None:
    past = journal(4)
    mark = checkpoint(1, past, kept=True)
    later = [mark, *journal(2, link=link_of(mark), first=1)]
    proof = proved(later, whole(later), archive=past)
    assert proof.holds
    assert proof.chained == 7
    assert not proof.notes
    for gone in ([], past[:3], past[1:], past[:1] + past[2:]):
        proof = proved(later, whole(later), archive=gone)
        assert not proof.holds
    proof = proved(later, whole(later))
    assert kinds(proof) == [(Break.MISSING, 0)]
    assert "4 entries, kept in the archive" in proof.findings[0].text


def test_a_checkpoint_that_dropped_the_past_proves_from_there_on() -> None:
    past = journal(4)
    mark = checkpoint(1, past, kept=False)
    later = [mark, *journal(2, link=link_of(mark), first=1)]
    proof = proved(later, whole(later))
    assert proof.holds
    assert proof.chained == 3
    assert proof.notes == ["checkpoint 1 has dropped 4 entries before it: proved from there on"]
    state = encode_entry(msgspec.structs.replace(decode_entry(mark), payload=b'"another state"'))
    assert not proved([state, *later[1:]], whole(later)).holds
    assert not proved([later[1], mark, later[2]], whole(later)).holds
    assert not proved([*later, mark], whole(later)).holds
    assert not proved(later, end(link_of(later[-1]), job=b"another job")).holds
    # The head was anchored by a parking before the checkpoint: it cannot be found any more, and it need not be.
    proof = proved(later, Anchors(link_of(past[1]).hex()))
    assert proof.holds
    assert "anchored before checkpoint 1" in proof.notes[-1]


def test_which_entries_make_a_run_keep_its_past() -> None:
    facts = encode_checkpoint_facts(CheckpointFacts("", 1, True))
    dropped = encode_checkpoint_facts(CheckpointFacts("", 1, False))
    cases = [
        (entry(1), False),
        (entry(1, facts=b"{}"), True),
        (entry(1, Kind.RESOLUTION), True),
        (entry(1, Kind.ENDING), True),
        (entry(1, Kind.CHECKPOINT), False),
        (entry(1, Kind.CHECKPOINT, facts=facts), True),
        (entry(1, Kind.CHECKPOINT, facts=dropped), False),
        (entry(1, Kind.CHECKPOINT, facts=b"nonsense"), False),
    ]
    for raw, wanted in cases:
        assert is_of_trail(decode_entry(raw)) is wanted


# Forks

FORK = "00-fedcba987654321001234567"


def forked(source: Chain | None, count: int, *, link: bytes, more: int = 2) -> tuple[list[bytes], dict[str, Any]]:
    """A fork's entries: those of its source, one of which says now whose receipt it was, chained anew; and its own."""
    job = b"the job of a fork"
    taken = [decode_entry(raw) for raw in journal(count)]
    taken = [msgspec.structs.replace(each, facts=b'{"by":"run"}') if each.step == "1" else each for each in taken]
    raws = [*map(encode_entry, taken), *(entry(40 + number) for number in range(more))]
    parting = Parting(RUN, link.hex(), count, source)
    return chained(raws, first_link(FORK, job)), {"run_id": FORK, "job": job, "parting": parting}


def test_a_fork_has_a_chain_of_its_own_and_its_sources_entries() -> None:
    entries = journal(5)
    source = Chain(RUN, JOB, entries[:2], entries[2:])
    own, fork = forked(source, 3, link=link_of(entries[2]))
    proof = proved(own, Anchors(link_of(own[-1]).hex(), at_rest=True), **fork)
    assert proof.holds
    assert proof.chained == 5
    assert proof.notes == [f"forked from run {RUN}: its first 3 entries are that run's"]
    own, fork = forked(source, 0, link=first_link(RUN, JOB))
    assert proved(own, **fork).notes[-1] == f"forked from run {RUN}: it has nothing of it"


def test_a_past_that_the_source_does_not_have_is_found() -> None:
    entries = journal(5)
    own, fork = forked(Chain(RUN, JOB, [], entries), 3, link=link_of(entries[1]))
    assert kinds(proved(own, **fork)) == [(Break.SOURCE, 2)]
    own, fork = forked(Chain(RUN, b"another job", [], journal(5, first=1)), 3, link=link_of(entries[2]))
    assert kinds(proved(own, **fork)) == [(Break.SOURCE, None)]


def test_a_fork_of_a_past_that_is_gone_says_what_it_cannot_prove() -> None:
    entries = journal(5)
    own, fork = forked(None, 3, link=link_of(entries[2]))
    proof = proved(own, **fork)
    assert proof.holds
    assert "cannot be read any more: its first 3 entries are that run's, as its job says" in proof.notes[-1]
    mark = checkpoint(1, entries, kept=False)
    own, fork = forked(Chain(RUN, JOB, [], [mark]), 1, link=link_of(entries[0]))
    proof = proved(own, **fork)
    assert proof.holds
    assert "has dropped that past since: its first entry is that run's" in proof.notes[-1]


def test_a_fork_that_has_dropped_what_it_inherited_is_no_other_fork() -> None:
    entries = journal(5)
    own, fork = forked(Chain(RUN, JOB, [], entries), 3, link=link_of(entries[2]))
    mark = checkpoint(1, own, kept=False)
    proof = proved([mark, *journal(2, link=link_of(mark), first=1)], **fork)
    assert proof.holds, proof.findings
    assert proof.notes[-1] == f"forked from run {RUN}; checkpoint 1 has dropped what it had of that run"


# Anchors that are kept elsewhere


def test_an_anchor_kept_elsewhere_is_found_or_missed() -> None:
    entries = journal(4)
    going_on = proved(entries)
    kept = anchor_of(going_on, None)
    later = [*entries, *journal(2, link=link_of(entries[-1]), first=4)]
    proof = proved(later, whole(later), kept)
    assert proof.holds
    assert "2 entries before its end" in proof.notes[-1]
    sealed = anchor_of(proof, whole(later).ended)
    assert proved(later, whole(later), sealed.upper()).holds
    # Somebody has written everything anew, seal and head included: the record agrees with itself.
    forged = journal(6, first=20)
    assert proved(forged, whole(forged)).holds
    for each in (kept, sealed):
        assert kinds(proved(forged, whole(forged), each)) == [(Break.ANCHOR, None)]
    changed = whole(later).ended
    assert changed is not None
    changed = changed._replace(output=b'"another"')
    redone = Anchors(link_of(later[-1]).hex(), True, True, seal_of_end(link_of(later[-1]), changed), changed)
    assert proved(later, redone).holds
    assert kinds(proved(later, redone, sealed)) == [(Break.ANCHOR, None)]


# Laws


@given(count=st.integers(1, 12), data=st.data())
def test_any_single_change_of_an_entry_is_found(count: int, data: st.DataObject) -> None:
    entries = journal(count)
    place = data.draw(st.integers(0, count - 1))
    raw = bytearray(entries[place])
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    tampered = [*entries[:place], bytes(raw), *entries[place + 1 :]]
    proof = proved(tampered)
    assert not proof.holds
    assert proof.findings[0].place in (place, place + 1)


@given(count=st.integers(1, 12), data=st.data())
def test_any_rewritten_entry_is_found(count: int, data: st.DataObject) -> None:
    """Also one that somebody has written anew and chained, who left the entries after it alone."""
    entries = journal(count)
    place = data.draw(st.integers(0, count - 1))
    link = first_link(RUN, JOB) if place == 0 else link_of(entries[place - 1])
    other = seal(link, entry(place, payload=b'"forged"'))
    assert not proved([*entries[:place], other, *entries[place + 1 :]], whole(entries)).holds


@given(count=st.integers(1, 12), data=st.data())
def test_any_deletion_is_found(count: int, data: st.DataObject) -> None:
    entries = journal(count)
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first + 1, count))
    left = entries[:first] + entries[last:]
    assert proved(left).holds == (last == count)
    assert not proved(left, whole(entries)).holds


@given(count=st.integers(2, 12), data=st.data())
def test_any_other_order_is_found(count: int, data: st.DataObject) -> None:
    entries = journal(count)
    order = data.draw(st.permutations(range(count)))
    assume(list(order) != list(range(count)))
    assert not proved([entries[place] for place in order]).holds


@given(count=st.integers(1, 12), data=st.data())
def test_any_duplicate_is_found(count: int, data: st.DataObject) -> None:
    entries = journal(count)
    place, at = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, count))
    proof = proved([*entries[:at], entries[place], *entries[at:]])
    assert any(finding.what is Break.INSERTED or finding.what is Break.MOVED for finding in proof.findings)


@given(count=st.integers(1, 12), raw=st.binary(max_size=200), data=st.data())
def test_any_insertion_is_found(count: int, raw: bytes, data: st.DataObject) -> None:
    entries = journal(count)
    at = data.draw(st.integers(0, count))
    assert not proved([*entries[:at], raw, *entries[at:]]).holds


@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 10_000))
def test_hands_in_the_archive_are_found_too(sizes: list[int], seed: int) -> None:
    archive: list[bytes] = []
    current = journal(sizes[0])
    for number, size in enumerate(sizes[1:], 1):
        mark = checkpoint(number, current, kept=True)
        archive += current
        current = [mark, *journal(size, link=link_of(mark), first=10 * number)]
    anchors = whole(current)
    assert proved(current, anchors, archive=archive).holds
    draw = random.Random(seed)
    everything = [*archive, *current]
    place = draw.randrange(len(everything))
    act = draw.choice(("delete", "duplicate", "swap"))
    if act == "delete":
        del everything[place]
    elif act == "duplicate":
        everything.insert(draw.randrange(len(everything) + 1), everything[place])
    else:
        other = draw.randrange(len(everything))
        if other == place:
            return
        everything[place], everything[other] = everything[other], everything[place]
    cut = draw.randrange(len(everything) + 1)
    assert not proved(everything[cut:], anchors, archive=everything[:cut]).holds
