"""A host's gate that no hub answers: it lives on a safe share, and on nothing where it has none."""

from __future__ import annotations

import math

from gates import gate_with, passed
from hypothesis import given
from hypothesis import strategies as st

from admission.gate import Gate


@given(rate=st.floats(0.2, 50), span_s=st.floats(1, 60), step_s=st.floats(0.01, 2))
def test_a_safe_share_is_not_exceeded(rate: float, span_s: float, step_s: float) -> None:
    gate = gate_with(40.0, safe={"requests": rate})
    now, count = 0.0, 0
    while passed(gate, now):
        count += 1
    assert count == 40
    count = 0
    while now < span_s:
        now += step_s
        gate.live_safely(now)
        while passed(gate, now):
            count += 1
    assert count <= rate * (now - 1.0 + 0.25) + 1e-6
    assert gate.is_safe_mode or now < 1
    if step_s <= 0.25 and span_s > 10 and rate > 1:
        assert count >= 0.45 * rate * (now - 1.5) - 1


def test_who_never_had_a_lease_or_a_share_lives_on_nothing() -> None:
    gate = Gate("h", 0.0)
    gate.live_safely(10.0)
    assert passed(gate, 10.0) is None
    gate = gate_with(5.0)
    for now in (1.0, 2.0, 30.0):
        gate.live_safely(now)
        assert passed(gate, now) is None


def test_an_open_breaker_stays_open_and_places_stay_without_a_hub() -> None:
    gate = gate_with(5.0, state="open", not_before_s=math.inf, safe={"requests": 9.0})
    gate.live_safely(9.0)
    assert passed(gate, 9.0) is None
    gate = gate_with(None, concurrency=1)
    gate.live_safely(9.0)
    assert passed(gate, 9.0) is not None
    assert passed(gate, 9.1) is None
