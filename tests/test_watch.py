"""Hosts that watch each other's processes, over real sockets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hosting import output, spine, until

from actors.watch import Watch, neighbours
from penstock import Run, ToolCall, agent, tool


class Ring:
    """Some watches, each with the deaths that it has told of."""

    def __init__(self) -> None:
        self.watches: dict[str, Watch] = {}
        self.addresses: dict[str, tuple[str, int]] = {}
        self.deaths: dict[str, list[str]] = {}
        self.told = asyncio.Event()

    async def add(self, name: str) -> Watch:
        def died(other: str) -> None:
            self.deaths[name].append(other)
            self.told.set()

        self.deaths[name] = []
        watch = self.watches[name] = Watch("127.0.0.1", died)
        self.addresses[name] = await watch.start(name)
        return watch

    def meet(self) -> None:
        for watch in self.watches.values():
            watch.update(self.addresses)

    async def connected(self, name: str, others: int) -> None:
        await until(lambda: len(self.watches[name]._connected) == others, f"{others} watch {name}")

    async def lose(self, name: str) -> None:
        """As the kernel does when a process ends: all its sockets close, and nobody listens there any more."""
        await self.watches.pop(name).stop()


@pytest.fixture
async def ring() -> AsyncIterator[Ring]:
    ring = Ring()
    yield ring
    for watch in ring.watches.values():
        await watch.stop()


def test_everybody_is_watched_by_some() -> None:
    live = [f"host-{number:02d}" for number in range(10)]
    watched = {host: neighbours(host, live) for host in live}
    assert watched["host-00"] == ["host-01", "host-02", "host-03"]
    assert watched["host-09"] == ["host-00", "host-01", "host-02"]
    for host in live:
        assert sum(host in others for others in watched.values()) == 3
    assert neighbours("a", ["a"]) == []
    assert neighbours("a", ["a", "b"]) == ["b"]
    assert neighbours("new", live) == live[:3]


async def test_a_death_is_told_of_at_once_by_all_who_watch(ring: Ring) -> None:
    for name in "abc":
        await ring.add(name)
    ring.meet()
    for name in "abc":
        await ring.connected(name, 2)
    loop = asyncio.get_running_loop()
    struck = loop.time()
    await ring.lose("b")
    await asyncio.wait_for(ring.told.wait(), 1)
    assert loop.time() - struck < 0.2
    await until(lambda: (ring.deaths["a"], ring.deaths["c"]) == (["b"], ["b"]), "both deaths")


async def test_a_connection_that_breaks_is_made_again_and_nobody_is_called_dead(ring: Ring) -> None:
    for name in "ab":
        await ring.add(name)
    ring.meet()
    await ring.connected("b", 1)
    for _ in range(3):
        (writer,) = ring.watches["b"]._connected
        writer.transport.abort()
        await until(lambda writer=writer: writer not in ring.watches["b"]._connected, "the break")  # type: ignore[misc]
        await ring.connected("b", 1)
    assert ring.deaths == {"a": [], "b": []}


async def test_another_identity_at_the_same_address_means_that_the_first_is_gone(ring: Ring) -> None:
    for name in "ab":
        await ring.add(name)
    ring.meet()
    await ring.connected("b", 1)
    ring.watches["b"].rename("b-again")
    await until(lambda: ring.deaths["a"] == ["b"], "the death of the former")


async def test_a_host_that_was_never_reached_is_not_judged(ring: Ring) -> None:
    watch = await ring.add("a")
    other = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    nobody = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    addresses = {"b": other.sockets[0].getsockname(), "c": nobody.sockets[0].getsockname()}
    nobody.close()
    await nobody.wait_closed()
    watch.update({"a": ring.addresses["a"], **addresses})
    await until(lambda: not watch._watching, "both tries")
    assert ring.deaths["a"] == []
    other.close()
    await other.wait_closed()


async def test_whoever_falls_silent_is_left_to_its_lease(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped is still reached by the kernel's word, and it may send what it was about to send."""
    monkeypatch.setattr("actors.watch._CONNECT_S", 0.05)
    watch = await ring.add("a")
    tries, hang_up = [0], asyncio.Event()

    async def stopped_later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tries[0] += 1
        if tries[0] == 1:
            writer.write(b"b\n")
            await hang_up.wait()
            writer.close()
        else:
            await reader.read()
            writer.close()

    other = await asyncio.start_server(stopped_later, "127.0.0.1", 0)
    watch.update({"a": ring.addresses["a"], "b": other.sockets[0].getsockname()})
    await until(lambda: tries[0] == 1, "the first connection")
    hang_up.set()
    await until(lambda: not watch._watching, "the end of the watch")
    assert tries[0] == 4
    assert ring.deaths["a"] == []
    other.close()
    await other.wait_closed()


async def test_whoever_leaves_the_list_is_not_watched_any_more(ring: Ring) -> None:
    for name in "ab":
        await ring.add(name)
    ring.meet()
    await ring.connected("b", 1)
    ring.watches["a"].update({"a": ring.addresses["a"]})
    await ring.connected("b", 0)
    await ring.lose("b")
    await asyncio.sleep(0.05)
    assert ring.deaths["a"] == []


async def test_strangers_and_crowds_do_no_harm(ring: Ring) -> None:
    for name in "ab":
        await ring.add(name)
    ring.meet()
    await ring.connected("b", 1)
    strangers = []
    for _ in range(70):
        reader, writer = await asyncio.open_connection(*ring.addresses["b"])
        strangers.append(writer)
        with contextlib.suppress(OSError):
            writer.write(b"x" * 10)
        await reader.read(100)
    assert len(ring.watches["b"]._connected) <= 64
    for writer in strangers:
        writer.close()
    await ring.connected("b", 1)
    assert ring.deaths == {"a": [], "b": []}


async def test_runs_of_a_dead_process_move_long_before_its_lease_runs_out(redis_url: str) -> None:
    gate = asyncio.Event()
    made: list[str] = []

    @tool()
    async def held(call: ToolCall, name: str) -> str:
        made.append(name)
        await gate.wait()
        return name

    @agent("holder", version="1")
    async def holder(run: Run, name: str) -> str:
        return await run.call(held, name)

    async with spine(redis_url, holder, lease_s=30, heartbeat_s=0.1) as deployment:
        first, second = await deployment.host(), await deployment.host()
        await until(lambda: bool(first._watch._connected and second._watch._connected), "the watch")
        runs = [await deployment.submit(holder, str(number)) for number in range(6)]
        await until(lambda: len(made) == 6, "all runs")
        loop = asyncio.get_running_loop()
        struck = loop.time()
        await deployment.vanish(first)
        await until(lambda: len(second.runs) == 6, "the move")
        took_s = loop.time() - struck
        print(f"runs moved {took_s * 1000:.0f} ms after the connections closed")
        assert took_s < 0.5
        gate.set()
        for number, run_id in enumerate(runs):
            assert output(holder, await deployment.end(run_id)) == str(number)
