"""Dependencies through the client and the command line: what is shown, and what hubs are asked to do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from handwork import settings_for
from typer.testing import CliRunner, Result

from actors.errors import DefinitionError
from admission.dependency import Breaker, Dependency, Limit, as_plain, from_plain
from admission.retry import RetryPolicy
from cluster.config import Settings
from cluster.store import Store
from cluster.tasks import end
from penstock import Client, SyncClient, dependencies
from penstock.cli.app import cli
from penstock.cli.dependencies import with_limits
from penstock.cli.outcome import Exit, Failure
from penstock.dependencies import NoSuchDependency, NotDefinedYet, redefined
from penstock.dependency_views import dependency_view

OPENAI = Dependency(
    "openai", [Limit("requests", 500), Limit("tokens", 2_000_000)], max_concurrency=20, breaker=Breaker(open_s=3)
)


class Hub:
    """Plays a hub: says how its dependency is, and does what it is told, unless it is deaf."""

    def __init__(self, store: Store, declared: Dependency, *, echoes: bool = True, deaf: bool = False) -> None:
        self.store = store
        self.declared = declared
        self.echoes = echoes
        self.deaf = deaf
        self.said: dict[str, Any] = {}
        self.commands: list[dict[str, Any]] = []
        self._override = ""

    async def speak(self, *, late_s: float = 0.0) -> None:
        """Writes a snapshot, after reading what operators want."""
        keys = self.store.keys
        key = keys.dependency(self.declared.name)
        if not self.deaf:
            await self._read(key)
        now_ms = await self.store.server_ms() - int(late_s * 1000)
        plain = as_plain(self.declared) | json.loads(self._override or "{}")
        said = {"v": 1, "name": self.declared.name, "epoch": 3, "at_ms": now_ms, "definition": plain} | self.said
        if self.echoes:
            said["override"] = self._override
        await self.store.command(keys.dependencies, "SADD", keys.dependencies, self.declared.name)
        await self.store.set_fields(key, {"state": json.dumps(said)})

    async def _read(self, key: str) -> None:
        override, command = await self.store.command(key, "HMGET", key, "override", "command")
        self._override = override.decode() if override else ""
        from_plain(as_plain(self.declared) | json.loads(self._override or "{}"))
        wanted = json.loads(command) if command else None
        if wanted and wanted["id"] != self.said.get("command_done"):
            self.commands.append(wanted)
            state = {"open": "open", "close": "closed", "probe": "probing"}[wanted["do"]]
            breaker = {"state": state, "since_ms": wanted["at_ms"], "reason": wanted["reason"], "by": wanted["by"]}
            self.said |= {"breaker": breaker, "command_done": wanted["id"]}

    async def live(self) -> None:
        """Speaks at once, whenever it is told something, and now and then."""
        heard = asyncio.Event()

        async def listen() -> None:
            async for message in self.store.listen(self.store.keys.dependencies_channel):
                if message is None or message[1] == f"changed {self.declared.name}":
                    heard.set()

        listening = asyncio.create_task(listen())
        try:
            while True:
                await self.speak()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await heard.wait()
                heard.clear()
        finally:
            await end([listening])


@contextlib.asynccontextmanager
async def hub_of(settings: Settings, declared: Dependency = OPENAI, **how: Any) -> AsyncIterator[Hub]:
    store = await Store.open(settings)
    hub = Hub(store, declared, **how)
    await hub.speak()
    living = asyncio.create_task(hub.live())
    try:
        yield hub
    finally:
        await end([living])
        await store.close()


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return settings_for(redis_url, f"t-{uuid.uuid4().hex[:12]}")


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    async with Client(settings=settings) as opened:
        yield opened


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for a hub's word are short."""
    monkeypatch.setattr(dependencies, "CONFIRM_S", 0.3)


# The client


async def test_all_dependencies_and_one(settings: Settings, client: Client) -> None:
    assert await client.dependencies() == []
    with pytest.raises(NoSuchDependency, match=r"known dependencies: none"):
        await client.dependency("openai")
    async with hub_of(settings), hub_of(settings, Dependency("mail")):
        assert [view.name for view in await client.dependencies()] == ["mail", "openai"]
        view = await client.dependency("openai")
        assert from_plain(view.definition) == OPENAI
        assert not view.stale
        assert view.silent_s is not None
        assert view.silent_s < 5
        with pytest.raises(NoSuchDependency, match="'openal'; known dependencies: mail, openai"):
            await client.dependency("openal")
    assert view.breaker.state == "unknown"  # this hub says nothing of it


