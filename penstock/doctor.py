"""What may be wrong with this machine and the deployment, and what to do about it."""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from redis.exceptions import RedisError

from cluster.config import Settings, read_deployment
from cluster.errors import StoreError
from cluster.rooms import check_rooms
from cluster.store import Store
from penstock import inspection
from penstock.views import HostView

OLDEST_STORE: Final = 7
OLDEST_PYTHON: Final = (3, 11)
FIRST_PYTHON_WITHOUT_RAY: Final = (3, 15)
_INFO_SECTIONS: Final = ("server", "memory", "persistence")
_SETTINGS: Final = ("appendonly", "appendfsync", "maxmemory-policy", "maxmemory")


class Check(msgspec.Struct, frozen=True):
    """One thing looked at. ``verdict`` is ok, warn (it works, and may surprise) or fail (it does not work)."""

    name: str
    verdict: str
    found: str
    fix: str = ""


def failed(checks: list[Check]) -> bool:
    """Whether anything does not work."""
    return any(check.verdict == "fail" for check in checks)


async def examine(settings: Settings) -> list[Check]:
    """Looks at this machine, then at the store and the deployment that the settings name."""
    checks = [check_python(sys.version_info[:3]), *check_packages(), check_binary(needed=settings.redis_url is None)]
    checks.append(check_ray_auth(os.environ, Path.home()))
    checks.append(check_deployment_file(settings))
    try:
        store = await Store.open(settings)
    except (StoreError, RedisError) as error:
        return [
            *checks,
            Check("store", "fail", str(error), "" if "`penstock up`" in str(error) else "check its address"),
        ]
    try:
        checks += await _examine_store(store)
    except (StoreError, RedisError) as error:
        checks.append(Check("store", "fail", f"it does not answer as it should: {error}", "look at its log"))
    finally:
        await store.close()
    return checks


def check_python(version: tuple[int, ...]) -> Check:
    """Python itself."""
    text = ".".join(map(str, version))
    if OLDEST_PYTHON <= version[:2] < FIRST_PYTHON_WITHOUT_RAY:
        return Check("python", "ok", text)
    return Check("python", "fail", text, "use Python 3.11 to 3.14: Ray has no wheels for others")


def check_packages() -> list[Check]:
    """Our packages, whose names are generic, against intruders of the same name."""
    intruders = check_rooms()
    if not intruders:
        return [Check("packages", "ok", "all of them are Penstock's own")]
    return [Check("packages", "fail", *str(intruder).partition("; ")[::2]) for intruder in intruders]


def check_binary(*, needed: bool) -> Check:
    """The server binary of the embedded store."""
    from cluster.embedded import EmbeddedValkeyError, find_server_binary

    try:
        return Check("valkey-server", "ok", str(find_server_binary()))
    except EmbeddedValkeyError as error:
        return Check("valkey-server", "fail" if needed else "warn", str(error), "only the embedded store needs it")


def check_ray_auth(environment: Mapping[str, str], home: Path) -> Check:
    """Ray's token authentication: both sides must agree on it, or a connect fails without a clear reason."""
    mode = environment.get("RAY_AUTH_MODE")
    if mode:
        return Check("ray authentication", "ok", f"RAY_AUTH_MODE={mode}")
    if (home / ".ray" / "auth_token").exists():
        found = "RAY_AUTH_MODE is not set and ~/.ray/auth_token exists: clusters that are not local are asked with it"
        return Check(
            "ray authentication", "warn", found, "set RAY_AUTH_MODE to token or disabled, as the cluster has it"
        )
    return Check("ray authentication", "ok", "RAY_AUTH_MODE is not set, and there is no token file")


def check_deployment_file(settings: Settings) -> Check:
    """The local deployment's record."""
    try:
        recorded = read_deployment(settings.home)
    except (ValueError, OSError) as error:
        return Check("deployment file", "fail", f"unreadable: {error}", f"remove it: {settings.home}/deployment.json")
    if recorded is None:
        return Check("deployment file", "ok", f"none in {settings.home}")
    return Check("deployment file", "ok", f"{recorded.get('name')} serves {recorded.get('app')}, from {settings.home}")


