"""The run engine's pure core: step paths, replay, outcomes, parking."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.core.identity import Scope, idempotency_key
from actors.core.outcome import Decision, GiveUp, Risk, TryAgain, Unknown, after_crash, after_failure
from actors.core.parking import Parking, Wait, parking
from actors.core.replay import Asked, Divergence, Replay
from actors.journal import ENTRY_VERSION, Entry, Kind, Status, decode_entry, encode_entry
from admission.retry import FailureClass, RetryPolicy

# A task: what it does in order, a step (an int, which stands for its arguments) or a task that it starts.
Plan = list["int | Plan"]
plans: st.SearchStrategy[Plan] = st.recursive(
    st.lists(st.integers(0, 3), max_size=4),
    lambda inner: st.lists(st.integers(0, 3) | inner, max_size=5),
    max_leaves=12,
)


def entry(kind: Kind, step: str, name: str = "n", digest: bytes = b"d", status: Status = Status.OK) -> Entry:
    return Entry(ENTRY_VERSION, kind.value, step, name, digest, status.value, b"", 1, 0, 0)


def call(step: str, digest: bytes = b"d") -> Entry:
    return entry(Kind.CALL, step, digest=digest)


ASKED = Asked(Kind.CALL, "n", b"d")


# -------------------------------------------------------------------------------------------------------- step paths


def walk(plan: Plan, draw: st.DataObject) -> dict[tuple[int, ...], str]:
    """Plays tasks in an order that is drawn anew; paths of steps by their place in the plan."""
    paths: dict[tuple[int, ...], str] = {}

    def task(scope: Scope, todo: Plan, place: tuple[int, ...]) -> Iterator[tuple[Scope, Plan, tuple[int, ...]] | None]:
        for number, what in enumerate(todo):
            here = (*place, number)
            if isinstance(what, int):
                paths[here] = scope.next_step()
                yield None
            else:
                yield scope.branch(object()), what, here

    running = [task(Scope(object()), plan, ())]
    while running:
        which = draw.draw(st.integers(0, len(running) - 1), "who goes on")
        try:
            started = next(running[which])
        except StopIteration:
            del running[which]
        else:
            if started is not None:
                running.append(task(*started))
    return paths


@given(plans, st.data())
def test_paths_do_not_depend_on_who_is_faster(plan: Plan, data: st.DataObject) -> None:
    first, second = walk(plan, data), walk(plan, data)
    assert first == second
    assert len(set(first.values())) == len(first)


def test_paths_are_numbered_as_the_code_asks() -> None:
    root = Scope(1)
    assert [root.next_step(), root.next_step()] == ["0", "1"]
    left, right = root.branch(2), root.branch(3)
    assert [right.next_step(), left.next_step(), root.next_step()] == ["b1.0", "b0.0", "2"]
    assert left.branch(4).next_step() == "b0.b0.0"
    assert Scope(1, None, "c3.").branch(2).next_step() == "c3.b0.0"
    assert (left.owner, root.owner) == (2, 1)


@given(st.lists(st.tuples(st.text(), st.text(), st.text(), st.binary()), unique=True, min_size=2, max_size=5))
def test_idempotency_keys_are_stable_and_unique(parts: list[tuple[str, str, str, bytes]]) -> None:
    keys = [idempotency_key(*each) for each in parts]
    assert len(set(keys)) == len(parts)
    assert keys == [idempotency_key(*each) for each in parts]


# ------------------------------------------------------------------------------------------------------------ replay


@given(plans, st.data())
def test_branches_replay_in_any_order(plan: Plan, data: st.DataObject) -> None:
    """Recorded as steps ended in one order, asked for in another one; what was not recorded is new ground."""
    paths = list(walk(plan, data).values())
    recorded = data.draw(st.permutations(paths))
    known = data.draw(st.integers(0, len(recorded)))
    replay = Replay(call(path, path.encode()) for path in recorded[:known])
    for path in data.draw(st.permutations(paths)):
        found = replay.ask(path, Asked(Kind.CALL, "n", path.encode()))
        assert (found is not None) == (path in recorded[:known])
        assert found is None or found.step == path
    assert not replay
    replay.verify_end()


@pytest.mark.parametrize(
    "asked", [Asked(Kind.TIMER, "n", b"d"), Asked(Kind.CALL, "other", b"d"), Asked(Kind.CALL, "n", b"e")]
)
def test_another_kind_name_or_argument_is_a_divergence(asked: Asked) -> None:
    with pytest.raises(Divergence, match=r"step 3: the journal has call n \(64\), the code now asks for") as caught:
        Replay([call("3")]).ask("3", asked)
    assert (caught.value.step, caught.value.recorded, caught.value.asked) == ("3", ASKED, asked)


@given(st.sets(st.integers(0, 9), min_size=1), st.data())
def test_a_step_that_is_not_asked_for_again_is_a_divergence(steps: set[int], data: st.DataObject) -> None:
    missing = data.draw(st.sampled_from(sorted(steps)))
    replay = Replay(call(str(step)) for step in sorted(steps))
    for step in steps - {missing}:
        assert replay.ask(str(step), ASKED) is not None
    with pytest.raises(Divergence, match="ended without asking for it") as caught:
        replay.verify_end()
    assert (caught.value.step, caught.value.asked) == (str(missing), None)


def test_a_step_is_answered_once() -> None:
    replay = Replay([call("0")])
    assert replay.ask("0", ASKED) is not None
    assert replay.ask("0", ASKED) is None


def test_the_later_entry_of_a_step_closes_the_earlier_one() -> None:
    intent = entry(Kind.INTENT, "0", status=Status.OPEN)
    still_open = Replay([intent])
    assert still_open.open_effect() == intent
    still_open.verify_end()
    assert still_open.ask("0", ASKED) == intent
    assert still_open.open_effect() is None
    closed = Replay([intent, call("1"), call("0")])
    assert closed.open_effect() is None
    assert closed.ask("0", ASKED) == call("0")
    child = Replay([entry(Kind.CHILD, "2", status=Status.OPEN), entry(Kind.CHILD, "2", status=Status.FAILED)])
    found = child.ask("2", Asked(Kind.CHILD, "n", b"d"))
    assert found is not None
    assert found.status == Status.FAILED


@given(st.integers(0, 5), st.integers(0, 5))
def test_a_checkpoint_drops_the_past(before: int, after: int) -> None:
    past = [call(str(step)) for step in range(before)]
    later = [call(f"c1.{step}") for step in range(after)]
    replay = Replay([*past, entry(Kind.CHECKPOINT, "1"), *later])
    assert replay.checkpoint == entry(Kind.CHECKPOINT, "1")
    assert bool(replay) == bool(after)
    assert all(replay.ask(str(step), ASKED) is None for step in range(before))
    assert all(replay.ask(f"c1.{step}", ASKED) is not None for step in range(after))
    replay.verify_end()


@given(
    st.builds(
        Entry, st.just(ENTRY_VERSION), st.sampled_from([kind.value for kind in Kind]), st.text(), st.text(),
        st.binary(), st.sampled_from([status.value for status in Status]), st.binary(),
        st.integers(0, 2**31), st.integers(0, 2**53), st.integers(0, 2**53),
    )
)  # fmt: skip
def test_entries_come_back_as_they_went(written: Entry) -> None:
    assert decode_entry(encode_entry(written)) == written


def test_entries_of_a_newer_version_and_garbage_are_refused() -> None:
    newer = encode_entry(Entry(ENTRY_VERSION + 1, "call", "0", "n", b"", "ok", b"", 1, 0, 0))
    with pytest.raises(ValueError, match="update it"):
        decode_entry(newer)
    for garbage in (b"", b"\xc1", encode_entry(call("0"))[:-1], b"\x93\x01\x02\x03"):
        with pytest.raises(ValueError, match="not a journal entry"):
            decode_entry(garbage)


# ---------------------------------------------------------------------------------------------------------- outcomes


def decide(
    failure: FailureClass, risk: Risk, *, idempotent: bool, before: bool, last: bool, elapsed: float = 0.0
) -> Decision:
    policy = RetryPolicy(maximum_attempts=3)
    return after_failure(
        failure,
        risk=risk,
        idempotent=idempotent,
        ambiguous_before=before,
        attempt=3 if last else 1,
        elapsed=elapsed,
        policy=policy,
        draw=0.5,
    )


N, A, R = FailureClass.NOT_APPLIED, FailureClass.AMBIGUOUS, FailureClass.REJECTED
# (failure, ambiguous before) → what follows while attempts are left, and after the last one.
HARMLESS = {
    (N, False): (TryAgain, GiveUp), (N, True): (TryAgain, GiveUp),
    (A, False): (TryAgain, GiveUp), (A, True): (TryAgain, GiveUp),
    (R, False): (GiveUp, GiveUp), (R, True): (GiveUp, GiveUp),
}  # fmt: skip
PLAIN_EFFECT = {
    (N, False): (TryAgain, GiveUp), (N, True): (Unknown, Unknown),
    (A, False): (Unknown, Unknown), (A, True): (Unknown, Unknown),
    (R, False): (GiveUp, GiveUp), (R, True): (Unknown, Unknown),
}  # fmt: skip
IDEMPOTENT_EFFECT = {
    (N, False): (TryAgain, GiveUp), (N, True): (TryAgain, Unknown),
    (A, False): (TryAgain, Unknown), (A, True): (TryAgain, Unknown),
    (R, False): (GiveUp, GiveUp), (R, True): (GiveUp, GiveUp),
}  # fmt: skip


@pytest.mark.parametrize(("risk", "idempotent"), list(itertools.product(Risk, (False, True))))
def test_the_whole_table_of_decisions(risk: Risk, idempotent: bool) -> None:
    table = HARMLESS if risk < Risk.WRITE else IDEMPOTENT_EFFECT if idempotent else PLAIN_EFFECT
    assert risk.is_effect == (risk >= Risk.WRITE)
    for (failure, before), wanted in table.items():
        for last in (False, True):
            said = decide(failure, risk, idempotent=idempotent, before=before, last=last)
            assert type(said) is wanted[last], (failure, before, last)


@given(
    st.sampled_from(FailureClass), st.sampled_from(Risk), st.booleans(), st.booleans(), st.integers(1, 12),
    st.floats(0, 100), st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_what_must_never_be_decided(
    failure: FailureClass, risk: Risk, idempotent: bool, before: bool, attempt: int, elapsed: float, draw: float
) -> None:
    said = after_failure(
        failure, risk=risk, idempotent=idempotent, ambiguous_before=before, attempt=attempt, elapsed=elapsed,
        policy=RetryPolicy(maximum_attempts=6), draw=draw,
    )  # fmt: skip
    effect, ambiguous = risk.is_effect, failure is A or before
    answered = failure is R and idempotent
    if effect and ambiguous and not idempotent:
        assert isinstance(said, Unknown)
    if effect and ambiguous and not answered:
        assert not isinstance(said, GiveUp)
    if not effect:
        assert not isinstance(said, Unknown)
    if failure is R or attempt >= 6 or elapsed > 60:
        assert not isinstance(said, TryAgain)


def test_after_a_crash_only_an_idempotent_effect_goes_out_again() -> None:
    assert after_crash(idempotent=True) == TryAgain(0.0)
    assert isinstance(after_crash(idempotent=False), Unknown)


# ----------------------------------------------------------------------------------------------------------- parking

NOW = 1_000_000
waits = st.lists(
    st.builds(Wait, st.none(), st.integers(NOW - 5000, NOW + 10_000), st.sampled_from(["timer", "breaker openai"]))
    | st.builds(Wait, st.text(min_size=1), st.none()),
    max_size=6,
)


@given(waits, st.integers(0, 2), st.integers(0, 3000))
def test_a_run_is_unloaded_when_all_it_does_is_wait_for_long(found: list[Wait], active: int, worth_ms: int) -> None:
    said = parking(found, active_steps=active, now_ms=NOW, worth_ms=worth_ms)
    dues = [wait.due_ms for wait in found if wait.due_ms is not None]
    children = tuple(wait.child for wait in found if wait.child is not None)
    if active or not found or (dues and min(dues) <= NOW + worth_ms):
        assert said is None
    else:
        first = min((wait for wait in found if wait.child is None), key=lambda wait: wait.due_ms or 0, default=None)
        reason = "child" if children or first is None else first.reason
        assert said == Parking(reason, min(dues, default=None), children)