async def test_a_change_is_written_told_and_confirmed(settings: Settings, client: Client) -> None:
    async with hub_of(settings):
        answer = await client.set_dependency("openai", {"max_concurrency": 5, "breaker": {"failure_rate": 0.2}})
        assert answer.confirmed
        # Of the breaker everything is written down, so that the change means the same whatever the app says later.
        changed = as_plain(Dependency("x", breaker=Breaker(open_s=3, failure_rate=0.2)))["breaker"]
        assert answer.dependency.override == {"max_concurrency": 5, "breaker": changed}
        assert answer.dependency.definition["breaker"] == changed
        assert answer.dependency.definition["rate"] == as_plain(OPENAI)["rate"]

        more = await client.set_dependency("openai", {"rate": [{"requests": 50, "per": "1s"}], "retry_budget": None})
        assert more.confirmed
        assert set(more.dependency.override) == {"max_concurrency", "breaker", "rate", "retry_budget"}
        assert more.dependency.definition["rate"] == [{"resource": "requests", "amount": 50, "per": 1}]

        back = await client.reset_dependency("openai")
        assert back.confirmed
        assert back.dependency.override == {}
        assert from_plain(back.dependency.definition) == OPENAI
        assert (await client.reset_dependency("openai")).confirmed


async def test_what_is_the_same_already_is_confirmed_too(settings: Settings, client: Client) -> None:
    async with hub_of(settings):
        assert (await client.set_dependency("openai", {"max_concurrency": 20})).confirmed


async def test_a_hub_that_does_not_tell_what_it_obeys_shows_it(settings: Settings, client: Client) -> None:
    async with hub_of(settings, echoes=False):
        assert (await client.set_dependency("openai", {"max_concurrency": None})).confirmed
        assert (await client.reset_dependency("openai")).confirmed


async def test_an_invalid_change_changes_nothing(settings: Settings, client: Client) -> None:
    async with hub_of(settings):
        with pytest.raises(DefinitionError) as caught:
            await client.set_dependency(
                "openai", {"max_concurency": 1, "breaker": {"open_s": -1}, "rate": [{"requests": 0}]}
            )
        text = str(caught.value)
        assert "nothing was changed: 3 problems" in text
        assert "max_concurency: there is no such field; did you mean 'max_concurrency'?" in text
        assert "breaker.open_s: must be above zero (it is -1)" in text
        assert "rate.0.amount: must be above zero (it is 0)" in text
        assert (await client.dependency("openai")).override == {}


@pytest.mark.usefixtures("brief")
async def test_a_deaf_hub_confirms_nothing(settings: Settings, client: Client) -> None:
    async with hub_of(settings, deaf=True, echoes=False):
        answer = await client.set_dependency("openai", {"max_concurrency": 5})
        assert not answer.confirmed
        assert answer.dependency.override == {"max_concurrency": 5}
        assert not (await client.reset_dependency("openai")).confirmed
        assert not (await client.command_dependency("openai", "open")).confirmed


@pytest.mark.usefixtures("brief")
async def test_the_last_word_of_a_dead_hub_confirms_nothing(settings: Settings, client: Client) -> None:
    async with hub_of(settings) as hub:
        await end([task for task in asyncio.all_tasks() if "live" in str(task.get_coro())])
        await hub.speak(late_s=20)
        view = await client.dependency("openai")
        assert view.stale
        assert view.silent_s == pytest.approx(20, abs=2)
        # It says what is wanted already, and it said so before.
        assert not (await client.set_dependency("openai", {"max_concurrency": 20})).confirmed


async def test_a_hub_that_has_not_spoken(settings: Settings, client: Client) -> None:
    keys = client.store.keys
    await client.store.command(keys.dependencies, "SADD", keys.dependencies, "new")
    (view,) = await client.dependencies()
    assert (view.name, view.at_ms, view.stale, view.definition) == ("new", None, True, {})
    with pytest.raises(NotDefinedYet, match="nothing was changed"):
        await client.set_dependency("new", {"max_concurrency": 1})


