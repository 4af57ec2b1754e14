"""The operators' file with the policy: what it may say, what is said of mistakes, and how it travels."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from handwork import settings_for
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import DefinitionError
from actors.policy_file import parsed, policy_of, with_policy_file
from actors.registry import load_app
from actors.supervisor import plain_settings
from actors.tool_facts import ToolFacts
from actors.yaml_file import MAXIMUM_BYTES
from admission.policy import DEFAULT, Approval, Permission, Policy, Tier
from cluster.config import Settings
from penstock import SyncClient
from penstock.policies import enforce_given
from penstock.policy_views import DEFAULT_TEXT

EXAMPLES = Path(__file__).parents[1] / "examples"
TOOLS = {
    "issue_refund": ToolFacts("write", ("refunds:issue",), ("order_id", "amount_cents", "reason")),
    "get_order": ToolFacts("read", (), ("order_id",)),
}
WHOLE = """\
rules:
  - name: large-refunds
    outcome: approve
    tools: issue_refund
    tiers: [write]
    tenants: [acme, "glob*"]
    agents: desk
    grants: refunds:issue
    when:
      amount_cents: {gt: 5_000, present: true}
      order.lines.*.currency: {in: [EUR, CHF, null]}
    approval: {needed: 2, approvers: [ann, bob, ann], self_approval: false}
    reason: large ones
