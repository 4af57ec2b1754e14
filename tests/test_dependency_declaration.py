"""Declaring dependencies: in the app, in the operators' file, and what is said at start-up when they cannot work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from actors import dependency_file
from actors.declared import Misfit, checked
from actors.dependency_file import parsed, with_operators_file
from actors.errors import DefinitionError
from actors.registry import load_app
from actors.yaml_file import MAXIMUM_BYTES
from admission.dependency import Breaker, Dependency, Limit, RetryBudget, as_plain
from admission.retry import RetryPolicy
from cluster.config import Settings

HEAD = "from penstock import Breaker, Dependency, Limit, RetryPolicy, Run, ToolCall, agent, tool\n"
TOOL = "@tool({options})\nasync def {name}(call: ToolCall) -> int: return 1\n"
AGENT = "@agent('shop', version='1')\nasync def shop(run: Run, text: str) -> int: return await run.call({name})\n"
Maker = Callable[..., str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Maker:
    """Makes a package of an app in ``app`` and other modules; its import path."""
    name = "p" + str(abs(hash(request.node.nodeid)))
    monkeypatch.syspath_prepend(tmp_path)

    def make(**modules: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").touch()
        for module, text in modules.items():
            (folder / f"{module}.py").write_text(HEAD + text.replace("PACKAGE", name))
        return f"{name}.app"

    return make


def refusal(path: str, settings: Settings | None = None) -> str:
    with pytest.raises(DefinitionError) as caught:
        load_app(path, settings or Settings())
    return str(caught.value)


def one_tool(options: str) -> str:
    return TOOL.format(options=options, name="get") + AGENT.format(name="get")


def settings_of(folder: Path, text: str) -> Settings:
    file = folder / "deps.yaml"
    file.write_text(text)
    return Settings(home=folder, dependencies=file)


# In the app


def test_an_app_without_dependencies_needs_nothing(package: Maker) -> None:
    app = load_app(package(app=one_tool("")))
    assert app.dependencies == {}
    assert [tool.name for tool in app.tools] == ["get"]


def test_dependencies_are_found_where_agents_and_tools_are(package: Maker) -> None:
    path = package(
        app="from PACKAGE.agents import shop\nfrom PACKAGE import research\nOWN = Dependency('own')\n",
        agents="from PACKAGE.tools import get\n" + AGENT.format(name="get"),
        tools="from PACKAGE import services\n" + TOOL.format(name="get", options="dependency='orders'"),
        services="ORDERS = Dependency('orders', [Limit('requests', 5, per='1s')])\n",
        research="from PACKAGE.helping import ask\nasync def research(run: Run) -> int: return await ask(run)\n",
        helping="from PACKAGE.search import search\nasync def ask(run: Run) -> int: return await run.call(search)\n",
        search="SEARCH = Dependency('search')\n" + TOOL.format(name="search", options="dependency='search'"),
    )
    app = load_app(path)
    assert list(app.dependencies) == ["orders", "own", "search"]
    assert app.dependencies["orders"].rate == (Limit("requests", 5, per=1.0),)
    assert {tool.name for tool in app.tools} == {"get", "search"}


def test_dependencies_are_found_around_a_function(package: Maker) -> None:
    path = package(
        app="def made():\n"
        "    orders = Dependency('orders')\n"
        "    @tool(dependency=orders.name)\n"
        "    async def get(call: ToolCall) -> int: return 1\n"
        "    @agent('shop', version='1')\n"
        "    async def shop(run: Run, text: str) -> str: return f'{orders} {await run.call(get)}'\n"
        "    return shop\n"
        "shop = made()\n"
    )
    assert list(load_app(path).dependencies) == ["orders"]


def test_a_value_that_does_work_when_it_is_asked_is_left_alone(package: Maker) -> None:
    path = package(
        app="class Proxy:\n"
        "    @property\n"
        "    def __class__(self): raise RuntimeError('outside of a request')\n"
        "proxy = Proxy()\n" + one_tool("")
    )
    assert list(load_app(path).agents) == ["shop"]


def test_a_tool_that_names_no_dependency_is_refused(package: Maker) -> None:
    text = refusal(package(app="ORDERS = Dependency('orders')\n" + one_tool("dependency='order'")))
    assert "tool 'get' (" in text
    assert "names the dependency 'order', which is defined nowhere" in text
    assert "did you mean 'orders'" in text
    assert "PENSTOCK_DEPENDENCIES" in text


def test_a_client_need_not_know_the_operators_file(package: Maker) -> None:
    app = load_app(package(app=one_tool("dependency='orders'")))
    assert (list(app.agents), app.dependencies) == (["shop"], {})


def test_two_definitions_that_differ_name_both_places(package: Maker) -> None:
    path = package(
        app="from PACKAGE.other import get\nMINE = Dependency('orders', max_concurrency=3)\n"
        + AGENT.format(name="get"),
        other="YOURS = Dependency('orders', max_concurrency=4)\n"
        + TOOL.format(name="get", options="dependency='orders'"),
    )
    text = refusal(path)
    assert f"dependency 'orders' is defined in {path}.MINE and in {path[:-3]}other.YOURS" in text
    assert "max_concurrency differs" in text


def test_two_definitions_that_are_the_same_are_one(package: Maker) -> None:
    limits = ["Limit('requests', 5, per='60s')", "Limit('tokens', 9)"]
    path = package(
        app=f"from PACKAGE.other import get\nMINE = Dependency('orders', [{', '.join(limits)}])\n"
        + AGENT.format(name="get"),
        other=f"YOURS = Dependency('orders', [{', '.join(reversed(limits))}])\n"
        + TOOL.format(name="get", options="dependency='orders'"),
    )
    assert list(load_app(path).dependencies) == ["orders"]


def test_a_retry_policy_may_not_outlast_its_step(package: Maker) -> None:
    text = refusal(
        package(
            app="D = Dependency('orders', retry=RetryPolicy(max_duration=120))\n"
            + TOOL.format(name="a", options="timeout=5, schedule_to_close=10, retry=RetryPolicy(max_duration=20)")
            + TOOL.format(name="b", options="timeout=5, schedule_to_close=100, dependency='orders'")
            # A duration that nobody has set, and one for attempts that there are not, promise nothing.
            + TOOL.format(name="c", options="timeout=5, schedule_to_close=10, retry=RetryPolicy(maximum_attempts=9)")
            + TOOL.format(
                name="d",
                options="timeout=5, schedule_to_close=10, retry=RetryPolicy(maximum_attempts=1, max_duration=20)",
            )
            + TOOL.format(name="e", options="timeout=5, dependency='orders'")
            + AGENT.format(name="a")
        )
    )
    assert "2 problems" in text
    assert "its retry policy goes on for 20 s (max_duration), but its whole step may take 10 s only" in text
    assert "the retry policy of its dependency 'orders'" in text
    assert "goes on for 120 s" in text


def test_what_pydantic_refuses_in_an_app_is_said_with_its_line(package: Maker) -> None:
    text = refusal(package(app="\nD = Dependency('orders', [Limit('requests', 0)])\n" + one_tool("")))
    assert "cannot be loaded" in text
    assert text.endswith("app.py, line 3: Limit.amount: must be above zero (it is 0)")


# In the operators' file

FULL = """
dependencies:
  openai:
    rate:
      - {requests: 500, per: 1m}
      - {resource: input_tokens, amount: 200000, per: 1m}
    max_concurrency: 20
    breaker: {failure_rate: 0.2, open_s: 10}
    retry: {maximum_attempts: 3}
    retry_budget: null
  stock:
  mail:
    breaker: null
