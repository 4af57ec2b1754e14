"""A host's effective slots: what lag and memory leave of the cap, in virtual time."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from actors.host_slots import LAG_CALM_S, LAG_MOST_S, MEMORY_LEAST_BYTES, STEPS, HostSlots, Memory

GIB = 2**30
KIB = 1024
ROOMY = Memory(100 * 2**20, 12 * GIB, 16 * GIB)
CALM, MIDDLING, LATE = 0.002, (LAG_CALM_S + LAG_MOST_S) / 2, 0.2


def after(slots: HostSlots, windows: int, lag_s: float, busy: int = 0, memory: Memory = ROOMY) -> int:
    for _ in range(windows):
        for _ in range(10):
            slots.measured(lag_s)
        slots.tick(busy, memory)
    return slots.slots


def test_a_calm_host_has_its_cap() -> None:
    slots = HostSlots(2000, ROOMY)
    assert after(slots, 100, CALM, busy=2000) == 2000
    assert slots.limit == "cap"


def test_standing_lag_takes_slots_away_by_a_factor_and_calm_gives_them_back_by_steps() -> None:
    slots = HostSlots(1000, ROOMY)
    assert after(slots, 1, LATE, busy=1000) == 1000  # one window is no standing lag
    assert after(slots, 1, LATE, busy=1000) == 800
    assert after(slots, 1, LATE, busy=900) == 640
    assert (slots.limit, slots.lag_s) == ("lag", LATE)
    assert after(slots, 1, CALM, busy=640) == 660
    assert after(slots, 17, CALM, busy=660) == 1000
    assert slots.limit == "cap"


def test_what_nobody_uses_is_taken_away_at_once() -> None:
    assert after(HostSlots(2000, ROOMY), 2, LATE, busy=100) == 80


def test_between_calm_and_late_nothing_changes() -> None:
    slots = HostSlots(1000, ROOMY)
    after(slots, 2, LATE, busy=1000)
    assert after(slots, 50, MIDDLING, busy=800) == 800
    # Late windows count when they follow each other.
    for _ in range(10):
        after(slots, 1, LATE, busy=800)
        after(slots, 1, MIDDLING, busy=800)
    assert slots.slots == 800


def test_a_moment_of_blocking_is_no_standing_lag() -> None:
    slots = HostSlots(100, ROOMY)
    for _ in range(20):
        for lag_s in (0.9, 0.3, *[CALM] * 5):
            slots.measured(lag_s)
        slots.tick(100, ROOMY)
    assert slots.slots == 100


def test_a_loop_that_stood_still_tells_nothing_until_it_moves() -> None:
    slots = HostSlots(100, ROOMY)
    for _ in range(3):
        slots.measured(5.0)
        slots.tick(100, ROOMY)
    assert slots.lag_s == 5.0
    assert slots.slots == 100


def test_never_below_one_and_back_from_there() -> None:
    slots = HostSlots(2000, ROOMY)
    assert after(slots, 100, LATE, busy=2000) == 1
    assert after(slots, STEPS, CALM) == 2000
    small = HostSlots(1, ROOMY)
    assert after(small, 10, LATE, busy=1) == 1


def test_slots_follow_the_room_that_memory_has() -> None:
    slots = HostSlots(200, Memory(100 * 2**20, 2 * GIB, 4 * GIB))
    # 100 runs take 1 MiB each; what is above the reserve (a tenth of all) is room for 50 more.
    full = Memory(200 * 2**20, 4 * GIB // 10 + 50 * 2**20, 4 * GIB)
    limits = [after(slots, 1, CALM, busy=100, memory=full) for _ in range(40)]
    assert 150 <= limits[-1] <= 155
    assert slots.limit == "memory"
    assert after(slots, 60, CALM, busy=100, memory=ROOMY) == 200


def test_what_a_process_keeps_of_its_past_is_not_taken_for_its_runs() -> None:
    slots = HostSlots(2000, Memory(100 * 2**20, 4 * GIB, 4 * GIB))
    assert after(slots, 100, CALM, busy=10, memory=Memory(500 * 2**20, 3 * GIB, 4 * GIB)) == 2000


def test_without_memory_slots_are_taken_away_whatever_the_lag() -> None:
    slots = HostSlots(200, ROOMY)
    short = Memory(100 * 2**20, MEMORY_LEAST_BYTES - 1, 16 * GIB)
    assert after(slots, 2, CALM, busy=200, memory=short) == 160
    assert after(slots, 50, CALM, busy=160, memory=short) == 1
    assert slots.limit == "memory"
    # Enough to keep what is there, and not enough for more.
    narrow = Memory(100 * 2**20, int(MEMORY_LEAST_BYTES * 1.2), 16 * GIB)
    assert after(slots, 10, CALM, busy=1, memory=narrow) == 1
    assert after(slots, 10, CALM, busy=1) == 41


def test_the_runs_of_a_deployment_under_load_settle_where_the_lag_is_bearable() -> None:
    """A loop whose lag is a tenth of a millisecond for each run."""
    slots = HostSlots(2000, ROOMY)
    seen = [after(slots, 1, slots.slots * 1e-4, busy=slots.slots) for _ in range(200)]
    assert all(200 <= each <= 500 for each in seen[50:])
    assert seen[-50:].count(seen[-1]) == 50  # between calm and late it rests


_MEMORY = st.builds(
    Memory, st.integers(10 * 2**20, 8 * GIB), st.integers(0, 16 * GIB), st.just(16 * GIB)
)  # fmt: skip


@given(
    st.integers(1, 5000),
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 11), st.integers(0, 6000), _MEMORY), max_size=60),
)
def test_whatever_happens_slots_are_between_one_and_the_cap(
    cap: int, windows: Iterable[tuple[float, int, int, Memory]]
) -> None:
    slots = HostSlots(cap, ROOMY)
    for lag_s, samples, busy, memory in windows:
        before = slots.slots
        for _ in range(samples):
            slots.measured(lag_s)
        slots.tick(busy, memory)
        assert 1 <= slots.slots <= cap
        assert slots.slots <= before + -(-cap // STEPS)
    # It recovers from anything, once it has forgotten how large its runs were.
    assert after(slots, 2 * STEPS, 0.0) == cap
