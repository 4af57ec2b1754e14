"""What an answer's headers say about when to come again, and what becomes of those that make no sense."""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from datetime import UTC, datetime

import httpx
import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from admission.retry_after import Hint, asked_to_wait

NOW_S = 1_766_000_000.0
MAXIMUM_S = 600.0


def waits(headers: dict[str, str], status: int | None = 429) -> Hint:
    return asked_to_wait(headers, now_epoch_s=NOW_S, maximum_s=MAXIMUM_S, status=status)


def moment(after_s: float) -> str:
    return datetime.fromtimestamp(NOW_S + after_s, UTC).isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": " 0.25 "}, 0.25),
        ({"RETRY-AFTER": "0"}, 0.0),
        ({"Retry-After-Ms": "120"}, 0.12),
        ({"Retry-After": "7", "retry-after-ms": "6500"}, 6.5),
        ({"Retry-After": email.utils.formatdate(NOW_S + 30, usegmt=True)}, 30.0),
        ({"Retry-After": datetime.fromtimestamp(NOW_S + 30, UTC).strftime("%A, %d-%b-%y %H:%M:%S GMT")}, 30.0),
        ({"Retry-After": datetime.fromtimestamp(NOW_S + 30, UTC).strftime("%a %b %d %H:%M:%S %Y")}, 30.0),
        ({"Retry-After": email.utils.formatdate(NOW_S - 0.5, usegmt=True)}, 0.0),
        ({"x-ratelimit-reset-requests": "1s"}, 1.0),
        ({"x-ratelimit-reset-requests": "120ms"}, 0.12),
        ({"x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-tokens": "0h1m2.5s"}, 62.5),
        ({"x-ratelimit-reset-tokens": "9"}, 9.0),
        ({"x-ratelimit-reset-tokens": "500µs"}, 0.0005),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "9s"}, 9.0),
        ({"x-ratelimit-reset-tokens": "9s", "x-ratelimit-reset-requests": "1s"}, 9.0),
        ({"x-ratelimit-reset-requests": "9s", "X-RateLimit-Remaining-Requests": "3"}, None),
        ({"x-ratelimit-reset-requests": "9s", "x-ratelimit-remaining-requests": "0"}, 9.0),
        ({"anthropic-ratelimit-requests-reset": moment(4)}, 4.0),
        ({"anthropic-ratelimit-input-tokens-reset": moment(4), "anthropic-ratelimit-input-tokens-remaining": "0"}, 4.0),
        ({"anthropic-ratelimit-output-tokens-reset": moment(4).replace("Z", "+00:00")}, 4.0),
        ({"anthropic-ratelimit-tokens-reset": moment(4), "anthropic-ratelimit-tokens-remaining": "1000"}, None),
        ({"Retry-After": "2", "x-ratelimit-reset-requests": "9s"}, 2.0),
    ],
)  # fmt: skip
def test_what_is_said_is_read(headers: dict[str, str], seconds: float | None) -> None:
    hint = waits(headers)
    assert hint.warning is None
    assert hint.seconds == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("status", [200, 400, 500, 502, None])
def test_resets_count_only_where_the_answer_says_not_now(status: int | None) -> None:
    assert waits({"x-ratelimit-reset-requests": "9s"}, status) == Hint()
    assert waits({"retry-after": "9", "x-ratelimit-reset-requests": "1s"}, status).seconds == 9


@pytest.mark.parametrize("status", [429, 503, 529])
def test_resets_count_where_it_does(status: int) -> None:
    assert waits({"x-ratelimit-reset-requests": "9s"}, status).seconds == 9