"""


def test_both_forms_of_limits_and_defaults() -> None:
    file = parsed(FULL, "deps.yaml")
    assert file.problems == []
    assert file.declared["openai"].definition == Dependency(
        "openai",
        [Limit("requests", 500, per="1m"), Limit("input_tokens", 200_000, per="1m")],
        max_concurrency=20,
        breaker=Breaker(failure_rate=0.2, open_s=10),
        retry=RetryPolicy(maximum_attempts=3),
        retry_budget=None,
    )
    assert file.declared["openai"].place == "deps.yaml, line 3"
    assert file.declared["stock"].definition == Dependency("stock")
    assert file.declared["mail"].definition.breaker is None


@pytest.mark.parametrize("text", ["", "# nothing\n", "dependencies:\n", "dependencies: {}\n"])
def test_a_file_may_say_nothing(text: str) -> None:
    assert parsed(text, "f") == ({}, frozenset(), [])


def entry(text: str) -> str:
    return f"dependencies:\n  a:\n    {text}\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            entry("rate: [{requests: 0, per: 1m}]"),
            "f, line 3: dependency 'a', rate.0.amount: must be above zero (it is 0)",
        ),
        (entry("rate: [{requests: -1}]"), "must be above zero (it is -1)"),
        (entry("rate: [{requests: .inf}]"), "must be a finite number"),
        (entry("rate: [{requests: .nan}]"), "must be"),
        (entry("rate: [{requests: many}]"), "rate.0.amount: must be a number (it is 'many')"),
        (entry("rate: [{requests: 5, per: 1 fortnight}]"), "rate.0.per: '1 fortnight' is no duration"),
        (entry("rate: [{requests: 5, per: -3}]"), "no duration above zero"),
        (entry("rate: [{requests: 5, per: 1ms}]"), "windows are from 0.5 s"),
        (entry("rate: [{resource: gulps, amount: 5}]"), "rate.0.resource: 'gulps' is no resource"),
        (entry("rate: [{gulps: 5, per: 1m}]"), "rate.0.gulps: there is no such field"),
        (entry("rate: [{amount: 5}]"), "rate.0.resource: is missing"),
        (entry("rate: [{requests: 5, tokens: 6}]"), "requests, tokens are too much for one limit"),
        (entry("rate: [{requests: 5}, {requests: 6, per: 60}]"), "two limits for requests per 1m"),
        (entry("rate: {requests: 5}"), "rate: must be a list of limits"),
        (entry("rate: [5]"), "rate.0: must be a limit"),
        (entry("max_concurency: 5"), "max_concurency: there is no such field; did you mean 'max_concurrency'?"),
        (entry("max_concurrency: 0"), "max_concurrency: must not be below 1 (it is 0)"),
        (entry("max_concurrency: 1.5"), "must be a whole number"),
        (entry("max_concurrency: on"), "true is no value for it"),
        (entry("max_concurrency: '@'"), "must be a whole number (it is '@')"),
        (entry("breaker: off"), "false is no value for it: write null"),
        (entry("breaker: {open: 5}"), "breaker.open: there is no such field; did you mean 'open_s'?"),
        (entry("breaker: {open_s: 5, maximum_open_s: 1}"), "breaker: maximum_open_s 1 is below open_s 5"),
        (entry("breaker: 7"), "breaker: must be a mapping of fields"),
        (entry("retry: null"), "retry: must be a mapping of fields"),
        (entry("retry: {attempts: 5}"), "retry.attempts: there is no such field"),
        (entry("retry: {retryable: [rejected]}"), "rejected is never retried"),
        (entry("retry: {retryable: [never]}"), "must be 'not_applied'"),
        (entry("name: b"), "the name is said already"),
        (entry("replaces_app: 1"), "replaces_app: must be true or false"),
        ("dependencies:\n  a: 5\n", "f, line 2: dependency 'a': must be a mapping of rate"),
        ("dependencies:\n  a b: {}\n", "dependency 'a b', name: 'a b': a name has 1 to 63"),
        ("dependencies:\n  404: {}\n", "the name must be text"),
        ("dependencies: [a]\n", "must be a mapping of names"),
        ("dependency: {}\n", "f, line 1: dependency: there is no such field; did you mean 'dependencies'?"),
        ("[]", "must have a mapping `dependencies:`"),
        ("dependencies:\n  a: {}\n  b: {}\n  a: {}\n", "f, line 4: 'a' is there twice, first in line 2"),
        (entry("breaker: {open_s: 1, open_s: 2}"), "'open_s' is there twice"),
        ("dependencies: {a: [}\n", "f, line 1: no valid YAML"),
        ("dependencies:\n\ta: {}\n", "f, line 2: no valid YAML"),
        ("a: 1\n---\nb: 2\n", "no valid YAML: but found another document"),
        ("x: !!python/object/apply:os.system [ls]\n", "no valid YAML: could not determine a constructor"),
        ("a: 2026-99-99\n", "no valid YAML"),
        ("\x00", "no valid YAML"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "x" * MAXIMUM_BYTES, "at most 65,536 are read"),
        ("dependencies: &x\n  a: {rate: *x}\n", "rate: must be a list"),
        ("dependencies: &x\n  a: *x\n", "there is no such field"),
    ],
)
def test_bad_files_are_told_with_line_and_fix(text: str, problem: str) -> None:
    file = parsed(text, "f")
    assert len(file.problems) == 1, file.problems
    assert problem in file.problems[0]
    assert file.declared == {}


def test_all_problems_of_a_file_are_told_at_once() -> None:
    file = parsed("dependencies:\n  a: {max_concurrency: 0, breeker: {}}\n  b: {}\n  c:\n    rate: 1\n", "f")
    assert [problem.partition(": ")[0] for problem in file.problems] == ["f, line 2", "f, line 2", "f, line 5"]
    assert list(file.declared) == ["b"]
    assert file.named == {"a", "b", "c"}


def test_anchors_and_merges_are_understood() -> None:
    file = parsed(
        "dependencies:\n  a: &a {max_concurrency: 3, breaker: {open_s: 2}}\n  b:\n    <<: *a\n    max_concurrency: 4\n",
        "f",
    )
    assert file.problems == []
    assert file.declared["b"].definition == Dependency("b", max_concurrency=4, breaker=Breaker(open_s=2))


@given(st.text(max_size=200) | st.text(alphabet="ab:{}[]&*!|>-'\"\n #?,%@", max_size=60))
def test_no_text_makes_it_fail_otherwise(text: str) -> None:
    file = parsed(text, "f")
    assert file.declared == {} or file.named


numbers = st.integers(1, 1000)
dependencies = st.builds(
    Dependency,
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,10}", fullmatch=True),
    st.lists(
        st.builds(Limit, st.sampled_from(["requests", "input_tokens", "tokens"]), numbers, per=numbers),
        max_size=3,
        unique_by=lambda limit: (limit.resource, limit.per),
    ),
    max_concurrency=st.none() | numbers,
    breaker=st.none() | st.builds(Breaker, minimum_calls=numbers, window_s=st.integers(1, 600)),
    retry=st.builds(RetryPolicy, maximum_attempts=numbers),
    retry_budget=st.none() | st.builds(RetryBudget, reserve=numbers),
)


@given(dependencies)
def test_what_is_written_out_is_read_again(dependency: Dependency) -> None:
    plain = as_plain(dependency)
    name = plain.pop("name")
    assert checked(name, plain) == dependency
    read = parsed(yaml.safe_dump({"dependencies": {name: plain}}), "f")
    assert read.problems == []
    assert read.declared[name].definition == dependency


def test_a_misfit_without_a_field_is_told_too() -> None:
    assert Misfit((), "is odd").of("a") == "dependency 'a': is odd"


# Both


def test_app_and_file_together(package: Maker, tmp_path: Path) -> None:
    path = package(app="A = Dependency('a', max_concurrency=3)\nB = Dependency('b')\n" + one_tool("dependency='c'"))
    both = settings_of(tmp_path, "dependencies: {b: {}, c: {max_concurrency: 9}}")
    app = load_app(path, both)
    assert list(app.dependencies) == ["a", "b", "c"]
    assert app.dependencies["c"].max_concurrency == 9

    differs = settings_of(tmp_path, "dependencies:\n  a:\n    max_concurrency: 4\n  c: {}\n")
    text = refusal(path, differs)
    assert f"dependency 'a' is defined in {path}.A and in deps.yaml, line 2, and their max_concurrency differs" in text
    assert "`replaces_app: true`" in text

    replaces = settings_of(tmp_path, "dependencies: {a: {max_concurrency: 4, replaces_app: true}, c: {}}")
    assert load_app(path, replaces).dependencies["a"] == Dependency("a", max_concurrency=4)


def test_problems_of_app_and_file_come_in_one_error(package: Maker, tmp_path: Path) -> None:
    path = package(
        app="A = Dependency('a')\n" + one_tool("dependency='c'") + TOOL.format(name="t", options="dependency='d'")
    )
    text = refusal(path, settings_of(tmp_path, "dependencies: {a: {max_concurrency: 1}, c: {max_concurrency: 0}}"))
    assert "3 problems" in text
    assert "dependency 'c', max_concurrency: must not be below 1" in text
    assert "names the dependency 'd'" in text
    assert "names the dependency 'c'" not in text  # it is defined, only not well


def test_the_file_travels_as_text(package: Maker, tmp_path: Path) -> None:
    path = package(app=one_tool("dependency='c'"))
    settings = settings_of(tmp_path, "dependencies: {c: {max_concurrency: 9}}")
    sent = with_operators_file(settings)
    assert sent.dependencies == tmp_path / "deps.yaml"
    (tmp_path / "deps.yaml").unlink()
    assert with_operators_file(sent) is sent
    assert load_app(path, sent).dependencies["c"].max_concurrency == 9
    with pytest.raises(DefinitionError, match="cannot be read"):
        load_app(path, settings)


def test_an_empty_file_travels_too(tmp_path: Path) -> None:
    sent = with_operators_file(settings_of(tmp_path, "  \n"))
    (tmp_path / "deps.yaml").unlink()
    assert dependency_file.operators_file(sent).problems == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, r"cannot be read \(No such file"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"x" * 70_000, "more than 65,536 bytes"),
        (b"dependencies: {a: 5, b: {rate: 1}}", "2 problems"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_at_once(content: bytes | None, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "deps.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DefinitionError, match=problem) as caught:
        with_operators_file(Settings(home=tmp_path, dependencies=file))
    assert str(file) in str(caught.value)


def test_no_file_is_no_file(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert with_operators_file(settings) is settings
