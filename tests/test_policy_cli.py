"""The policy through the client and the command line: set, shown, explained, and kept in the store."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from handwork import publish_catalog, settings_for
from typer.testing import CliRunner, Result

from actors.errors import DefinitionError
from actors.job import Job, new_run
from actors.tool_facts import published
from admission.policy import DEFAULT
from cluster import policies
from cluster.config import Settings
from cluster.keys import partition_of
from cluster.policies import policy_history, policy_in_force, policy_number, put_policy
from cluster.store import Store
from penstock import Client, Risk, ToolCall, tool
from penstock.cli.app import cli
from penstock.cli.outcome import Exit
from penstock.policies import NoSuchPolicy

POLICY = """\
rules:
  - name: large-refunds
    outcome: approve
    tools: issue_refund
    when: {amount_cents: {gt: 5000}}
    approval: {needed: 2, approvers: [ann, bob], self_approval: false}
  - {name: initech, outcome: deny, tenants: initech, reason: their contract has ended}
"""
JOB = '{"agent": "echo", "tenant": "acme", "grants": ["refunds:*"]}'


@tool(risk=Risk.WRITE, scopes=["refunds:issue"])
async def issue_refund(call: ToolCall, order_id: str, amount_cents: int) -> None: ...


@tool(risk=Risk.IRREVERSIBLE, needs_approval=lambda what: bool(what))
async def wipe(call: ToolCall, what: str) -> None: ...


class Deployment:
    """A store with a catalog, and the command line that finds it."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        assert settings.redis_url is not None
        self.environment = {
            "PENSTOCK_REDIS_URL": settings.redis_url.get_secret_value(),
            "PENSTOCK_NAME": settings.name,
            "PENSTOCK_HOME": str(folder / "home"),
            "COLUMNS": "200",
        }

    def penstock(self, *arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, ["policy", *arguments], env=self.environment, input=stdin)

    def ok(self, *arguments: str) -> str:
        result = self.penstock(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def file(self, text: str, name: str = "policy.yaml") -> str:
        place = self.folder / name
        place.write_text(text)
        return str(place)

    def submit(self, **fields: Any) -> str:
        job = Job(custom_id="one", agent="echo", input={"text": "x"}, **fields)

        async def work() -> str:
            store = await Store.open(self.settings)
            run = new_run(job, "b", store.keys.partitions)
            await store.submit("b", partition_of(run.id), [run])
            await store.close()
            return run.id

        return asyncio.run(work())


@pytest.fixture
def bare(redis_url: str, tmp_path: Path) -> Deployment:
    return Deployment(settings_for(redis_url, f"t-{uuid.uuid4().hex[:12]}"), tmp_path)


@pytest.fixture
def deployment(bare: Deployment) -> Deployment:
    async def publish() -> None:
        store = await Store.open(bare.settings)
        await publish_catalog(store)
        await store.set_fields(store.keys.tools, published([issue_refund, wipe]))
        await store.close()

    asyncio.run(publish())
    return bare


# The store


@pytest.fixture
async def store(redis_url: str) -> Any:
    opened = await Store.open(settings_for(redis_url, f"t-{uuid.uuid4().hex[:12]}"))
    yield opened
    await opened.close()


async def test_the_store_keeps_what_is_in_force_and_what_was(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await policy_in_force(store) is None
    assert await policy_number(store) == 0
    assert (await put_policy(store, "v1", "one", by="ann", why="because")).word == "SET"
    assert (await put_policy(store, "v1", "one", by="bob")).word == "SAME"
    assert (await put_policy(store, "v0", "zero", by="host", only_first=True)).word == "KEPT"
    put = await put_policy(store, "v2", 'zw\u00f6lf \U0001f6a7 "\\\n', by="bob")
    assert (put.word, put.number, await policy_number(store)) == ("SET", 2, 2)
    now = await policy_in_force(store)
    assert now is not None
    assert (now.version, now.text, now.by, now.number, now.since) == (
        "v2",
        'zw\u00f6lf \U0001f6a7 "\\\n',
        "bob",
        2,
        put.since_ms,
    )
    history = await policy_history(store)
    assert history[0] == now
    assert [(each.version, each.by, each.why) for each in history] == [("v2", "bob", ""), ("v1", "ann", "because")]
    monkeypatch.setattr(policies, "KEPT", 3)
    for number in range(5):
        await put_policy(store, f"w{number}", "x", by="ann")
    assert [each.version for each in await policy_history(store)] == ["w4", "w3", "w2"]


# The client


async def test_a_client_sets_and_reads_it(store: Store) -> None:
    async with Client(settings=store.settings) as client:
        assert (await client.policy()).version == DEFAULT
        answer = await client.set_policy(POLICY, by="ann", why="audit")
        assert (answer.changed, answer.rules, answer.policy.text) == (True, 2, POLICY)
        assert "no host has published any yet" in answer.unchecked
        assert not (await client.set_policy(POLICY)).changed
        version = answer.policy.version
        await client.set_policy("")
        assert (await client.policy()).version == DEFAULT
        before = await client.policy(version[:4])
        assert (before.text, before.in_force, before.why) == (POLICY, False, "audit")
        for wrong in ("nothing", ""):
            with pytest.raises(NoSuchPolicy, match="versions: default, "):
                await client.policy(wrong)
        with pytest.raises(DefinitionError, match="outcome: is missing"):
            await client.set_policy("rules: [{name: a}]")
        with pytest.raises(ValueError, match="at most 1,000 are kept"):
            await client.set_policy("", why="x" * 1001)
        assert len(await client.policy_history()) == 2


# The command line


def test_set_show_and_history(deployment: Deployment) -> None:
    shown = deployment.penstock("show")
    assert shown.stderr == "no policy was set: the default holds\n"
    assert "irreversible: approve" in shown.stdout
    assert "the default holds" in deployment.penstock("history").stderr

    done = deployment.penstock("set", deployment.file(POLICY), "--reason", "quarter's end")
    assert done.exit_code == 0, done.output
    version = done.stdout.strip()
    assert done.stderr == f"policy {version} is in force: 2 rules\n"
    assert "was in force already" in deployment.penstock("set", deployment.file(POLICY)).stderr

    shown = deployment.penstock("show")
    assert shown.stdout == POLICY
    assert f"policy {version} (number 1), in force since" in shown.stderr
    assert shown.stderr.endswith(": quarter's end\n")
    assert deployment.penstock("set", "-", stdin="").stdout == f"{DEFAULT}\n"
    assert deployment.ok("show", "--version", version[:6]) == POLICY
    assert deployment.json("show", "--version", version)["in_force"] is False
    listed = deployment.ok("history")
    assert listed.index(DEFAULT) < listed.index(version)
    lines = deployment.ok("history", "--json").splitlines()
    assert [json.loads(line)["version"] for line in lines] == [DEFAULT, version]
    missing = deployment.penstock("show", "--version", "zzz")
    assert missing.exit_code == Exit.FAILED
    assert "there is no policy 'zzz' in the history; versions: default, " in missing.stderr


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rules: [{name: a, outcome: nope}]", "rule 'a', outcome: must be 'allow', 'approve' or 'deny'"),
        ("rules: [{name: a, outcome: deny, tools: wype}]", "there is no tool 'wype'; did you mean 'wipe'?"),
        ("rules: [{name: a, outcome: deny, agents: eco}]", "there is no agent 'eco'; did you mean 'echo'?"),
        ("rules: [{name: a, outcome: deny, when: {amount: {gt: 1}}}]", "did you mean 'amount_cents'?"),
    ],
)
def test_a_policy_with_mistakes_changes_nothing(deployment: Deployment, text: str, problem: str) -> None:
    result = deployment.penstock("set", deployment.file(text))
    assert result.exit_code == Exit.BAD_INPUT
    assert problem in result.stderr
    assert "policy.yaml, line 1" in result.stderr
    assert deployment.json("show")["number"] == 0