def judge_store(info: Mapping[str, str], settings: Mapping[str, str] | None) -> list[Check]:
    """A server by what it tells of itself; ``settings`` is None where it does not let us read them."""
    product = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or info.get("redis_version", "0")
    new_enough = int(info.get("redis_version", "0").split(".")[0]) >= OLDEST_STORE
    where = f"{product} {version}, {info.get('redis_mode', info.get('server_mode', 'standalone'))}"
    checks = [
        Check("store version", "ok", where)
        if new_enough
        else Check("store version", "fail", where, f"use Redis {OLDEST_STORE} or newer, or Valkey")
    ]
    if settings is None:
        told = "the server does not let us read its configuration"
        return [
            *checks,
            Check("store settings", "warn", told, "check appendonly, appendfsync, maxmemory-policy yourself"),
        ]
    checks.append(_judge_durability(settings))
    policy = settings.get("maxmemory-policy", "noeviction")
    if policy == "noeviction" or settings.get("maxmemory", "0") == "0":
        checks.append(Check("store memory", "ok", f"maxmemory {settings.get('maxmemory', '0')}, {policy}"))
    else:
        found = f"maxmemory-policy {policy}: the server may throw runs away when it is full"
        checks.append(Check("store memory", "fail", found, "CONFIG SET maxmemory-policy noeviction"))
    return checks


def _judge_durability(settings: Mapping[str, str]) -> Check:
    append, fsync = settings.get("appendonly", "no"), settings.get("appendfsync", "no")
    found = f"appendonly {append}, appendfsync {fsync}"
    if append != "yes":
        lost = "everything since the last snapshot is lost when the server dies"
        return Check("store durability", "warn", f"{found}: {lost}", "CONFIG SET appendonly yes; appendfsync always")
    if fsync != "always":
        lost = "about a second of acknowledged steps is lost when the machine dies"
        return Check("store durability", "warn", f"{found}: {lost}", "CONFIG SET appendfsync always")
    return Check("store durability", "ok", found)


def judge_hosts(hosts: list[HostView], waiting: int) -> Check:
    """The hosts of the deployment."""
    alive = [host for host in hosts if host.alive]
    found = f"{len(alive)} alive of {len(hosts)} registered"
    if any(host.draining for host in alive):
        found += f", {sum(host.draining for host in alive)} draining"
    if not alive:
        verdict = "fail" if waiting else "warn"
        return Check("hosts", verdict, f"{found}; {waiting:,} runs wait for one", "penstock up --app MODULE")
    if len(alive) < len(hosts):
        lost = ", ".join(host.host for host in hosts if not host.alive)
        return Check(
            "hosts", "warn", f"{found}; lease run out: {lost}", "their runs move to others; look at Ray's logs"
        )
    return Check("hosts", "ok", found)


async def _examine_store(store: Store) -> list[Check]:
    checks = [check for info, settings in await _servers(store) for check in judge_store(info, settings)]
    started_s = time.perf_counter()
    await store.server_ms()
    took_ms = (time.perf_counter() - started_s) * 1000
    verdict, fix = ("ok", "") if took_ms < 50 else ("warn", "put clients and hosts nearer to the store")
    checks.append(Check("store round trip", verdict, f"{took_ms:.1f} ms", fix))
    checks.append(Check("partitions", "ok", f"{len(store.partitions)} of deployment {store.settings.name}"))
    seen = await inspection.deployment(store, 0)
    return [*checks, judge_hosts(seen.hosts, seen.by_state.get("queued", 0))]


async def _servers(store: Store) -> list[tuple[dict[str, str], dict[str, str] | None]]:
    """What every server that holds a partition tells of itself."""
    found: dict[str, tuple[dict[str, str], dict[str, str] | None]] = {}
    for key in store.keys.queues:
        info: dict[str, str] = {}
        for section in _INFO_SECTIONS:
            info.update(_info(await store.command(key, "INFO", section)))
        if info.get("run_id", key) not in found:
            found[info.get("run_id", key)] = (info, await _settings(store, key))
    return list(found.values())


async def _settings(store: Store, key: str) -> dict[str, str] | None:
    settings: dict[str, str] = {}
    for name in _SETTINGS:
        try:
            flat: list[Any] = await store.command(key, "CONFIG", "GET", name)
        except RedisError:
            return None
        settings.update({flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)})
    return settings


def _info(raw: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in raw.decode().splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}
