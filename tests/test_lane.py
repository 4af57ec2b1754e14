"""The lane to the store, over real servers that are restarted, frozen, full, or closed to us."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from pydantic import SecretStr
from storehouse import Audit, append, claim, finish, new, one, opened, park, settings_for, submit

from cluster import reader, scripts
from cluster.config import Settings
from cluster.embedded import EmbeddedValkey
from cluster.errors import StoreFull, StoreUnavailable, StoreUnsuitable
from cluster.lane import Argument, Lane, Moved, _pack
from cluster.lifecycle import RunState
from cluster.records import Append
from cluster.store import Store
from cluster.topology import Topology


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """A server that these tests may hurt."""
    with EmbeddedValkey(tmp_path_factory.mktemp("lane")) as server:
        yield server


@pytest.fixture
async def topology(own: EmbeddedValkey) -> AsyncIterator[Topology]:
    made = await Topology.open(own.url, answer_timeout_s=0.4)
    yield made
    await made.close()


def pid_of(server: EmbeddedValkey) -> int:
    assert server.pid is not None
    return server.pid


def ask(server: EmbeddedValkey, *command: str | int) -> object:
    with redis.Redis.from_url(server.url) as client:
        return client.execute_command(*command)


# ------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("transactions", [True, False])
async def test_calls_are_done_in_the_order_in_which_they_were_asked(own: EmbeddedValkey, transactions: bool) -> None:
    base = await Topology.open(own.url)
    connection = base.any_client().connection_pool
    lane = Lane(connection.make_connection, timeout_s=5, transactions=transactions)
    key = f"order-{transactions}"
    answers = []
    for number in range(500):
        answers.append(lane.command("RPUSH", key, number))
        if number % 100 == 50:
            await asyncio.sleep(0)
    assert await asyncio.gather(*answers) == list(range(1, 501))
    assert await lane.command("LRANGE", key, 0, -1) == [b"%d" % number for number in range(500)]
    await lane.close()
    await base.close()


async def test_each_call_of_a_write_has_its_own_answer(own: EmbeddedValkey) -> None:
    async with opened(settings_for(own.url)) as store:
        run = await one(store)
        said = await asyncio.gather(
            append(store, run, 0, b"a"),
            append(store, run, 1, b"b"),
            append(store, run, 7, b"h"),
            store.compact(run.id, run.fence + 1, 2, b"no"),
            store.call(scripts.CLAIM, 0, "h1", "no number"),
            append(store, run, 2, b"c"),
            reader.journal(store, run.id),
            return_exceptions=True,
        )
        assert isinstance(said[4], redis.ResponseError)
        assert said[:4] + said[5:6] == [None, None, "GAP", "STALE", None]
        assert await reader.journal(store, run.id) == [b"a", b"b", b"c"]
        Audit(store).check()


async def test_a_cancelled_waiter_disturbs_nobody(topology: Topology) -> None:
    lane = topology.lane("x")
    answers = [lane.command("ECHO", str(number)) for number in range(50)]
    for answer in answers[::2]:
        answer.cancel()
    assert await asyncio.gather(*answers[1::2]) == [b"%d" % number for number in range(1, 50, 2)]


async def test_large_answers_and_arguments(topology: Topology) -> None:
    lane = topology.lane("x")
    large = os.urandom(3_000_000)
    echoes = await asyncio.gather(*(lane.command("ECHO", large) for _ in range(5)), lane.command("ECHO", b""))
    assert echoes == [large] * 5 + [b""]


# ---------------------------------------------------------------------------------------------------------- scripts


async def test_scripts_that_the_server_has_forgotten_are_loaded_again(own: EmbeddedValkey) -> None:
    async with opened(settings_for(own.url)) as store:
        runs = [await one(store, custom_id=str(number)) for number in range(20)]
        for round_number in range(5):
            appends = [append(store, run, round_number, b"%d" % round_number) for run in runs]
            flush = store.command("x", "SCRIPT", "FLUSH")
            said = await asyncio.gather(*appends[:10], flush, *appends[10:])
            assert [answer for answer in said if answer != b"OK"] == [None] * 20
        for run in runs:
            assert await reader.journal(store, run.id) == [b"%d" % number for number in range(5)]
        assert (await reader.batch_counts(store, "b")).steps == 100
        Audit(store).check()


# ----------------------------------------------------------------------------------- servers that die, freeze or lie


async def test_calls_in_flight_survive_a_restart_of_the_server(own: EmbeddedValkey) -> None:
    """SIGKILL with appends on their way: each is there once and in order, and everybody has an answer."""
    reconnected = asyncio.Event()
    store = await Store.open(settings_for(own.url), patient=True, on_reconnected=reconnected.set)
    runs = [await one(store, custom_id=str(number)) for number in range(20)]

    async def work(number: int) -> None:
        for length in range(300):
            call = [Append(runs[number].id, runs[number].fence, length, 1, [b"%d" % length])]
            assert await store.append(0, call) == {}

    working = asyncio.gather(*(work(number) for number in range(20)))
    for _ in range(2):
        await asyncio.sleep(0.1)
        await asyncio.to_thread(own.kill)
        await asyncio.sleep(0.05)
        await asyncio.to_thread(own.restart)
    await asyncio.wait_for(working, 30)
    assert reconnected.is_set()
    for run in runs:
        assert await reader.journal(store, run.id) == [b"%d" % length for length in range(300)]
    assert (await reader.batch_counts(store, "b")).steps == 6000
    Audit(store).check()
    await store.close()


async def test_a_dropped_connection_is_made_again(topology: Topology, own: EmbeddedValkey) -> None:
    lane = topology.lane("x")
    for number in range(3):
        calls = [lane.command("ECHO", str(number)) for _ in range(20)]
        await asyncio.to_thread(ask, own, "CLIENT", "KILL", "TYPE", "normal")
        assert await asyncio.gather(*calls) == [b"%d" % number] * 20


async def test_a_silent_server_is_given_up_and_answers_when_it_wakes(topology: Topology, own: EmbeddedValkey) -> None:
    lane = topology.lane("x")
    await lane.command("PING")
    os.kill(pid_of(own), signal.SIGSTOP)
    try:
        calls = [lane.command("SET", f"silent-{number}", number) for number in range(5)]
        await asyncio.sleep(1.2)
        assert not any(call.done() for call in calls)
    finally:
        os.kill(pid_of(own), signal.SIGCONT)
    async with asyncio.timeout(5):
        assert await asyncio.gather(*calls) == [b"OK"] * 5


async def test_a_call_fails_after_its_time(own: EmbeddedValkey) -> None:
    topology = await Topology.open(own.url, timeout_s=0.5, answer_timeout_s=0.2)
    lane = topology.lane("x")
    await lane.command("PING")
    os.kill(pid_of(own), signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            await lane.command("PING")
        assert 0.4 < time.monotonic() - started < 3
    finally:
        os.kill(pid_of(own), signal.SIGCONT)
    assert await lane.command("PING") == b"PONG"
    await topology.close()


async def test_closing_ends_every_call(own: EmbeddedValkey) -> None:
    topology = await Topology.open(own.url)
    lane = topology.lane("x")
    await lane.command("PING")
    os.kill(pid_of(own), signal.SIGSTOP)
    try:
        sent = [lane.command("PING") for _ in range(5)]
        await asyncio.sleep(0.05)
        waiting = [lane.command("PING") for _ in range(5)]
        await topology.close()
    finally:
        os.kill(pid_of(own), signal.SIGCONT)
    late = lane.command("PING")
    for answer in await asyncio.gather(*sent, *waiting, late, return_exceptions=True):
        assert isinstance(answer, StoreUnavailable)
        assert "closed" in str(answer)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "penstock-lane"]


async def test_a_defect_inside_leaves_nobody_without_an_answer(
    topology: Topology, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lane = topology.lane("x")
    await lane.command("PING")

    def broken(*_: object) -> None:
        monkeypatch.undo()
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(lane, "_settle", broken)
    first, second = lane.command("ECHO", "a"), lane.command("ECHO", "b")
    async with asyncio.timeout(5):
        assert await second == b"b"
    assert "ZeroDivisionError" in caplog.text
    first.cancel()


async def test_a_node_that_cannot_be_reached_gives_its_calls_back(own: EmbeddedValkey) -> None:
    """In a cluster another node may serve the slot by now: the caller has to look."""
    base = await Topology.open(own.url)
    pool = redis.asyncio.ConnectionPool.from_url("redis://127.0.0.1:1/0", protocol=2)
    lane = Lane(pool.make_connection, timeout_s=60, elsewhere=True)
    with pytest.raises(Moved, match="cannot be reached"):
        await asyncio.wait_for(lane.command("PING"), 5)
    await lane.close()
    await base.close()


# ------------------------------------------------------------------------------------------------------- full store


@pytest.fixture
def full(own: EmbeddedValkey) -> Iterator[None]:
    """The server is at its memory limit until `make_room`."""
    yield
    ask(own, "CONFIG", "SET", "maxmemory", 0)


async def test_a_full_store_refuses_what_is_new_and_lets_the_old_end(own: EmbeddedValkey, full: None) -> None:
    async with opened(settings_for(own.url), patient=True) as store:
        await store.heartbeat("h1", "{}")
        runs = {name: await one(store, custom_id=name) for name in ("end", "park", "back", "lost", "asked", "go on")}
        await store.reap(0, "h1")
        runs = {each.custom_id: each for each in (await claim(store, "h2")).values()}
        await submit(store, [new(store, "queued"), new(store, "late", max_wait="1")])
        await store.heartbeat("h2", "{}")
        ask(own, "CONFIG", "SET", "maxmemory", 1)
        # All at once, so that refused and allowed calls share a transaction.
        said = await asyncio.gather(
            append(store, runs["go on"], 0, b"x"),
            store.submit("b", 0, [new(store, "more")]),
            store.heartbeat("h2"),
            finish(store, runs["end"], RunState.SUCCEEDED, host="h2"),
            park(store, runs["park"], 1, host="h2"),
            store.release(0, "h2", "drain", [(runs["back"].id, runs["back"].fence)]),
            store.cancel(0, "no", [runs["asked"].id]),
            store.fire(0),
            return_exceptions=True,
        )
        assert [type(answer) for answer in said[:2]] == [StoreFull, StoreFull]
        assert "maxmemory" in str(said[0])
        assert said[2].standing  # type: ignore[union-attr]
        assert said[3:7] == [None, None, 1, ["asked"]]
        assert await store.reap(0, "h2") == 3
        assert len((await store.claim(0, "h3", 1, ("echo", "1"))) or ()) == 2
        ask(own, "CONFIG", "SET", "maxmemory", 0)
        assert await submit(store, [new(store, "more")]) == [1]
        Audit(store).check()


async def test_a_patient_owner_makes_its_child_when_there_is_room_again(own: EmbeddedValkey, full: None) -> None:
    async with opened(settings_for(own.url), patient=True) as store:
        parent = await one(store)
        ask(own, "CONFIG", "SET", "maxmemory", 1)
        making = asyncio.create_task(store.submit_child(new(store, "child"), parent=parent.id, fence=parent.fence))
        await asyncio.sleep(0.1)
        assert not making.done()
        ask(own, "CONFIG", "SET", "maxmemory", 0)
        assert await asyncio.wait_for(making, 5)


# -------------------------------------------------------------------------------------------- stores that do not suit


async def refusal(url: str | None) -> str:
    redis_url = None if url is None else SecretStr(url)
    with pytest.raises((StoreUnsuitable, StoreUnavailable)) as caught:
        await Store.open(Settings(name="t-no", redis_url=redis_url, partitions=1))
    return f"{caught.type.__name__}: {caught.value}"


async def test_a_wrong_password_is_refused_helpfully_and_not_repeated(own: EmbeddedValkey) -> None:
    port = urlsplit(own.url).port
    for wrong in (f"redis://:hunter2@127.0.0.1:{port}/0", f"redis://127.0.0.1:{port}/0"):
        said = await refusal(wrong)
        assert said.startswith("StoreUnsuitable: the store refuses us")
        assert "PENSTOCK_REDIS_URL" in said
        assert "hunter2" not in said
        assert own.password not in said


@pytest.mark.parametrize(
    "url", ["", "nonsense", "http://:hunter2@host/0", "redis://:hunt/er2@host:1/0", "redis://:hunter2@host:port/0"]
)
async def test_an_address_that_is_none_is_refused_without_quoting_it(url: str) -> None:
    said = await refusal(url)
    assert said.startswith("StoreUnsuitable: the store's URL cannot be read")
    assert "hunt" not in said


async def test_no_store_at_all(tmp_path: Path) -> None:
    assert (await refusal(None)).startswith("StoreUnsuitable: no store is configured")
    said = await refusal("redis://:hunter2@127.0.0.1:1/0")
    assert said.startswith("StoreUnavailable: no store answers")
    assert "penstock up" in said
    assert "hunter2" not in said


# ------------------------------------------------------------------------------------------------------------ idling


async def test_an_idle_lane_sends_nothing(topology: Topology, own: EmbeddedValkey) -> None:
    lane = topology.lane("x")
    await lane.command("PING")

    def commands() -> int:
        with redis.Redis.from_url(own.url) as client:
            return int(client.info("stats")["total_commands_processed"])

    cost = commands()
    cost = commands() - cost
    before = commands()
    await asyncio.sleep(0.7)
    assert commands() - before == cost


def test_arguments_are_packed_as_they_are() -> None:
    arguments: tuple[Argument, ...] = ("é", b"\x00", 12, "")
    assert _pack(arguments) == b"*4\r\n$2\r\n\xc3\xa9\r\n$1\r\n\x00\r\n$2\r\n12\r\n$0\r\n\r\n"