def test_names_that_nobody_serves_yet_can_be_set(deployment: Deployment) -> None:
    file = deployment.file("rules: [{name: a, outcome: deny, tools: later}]")
    assert deployment.penstock("set", file).exit_code == Exit.BAD_INPUT
    assert deployment.json("set", file, "--unchecked")["changed"] is True
    missing = deployment.penstock("set", str(deployment.folder / "none.yaml"))
    assert missing.exit_code == Exit.BAD_INPUT
    assert "name a file that can be read, or - for the standard input" in missing.stderr


def test_explain_shows_every_rule(deployment: Deployment) -> None:
    deployment.ok("set", deployment.file(POLICY))
    text = deployment.ok("explain", JOB, "issue_refund", '{"order_id": "O-1", "amount_cents": 9000}')
    assert "tool issue_refund (write), agent echo, tenant acme, grants: refunds:*; policy " in text
    assert "amount_cents is gt 5000" in text
    assert "tenant acme is not among its tenants initech" in text
    assert "approve by large-refunds: tool 'issue_refund' (write) needs an approval" in text
    assert "approvals needed: 2 of ann, bob, within 24 h; not whoever submitted the job" in text

    found = deployment.json("explain", JOB, "issue_refund", '{"amount_cents": 1}')
    assert (found["outcome"], found["rule"]) == ("allow", "builtin:write")
    rules = [check["rule"] for check in found["checks"]]
    assert rules == ["builtin:grants", "large-refunds", "initech", "builtin:needs_approval", "builtin:write"]
    assert found["notes"] == ["not given: order_id; a real call has them, or their defaults"]
    found = deployment.json("explain", JOB, "issue_refund", "{}")
    assert found["outcome"] == "approve"  # nobody can tell how much it is
    assert "cannot be told" in found["checks"][1]["why"]