@pytest.mark.parametrize(
    ("headers", "seconds", "named"),
    [
        ({"Retry-After": "-5"}, 0.0, "retry-after '-5' is negative"),
        ({"Retry-After": "1e9"}, None, "retry-after '1e9' is no time"),
        ({"Retry-After": "86400"}, MAXIMUM_S, "retry-after '86400' is longer than the 600 s"),
        ({"Retry-After": "9" * 99}, MAXIMUM_S, "longer than the 600 s"),
        ({"Retry-After": "9" * 400}, None, "is no time"),
        ({"Retry-After": "nan"}, None, "retry-after 'nan'"),
        ({"Retry-After": "Infinity"}, None, "retry-after 'Infinity'"),
        ({"Retry-After": "1_000"}, None, "is no time"),
        ({"Retry-After": "soon"}, None, "retry-after 'soon' is no time: ignored"),
        ({"Retry-After": ""}, None, "retry-after '' is no time"),
        ({"Retry-After": "5, 5"}, None, "retry-after '5, 5'"),
        ({"Retry-After": email.utils.formatdate(NOW_S - 90, usegmt=True)}, 0.0, "90 s in the past"),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, MAXIMUM_S, "longer than"),
        ({"retry-after-ms": "NaN", "Retry-After": "3"}, 3.0, "retry-after-ms 'NaN' is no time"),
        ({"Retry-After": "later", "x-ratelimit-reset-requests": "3s"}, 3.0, "retry-after 'later'"),
        ({"x-ratelimit-reset-tokens": "-3s"}, 0.0, "x-ratelimit-reset-tokens '-3s' is negative"),
        ({"x-ratelimit-reset-tokens": "1 week"}, None, "x-ratelimit-reset-tokens '1 week'"),
        ({"x-ratelimit-reset-requests": "2s", "x-ratelimit-reset-tokens": "x"}, 2.0, "x-ratelimit-reset-tokens 'x'"),
        ({"anthropic-ratelimit-tokens-reset": "yesterday"}, None, "anthropic-ratelimit-tokens-reset 'yesterday'"),
        ({"anthropic-ratelimit-tokens-reset": moment(-60)}, 0.0, "60 s in the past"),
        ({"anthropic-ratelimit-tokens-reset": moment(86_400)}, MAXIMUM_S, "longer than"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(headers: dict[str, str], seconds: float | None, named: str) -> None:
    hint = waits(headers)
    assert hint.seconds == seconds
    assert hint.warning is not None
    assert named in hint.warning
    assert len(hint.warning) < 200


@pytest.mark.parametrize("headers", [httpx.Headers({"RETRY-AFTER": "7"}), httpx2.Headers({"RETRY-AFTER": "7"})])
def test_the_headers_of_http_clients_are_read_as_they_are(headers: Mapping[str, str]) -> None:
    assert asked_to_wait(headers, now_epoch_s=NOW_S, maximum_s=600, status=503) == Hint(7.0)


NAMES = [
    "Retry-After", "retry-after-ms", "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens",
    "x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens", "anthropic-ratelimit-requests-reset",
    "anthropic-ratelimit-input-tokens-reset", "anthropic-ratelimit-input-tokens-remaining",
]  # fmt: skip
numbers = st.one_of(st.floats(), st.integers(), st.integers(-(10**60), 10**60)).map(str)
durations = st.lists(st.tuples(st.integers(0, 10**9), st.sampled_from(["ms", "s", "m", "h", "d", "y", ""]))).map(
    lambda parts: "".join(f"{count}{unit}" for count, unit in parts)
)
dates = st.datetimes().map(lambda at: email.utils.format_datetime(at))
moments = st.one_of(st.datetimes(), st.datetimes(timezones=st.timezones())).map(lambda at: at.isoformat())
values = st.one_of(st.text(), numbers, durations, dates, moments, st.text("0123456789 :-+,.TZGMTJan"))


@given(
    st.dictionaries(st.sampled_from(NAMES), values),
    st.sampled_from([200, 429, 503, 529, None]),
    st.floats(-1e12, 1e12),
    st.floats(0, 1e9),
)
@example({"Retry-After": "Mon, 1 Jan 1 00:00:00 +2359"}, 429, 0.0, 1.0)
def test_whatever_the_headers_hold_the_wait_is_bounded(
    headers: dict[str, str], status: int | None, now_epoch_s: float, maximum_s: float
) -> None:
    hint = asked_to_wait(headers, now_epoch_s=now_epoch_s, maximum_s=maximum_s, status=status)
    assert hint.seconds is None or 0 <= hint.seconds <= maximum_s


@given(st.floats(0, MAXIMUM_S), st.sampled_from(["Retry-After", "x-ratelimit-reset-requests"]))
def test_every_number_within_bounds_is_taken_as_it_is(seconds: float, name: str) -> None:
    hint = waits({name: f"{seconds:.6f}"})
    assert hint.seconds == pytest.approx(seconds, abs=1e-6)
    assert hint.warning is None


@given(st.integers(0, 9), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_durations_add_up(hours: int, minutes: int, seconds: int, milliseconds: int) -> None:
    hint = asked_to_wait(
        {"x-ratelimit-reset-tokens": f"{hours}h{minutes}m{seconds}s{milliseconds}ms"},
        now_epoch_s=NOW_S,
        maximum_s=1e9,
        status=429,
    )
    assert hint.seconds == pytest.approx(hours * 3600 + minutes * 60 + seconds + milliseconds / 1000)