async def test_commands_name_who_and_why(settings: Settings, client: Client) -> None:
    async with hub_of(settings) as hub:
        for do, state in (("open", "open"), ("probe", "probing"), ("close", "closed")):
            answer = await client.command_dependency("openai", do, by="eve", reason="maintenance")
            assert answer.confirmed
            assert (answer.dependency.breaker.state, answer.dependency.breaker.by) == (state, "eve")
        assert [(each["do"], each["reason"]) for each in hub.commands] == [
            ("open", "maintenance"), ("probe", "maintenance"), ("close", "maintenance")
        ]  # fmt: skip
        await client.command_dependency("openai", "open")
        assert "@" in hub.commands[-1]["by"]
        with pytest.raises(ValueError, match="use one of open, close, probe"):
            await client.command_dependency("openai", "shut")
        with pytest.raises(NoSuchDependency):
            await client.command_dependency("nobody", "open")


def test_a_newer_hubs_own_fields_do_not_stand_in_the_way() -> None:
    said = as_plain(OPENAI) | {"colour": "blue", "breaker": {"open_s": 2.0, "mood": "good"}}
    made = redefined("openai", said, {"retry": {"maximum_attempts": 2}})
    assert made.retry == RetryPolicy(maximum_attempts=2)
    assert made.breaker == Breaker(open_s=2)


@pytest.mark.parametrize(
    "state", [None, b"", b"{}", b"no JSON", b"[]", b'{"at_ms": null, "breaker": 7, "limits": [1]}']
)
def test_views_take_what_they_can_read(state: bytes | None) -> None:
    view = dependency_view("a", state, b"nonsense", 1000)
    assert (view.name, view.stale, view.override, view.limits) == ("a", True, {}, ())
    assert view.breaker.state == "unknown"


def test_views_read_part_of_what_another_version_says() -> None:
    said = {
        "at_ms": 900,
        "breaker": {"state": "melted", "mood": "bad"},
        "limits": "many",
        "waiting": {"vip": 3, "normal": 1.5},
        "hosts": [{"host": "h", "silent_ms": 12}],
        "more": [1],
    }
    view = dependency_view("a", json.dumps(said).encode(), None, 1000)
    assert (view.silent_s, view.stale, view.unread) == (0.1, False, ("limits",))
    assert (view.breaker.state, view.waiting["vip"], view.hosts[0].host) == ("melted", 3, "h")


def test_the_client_without_a_loop_does_the_same(settings: Settings) -> None:
    with hub_in_a_thread(settings), SyncClient(settings=settings) as client:
        assert [view.name for view in client.dependencies()] == ["openai"]
        assert client.dependency("openai").name == "openai"
        assert client.set_dependency("openai", {"max_concurrency": 2}).confirmed
        assert client.reset_dependency("openai").confirmed
        assert client.command_dependency("openai", "open", reason="r").confirmed


# The command line


@contextlib.contextmanager
def hub_in_a_thread(settings: Settings, **how: Any) -> Iterator[Hub]:
    stop, ready = threading.Event(), threading.Event()
    hubs: list[Hub] = []

    async def work() -> None:
        async with hub_of(settings, **how) as hub:
            hubs.append(hub)
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    assert ready.wait(10)
    try:
        yield hubs[0]
    finally:
        stop.set()
        thread.join()


Command = Callable[..., Result]


