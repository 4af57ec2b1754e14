"""What a fork takes over of a past: laws over any journal, and the cases that have a name."""

from __future__ import annotations

import msgspec
import pytest
from family import call, chained, effect, entry, intent, is_chained
from hypothesis import given
from hypothesis import strategies as st

from actors.core.forking import NOW, START, NoForkPoint, fork_point
from actors.core.replay import Replay
from actors.journal import Entry, Kind, Status, decode_entry, encode_entry, first_link, is_intent, link_of
from actors.receipts import decode_receipt

SOURCE = "00-0123456789abcdef01234567"
FIRST = first_link(SOURCE, b"job")


def steps_of(raws: tuple[bytes, ...]) -> list[str]:
    return [decode_entry(raw).step for raw in raws]


def kept(journal: list[bytes], at: str, archive: list[bytes] | None = None) -> list[str]:
    point = fork_point(SOURCE, archive or [], journal, at)
    return steps_of(point.archive) + steps_of(point.journal)


def test_everything_that_was_recorded_before_the_step_is_kept_and_nothing_after_it() -> None:
    journal = [call("0"), *effect("1"), call("b0.0"), call("b1.0"), call("b0.1"), call("2")]
    assert kept(journal, "b0.1") == ["0", "1", "1", "b0.0", "b1.0"]
    assert kept(journal, "1") == ["0"]
    assert kept(journal, "0") == []
    assert kept(journal, START) == []
    assert kept([*journal, intent("b0.2")], NOW) == ["0", "1", "1", "b0.0", "b1.0", "b0.1", "2"]
    assert kept([], NOW) == []


def test_a_step_that_is_under_way_stays_with_the_source() -> None:
    child = entry(Kind.CHILD, "b1.0", Status.OPEN)
    journal = [intent("b0.0"), child, call("b2.0"), call("b2.1"), call("b0.0", applied=True), entry(Kind.CHILD, "b1.0")]
    point = fork_point(SOURCE, [], journal, "b2.1")
    assert steps_of(point.journal) == ["b2.0"]
    assert point.left_open == ("b0.0", "b1.0")
    assert kept([*journal, call("3")], "3") == ["b0.0", "b1.0", "b2.0", "b2.1", "b0.0", "b1.0"]


def test_a_child_that_had_ended_is_kept_with_its_result() -> None:
    journal = [entry(Kind.CHILD, "0", Status.OPEN, b"id"), entry(Kind.CHILD, "0", payload=b'"done"'), call("1")]
    point = fork_point(SOURCE, [], journal, "1")
    assert [decode_entry(raw).payload for raw in point.journal] == [b"id", b'"done"']


def test_timers_and_values_are_kept_though_nothing_closes_them() -> None:
    journal = [entry(Kind.TIMER, "0", Status.OPEN, b"123"), entry(Kind.VALUE, "1"), call("2")]
    point = fork_point(SOURCE, [], journal, "2")
    assert steps_of(point.journal) == ["0", "1"]
    assert point.left_open == ()


def test_a_denial_is_part_of_the_past() -> None:
    asked, denied = entry(Kind.APPROVAL, "1!approval", Status.OPEN), entry(Kind.APPROVAL, "1!approval", Status.FAILED)
    journal = [call("0"), asked, denied, call("2"), call("3")]
    assert kept(journal, "3") == ["0", "1!approval", "2"]
    assert fork_point(SOURCE, [], journal, "3").left_open == ()
    assert kept(journal, "1") == ["0"]


@pytest.mark.parametrize("status", [Status.OPEN, Status.OK])
def test_an_approval_is_kept_only_with_the_action_that_used_it(status: Status) -> None:
    approval = entry(Kind.APPROVAL, "1!approval", status)
    journal = [call("0"), approval, call("b0.0"), *effect("1"), call("2")]
    assert kept(journal, "2") == ["0", "1!approval", "b0.0", "1", "1"]
    # Void on a fork: the approval is the step's first entry, so that forking there is forking before it.
    assert kept(journal, "1") == ["0"]
    assert kept([call("0"), approval, call("b0.0"), call("b0.1"), *effect("1")], "b0.1") == ["0", "b0.0"]
    assert fork_point(SOURCE, [], [approval, call("b0.0"), *effect("1")], "b0.0").left_open == ("1",)


