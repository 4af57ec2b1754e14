"""The operators' rules for admission: what the file may say, what is said of mistakes, how it travels, its versions."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handwork import settings_for
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from actors.admission_file import admission_of, parsed, with_admission_file
from actors.errors import DefinitionError
from actors.supervisor import plain_settings
from admission.admission_definition import AdmissionDefinition
from cluster.admission_rules import put_rules, rules_history, rules_in_force, rules_number
from cluster.config import Settings
from cluster.store import Store
from penstock import SyncClient
from penstock.admission_rules import put_given_rules
from penstock.cli.app import cli
from penstock.cli.outcome import Exit

WHOLE = """\
classes:
  critical: {max_wait: 5s}
  best_effort: {max_wait: 1h, share: 0.02}
tenants:
  acme: {weight: 3, max_running: 200}
  trial: {weight: 0.5, classes: [low, best_effort], max_queued: 1000, cost_per_hour: 2h}
other_tenants: {max_queued: 10000}
max_queued: 1000000
max_queued_bytes: 2GB
dry_run: true
"""
DOCS = Path(__file__).parents[1] / "docs" / "admission.md"


def test_a_whole_file() -> None:
    rules = parsed(WHOLE, "a.yaml").checked()
    assert (rules.of_class(0).max_wait, rules.of_class(4).share, rules.of_class(2).max_wait) == (5, 0.02, 86_400)
    trial = rules.of_tenant("trial")
    assert (trial.ranks, trial.max_queued, trial.cost_per_hour) == ((3, 4), 1000, 7200)
    assert rules.of_tenant("nobody").max_queued == 10_000
    assert (rules.max_queued_bytes, rules.dry_run) == (2 * 10**9, True)


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "{}", "classes:\n", "classes: {}\ntenants: {}\n"])
def test_nothing_is_the_default(text: str) -> None:
    assert parsed(text, "a.yaml").checked() == AdmissionDefinition()
    assert parsed(text, "a.yaml").checked().version == "default"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("classes:\n  huge: {}", "a.yaml, line 2: class 'huge': there is no such class; classes: critical, high"),
        ("classes:\n  hihg: {}", "did you mean 'high'? classes: critical"),
        ("classes: {high: {max_wiat: 5s}}", "class 'high', max_wiat: there is no such field; did you mean 'max_wait'?"),
        ("classes: {high: {max_wait: -5}}", "class 'high', max_wait: -5 is no duration above zero"),
        ("classes: {high: {max_wait: 400d}}", "max_wait: '400d' is longer than a year"),
        ("classes: {high: {share: 0.9}}", "class 'high', share: must not be above 0.5 (it is 0.9)"),
        ("classes: {high: {share: 0.5}, low: {share: 0.45}}", "come to 0.95: at most 0.9 can be promised"),
        ("classes: []", "classes: must be a mapping"),
        ("tenants:\n\n  5: {}", "line 3: tenant 5: a tenant's name must be a printable text"),
        ("tenants: {a: {classes: [lo]}}", "tenant 'a', classes.0: must be 'critical', 'high', 'normal'"),
        ("tenants: {a: {classes: []}}", "tenant 'a', classes: name at least one class"),
        ("tenants: {a: {weight: 0}}", "tenant 'a', weight: must not be below 0.01 (it is 0)"),
        ("tenants: {a: {weight: .nan}}", "tenant 'a', weight: must be a finite number"),
        ("tenants: {a: {max_queued: -1}}", "tenant 'a', max_queued: must not be below 1 (it is -1)"),
        ("tenants: {a: {max_running: 1.5}}", "tenant 'a', max_running: must be a whole number (it is 1.5)"),
        ("tenants: {a: {max_running: true}}", "tenant 'a', max_running: must be a whole number"),
        ("tenants: {a: }", "tenant 'a': must be a mapping of fields"),
        ("other_tenants: {max_runing: 4}", "other_tenants.max_runing: there is no such field; did you mean 'max_runn"),
        ("max_queued_bytes: 2 XB", "max_queued_bytes: '2 XB' is no size"),
        ("dry_run: 1", "dry_run: must be true or false (it is 1)"),
        ("clases: {}", "clases: there is no such field; did you mean 'classes'?"),
        ("- a", "must be a mapping of classes, tenants"),
        ("classes: {high: {}, high: {}}", "'high' is there twice"),
        ("classes: {high: {", "no valid YAML"),
    ],
)
def test_mistakes_are_told_with_line_and_fix(text: str, problem: str) -> None:
    (found,) = parsed(text, "a.yaml").problems
    assert problem in found
    assert found.startswith("a.yaml")
    with pytest.raises(DefinitionError, match="the rules for admission cannot be used"):
        parsed(text, "a.yaml").checked()


def test_all_mistakes_are_told_at_once() -> None:
    text = "classes: {huge: {}, high: {share: 2}}\ntenants:\n  a: {weight: -1}\nmax_queued: 0\n"
    assert len(parsed(text, "a.yaml").problems) == 4


JUNK: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(JUNK | st.fixed_dictionaries({}, optional=dict.fromkeys(AdmissionDefinition.model_fields, JUNK)))
def test_whatever_it_is_it_is_rules_or_problems(content: Any) -> None:
    said = parsed(json.dumps(content), "a.yaml")
    assert (said.definition is None) == bool(said.problems)


# How it travels


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Settings]:
    def make(text: str) -> Settings:
        place = tmp_path / "admission.yaml"
        place.write_text(text)
        return Settings(home=tmp_path, admission=place)

    return make


def test_the_file_goes_along_as_text(file: Callable[[str], Settings]) -> None:
    settings = file(WHOLE)
    sent = with_admission_file(settings)
    assert sent.admission_yaml == WHOLE
    assert with_admission_file(sent) is sent
    plain = plain_settings(settings)
    assert plain["admission_yaml"] == WHOLE
    assert settings.admission is not None
    settings.admission.unlink()
    elsewhere = admission_of(Settings(**plain))
    assert elsewhere is not None
    assert (elsewhere.text, elsewhere.place) == (WHOLE, "admission.yaml")


def test_an_empty_file_is_rules_too_and_a_bad_one_is_refused(file: Callable[[str], Settings]) -> None:
    sent = with_admission_file(file("\n"))
    assert sent.admission_yaml
    said = admission_of(sent)
    assert said is not None
    assert said.checked().version == "default"
    assert admission_of(Settings()) is None
    with pytest.raises(DefinitionError, match="line 1: dry_run"):
        with_admission_file(file("dry_run: maybe"))
    with pytest.raises(DefinitionError, match=r"cannot be read.*PENSTOCK_ADMISSION"):
        with_admission_file(Settings(admission=Path("/nowhere/a.yaml")))


# Versions in the store


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return settings_for(redis_url, f"t-{uuid.uuid4().hex[:12]}")


async def test_the_store_keeps_what_is_in_force_and_what_was(settings: Settings) -> None:
    store = await Store.open(settings)
    assert await rules_in_force(store) is None
    assert (await put_rules(store, "v1", "one", by="ann", why="because")).word == "SET"
    assert (await put_rules(store, "v1", "one", by="bob")).word == "SAME"
    assert (await put_rules(store, "v2", "two", by="bob")).number == 2
    assert await rules_number(store) == 2
    now = await rules_in_force(store)
    assert now is not None
    assert (now.version, now.text, now.by) == ("v2", "two", "bob")
    assert [(each.version, each.by, each.why) for each in await rules_history(store)] == [
        ("v2", "bob", ""), ("v1", "ann", "because"),
    ]  # fmt: skip
    await store.close()


def test_naming_a_file_at_up_puts_it_in_force_and_naming_none_leaves_what_is(settings: Settings) -> None:
    put_given_rules(settings.model_copy(update={"admission_yaml": WHOLE}))
    put_given_rules(settings)
    with SyncClient(settings=settings) as client:
        view = client.admission()
        assert (view.text, view.number, view.why) == (WHOLE, 1, "given to the deployment")


# The command line


def penstock(settings: Settings, folder: Path, *arguments: str, stdin: str | None = None) -> Result:
    assert settings.redis_url is not None
    environment = {
        "PENSTOCK_REDIS_URL": settings.redis_url.get_secret_value(),
        "PENSTOCK_NAME": settings.name,
        "PENSTOCK_HOME": str(folder / "home"),
        "COLUMNS": "200",
    }
    result = CliRunner().invoke(cli, ["admission", *arguments], env=environment, input=stdin)
    assert "Traceback" not in result.output
    return result


def test_set_show_and_history(settings: Settings, tmp_path: Path) -> None:
    def ok(*arguments: str, stdin: str | None = None) -> Result:
        result = penstock(settings, tmp_path, *arguments, stdin=stdin)
        assert result.exit_code == 0, result.output
        return result

    assert "nothing is bounded" in ok("show").stdout
    assert "nobody has set rules" in ok("history").stderr
    place = tmp_path / "a.yaml"
    place.write_text(WHOLE)
    version = ok("set", str(place), "--why", "the fair").stdout.strip()
    assert version == parsed(WHOLE, "").checked().version
    told = ok("set", str(place)).stderr
    assert "were in force already" in told
    assert "tenant trial: weight 0.5, classes low best_effort, max_queued 1,000, cost_per_hour 7,200 s" in told
    assert "dry run: nothing is refused" in told
    assert ok("show").stdout == WHOLE
    assert "the fair" in ok("show").stderr
    ok("set", "-", stdin="")
    assert json.loads(ok("show", "--json").stdout)["version"] == "default"
    rows = [json.loads(line) for line in ok("history", "--json").stdout.splitlines()]
    assert [(row["version"], row["in_force"]) for row in rows] == [("default", True), (version, False)]
    assert ok("show", "--version", version[:4]).stdout == WHOLE


def test_what_cannot_be_set_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    bad = penstock(settings, tmp_path, "set", "-", stdin="classes: {huge: {}}")
    assert bad.exit_code == Exit.BAD_INPUT
    assert "standard input, line 1: class 'huge': there is no such class" in bad.stderr
    assert penstock(settings, tmp_path, "set", "/nowhere.yaml").exit_code == Exit.BAD_INPUT
    assert penstock(settings, tmp_path, "set", "-", "--why", "x" * 1001, stdin="").exit_code == Exit.BAD_INPUT
    assert penstock(settings, tmp_path, "show", "--version", "beef").exit_code == Exit.FAILED

    async def number() -> int:
        store = await Store.open(settings)
        found = await rules_number(store)
        await store.close()
        return found

    assert asyncio.run(number()) == 0