@pytest.fixture
def penstock(settings: Settings, tmp_path: Path) -> Command:
    assert settings.redis_url is not None
    environment = {
        "PENSTOCK_REDIS_URL": settings.redis_url.get_secret_value(),
        "PENSTOCK_NAME": settings.name,
        "PENSTOCK_HOME": str(tmp_path / "home"),
        "COLUMNS": "200",
    }

    def run(*arguments: str) -> Result:
        result = CliRunner().invoke(cli, list(arguments), env=environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def full() -> dict[str, Any]:
    """All that a hub may say, at this moment."""
    now_ms = int(time.time() * 1000)
    return {
        "breaker": {
            "state": "open", "since_ms": now_ms - 30_000, "reason": "52 % of 120 calls failed",
            "until_ms": now_ms + 90_000, "openings": 2, "by": "", "calls": 120, "failed": 62, "slow": 0,
        },
        "limits": [
            {"resource": "requests", "amount": 500, "per": 60.0, "used": 412, "outstanding": 3, "available": 4},
            {"resource": "tokens", "amount": 2_000_000, "per": 60.0, "used": 1_234_567, "outstanding": 0.5},
        ],
        "concurrency": {"max": 20, "in_flight": 7},
        "pace": 0.7,
        "not_before_ms": now_ms + 60_000,
        "retry_after": {"seconds": 5.0, "at_ms": now_ms - 3000},
        "waiting": {"critical": 0, "high": 2, "normal": 31},
        "hosts": [
            {"host": "host-ab-0~1", "in_flight": 3, "waiting": 12, "permits": 4, "breaker": "closed", "silent_ms": 120}
        ],
        "budgets": {"default": {"available": 7.5, "calls": 900, "retries": 12}, "acme": {"available": 0.5}},
        "totals": {"succeeded": 12_345, "rate_limited": 2},
    }  # fmt: skip


def test_deps_shows_all_and_one(settings: Settings, penstock: Command) -> None:
    assert penstock("deps").stderr == (
        "no dependencies are known: none are declared, or no deployment has been started\n"
    )
    with hub_in_a_thread(settings) as hub:
        hub.said = full()
        time.sleep(0.3)
        listed = penstock("deps")
        assert (listed.exit_code, listed.stderr) == (0, "")
        for part in (
            "openai", "open", "30 s", "52 % of 120 calls", "412/500 requests/1m", "1,234,567/2,000,000", "tokens/1m",
            "7 of 20", "2 high, 31 normal", "0.5 acme, 7.5", "5 s, said 3 s ago", "no call for", "70%",
        ):  # fmt: skip
            assert part in " ".join(listed.stdout.split()), part

        one = penstock("deps", "openai")
        for part in (
            "412", "500 requests per 1m", "host-ab-0~1", "open_s=3", "acme",
            "120 calls, 62 failed, 0 slow", "openings", "life 3", "12,345 succeeded, 2 rate limited",
            "max_concurrency 20", "probes in",
        ):  # fmt: skip
            assert part in " ".join(one.stdout.split()), part

        (line,) = penstock("deps", "--json").stdout.splitlines()
        assert json.loads(line)["breaker"]["state"] == "open"
        for arguments in (
            ("deps", "openai", "--json"),
            ("deps", "--json", "openai"),
            ("deps", "show", "openai", "--json"),
        ):
            assert json.loads(penstock(*arguments).stdout)["name"] == "openai"

        unknown = penstock("deps", "openal")
        assert unknown.exit_code == Exit.FAILED
        assert "there is no dependency 'openal'; known dependencies: openai" in unknown.stderr
    assert penstock("deps", "--help").exit_code == 0


def test_a_silent_hub_is_said_to_be_silent(settings: Settings, penstock: Command) -> None:
    async def leave() -> None:
        store = await Store.open(settings)
        await Hub(store, OPENAI).speak(late_s=12)
        await store.close()

    asyncio.run(leave())
    listed = penstock("deps")
    assert "hub silent for 12 s" in listed.stdout
    assert "openai: hub silent for 12 s: what is shown may not hold any more" in listed.stderr
    assert "hub silent for" in penstock("deps", "openai").stderr
    assert json.loads(penstock("deps", "--json").stdout)["stale"] is True


def test_deps_set(settings: Settings, penstock: Command) -> None:
    with hub_in_a_thread(settings):
        done = penstock(
            "deps", "set", "openai", "--limit", "requests=50/1s", "--limit", "requests=600/1m",
            "--max-concurrency", "none", "--breaker", "open_s=1.5",
            "--retry", "maximum_attempts=2", "--retry", "retryable=not_applied",
            "--retry-budget", "none",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert done.stderr == "openai: max_concurrency, breaker, retry, retry_budget, rate changed; its hub obeys\n"
        assert done.stdout == ""
        definition = json.loads(penstock("deps", "openai", "--json").stdout)["definition"]
        limits = {(limit["resource"], limit["amount"], limit["per"]) for limit in definition["rate"]}
        assert limits == {("tokens", 2_000_000, 60), ("requests", 50, 1), ("requests", 600, 60)}
        assert (definition["max_concurrency"], definition["retry_budget"]) == (None, None)
        assert definition["breaker"]["open_s"] == 1.5
        assert definition["retry"]["retryable"] == ["not_applied"]

        none = penstock("deps", "set", "openai", "--limit", "tokens=none", "--breaker", "none", "--json")
        answer = json.loads(none.stdout)
        assert answer["confirmed"] is True
        assert answer["dependency"]["definition"]["breaker"] is None
        back = penstock("deps", "set", "openai", "--reset")
        assert (back.exit_code, back.stderr) == (0, "openai: what operators had set is taken back; its hub obeys\n")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((), "say what to change, or --reset"),
        (("--reset", "--max-concurrency", "3"), "give nothing else with it"),
        (("--max-concurrency", "many"), "max_concurrency: must be a whole number (it is 'many')"),
        (("--max-concurrency", "0"), "max_concurrency: must not be below 1 (it is 0)"),
        (("--limit", "requests"), "write it as in requests=500/1m"),
        (("--limit", "requests=5/"), "write it as in requests=500/1m"),
        (("--limit", "gulps=5/1m"), "'gulps' is no resource: use requests"),
        (("--limit", "requests=0/1m"), "amount: must be above zero (it is 0)"),
        (("--limit", "requests=nan/1m"), "amount: must be"),
        (("--limit", "requests=5/1 fortnight"), "'1 fortnight' is no duration"),
        (("--limit", "requests=5/1m", "--limit", "requests=6/60s"), "two limits for requests per 1m"),
        (("--breaker", "open=3"), "breaker.open: there is no such field; did you mean 'open_s'?"),
        (("--breaker", "open_s"), "write it as field=value"),
        (("--breaker", "none", "--breaker", "open_s=3"), "takes the whole away"),
        (("--retry", "none"), "retry: must be a mapping of fields"),
        (("--retry-budget", "ratio=2"), "retry_budget.ratio: must not be above 1 (it is 2)"),
    ],
)
def test_a_bad_set_changes_nothing(
    options: tuple[str, ...], problem: str, settings: Settings, penstock: Command
) -> None:
    async def leave() -> None:
        store = await Store.open(settings)
        await Hub(store, OPENAI).speak()
        await store.close()

    asyncio.run(leave())
    refused = penstock("deps", "set", "openai", *options)
    assert refused.exit_code == Exit.BAD_INPUT, refused.output
    assert problem in refused.stderr
    assert json.loads(penstock("deps", "openai", "--json").stdout)["override"] == {}


