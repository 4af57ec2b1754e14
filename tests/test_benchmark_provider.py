"""The benchmarks' provider, its client and its callers: what they count is evidence, so it is tested like the rest."""

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hosting import Spine, output, spine, until
from hypothesis import given
from hypothesis import strategies as st

from actors.contract import ToolCall
from actors.errors import Ambiguous, NotApplied, RateLimited, Rejected
from actors.registry import load_app
from benchmarks import dependency_agents as agents
from benchmarks.dependency_agents import Calls, Made, Permits, caller
from benchmarks.provider import analysis
from benchmarks.provider.arrivals import Arrival, Arrivals, decode_arrivals
from benchmarks.provider.conduct import NS, Conduct, Mode, Quota, Window, duration
from benchmarks.provider.running import RunningProvider, running_provider
from benchmarks.provider_client import Answer, ProviderClient, client

ROOT = Path(__file__).parents[1]
MS = 1_000_000


@pytest.fixture(scope="module")
def shared() -> Iterator[RunningProvider]:
    with running_provider() as provider:
        yield provider


@pytest.fixture
def provider(shared: RunningProvider, monkeypatch: pytest.MonkeyPatch) -> RunningProvider:
    """A provider that works, has no arrivals yet and is the one in the environment."""
    for name, value in shared.environment.items():
        monkeypatch.setenv(name, value)
    shared.set_mode()
    shared.forget()
    return shared


@pytest.fixture
async def calls(provider: RunningProvider) -> AsyncIterator[ProviderClient]:
    """The client that tools of this loop use too."""
    made = client()
    yield made
    made.close()


def arrival(at_ns: int, ended_ns: int = 0, status: int = 200, retry_after_s: float = 0.0) -> Arrival:
    return Arrival(at_ns, ended_ns, status, "a", 1, 0, "normal", retry_after_s)


# ---------------------------------------------------------------------------------------------------- what they say

moments = st.lists(st.integers(0, 5 * NS), max_size=60).map(sorted)
spans = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=30)


@given(moments, st.integers(1, 3 * NS))
def test_the_worst_window_is_that_of_all_windows(found: list[int], window_ns: int) -> None:
    by_hand = max((sum(start <= other < start + window_ns for other in found) for start in found), default=0)
    assert analysis.worst_window(found, window_ns / NS) == by_hand


@given(st.lists(st.tuples(st.integers(0, 5 * NS), st.integers(0, 99)), max_size=40).map(sorted))
def test_the_worst_window_counts_weights(found: list[tuple[int, int]]) -> None:
    at, tokens = [each[0] for each in found], [each[1] for each in found]
    by_hand = max((sum(n for other, n in found if start <= other < start + NS) for start in at), default=0)
    assert analysis.worst_window(at, 1.0, tokens) == by_hand


@given(spans)
def test_maximum_concurrency_is_that_of_all_moments(found: list[tuple[int, int]]) -> None:
    rows = sorted(arrival(begin + 1, begin + 1 + length) for begin, length in found)
    by_hand = max((sum(row.at_ns <= at < row.ended_ns for row in rows) for at in range(100)), default=0)
    assert analysis.maximum_concurrency(rows) == by_hand
    for at in (1, 20, 50):
        assert analysis.under_way_at(rows, at) == sum(row.at_ns <= at < row.ended_ns for row in rows)


def test_what_has_not_ended_is_under_way() -> None:
    rows = [arrival(10), arrival(20, 30), arrival(40)]
    assert analysis.maximum_concurrency(rows) == 2
    assert [analysis.under_way_at(rows, at) for at in (5, 10, 25, 30, 99)] == [0, 1, 2, 1, 2]


