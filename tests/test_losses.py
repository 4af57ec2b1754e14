"""Runs under which host after host dies: they are given up before their code runs again, and nothing is made up."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hosting import Spine, output, spine, until

from actors.journal import decode_error
from cluster.lifecycle import RunState
from penstock import Risk, Run, ToolCall, agent, tool


@dataclass
class Lives:
    """How often the agent's code was begun, and each tool called; ``hold`` does not answer every ``every``-th call."""

    begun: int = 0
    called: Counter[str] = field(default_factory=Counter)
    hold: str = ""
    every: int = 1

    async def call(self, name: str) -> str:
        self.called[name] += 1
        if name == self.hold and self.called[name] % self.every == 0:
            await asyncio.Event().wait()
        return name


LIVES = Lives()


@pytest.fixture(autouse=True)
def lives() -> Lives:
    LIVES.__init__()  # type: ignore[misc]
    return LIVES


@tool()
async def read(call: ToolCall) -> str:
    return await LIVES.call("read")


@tool(risk=Risk.WRITE, idempotent=True)
async def pay(call: ToolCall) -> str:
    return await LIVES.call("pay")


@tool(risk=Risk.WRITE)
async def wire(call: ToolCall) -> str:
    return await LIVES.call("wire")


@agent("payer", version="1")
async def payer(run: Run, _: None) -> list[str]:
    LIVES.begun += 1
    return [await run.call(read), await run.call(pay)]


@agent("wirer", version="1")
async def wirer(run: Run, _: None) -> list[str]:
    LIVES.begun += 1
    return [await run.call(read), await run.call(wire)]


@agent("reader", version="1")
async def reader(run: Run, count: int) -> list[str]:
    LIVES.begun += 1
    return [await run.call(read) for _ in range(count)]


async def lose_under(deployment: Spine, run_id: str, lives: Lives, hosts: int) -> None:
    """So many hosts die while the tool to be held is under way."""
    for life in range(1, hosts + 1):
        host = await deployment.host()
        await until(lambda life=life: lives.called[lives.hold] == life * lives.every, "the call")  # type: ignore[misc]
        assert await deployment.lose(host) == 1


async def test_a_run_is_given_up_before_its_code_runs_again(redis_url: str, lives: Lives) -> None:
    async with spine(redis_url, reader, max_losses=3) as deployment:
        lives.hold = "read"
        run_id = await deployment.submit(reader, 1)
        await lose_under(deployment, run_id, lives, 3)
        # It is queued, with its losses, until somebody claims it who can read its journal.
        assert (await deployment.record(run_id)).state is RunState.QUEUED
        await deployment.host()
        record = await deployment.end(run_id)
        assert (record.state, record.reason) == (RunState.FAILED, "too many hosts lost")
        error = decode_error(record.error)
        assert (error.error_class, error.message) == ("TooManyHostsLost", "3 hosts died under it without progress")
        assert (lives.begun, lives.called["read"]) == (3, 3)


@pytest.mark.parametrize("effect", ["pay", "wire"])
@pytest.mark.parametrize("cancelled", [False, True])
async def test_what_nobody_can_prove_stays_unknown(redis_url: str, lives: Lives, effect: str, cancelled: bool) -> None:
    """Also an idempotent effect is not sent again: sending it may be what the hosts die of."""
    async with spine(redis_url, payer, wirer, max_losses=1) as deployment:
        lives.hold = effect
        run_id = await deployment.submit({"pay": payer, "wire": wirer}[effect])
        await lose_under(deployment, run_id, lives, 1)
        if cancelled:
            assert await deployment.cancel(run_id) == "asked"
        await deployment.host()
        record = await deployment.end(run_id)
        assert (record.state, record.reason) == (RunState.CONFIRMATION_UNKNOWN, f"effect {effect} at step 1")
        message = decode_error(record.error).message
        assert "would have ended as failed (too many hosts lost) without asking for it again" in message
        assert lives.begun == 1
        assert lives.called == {"read": 1, effect: 1}


async def test_progress_forgives_lost_hosts(redis_url: str, lives: Lives) -> None:
    """Each host brings the run a step further and dies in the next one: it is not the run's fault."""
    async with spine(redis_url, reader, max_losses=2) as deployment:
        lives.hold, lives.every = "read", 2
        run_id = await deployment.submit(reader, 6)
        await lose_under(deployment, run_id, lives, 5)
        await deployment.host()
        record = await deployment.end(run_id)
        assert output(reader, record) == ["read"] * 6
        assert (record.migrations, lives.called["read"]) == (5, 11)


async def test_a_journal_that_cannot_be_read_comes_first(redis_url: str, lives: Lives) -> None:
    async with spine(redis_url, reader, max_losses=1) as deployment:
        lives.hold = "read"
        run_id = await deployment.submit(reader, 1)
        host = await deployment.host()
        await until(lambda: lives.called["read"] == 1, "the call")
        identity = await deployment.vanish(host)
        key = deployment.store.keys.journal(run_id)
        await deployment.store.command(key, "RPUSH", key, b"\xc1")
        assert await deployment.reap(identity) == 1
        await deployment.host()
        record = await deployment.end(run_id)
        assert (record.state, decode_error(record.error).error_class) == (RunState.FAILED, "ValueError")