def test_explain_takes_runs_jobs_and_files(deployment: Deployment) -> None:
    run = deployment.submit(tenant="initech", grants=("refunds:issue",))
    deployment.ok("set", deployment.file(POLICY))
    found = deployment.json("explain", run, "issue_refund", '{"amount_cents": 9000}')
    assert (found["outcome"], found["rule"], found["tenant"]) == ("deny", "initech", "initech")
    assert "their contract has ended" in found["text"]
    batch = deployment.file('\n{"custom_id": "1", "agent": "echo", "grants": ["tool:wipe"]}\n{"custom_id": "2"}\n', "j")
    found = deployment.json("explain", batch, "wipe", '{"what": "disk"}')
    assert (found["outcome"], found["rule"]) == ("approve", "builtin:irreversible")
    assert "depends on its arguments" in found["notes"][0]
    spread = deployment.file('{\n"agent": "echo"\n}', "k")
    assert deployment.json("explain", spread, "wipe")["rule"] == "builtin:grants"
    draft = deployment.file("rules: [{name: draft, outcome: deny}]", "draft.yaml")
    found = deployment.json("explain", JOB, "issue_refund", "{}", "--policy", draft)
    assert (found["rule"], found["outcome"]) == ("draft", "deny")
    assert deployment.json("show")["text"] == POLICY


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["00-" + "0" * 24, "wipe"], Exit.FAILED, "there is no run '00-"),
        ([JOB, "wype"], Exit.FAILED, "there is no tool 'wype'; did you mean 'wipe'? known tools: issue_refund, wipe"),
        ([JOB, "wipe", '{"wat": 1}'], Exit.FAILED, "has no argument 'wat'; did you mean 'what'? its arguments: what"),
        ([JOB, "wipe", "[1]"], Exit.BAD_INPUT, "ARGS must be a JSON object"),
        ([JOB, "wipe", "{"], Exit.BAD_INPUT, "ARGS is no JSON"),
        (['{"agent": "echo", "grant": []}', "wipe"], Exit.BAD_INPUT, "JOB is no job: grant: "),
        (["nowhere.json", "wipe"], Exit.BAD_INPUT, "JOB 'nowhere.json' cannot be read (No such file"),
    ],
)
def test_explain_names_what_is_wrong(deployment: Deployment, arguments: list[str], code: Exit, problem: str) -> None:
    result = deployment.penstock("explain", *arguments)
    assert result.exit_code == code, result.output
    assert problem in result.stderr


def test_explain_without_any_host(bare: Deployment) -> None:
    result = bare.penstock("explain", JOB, "wipe")
    assert result.exit_code == Exit.FAILED
    assert "known tools: none: start a deployment with `penstock up --app MODULE`" in result.stderr