def test_use_of_a_limit_and_calls_per_second() -> None:
    found = [NS * second // 10 for second in range(40)]
    assert analysis.share_used(found, 10, 1.0, 0, 4 * NS) == 1.0
    assert analysis.share_used(found, 600, 60.0, NS, 3 * NS) == 1.0
    assert analysis.share_used(found, 20, 1.0, 2 * NS, 6 * NS) == 0.25
    assert analysis.per_second(found, NS, 4 * NS + 5) == [10, 10, 10]
    assert analysis.per_second(found, 3 * NS, 6 * NS) == [10, 0, 0]
    with pytest.raises(ValueError, match="empty"):
        analysis.share_used(found, 10, 1.0, NS, NS)


def test_what_came_after_a_moment_and_what_was_let_through() -> None:
    rows = [arrival(10), arrival(20, status=429), arrival(30, status=500), arrival(40, status=503), arrival(50, 60, 0)]
    assert analysis.moments(analysis.after(rows, 20)) == [30, 40, 50]
    assert analysis.moments(analysis.let_through(rows)) == [10, 30, 50]


def test_calls_that_did_not_wait_for_a_retry_after() -> None:
    rows = [
        arrival(1 * NS),
        arrival(2 * NS, status=429, retry_after_s=2.0),
        arrival(2 * NS + 5 * MS, status=429, retry_after_s=1.995),
        arrival(3 * NS),
        arrival(4 * NS),
        arrival(5 * NS, status=429, retry_after_s=1.0),
        arrival(6 * NS),
    ]
    assert analysis.moments(analysis.before_retry_after(rows)) == [2 * NS + 5 * MS, 3 * NS]
    assert analysis.moments(analysis.before_retry_after(rows, grace_s=0.01)) == [3 * NS]


def test_arrivals_survive_the_way() -> None:
    kept = Arrivals()
    numbers = [kept.add(at, 429, f"h{at % 2}", at, 7, "high", 1500) for at in range(5)]
    kept.ended(numbers[3], 99)
    rows = decode_arrivals(kept.encoded())
    assert rows == kept.rows()
    assert rows[3] == Arrival(3, 99, 429, "h1", 3, 7, "high", 1.5)
    assert decode_arrivals(Arrivals().encoded()) == []


# --------------------------------------------------------------------------------------------------- what it decides


@given(moments, st.integers(1, 9), st.sampled_from([0.2, 1.0, 3.0]), st.booleans())
def test_a_quota_is_exact(found: list[int], amount: int, window_s: float, strict: bool) -> None:
    window = Window(Quota(amount, window_s, retry_after_s=0.5 if strict else None, strict=strict))
    through: list[int] = []
    closed_until = 0
    for at in found:
        wait_ms = window.retry_after_ms(at)
        recent = sum(at - other < window_s * NS for other in through)
        assert wait_ms == 0 or recent == amount or at < closed_until, "it refuses only what it must"
        if wait_ms == 0:
            assert at >= closed_until
            through.append(at)
        elif strict and at >= closed_until:
            closed_until = at + wait_ms * MS
    assert analysis.worst_window(through, window_s) <= amount


@given(moments, st.integers(1, 5))
def test_whoever_waits_as_told_is_let_through(found: list[int], amount: int) -> None:
    window = Window(Quota(amount, 1.0))
    at = 0
    for pause in found:
        at += pause
        wait_ms = window.retry_after_ms(at)
        if wait_ms:
            at += wait_ms * MS
            assert window.retry_after_ms(at) == 0


def test_headers_say_what_is_left() -> None:
    window = Window(Quota(3, 60.0))
    assert window.retry_after_ms(0) == 0
    assert window.retry_after_ms(30 * NS) == 0
    assert window.headers(30 * NS).decode().splitlines() == [
        "x-ratelimit-limit-requests: 3",
        "x-ratelimit-remaining-requests: 1",
        "x-ratelimit-reset-requests: 1m0s",
    ]
    assert [duration(each) for each in (0, 120, 1500, 360_000, 61_500)] == ["0ms", "120ms", "1.5s", "6m0s", "1m1.5s"]


def test_shares_are_kept_to_and_repeat_with_their_seed() -> None:
    def fates(**fields: float) -> list[int]:
        conduct = Conduct(Mode(**fields))  # type: ignore[arg-type]
        return [conduct.verdict(at, "a", 0).status for at in range(5000)]

    both = fates(fail_share=0.3, drop_share=0.1, seed=1)
    assert both == fates(fail_share=0.3, drop_share=0.1, seed=1) != fates(fail_share=0.3, drop_share=0.1, seed=2)
    seen = Counter(both)
    assert 0.27 < seen[500] / 5000 < 0.33
    assert 0.05 < seen[0] / 5000 < 0.09, "a tenth of those that did not fail"
    failed = {at for at, status in enumerate(fates(fail_share=0.3, seed=1)) if status == 500}
    assert failed == {at for at, status in enumerate(both) if status == 500}


def test_a_quota_that_stays_the_same_goes_on_counting() -> None:
    first = Conduct(Mode(quota=Quota(1, 60.0)))
    assert first.verdict(0, "a", 0).status == 200
    assert first.changed(Mode(latency_ms=1, quota=Quota(1, 60.0))).verdict(NS, "a", 0).status == 429
    assert first.changed(Mode(quota=Quota(2, 60.0))).verdict(NS, "a", 0).status == 200


# -------------------------------------------------------------------------------------------------- the real process


async def test_it_counts_what_comes(provider: RunningProvider, calls: ProviderClient) -> None:
    before = time.monotonic_ns()
    await calls.call(host="a", tokens=12, attempt=3, value="high")
    await calls.call(host="b")
    first, second = provider.arrivals()
    assert (first.host, first.tokens, first.attempt, first.value, first.status) == ("a", 12, 3, "high", 200)
    assert second.host == "b"
    assert before < first.at_ns <= first.ended_ns < second.at_ns < time.monotonic_ns(), "one clock for all processes"
    assert provider.stats().by_status == {200: 2}
    assert provider.forget() > second.at_ns
    assert provider.arrivals() == []
    assert provider.stats().arrivals == 0


async def test_calls_at_once_take_as_long_as_one(provider: RunningProvider, calls: ProviderClient) -> None:
    provider.set_mode(latency_ms=100, jitter_ms=20)
    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(calls.call(host="a"))
    assert 0.1 <= time.monotonic() - started < 1
    rows = provider.arrivals()
    assert analysis.maximum_concurrency(rows) == 50
    assert len({row.ended_ns - row.at_ns for row in rows}) > 10, "jitter"
    assert provider.stats().under_way == 0


async def test_failures_of_one_host(provider: RunningProvider, calls: ProviderClient) -> None:
    provider.set_mode(fail_share=1, fail_hosts=["bad"])
    await calls.call(host="good")
    with pytest.raises(Ambiguous, match="500"):
        await calls.call(host="bad")
    provider.set_mode(fail_share=1)
    with pytest.raises(Ambiguous, match="500"):
        await calls.call(host="good")


async def test_a_dropped_connection_is_ambiguous(provider: RunningProvider, calls: ProviderClient) -> None:
    provider.set_mode(drop_share=1, latency_ms=5)
    with pytest.raises(Ambiguous, match="no answer"):
        await calls.call(host="a")
    provider.set_mode()
    await calls.call(host="a")
    assert [row.status for row in provider.arrivals()] == [0, 200]


async def test_too_many_calls_at_once_are_refused(provider: RunningProvider, calls: ProviderClient) -> None:
    provider.set_mode(maximum_concurrency=3, latency_ms=50)
    answers = await asyncio.gather(*(calls.call(host="a") for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(each, Answer) for each in answers) == 3
    assert sum(isinstance(each, NotApplied) and not isinstance(each, RateLimited) for each in answers) == 7
    assert analysis.maximum_concurrency(provider.arrivals()) == 3


async def test_a_strict_quota_stays_closed_for_those_who_do_not_wait(
    provider: RunningProvider, calls: ProviderClient
) -> None:
    provider.set_mode(quota={"amount": 2, "window_s": 0.1, "retry_after_s": 0.4, "strict": True})
    answer = await calls.call(host="a")
    assert b"x-ratelimit-remaining-requests: 1\r\n" in answer.head
    await calls.call(host="a")
    with pytest.raises(RateLimited) as refused:
        await calls.call(host="a")
    assert refused.value.retry_after_s == 0.4
    await asyncio.sleep(0.15)
    with pytest.raises(RateLimited) as again:
        await calls.call(host="a")
    assert again.value.retry_after_s is not None
    assert 0 < again.value.retry_after_s <= 0.25, "there would be room by now, but it had asked for more"
    await asyncio.sleep(again.value.retry_after_s)
    await calls.call(host="a")
    rows = provider.arrivals()
    assert [row.status for row in rows] == [200, 200, 429, 429, 200]
    assert analysis.before_retry_after(rows) == [rows[3]]


async def test_a_call_that_is_cancelled_leaves_no_answer_for_the_next(
    provider: RunningProvider, calls: ProviderClient
) -> None:
    provider.set_mode(latency_ms=30, fail_share=1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await calls.call(host="a")
    provider.set_mode(latency_ms=60)
    assert (await calls.call(host="a")).status == 200
    rows = provider.arrivals()
    assert [row.status for row in rows] == [500, 200]
    assert all(row.ended_ns for row in rows), "a caller that has gone does not end its call"


async def test_one_call_after_the_other_needs_one_connection(provider: RunningProvider, calls: ProviderClient) -> None:
    used = set()
    for _ in range(20):
        await calls.call(host="a")
        used.add(calls._idle[-1])
    assert len(used) == len(calls._idle) == 1


async def test_a_provider_that_is_away_was_never_called(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_provider(Mode(latency_ms=500)) as provider:
        calls = ProviderClient(provider.url)
        under_way = asyncio.create_task(calls.call(host="a"))
        await until(lambda: provider.stats().under_way == 1)
        provider.kill()
        with pytest.raises(Ambiguous, match="no answer"):
            await under_way
        with pytest.raises(NotApplied, match="cannot be reached"):
            await calls.call(host="a")
        again = RunningProvider(provider.port)
        await calls.call(host="a")
        calls.close()
        assert again.stop() == 0
    monkeypatch.delenv("PROVIDER_URL", raising=False)
    with pytest.raises(Rejected, match="PROVIDER_URL is not set"):
        client()
    with pytest.raises(Rejected, match="give http://host:port"):
        ProviderClient("ftp://somewhere")


def test_milliseconds_go_before_seconds() -> None:
    def asked(*lines: str) -> float | None:
        head = "\r\n".join(("HTTP/1.1 429 Too Many Requests", *lines, "", ""))
        return Answer(429, head.encode(), b"").retry_after_s

    assert asked("retry-after: 2", "retry-after-ms: 1200") == 1.2
    assert asked("retry-after-ms: 1200", "Retry-After: 2") == 1.2
    assert asked("Retry-After: 2") == 2
    assert asked("x-retry-after: 2") is None


# ------------------------------------------------------------------------------------------------- what it cannot read


def exchange(provider: RunningProvider, *pieces: bytes) -> bytes:
    """Sends pieces one by one, and returns all that comes back until the connection ends or 0.5 s are over."""
    answer = b""
    with socket.create_connection(("127.0.0.1", provider.port), timeout=0.5) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.02)
        try:
            while data := connection.recv(65536):
                answer += data
        except TimeoutError:
            pass
    return answer


def test_requests_in_pieces_and_two_at_once(provider: RunningProvider) -> None:
    provider.set_mode(latency_ms=10)
    body = b'{"host":"a"}'
    whole = b"POST /call HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    last = whole.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert exchange(provider, whole[:30], whole[30:60], whole[60:] + last).count(b"HTTP/1.1 200 OK") == 2
    assert [row.host for row in provider.arrivals()] == ["a", "a"]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /call HTTP/1.1\r\ncontent-length: 3\r\n\r\n{x}", 400),
        (b'POST /call HTTP/1.1\r\ncontent-length: 13\r\n\r\n{"tokens":-1}', 400),
        (b'POST /call HTTP/1.1\r\ncontent-length: 10\r\n\r\n{"toks":1}', 400),
        (b"POST /call HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n", 413),
        (b"POST /call HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 501),
        (b"nonsense\r\n\r\n", 400),
        (b"x" * 20_000, 400),
        (b"GET /call HTTP/1.1\r\nconnection: close\r\n\r\n", 405),
        (b"GET /elsewhere HTTP/1.1\r\nconnection: close\r\n\r\n", 404),
    ],
)
def test_bad_requests_are_answered_and_not_counted(provider: RunningProvider, request_: bytes, status: int) -> None:
    answer = exchange(provider, request_)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert "message" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert provider.stats().arrivals == 0


def test_bad_modes_are_refused_and_change_nothing(provider: RunningProvider) -> None:
    provider.set_mode(latency_ms=7)
    for fields in (
        {"fail_share": 1.5},
        {"latency": 3},
        {"quota": {"amount": 0, "window_s": 1}},
        {"quota": {"amount": 1}},
        {"maximum_concurrency": 0},
    ):
        with pytest.raises(RuntimeError, match=r"400: .*the mode: "):
            provider.set_mode(**fields)
    connection = http.client.HTTPConnection("127.0.0.1", provider.port, timeout=5)
    connection.request("GET", "/mode")
    assert json.loads(connection.getresponse().read())["latency_ms"] == 7
    connection.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes with their parents")
def test_it_ends_with_its_parent() -> None:
    text = (
        "from benchmarks.provider.running import RunningProvider; import os\n"
        "print(RunningProvider().port, flush=True); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=30)
    port = int(ended.stdout)
    deadline = time.monotonic() + 5
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            break
        assert time.monotonic() < deadline, "it outlived its parent"
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------------------- its callers


@pytest.fixture
async def counting(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """The store where the arm with Redis counts."""
    monkeypatch.setenv(agents.REDIS_VARIABLE, redis_url)
    yield
    await agents.counting().connection_pool.disconnect()


def tool_call(tool: str, timeout_s: float = 60.0) -> ToolCall:
    return ToolCall(tool, "run", "0", 1, lambda: "key", timeout_s, "default", time.monotonic)


def test_the_app_can_be_loaded_and_has_its_dependencies() -> None:
    app = load_app("benchmarks.dependency_agents")
    assert set(app.agents) == {"caller"}
    assert set(agents.TOOLS) == set(app.dependencies)
    naive = app.dependencies["provider-naive"]
    assert naive.breaker is None
    assert naive.retry_budget is None
    assert all(tool.options.dependency == name for name, tool in agents.TOOLS.items())
    assert agents.TOOLS["provider-tokens"].options.reserve is not None


async def test_the_tool_tells_the_provider_who_calls(provider: RunningProvider, calls: ProviderClient) -> None:
    call = tool_call("call_provider")
    assert await agents.TOOLS["provider"].function(call, 30, "low") == 200
    (row,) = provider.arrivals()
    assert (row.host, row.attempt, row.tokens, row.value) == (str(os.getpid()), 1, 30, "low")
    assert call.usage == {"input_tokens": 30, "output_tokens": 0}


async def test_callers_with_aiolimiter_and_with_redis_keep_to_the_limit(
    redis_url: str, provider: RunningProvider, calls: ProviderClient, counting: None
) -> None:
    async with spine(redis_url, caller) as deployment:
        await deployment.host()
        for tool in ("aiolimiter", "redis"):
            provider.forget()
            permits = Permits(amount=100, window_s=1, burst=5, key=f"permits-{deployment.settings.name}")
            done = await asyncio.gather(*(result(deployment, tool, permits) for _ in range(10)))
            assert sum(made.succeeded for made in done) == 100, done
            found = analysis.moments(provider.arrivals())
            assert len(found) == 100
            assert found[-1] - found[0] > 0.85 * NS, f"{tool}: 95 calls wait for 10 ms each"
            assert analysis.worst_window(found, 0.2) <= 5 + 20 + 10, tool


async def result(deployment: Spine, tool: str, permits: Permits) -> Made:
    wanted = Calls(calls=10, tool=tool, permits=permits)
    made = await deployment.result(caller, wanted.model_dump())
    assert isinstance(made, Made)
    return made


async def test_a_caller_at_fixed_moments_waits_for_nobody(
    redis_url: str, provider: RunningProvider, calls: ProviderClient
) -> None:
    provider.set_mode(latency_ms=300)
    wanted = Calls(calls=10, tool="aiolimiter", interval_s=0.02, permits=Permits(amount=1000, window_s=1))
    async with spine(redis_url, caller) as deployment:
        await deployment.host()
        run = await deployment.submit(caller, wanted.model_dump())
        made = output(caller, await deployment.end(run))
    assert made == Made(succeeded=10)
    assert analysis.maximum_concurrency(provider.arrivals()) == 10


async def test_a_caller_goes_on_after_failures(
    redis_url: str, provider: RunningProvider, calls: ProviderClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(agents.REDIS_VARIABLE, raising=False)
    wanted = Calls(calls=3, tool="redis", permits=Permits(amount=1000, window_s=1))
    async with spine(redis_url, caller) as deployment:
        await deployment.host()
        made = output(caller, await deployment.end(await deployment.submit(caller, wanted.model_dump())))
    assert made == Made(failed={"Rejected": 3})
    assert provider.arrivals() == []


async def test_nothing_is_booked_for_those_who_do_not_wait(counting: None) -> None:
    permits = Permits(amount=10, window_s=1, burst=1, key=f"permits-{uuid.uuid4()}")
    await agents.permitted(permits, 0.0)
    for _ in range(50):
        with pytest.raises(RateLimited) as refused:
            await agents.permitted(permits, 0.0)
        assert 0 < (refused.value.retry_after_s or 0) <= 0.1
    started = time.monotonic()
    await agents.permitted(permits, 1.0)
    assert time.monotonic() - started <= 1, "bookings of the 50 would make it 5 s"


async def test_a_host_has_its_part_of_the_limit() -> None:
    permits = Permits(amount=80, window_s=2, hosts=4)
    made = agents.limiter(permits)
    assert (made.max_rate, made.time_period) == (20, 2)
    assert agents.limiter(permits) is made
    smooth = agents.limiter(Permits(amount=80, window_s=2, hosts=4, burst=1))
    assert (smooth.max_rate, smooth.time_period) == (1, 0.1)