@pytest.mark.usefixtures("brief")
def test_what_no_hub_confirms_is_not_said_to_be_done(settings: Settings, penstock: Command) -> None:
    with hub_in_a_thread(settings, deaf=True, echoes=False):
        for arguments in (
            ("set", "openai", "--max-concurrency", "3"),
            ("open", "openai"),
            ("set", "openai", "--reset"),
        ):
            answer = penstock("deps", *arguments)
            assert answer.exit_code == Exit.TIMED_OUT
            assert "its hub has not confirmed it" in answer.stderr
            assert "it speaks, and does not say that it obeys" in answer.stderr


def test_breakers_by_hand(settings: Settings, penstock: Command) -> None:
    with hub_in_a_thread(settings) as hub:
        opened = penstock("deps", "open", "openai", "--reason", "maintenance until five")
        assert (opened.exit_code, opened.stderr) == (0, "openai: no calls go through; its hub obeys\n")
        assert "maintenance until five" in penstock("deps").stdout
        assert penstock("deps", "probe", "openai").exit_code == 0
        closed = penstock("deps", "close", "openai", "--json")
        assert json.loads(closed.stdout)["confirmed"] is True
        assert [each["do"] for each in hub.commands] == ["open", "probe", "close"]
        assert penstock("deps", "open", "nobody").exit_code == Exit.FAILED


def test_limits_of_other_resources_stay() -> None:
    present = [{"resource": "tokens", "amount": 1, "per": 1}, {"resource": "requests", "amount": 1, "per": 1}]
    assert with_limits(present, ["requests=none"]) == present[:1]
    assert with_limits([], ["requests=5"]) == [{"resource": "requests", "amount": 5}]
    with pytest.raises(Failure):
        with_limits(present, ["=5"])


def test_up_refuses_a_bad_file_before_it_starts_anything(penstock: Command, tmp_path: Path) -> None:
    file = tmp_path / "deps.yaml"
    file.write_text("dependencies: {a: {rate: [{requests: 0}]}}\n")
    refused = penstock("up", "--app", "no.such.app", "--dependencies", str(file))
    assert refused.exit_code == Exit.BAD_INPUT
    assert f"{file}, line 1: dependency 'a', rate.0.amount: must be above zero (it is 0)" in refused.stderr
    missing = penstock("up", "--app", "no.such.app", "--dependencies", str(tmp_path / "none.yaml"))
    assert (missing.exit_code, "cannot be read" in missing.stderr) == (Exit.BAD_INPUT, True)
