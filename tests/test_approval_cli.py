"""Approvals from the command line, and where their keys come from."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from approvers import OTHER, SECRET, a_request, an_action, client_of, keys_setting, payer
from hosting import Spine, spine
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from actors.supervisor import plain_settings
from cluster.approval_keys import approval_keys_file, make_approval_keys
from cluster.config import Settings, deployment_file
from penstock import SyncClient
from penstock.cli.app import cli
from penstock.cli.outcome import Exit
from penstock.deployment import with_approval_keys

ROOT = Path(__file__).parents[1]


class Desk:
    """A deployment with a host in a thread of its own, and the command line in its environment."""

    def __init__(self, redis_url: str, home: Path) -> None:
        self._redis_url = redis_url
        self._home = home
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._over = asyncio.Event()
        self.deployment: Spine

    def __enter__(self) -> Desk:
        self._thread.start()
        started = threading.Event()

        async def live() -> None:
            async with spine(self._redis_url, payer, **keys_setting()) as self.deployment:
                await self.deployment.host()
                started.set()
                await self._over.wait()

        self._living = asyncio.run_coroutine_threadsafe(live(), self._loop)
        assert started.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._living.result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def environment(self) -> dict[str, str]:
        settings = self.deployment.settings
        assert settings.redis_url is not None
        return {
            "PENSTOCK_REDIS_URL": settings.redis_url.get_secret_value(),
            "PENSTOCK_NAME": settings.name,
            "PENSTOCK_PARTITIONS": str(settings.partitions),
            "PENSTOCK_HOME": str(self._home),
            "PENSTOCK_USER": "alice",
            "PENSTOCK_APPROVAL_KEYS": SECRET,
        }

    def __call__(self, *arguments: str, **environment: str | None) -> Result:
        result = CliRunner().invoke(cli, list(arguments), env={**self.environment, **environment})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        assert SECRET.partition(":")[2] not in result.output
        return result

    def data(self, *arguments: str) -> Any:
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        return lines[0] if len(lines) == 1 else lines

    def asks(self, order: str = "o-1") -> dict[str, Any]:
        """Submits a job as alice; the approval that it waits for."""

        async def work() -> dict[str, Any]:
            async with client_of(self.deployment) as client:
                report = await client.submit([{"custom_id": order, "agent": "payer", "input": order}])
                (run,) = await client.runs(batch=report.batch)
                record = await self.deployment.waits(run.run_id)
                return {"run": record.id, "id": (await client.show(record.id)).approvals[0].id}

        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(20)

    def ended(self, run_id: str) -> str:
        return asyncio.run_coroutine_threadsafe(self.deployment.end(run_id), self._loop).result(20).state.value


@pytest.fixture
def desk(redis_url: str, tmp_path: Path) -> Iterator[Desk]:
    with Desk(redis_url, tmp_path) as desk:
        yield desk


def test_listing_looking_approving_and_denying(desk: Desk) -> None:
    assert "nothing waits for an approval" in desk("approvals").stderr
    first, second = desk.asks("o-1"), desk.asks("o-2")
    listed = desk("approvals")
    assert first["id"] in listed.stdout
    assert '"monthly" (not bound), token="***")' in " ".join(listed.stdout.split())
    assert "hunter2" not in listed.stdout
    assert [each["id"] for each in desk.data("approvals")] == [first["id"], second["id"]]
    assert desk.data("approvals", first["id"])["approval"]["submitter"] == "alice"
    assert f"penstock approve {first['id']}" in desk("why", first["run"]).stdout
    assert f"approval {first['id']} (pending) until" in desk("show", first["run"]).stdout
    assert f"approval {first['id']}, until" in desk("show", first["run"]).stdout

    done = desk("approve", first["id"], "--reason", "as agreed")
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("approved by alice: pay(")
    assert f"run {first['run']} goes on" in done.stderr
    assert desk.ended(first["run"]) == "succeeded"

    refused = desk("deny", second["id"])
    assert refused.exit_code == Exit.BAD_INPUT
    denied = desk("deny", second["id"], "--reason", "not today", "--by", "bob")
    assert denied.stderr.startswith("denied by bob")
    assert desk.ended(second["run"]) == "failed"
    assert "not today" in desk("why", second["run"]).stdout
    assert "bob denied it: not today" in desk("approve", second["id"]).stderr

    third = desk.asks("o-3")
    details = desk("approvals", third["id"]).stdout
    for text in ("alice approved: as agreed", "bob denied: not today", "asked by", "who may decide   anybody"):
        assert text in details
    states = {each["id"]: each["state"] for each in desk.data("approvals", "--all")}
    assert states == {first["id"]: "used", second["id"]: "denied", third["id"]: "pending"}


def test_what_cannot_be_decided_is_refused_in_one_line(desk: Desk) -> None:
    asked = desk.asks()
    for arguments, environment, text in (
        (("approve", "nonsense"), {}, "no approval's id"),
        (("approve", "a00-0123456789abcdef01234567"), {}, "there is none"),
        (("approve", asked["id"], "--action", "00"), {}, "another action than the one that was shown"),
        (("approve", asked["id"]), {"PENSTOCK_APPROVAL_KEYS": OTHER}, "signed with key 'k1'"),
        (("approve", asked["id"]), {"PENSTOCK_APPROVAL_KEYS": None}, "PENSTOCK_APPROVAL_KEYS"),
        (("approvals", asked["id"], "--all"), {}, "give no approval with them"),
    ):
        result = desk(*arguments, **environment)
        assert result.exit_code in (Exit.FAILED, Exit.BAD_INPUT), result.output
        assert result.stderr.startswith("error: ")
        assert text in result.stderr
    unknown = desk("approvals", PENSTOCK_APPROVAL_KEYS=OTHER)
    assert "do not approve it: UnknownApprovalKey" in unknown.stderr
    assert desk.data("approvals")["state"] == "pending"


def test_a_watch_on_the_command_line_ends_with_ctrl_c(desk: Desk) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "penstock.cli", "approvals", "--watch"],
        env={**os.environ, **desk.environment, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        asked = desk.asks()
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith(f"{asked['id']} pending: pay(")
        desk("approve", asked["id"])
        assert watching.stdout.readline().startswith(f"{asked['id']} ")
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=20)
        assert "stopped watching" in said
        assert watching.returncode == Exit.INTERRUPTED


def test_the_synchronous_client_has_them_too(desk: Desk) -> None:
    asked, other = desk.asks("o-1"), desk.asks("o-2")
    settings = desk.deployment.settings.model_copy(update={"user": "bob"})
    with SyncClient(settings=settings) as client:
        assert [each.id for each in client.approvals()] == [asked["id"], other["id"]]
        assert client.approval(asked["id"]).run_state == "waiting"
        assert next(client.watch_approvals()).state == "pending"
        assert client.approve(asked["id"]).decisions[0].approver == "bob"
        assert client.deny(other["id"], reason="no").state == "denied"
    assert desk.ended(asked["run"]) == "succeeded"


# Keys


def test_a_home_makes_one_key_and_keeps_it_private(tmp_path: Path) -> None:
    made = make_approval_keys(tmp_path)
    assert make_approval_keys(tmp_path) == made
    file = approval_keys_file(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]
    settings = with_approval_keys(Settings(home=tmp_path), tmp_path)
    assert settings.approval_keys == SecretStr(made)
    assert made not in repr(settings)
    assert plain_settings(settings)["approval_keys"] == made
    assert Settings(**plain_settings(settings)).approval_keys == SecretStr(made)
    configured = Settings(home=tmp_path, approval_keys=SecretStr(SECRET))
    assert with_approval_keys(configured, tmp_path) is configured


def test_clients_find_the_key_of_the_deployment_that_they_talk_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    made = make_approval_keys(tmp_path)
    assert Settings.load().approval_keys is None
    deployment_file(tmp_path).write_text(json.dumps({"redis_url": "redis://here"}))
    assert Settings.load().approval_keys == SecretStr(made)
    assert Settings.load(approval_keys=SecretStr(SECRET)).approval_keys == SecretStr(SECRET)
    # Another store is another deployment's: this home's key says nothing of it.
    assert Settings.load(redis_url=SecretStr("redis://there")).approval_keys is None


def test_a_request_can_be_read_again_as_it_was_signed() -> None:
    request = a_request()
    assert type(request).read(request.model_dump_json().encode(), "a") == request
    assert request.action == an_action()
