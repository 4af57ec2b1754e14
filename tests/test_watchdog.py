"""Agents that never await: warned of, named, ended with their host, and nobody else's loss."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import spine_app
from hosting import Spine, output, spine, until

from actors.journal import decode_error
from actors.watchdog import EXIT_CODE
from cluster.lifecycle import RunState
from penstock.client import Client

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {"loop_block_warn_s": 0.4, "loop_block_limit_s": 1.6}

HOST = """
import asyncio, logging, sys
sys.path[:0] = {path!r}
from pydantic import SecretStr
from actors.host_runtime import HostRuntime
from actors.registry import load_app
from cluster.config import Settings

async def main():
    logging.basicConfig(level=logging.INFO)
    settings = Settings(redis_url=SecretStr(sys.stdin.readline().strip()), **{settings!r})
    host = HostRuntime(settings, load_app("spine_app"), {label!r})
    await host.start()
    print("ready", host.host, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def host_process(deployment: Spine, label: str, log: Path) -> AsyncIterator[subprocess.Popen[str]]:
    """A host in a process of its own; its log goes to a file."""
    names = ("name", "partitions", "heartbeat_s", "lease_s", "loop_block_warn_s", "loop_block_limit_s")
    settings = {name: getattr(deployment.settings, name) for name in names}
    code = textwrap.dedent(HOST).format(
        path=[str(ROOT), str(ROOT / "tests" / "support")], settings=settings, label=label
    )
    url = deployment.settings.redis_url
    assert url is not None
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(url.get_secret_value() + "\n")
    process.stdin.flush()
    try:
        ready = await asyncio.to_thread(process.stdout.readline)
        assert ready.startswith("ready"), log.read_text()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


async def note_of(deployment: Spine, run_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        notes = await deployment.store.fields(deployment.store.keys.notes)
        if run_id in notes:
            found: dict[str, Any] = json.loads(notes[run_id])
            return found
        await asyncio.sleep(0.02)
    raise AssertionError("no note")


async def test_an_agent_that_blocks_its_host_is_named_and_ended_and_others_go_on(
    redis_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "host.log"
    async with spine(redis_url, spine_app.blocker, spine_app.echoes, spine_app.nap, **SMALL) as deployment:
        async with host_process(deployment, "blocked", log) as process:
            others = [await deployment.submit(spine_app.steps, 0.3) for _ in range(3)]
            for run_id in others:
                await deployment.state(run_id, RunState.RUNNING)
            started = time.monotonic()
            blocked = await deployment.submit(spine_app.blocker, "x")
            note = await note_of(deployment, blocked)
            assert note["host"].startswith("blocked~")
            assert 0.3 < note["blocked_s"] < 1.5
            assert "in blocker" in note["stack"]
            assert "without await" in note["note"]
            # The lease goes on while the loop is blocked, so that nobody else is given the run to block on.
            assert (await deployment.record(blocked)).migrations == 0
            assert await asyncio.to_thread(process.wait, 10) == EXIT_CODE
            assert 1.3 < time.monotonic() - started < 4
            record = await deployment.end(blocked)
            assert (record.state, record.reason, record.fence) == (RunState.FAILED, "event_loop_blocked", 1)
            error = decode_error(record.error)
            assert error.error_class == "EventLoopBlocked"
            assert "blocked its host's event loop for" in error.message
            assert "in blocker" in error.message
            async with Client(settings=deployment.settings) as client:
                trail = await client.verify_trail(blocked)
            assert (trail.holds, trail.sealed_by) == (True, "owner")
            said = log.read_text()
            assert f"blocked for 0.{str(note['blocked_s'])[2:]}" in said or "the event loop is blocked for" in said
            assert blocked in said
            assert "ends itself" in said
        host = await deployment.host(spine_app.steps, spine_app.echoes)
        for run_id in others:
            record = await deployment.end(run_id)
            assert output(spine_app.steps, record) == os.getpid()
            assert record.migrations == 1
        assert not host.runs


async def test_a_short_block_is_warned_of_and_forgiven(redis_url: str, tmp_path: Path) -> None:
    log = tmp_path / "host.log"
    async with (
        spine(redis_url, spine_app.hesitant, **SMALL) as deployment,
        host_process(deployment, "slow", log) as process,
    ):
        run_id = await deployment.submit(spine_app.hesitant, 0.9)
        note = await note_of(deployment, run_id)
        assert "in blocks_a_little" in note["stack"]
        record = await deployment.end(run_id)
        assert output(spine_app.hesitant, record) == "done"
        assert process.poll() is None
        assert log.read_text().count("the event loop is blocked for") == 1


async def test_a_process_that_was_stopped_is_not_blamed(redis_url: str, tmp_path: Path) -> None:
    log = tmp_path / "host.log"
    async with (
        spine(redis_url, spine_app.echoes, **SMALL) as deployment,
        host_process(deployment, "frozen", log) as process,
    ):
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2)
        process.send_signal(signal.SIGCONT)
        assert await deployment.result(spine_app.echoes, "a") == "a"
        await asyncio.sleep(0.3)
        assert process.poll() is None
        assert "blocked for" not in log.read_text()


async def test_a_host_that_starts_removes_notes_of_long_ago(redis_url: str) -> None:
    async with spine(redis_url) as deployment:
        store, day_ms = deployment.store, 86_400_000
        now_ms = await store.server_ms()
        young = json.dumps({"note": "blocks", "at_ms": now_ms - day_ms + 60_000})
        notes = {
            "old": json.dumps({"note": "blocks", "at_ms": now_ms - day_ms - 60_000}),
            "of no time": json.dumps({"note": "blocks"}), "a number": "7", "no JSON": "{", "young": young,
        }  # fmt: skip
        await store.set_fields(store.keys.notes, notes)
        await deployment.host(spine_app.echoes)

        async def only_the_young() -> bool:
            return await store.fields(store.keys.notes) == {"young": young}

        await until(only_the_young, "the removal of old notes")
