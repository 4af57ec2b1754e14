"""Settings: arguments before the environment before the deployment file, and nothing that is not valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from cluster.config import Retention, Settings, default_home, deployment_file, read_deployment
from cluster.lifecycle import TERMINAL, RunState

URL = "redis://:hunter2@127.0.0.1:1234/0"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import os

    for name in list(os.environ):
        if name.startswith("PENSTOCK_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    return tmp_path


def record(home: Path, **fields: Any) -> None:
    deployment_file(home).write_text(json.dumps(fields))


def url_of(settings: Settings) -> str | None:
    return None if settings.redis_url is None else settings.redis_url.get_secret_value()


def test_the_defaults(home: Path) -> None:
    settings = Settings.load()
    assert (settings.name, settings.partitions, settings.redis_url, settings.home) == ("penstock", 8, None, home)
    assert (settings.lease_s, settings.heartbeat_s) == (3.0, 1.0)
    assert settings.payload_limit_bytes == 256 * 1024


def test_home_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_home() == tmp_path
    monkeypatch.delenv("PENSTOCK_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert default_home() == tmp_path / "state" / "penstock"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert default_home() == tmp_path / "me" / ".local" / "state" / "penstock"


def test_arguments_then_environment_then_deployment_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(home, redis_url=URL, name="from-file", partitions=16, ray_address="ignored")
    settings = Settings.load()
    assert (url_of(settings), settings.name, settings.partitions) == (URL, "from-file", 16)
    monkeypatch.setenv("PENSTOCK_NAME", "from-environment")
    monkeypatch.setenv("PENSTOCK_LEASE_S", "7.5")
    settings = Settings.load()
    assert (url_of(settings), settings.name, settings.partitions) == (URL, "from-environment", 16)
    assert settings.lease_s == 7.5
    settings = Settings.load(name="from-argument", partitions=4)
    assert (url_of(settings), settings.name, settings.partitions) == (URL, "from-argument", 4)


def test_a_deployment_file_says_nothing_of_another_store(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(home, redis_url=URL, name="local", partitions=16)
    monkeypatch.setenv("PENSTOCK_REDIS_URL", "redis://elsewhere:6379/0")
    settings = Settings.load()
    assert (url_of(settings), settings.name, settings.partitions) == ("redis://elsewhere:6379/0", "penstock", 8)
    settings = Settings.load(redis_url=SecretStr(URL))
    assert (settings.name, settings.partitions) == ("local", 16)


def test_unknown_and_empty_fields_of_the_file_do_not_matter(home: Path) -> None:
    record(home, redis_url=None, name="local", more="x", lease_s=99)
    settings = Settings.load()
    assert (settings.redis_url, settings.name, settings.lease_s) == (None, "local", 3.0)


def test_no_file_is_no_deployment(home: Path) -> None:
    assert read_deployment(home / "nowhere") is None
    deployment_file(home).write_text("{ not json")
    with pytest.raises(ValueError, match="Expecting"):
        read_deployment(home)


def test_a_password_shows_up_nowhere(home: Path) -> None:
    record(home, redis_url=URL)
    settings = Settings.load()
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)
    assert "hunter2" not in settings.model_dump_json()


@pytest.mark.parametrize(
    "fields",
    [{"name": "Upper"}, {"name": ""}, {"name": "a b"}, {"name": "{x}"}, {"name": "a:b"}, {"partitions": 0},
     {"partitions": 257}, {"lease_s": 0.1}, {"heartbeat_s": 0}, {"slots_per_host": 0}, {"payload_limit_bytes": 1},
     {"retention": {"succeeded_s": 0}}, {"retention": {"unknown_s": 1}}],
)  # fmt: skip
def test_what_is_not_valid_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.load(**fields)
    assert next(iter(fields)) in str(caught.value)


def test_the_environment_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_PARTITIONS", "many")
    with pytest.raises(ValidationError, match="partitions"):
        Settings.load()


def test_settings_are_a_value() -> None:
    with pytest.raises(ValidationError):
        Settings().name = "other"  # type: ignore[misc]


@given(st.lists(st.floats(0.001, 1e9), min_size=4, max_size=4))
def test_retention_is_told_to_the_scripts_by_state(seconds: list[float]) -> None:
    names = ("succeeded", "failed", "cancelled", "shed")
    retention = Retention(**{f"{name}_s": value for name, value in zip(names, seconds, strict=True)})
    told = dict(zip(names, map(int, retention.argument.split(",")), strict=True))
    assert told == {name: retention.milliseconds_of(name) for name in names}
    assert told.keys() == {state.value for state in TERMINAL}
    assert all(abs(told[name] - value * 1000) < 1 for name, value in zip(names, seconds, strict=True))
    for state in set(RunState) - TERMINAL:
        assert retention.milliseconds_of(state.value) == max(told.values())