otherwise: {read: allow, write: deny}
approval: {expires_s: 3600}
"""


def problems(text: str) -> list[str]:
    return parsed(text, "p.yaml").problems


# What it may say


def test_a_whole_policy() -> None:
    policy = parsed(WHOLE, "p.yaml").checked()
    (rule,) = policy.rules
    assert (rule.outcome, rule.tools, rule.tiers) == (Permission.APPROVE, ("issue_refund",), (Tier.WRITE,))
    assert (rule.tenants, rule.agents, rule.grants) == (("acme", "glob*"), ("desk",), ("refunds:issue",))
    assert rule.when["amount_cents"].wanted == (("gt", 5000), ("present", True))
    assert rule.when["order.lines.*.currency"].wanted == (("in", ("EUR", "CHF", None)),)
    assert policy.otherwise.of(Tier.WRITE) is Permission.DENY
    assert policy.otherwise.of(Tier.IRREVERSIBLE) is Permission.APPROVE
    assert policy.approvals["large-refunds"] == Approval(
        needed=2, approvers=("ann", "bob"), self_approval=False, expires_s=3600
    )


@pytest.mark.parametrize("text", ["", "  \n", "# nothing\n", "rules:\n", "rules: []\n", "{}", DEFAULT_TEXT])
def test_nothing_is_the_default_policy(text: str) -> None:
    policy = parsed(text, "p.yaml").checked()
    assert policy.version == DEFAULT
    assert policy.otherwise == Policy().otherwise


def test_a_version_is_of_what_it_says_and_not_of_how() -> None:
    one = parsed("rules: [{name: a, outcome: deny, tools: x}]", "p").checked()
    same = parsed("# why\nrules:\n  - tools: [x]\n    outcome: deny\n    name: a\n", "q").checked()
    other = parsed("rules: [{name: a, outcome: deny, tools: y}]", "p").checked()
    assert one.version == same.version != other.version
    assert len(one.version) == 12


def test_defaults_that_are_said_are_no_defaults_that_are_inherited() -> None:
    inherits = parsed("rules: [{name: a, outcome: approve, approval: {}}]\napproval: {needed: 2}", "p").checked()
    says = parsed("rules: [{name: a, outcome: approve, approval: {needed: 1}}]\napproval: {needed: 2}", "p").checked()
    assert (inherits.approvals["a"].needed, says.approvals["a"].needed) == (2, 1)
    assert inherits.version != says.version


# Mistakes


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rules: [{name: a, outcome: aprove}]", "rule 'a', outcome: must be 'allow', 'approve' or 'deny'"),
        ("rules:\n- name: a\n  outcome: no", "line 3: rule 'a', outcome: must be 'allow', 'approve' or 'deny'"),
        ("rules:\n- outcome: deny", "line 2: rule 1, name: is missing: add it"),
        ("rules:\n- name: A b\n  outcome: deny", "line 2: rule 'A b', name: must be 1 to 64 small letters"),
        ("rules: [{name: a, outcome: deny, tol: x}]", "rule 'a', tol: there is no such field; did you mean 'tools'?"),
        ("rules: [{name: a, outcome: deny, tiers: wirte}]", "must be 'read', 'draft', 'write' or 'irreversible'"),
        ("rules: [{name: a, outcome: deny, tenants: [no]}]", "tenants.0: must be a printable text: put it into quotes"),
        ("rules: [{name: a, outcome: deny, when: {x: {gtt: 5}}}]", "when.x.gtt: there is no such field; did you mean"),
        ("rules: [{name: a, outcome: deny, when: {x: {gt: a}}}]", "when.x.gt: must be a number"),
        ("rules: [{name: a, outcome: deny, when: {x: {gt: .inf}}}]", "when.x.gt: must be text, a number"),
        ("rules: [{name: a, outcome: deny, when: {x: {eq: 2030-01-01}}}]", "when.x.eq: must be text, a number"),
        ("rules: [{name: a, outcome: deny, when: {x: {in: EUR}}}]", "when.x.in: must be a list of values"),
        ("rules: [{name: a, outcome: deny, when: {x: {}}}]", "when.x: says nothing: give at least one of eq, ne"),
        ("rules: [{name: a, outcome: deny, when: {x: {present: 1}}}]", "when.x.present: must be true or false"),
        ("rules: [{name: a, outcome: deny, when: {x..y: {eq: 1}}}]", "'x..y' is no path"),
        ("rules: [{name: a, outcome: deny, when: {'*': {eq: 1}}}]", "'*' is no path"),
        ("rules: [{name: a, outcome: deny, when: {5: {eq: 1}}}]", "must be a printable text: put it into quotes"),
        ("rules: [{name: a, outcome: deny, approval: {needed: 2}}]", "approval is for rules with `outcome: approve`"),
        (
            "rules:\n- {name: a, outcome: deny}\n- {name: a, outcome: deny}",
            "line 3: rule 'a', name: two rules are named",
        ),
        ("approval: {needed: 0}", "approval.needed: must not be below 1 (it is 0)"),
        ("approval: {needed: true}", "approval.needed: must be a whole number"),
        ("approval: {approvers: ann, needed: 2}", "2 people are needed, and only 1 may approve"),
        ("approval: {approvers: 'finance*'}", "approvers are named one by one"),
        ("approval: {expires_s: 1h}", "approval.expires_s: must be a number (it is '1h')"),
        ("otherwise: {wirte: deny}", "otherwise.wirte: there is no such field; did you mean 'write'?"),
        ("rulez: []", "rulez: there is no such field; did you mean 'rules'?"),
        ("rules: {a: deny}", "line 1: rules: must be a list"),
        ("[a]", "must be a mapping of rules, otherwise, approval"),
        ("rules: []\nrules: []", "line 2: 'rules' is there twice, first in line 1"),
        ("rules: [", "line 1: no valid YAML"),
        ("a: !!python/object:os.system x", "no valid YAML"),
        ("&a [*a]", "must be a mapping"),
        ("rules: &a [*a]", "line 1: rule 1: must be a mapping of fields"),
        ("a: " + "x" * MAXIMUM_BYTES, "at most 65,536 are read"),
    ],
)
def test_mistakes_are_named_with_their_place_and_fix(text: str, problem: str) -> None:
    said = problems(text)
    assert any(problem in each for each in said), said
    assert all(each.startswith("p.yaml") for each in said)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(DefinitionError, match="2 problems") as caught:
        parsed("rules:\n- {name: a, outcome: x}\n- {name: b}\n", "p.yaml").checked()
    assert "p.yaml, line 2: rule 'a'" in str(caught.value)
    assert "p.yaml, line 3: rule 'b'" in str(caught.value)


def test_an_approval_that_does_not_fit_the_general_one_has_its_line() -> None:
    text = "approval: {approvers: [ann]}\nrules:\n- name: a\n  outcome: approve\n  approval: {needed: 2}\n"
    (said,) = problems(text)
    assert said.startswith("p.yaml, line 5: rule 'a', approval: with the policy's own `approval`: 2 people are needed")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["rules", "name", "outcome", "when", "a"]), inner, max_size=3)
        ),
        max_leaves=12,
    )
)
def test_whatever_a_file_holds_there_is_an_answer(content: object) -> None:
    import yaml

    said = parsed(yaml.safe_dump(content), "p.yaml")
    assert (said.policy is None) == bool(said.problems)


# Against an app


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "tools: [issue_refnd]",
            "line 4: rule 'a', tools: there is no tool 'issue_refnd'; did you mean 'issue_refund'?",
        ),
        ("agents: dsk", "rule 'a', agents: there is no agent 'dsk'; did you mean 'desk'?"),
        (
            "tools: issue_refund\n  when:\n    amount: {gt: 5}",
            "line 6: rule 'a', when.amount: there is no argument 'amount'; did you mean 'amount_cents'?",
        ),
        ("tools: 'get*'\n  when: {amount_cents.x: {gt: 5}}", "there is no argument 'amount_cents'"),
        ("tiers: read\n  when: {amount_cents: {gt: 5}}", "there is no argument 'amount_cents'"),
        ("tools: 'send_*'", ""),
        ("tools: 'send_*'\n  when: {to: {eq: 5}}", ""),
        ("agents: 'd*'\n  when: {amount_cents: {gt: 5}, order_id: {eq: O-1}}", ""),
    ],
)
def test_names_that_an_app_does_not_have(text: str, problem: str) -> None:
    said = parsed(f"rules:\n- name: a\n  outcome: deny\n  {text}\n", "p.yaml")
    assert said.problems == []
    misfits = said.misfits(TOOLS, ["desk", "clerk"])
    assert bool(misfits) == bool(problem)
    assert all(problem in each for each in misfits), misfits


def test_a_policy_that_does_not_fit_the_app_is_an_error_at_start_up(tmp_path: Path) -> None:
    example = Settings(home=tmp_path, policy=EXAMPLES / "refund_desk" / "policy.yaml")
    assert load_app("refund_desk.app", example).agents
    text = "rules: [{name: a, outcome: deny, tools: isue_refund}, {name: b, outcome: deny, agents: refund_desk}]"
    with pytest.raises(DefinitionError) as caught:
        load_app("refund_desk.app", Settings(home=tmp_path, policy_yaml=text))
    assert "did you mean 'issue_refund'?" in str(caught.value)
    assert "did you mean 'refund-desk'?" in str(caught.value)
    assert "PENSTOCK_POLICY_YAML, line 1" in str(caught.value)
    load_app("refund_desk.app")  # a client knows of no policy


# How it travels


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Settings]:
    def make(text: str) -> Settings:
        place = tmp_path / "policy.yaml"
        place.write_text(text)
        return Settings(home=tmp_path, policy=place)

    return make


def test_the_file_goes_along_as_text(file: Callable[[str], Settings]) -> None:
    settings = file(WHOLE)
    sent = with_policy_file(settings)
    assert sent.policy_yaml == WHOLE
    assert with_policy_file(sent) is sent
    plain = plain_settings(settings)
    assert plain["policy_yaml"] == WHOLE
    assert plain["policy"] == str(settings.policy)
    assert settings.policy is not None
    settings.policy.unlink()
    elsewhere = policy_of(Settings(**plain))
    assert elsewhere is not None
    assert (elsewhere.text, elsewhere.place) == (WHOLE, "policy.yaml")


def test_an_empty_file_is_a_policy_too(file: Callable[[str], Settings]) -> None:
    sent = with_policy_file(file("\n"))
    assert sent.policy_yaml
    said = policy_of(sent)
    assert said is not None
    assert said.checked().version == DEFAULT
    assert policy_of(Settings()) is None
    assert with_policy_file(Settings()).policy_yaml == ""


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, r"cannot be read \(No such file"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"x" * 70_000, "more than 65,536 bytes"),
        (b"rules: [{name: a}, {outcome: deny}]", "2 problems"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_at_once(content: bytes | None, problem: str, tmp_path: Path) -> None:
    place = tmp_path / "policy.yaml"
    if content is not None:
        place.write_bytes(content)
    for read in (with_policy_file, policy_of):
        with pytest.raises(DefinitionError, match=problem) as caught:
            read(Settings(home=tmp_path, policy=place))
        assert str(place) in str(caught.value)


def test_a_deployment_puts_the_policy_that_it_was_given_in_force(redis_url: str) -> None:
    settings = settings_for(redis_url, f"t-{uuid.uuid4().hex[:12]}")
    enforce_given(settings)
    given_one = settings.model_copy(update={"policy_yaml": WHOLE})
    with SyncClient(settings=settings) as client:
        assert client.policy().number == 0
        enforce_given(given_one)
        assert (client.policy().text, client.policy().why) == (WHOLE, "given to the deployment")
        client.set_policy("", by="ann")
        assert client.policy().version == DEFAULT
        enforce_given(settings)  # started again, without a file: what is in force stays
        assert client.policy().by == "ann"
        enforce_given(given_one)  # and with one: somebody wants that one
        assert client.policy().text == WHOLE
        assert [each.number for each in client.policy_history()] == [3, 2, 1]