def test_an_effect_that_a_person_has_settled_is_whole_only_with_its_call() -> None:
    word = entry(Kind.RESOLUTION, "0", payload=b'{"applied":true,"by":"ann"}')
    assert kept([intent("0"), word, call("b0.0")], "b0.0") == []
    assert kept([intent("0"), word, call("0", applied=True), call("1")], "1") == ["0", "0", "0"]


def test_an_intent_that_was_taken_back_is_no_effect() -> None:
    withdrawn = [intent("0"), entry(Kind.CALL, "0", Status.OPEN, b"{}")]
    assert kept([*withdrawn, call("b0.0")], "b0.0") == []
    assert kept([*withdrawn, *effect("0"), call("1")], "1") == ["0"] * 4


def test_checkpoints_part_the_archive_from_the_journal() -> None:
    archive = [*effect("0"), entry(Kind.CHECKPOINT, "1", name="checkpoint"), call("c1.0")]
    journal = [entry(Kind.CHECKPOINT, "2", name="checkpoint"), call("c2.0"), call("c2.1")]
    late = fork_point(SOURCE, archive, journal, "c2.1")
    assert (steps_of(late.archive), steps_of(late.journal)) == (["0", "0", "1", "c1.0"], ["2", "c2.0"])
    early = fork_point(SOURCE, archive, journal, "c1.0")
    assert (steps_of(early.archive), steps_of(early.journal)) == (["0", "0"], ["1"])
    first = fork_point(SOURCE, archive, journal, "0")
    assert (first.archive, first.journal) == ((), ())
    # A checkpoint's number is no step.
    with pytest.raises(NoForkPoint, match="no step '1'"):
        fork_point(SOURCE, archive, journal, "1")


def test_steps_that_are_not_there_are_told_with_those_that_are() -> None:
    journal = [call("0"), call("b0.0"), call("b0.1"), call("1")]
    with pytest.raises(NoForkPoint, match=r"no step 'b0\.7'.*did you mean b0\.[01]"):
        fork_point(SOURCE, [], journal, "b0.7")
    with pytest.raises(NoForkPoint, match=r"it has 0, b0\.0, b0\.1, 1; or 'start', or 'now'"):
        fork_point(SOURCE, [], journal, "zzzzzzzz")
    with pytest.raises(NoForkPoint, match="steps before its last checkpoint are not kept"):
        fork_point(SOURCE, [], [entry(Kind.CHECKPOINT, "1"), call("c1.0")], "0")
    with pytest.raises(NoForkPoint, match="no recorded steps"):
        fork_point(SOURCE, [], [], "0")
    with pytest.raises(NoForkPoint, match="fork at step 0"):
        fork_point(SOURCE, [], [entry(Kind.APPROVAL, "0!approval")], "0!approval")


def test_a_past_that_was_undone_is_none_to_go_on_from() -> None:
    ending = entry(Kind.ENDING, "end", payload=b"{}")
    journal = [call("0"), *effect("1"), call("2"), ending, *effect("1!undo", undoes="1")]
    with pytest.raises(NoForkPoint, match="the effect of step 1 was undone later, by step 1!undo: fork at step 1"):
        fork_point(SOURCE, [], journal, "2")
    assert kept(journal, "1") == ["0"]
    with pytest.raises(NoForkPoint, match="had come to its end"):
        fork_point(SOURCE, [], journal, "1!undo")
    failed = [*journal[:-1], call("1!undo", Status.FAILED)]
    assert kept(failed, "2") == ["0", "1", "1"]
    with pytest.raises(NoForkPoint, match="no step 'end'"):
        fork_point(SOURCE, [], journal, "end")


def test_receipts_say_whose_they_were_first() -> None:
    journal = [*effect("0"), call("1")]
    (_, inherited) = fork_point(SOURCE, [], journal, "1").journal
    receipt = decode_receipt(decode_entry(inherited).facts)
    assert (receipt.state, receipt.by, receipt.evidence) == ("applied", f"run {SOURCE}", {"id": "0"})
    other = SOURCE.replace("00-", "01-")
    (_, again) = fork_point(other, [], [intent("0"), inherited, call("1")], "1").journal
    assert again == inherited


def test_entries_of_version_1_can_be_chained_too() -> None:
    old = decode_entry(call("0"))
    raw = msgspec.msgpack.encode([1, *msgspec.structs.astuple(old)[1:10]])
    sealed = fork_point(SOURCE, [], [raw, call("1")], "1").sealed(FIRST)
    assert is_chained(FIRST, sealed.journal)
    assert decode_entry(sealed.journal[0]).payload == old.payload


@given(kind=st.sampled_from(list(Kind)), step=st.text(max_size=40), payload=st.binary(max_size=300))
def test_intents_are_known_without_decoding(kind: Kind, step: str, payload: bytes) -> None:
    raw = encode_entry(Entry(2, kind, step, "intent", b"", Status.OPEN, payload, 0, 0, 0))
    assert is_intent(raw) == (kind is Kind.INTENT)


@st.composite
def journals(draw: st.DrawFn) -> list[bytes]:
    """What engines write: steps of several tasks, each opened and closed in its own time, or left open."""
    steps = draw(st.lists(st.sampled_from(["call", "effect", "child", "timer", "value", "approved"]), max_size=8))
    queues: list[list[bytes]] = []
    for number, kind in enumerate(steps):
        step = f"b{number % 3}.{number}"
        parts = {
            "call": [call(step)],
            "effect": effect(step),
            "child": [entry(Kind.CHILD, step, Status.OPEN), entry(Kind.CHILD, step)],
            "timer": [entry(Kind.TIMER, step, Status.OPEN)],
            "value": [entry(Kind.VALUE, step)],
            "approved": [entry(Kind.APPROVAL, f"{step}!approval"), *effect(step)],
        }[kind]
        queues.append(parts[: draw(st.integers(1, len(parts)))])
    written: list[bytes] = []
    while any(queues):
        queue = draw(st.sampled_from([queue for queue in queues if queue]))
        written.append(queue.pop(0))
    return chained(FIRST, written)


@given(journals(), st.data())
def test_a_fork_has_whole_steps_in_their_order_and_a_chain_of_its_own(
    journal: list[bytes], data: st.DataObject
) -> None:
    entries = [decode_entry(raw) for raw in journal]
    steps = sorted({each.step for each in entries if "!" not in each.step})
    if not steps:
        return
    at = data.draw(st.sampled_from(steps))
    point = fork_point(SOURCE, [], journal, at)
    position = next(n for n, each in enumerate(entries) if each.step in (at, f"{at}!approval"))
    mine = [decode_entry(raw) for raw in point.journal]
    bare = [msgspec.structs.replace(each, facts=b"", chain=b"") for each in entries[:position]]
    found = [msgspec.structs.replace(each, facts=b"", chain=b"") for each in mine]
    # A part of what came before, in its order.
    rest = iter(bare)
    assert all(each in rest for each in found)
    # No step that the code will find half done: it is either closed, or not there at all.
    replay = Replay(mine)
    assert replay.open_effect() is None
    for each in mine:
        assert each.status != Status.OPEN or each.kind == Kind.TIMER or each.step not in point.left_open
    closed = {each.step for each in mine if each.kind in (Kind.CALL, Kind.CHILD)}
    for each in entries[:position]:
        if each.kind in (Kind.CALL, Kind.CHILD) and each.status != Status.OPEN:
            assert each.step in closed
    assert not {step.removesuffix("!approval") for step in point.left_open} & closed
    # Its chain is its own, and names the place where it parted.
    first = first_link("00-fork", b"its job")
    assert is_chained(first, point.sealed(first).journal)
    assert point.link == (link_of(journal[position - 1]) if position else None)
    # Forking the fork where it was forked gives the same again.
    assert steps_of(fork_point("fork", [], [*point.journal, call(at)], at).journal) == [each.step for each in mine]
