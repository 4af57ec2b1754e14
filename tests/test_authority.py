"""Who may have tools do what: the laws of decisions, and a host that holds the policy in memory."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from handwork import settings_for
from hosting import ALLOW_EVERYTHING, Spine, spine, until
from hypothesis import given
from hypothesis import strategies as st

from actors.authority import Authority
from actors.contract import Tool
from actors.job import JobRecord
from admission.authority import GRANTS, TOOL, UNREADABLE, Action, Decision, Plan, decide, explain, otherwise_of
from admission.conditions import ABSENT, OPERATORS, Condition, answer, at
from admission.policy import DEFAULT, Approval, Permission, Policy, Rule, Tier, covers
from cluster.policies import policy_in_force, put_policy
from cluster.store import Store
from penstock import Risk, Run, ToolCall, agent, tool

ALLOW, APPROVE, DENY = Permission.ALLOW, Permission.APPROVE, Permission.DENY
WEIGHT = {ALLOW: 0, APPROVE: 1, DENY: 2}

# What can be said: few names, so that rules and actions meet often.

TOOLS = ("refund", "read_order", "wipe")
GRANTED = ("refunds:issue", "refunds:*", "tool:refund", "tool:*", "write", "irreversible", "*", "other")
SCOPES = ("refunds:issue", "orders:read")
scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["EUR", "a@x", "2", ""]) | st.floats(-3, 3)
numbers = st.integers(-3, 3) | st.floats(-3, 3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "x"]), inner, max_size=3),
    max_leaves=10,
)
arguments = st.dictionaries(st.sampled_from(["a", "b", "x"]), json_values | scalars, max_size=3)
conditions = st.fixed_dictionaries(
    {},
    optional={
        "eq": scalars, "ne": scalars, "lt": numbers, "ge": numbers, "in": st.lists(scalars, min_size=1, max_size=3),
        "not_in": st.lists(scalars, min_size=1, max_size=3), "prefix": st.sampled_from(["E", "a@"]),
        "suffix": st.sampled_from(["R", "x"]), "present": st.booleans(),
    },
).filter(bool)  # fmt: skip
paths = st.sampled_from(["a", "b", "a.b", "a.*", "a.*.b", "x.a.b"])


def some(*names: str) -> st.SearchStrategy[list[str]]:
    return st.just([]) | st.lists(st.sampled_from(names), max_size=2)


rules = st.fixed_dictionaries(
    {
        "outcome": st.sampled_from(list(Permission)),
        "tools": some(*TOOLS, "re*"),
        "tiers": some(*Tier),
        "tenants": some("acme", "ac*", "globex"),
        "agents": some("desk"),
        "grants": some("write", "refunds:issue"),
        "when": st.just({}) | st.dictionaries(paths, conditions, max_size=2),
    }
)
policies = st.builds(
    lambda made, otherwise: Policy.model_validate(
        {"rules": [{"name": f"r{n}", **rule} for n, rule in enumerate(made)], "otherwise": otherwise}
    ),
    st.lists(rules, max_size=4),
    st.dictionaries(st.sampled_from(list(Tier)), st.sampled_from(list(Permission)), max_size=2),
)
actions = st.builds(
    Action,
    tool=st.sampled_from(TOOLS),
    risk=st.sampled_from([*Tier, "nobody knows"]),
    scopes=st.lists(st.sampled_from(SCOPES), max_size=2, unique=True).map(tuple),
    agent=st.sampled_from(["desk", "clerk"]),
    tenant=st.sampled_from(["acme", "globex"]),
    arguments=arguments | st.none(),
    grants=st.lists(st.sampled_from(GRANTED), max_size=3).map(tuple),
    needs_approval=st.booleans(),
)


def with_rule(policy: Policy, place: int, outcome: Permission, rule: dict[str, Any]) -> Policy:
    made = Rule.model_validate({"name": "added", **rule, "outcome": outcome})
    listed = list(policy.rules)
    listed.insert(place, made)
    return Policy(rules=tuple(listed), otherwise=policy.otherwise)


# Laws


@given(policies, actions)
def test_every_call_is_decided_by_a_named_rule(policy: Policy, action: Action) -> None:
    decision = decide(policy, action)
    assert decision.rule
    assert decision.text
    assert decision.version == policy.version
    assert (decision.terms is not None) == (decision.outcome is APPROVE)
    ours = {GRANTS, TOOL, otherwise_of(action.subject.tier)}
    assert set(decision.rule.split(", ")) <= ours | {rule.name for rule in policy.rules}
    assert all(isinstance(fact, str) for fact in decision.facts.values())


@given(policies, actions, st.integers(0, 4), rules)
def test_a_rule_that_denies_never_permits_more(policy: Policy, action: Action, place: int, rule: Any) -> None:
    before, after = decide(policy, action), decide(with_rule(policy, place, DENY, rule), action)
    assert WEIGHT[after.outcome] >= WEIGHT[before.outcome]


@given(policies, actions, st.integers(0, 4), rules)
def test_a_rule_that_asks_for_an_approval_allows_nothing(policy: Policy, action: Action, place: int, rule: Any) -> None:
    after = decide(with_rule(policy, place, APPROVE, rule), action)
    assert after.outcome is not ALLOW or decide(policy, action).outcome is ALLOW


@given(policies, actions, st.integers(0, 4), rules)
def test_a_rule_that_allows_beats_no_other(policy: Policy, action: Action, place: int, rule: Any) -> None:
    matching = {check.outcome for check in explain(policy, action).checks if check.matches and ":" not in check.rule}
    after = decide(with_rule(policy, place, ALLOW, rule), action).outcome
    assert after is DENY if DENY in matching else after is not ALLOW if APPROVE in matching else True


@given(policies, actions)
def test_without_its_scopes_a_tool_is_denied_whatever_the_policy_says(policy: Policy, action: Action) -> None:
    covered = all(any(covers(grant, scope) for grant in action.grants) for scope in action.scopes)
    decision = decide(policy, action)
    if not covered:
        assert (decision.outcome, decision.rule) == (DENY, GRANTS)


@given(policies, actions)
def test_an_explanation_is_of_the_same_decision(policy: Policy, action: Action) -> None:
    explanation = explain(policy, action)
    decision = explanation.decision
    assert decision == decide(policy, action)
    assert [check.rule for check in explanation.checks[1:-2]] == [rule.name for rule in policy.rules]
    matching = {check.rule: check.outcome for check in explanation.checks if check.matches}
    for name in decision.rule.split(", "):
        assert matching[name] is decision.outcome
    assert all(check.why for check in explanation.checks)


@given(policies, actions, st.randoms(use_true_random=False))
def test_the_order_of_rules_decides_nothing(policy: Policy, action: Action, chance: random.Random) -> None:
    shuffled = list(policy.rules)
    chance.shuffle(shuffled)
    other = decide(Policy(rules=tuple(shuffled), otherwise=policy.otherwise), action)
    assert (other.outcome, other.terms) == (decide(policy, action).outcome, decide(policy, action).terms)


@given(policies, actions, st.lists(arguments, max_size=4))
def test_a_plan_decides_as_a_policy_does(policy: Policy, action: Action, calls: list[dict[str, Any]]) -> None:
    plan = Plan(policy, action.subject)
    for values in [*calls, *calls]:
        subject = action.subject
        call = Action(*subject[:5], values, *subject[5:])
        assert plan.decide(values) == decide(policy, call)
        assert plan.fixed is None or plan.fixed == decide(policy, call)


@given(actions, st.sampled_from(list(Permission)), conditions)
def test_what_is_not_there_is_not_permitted(action: Action, outcome: Permission, condition: dict[str, Any]) -> None:
    condition.pop("present", None)
    if not condition:
        return
    rule = {"name": "r", "outcome": outcome, "tiers": list(Tier), "when": {"nowhere.at.all": condition}}
    decision = decide(Policy.model_validate({"rules": [rule]}), action)
    assert outcome is not DENY or decision.outcome is DENY
    assert outcome is not APPROVE or decision.outcome is not ALLOW
    if outcome is ALLOW:
        assert decision == Decision(**{**vars(decide(Policy(), action)), "version": decision.version})


# The default policy


@pytest.mark.parametrize(
    ("risk", "scopes", "grants", "outcome", "rule"),
    [
        ("read", (), (), ALLOW, "builtin:read"),
        ("draft", (), (), ALLOW, "builtin:draft"),
        ("write", (), (), DENY, GRANTS),
        ("write", (), ("write",), ALLOW, "builtin:write"),
        ("write", (), ("tool:refund",), ALLOW, "builtin:write"),
        ("write", (), ("tool:*",), ALLOW, "builtin:write"),
        ("write", (), ("tool:refund_all",), DENY, GRANTS),
        ("write", (), ("irreversible",), DENY, GRANTS),
        ("write", ("refunds:issue",), ("refunds:issue",), ALLOW, "builtin:write"),
        ("write", ("refunds:issue",), ("refunds:*",), ALLOW, "builtin:write"),
        ("write", ("refunds:issue",), ("write", "tool:refund"), DENY, GRANTS),
        ("write", ("refunds:issue", "mail:send"), ("refunds:issue",), DENY, GRANTS),
        ("read", ("orders:read",), (), DENY, GRANTS),
        ("irreversible", (), (), DENY, GRANTS),
        ("irreversible", (), ("write",), DENY, GRANTS),
        ("irreversible", (), ("irreversible",), APPROVE, "builtin:irreversible"),
        ("irreversible", (), ("*",), APPROVE, "builtin:irreversible"),
        ("nobody knows", (), ("tool:refund",), APPROVE, "builtin:irreversible"),
    ],
)
def test_without_a_policy(
    risk: str, scopes: tuple[str, ...], grants: tuple[str, ...], outcome: Permission, rule: str
) -> None:
    decision = decide(Policy(), Action("refund", risk, scopes, "desk", "acme", {}, grants))
    assert (decision.outcome, decision.rule, decision.version) == (outcome, rule, DEFAULT)


def test_a_call_without_a_grant_is_told_the_fix() -> None:
    text = decide(Policy(), Action("refund", "write")).text
    assert "tool 'refund' (write) changes the world, which needs a grant, and the job has none" in text
    assert 'add "tool:refund" to the job\'s `grants` (or "write", for every write tool)' in text
    text = decide(Policy(), Action("refund", "write", ("refunds:issue", "b"), grants=("b", "c"))).text
    assert 'needs the grants refunds:issue, b, and the job\'s grants are b, c: add "refunds:issue"' in text


# Rules


def policy_with(*made: dict[str, Any], **more: Any) -> Policy:
    return Policy.model_validate({"rules": list(made), **more})


def test_an_approval_stands_in_for_no_grant() -> None:
    policy = policy_with({"name": "ask", "outcome": "approve", "tools": "refund"})
    assert decide(policy, Action("refund", "write")).rule == GRANTS
    assert decide(policy, Action("refund", "write", grants=("write",))).outcome is APPROVE
    both = policy_with({"name": "ask", "outcome": "approve"}, {"name": "let", "outcome": "allow", "tools": "refund"})
    assert decide(both, Action("refund", "write")).rule == "ask"


def test_an_allow_reaches_irreversible_tools_only_by_name_of_the_tier() -> None:
    action = Action("wipe", "irreversible", tenant="acme", grants=("irreversible",))
    broad = policy_with({"name": "let", "outcome": "allow", "tenants": "acme"})
    assert decide(broad, action).outcome is APPROVE
    named = policy_with({"name": "let", "outcome": "allow", "tenants": "acme", "tiers": ["irreversible"]})
    assert decide(named, action).outcome is ALLOW
    assert "`tiers: [irreversible]`" in explain(broad, action).checks[1].why


def test_several_approvals_are_one_that_satisfies_all() -> None:
    ask = {"outcome": "approve", "tools": "refund"}
    policy = policy_with(
        {"name": "two", **ask, "approval": {"needed": 2, "expires_s": 600, "approvers": ["ann", "bob", "cay"]}},
        {"name": "law", **ask, "approval": {"self_approval": False, "approvers": ["cay", "bob", "dan"]}},
        approval={"expires_s": 900},
    )
    decision = decide(policy, Action("refund", "write", grants=("write",), needs_approval=True))
    assert decision.rule == f"two, law, {TOOL}"
    assert decision.terms == Approval(approvers=("bob", "cay"), needed=2, self_approval=False, expires_s=600.0)


def test_an_approval_that_nobody_could_give_is_denied() -> None:
    ask = {"outcome": "approve"}
    policy = policy_with(
        {"name": "one", **ask, "approval": {"approvers": ["ann"]}},
        {"name": "other", **ask, "approval": {"approvers": ["bob"]}},
    )
    decision = decide(policy, Action("read_order", "read"))
    assert (decision.outcome, decision.rule) == (DENY, "one, other")
    assert "too few people" in decision.text


def test_what_no_rule_allows_can_be_denied() -> None:
    policy = policy_with(
        {"name": "ask", "outcome": "approve", "tools": "refund"},
        {"name": "reads", "outcome": "allow", "tools": "read_*"},
        otherwise={"read": "deny", "write": "deny"},
    )
    assert decide(policy, Action("read_order", "read")).rule == "reads"
    assert decide(policy, Action("search", "read")).rule == "builtin:read"
    assert decide(policy, Action("search", "read")).outcome is DENY
    assert decide(policy, Action("refund", "write", grants=("write",))).outcome is APPROVE
    assert decide(policy, Action("search", "read", needs_approval=True)).outcome is DENY


def test_the_reason_is_told() -> None:
    policy = policy_with({"name": "stop", "outcome": "deny", "tools": "wipe", "reason": "not before the audit is over"})
    assert decide(policy, Action("wipe", "write")).text == (
        "rule 'stop' forbids tool 'wipe' (write): not before the audit is over"
    )


# Conditions


@pytest.mark.parametrize(
    ("condition", "value", "said"),
    [
        ({"gt": 5}, 6, True),
        ({"gt": 5}, 5, False),
        ({"gt": 5}, "5.01", True),
        ({"le": 0.1}, "0.1", True),
        ({"gt": 0.1}, "0.1", False),
        ({"gt": 5}, "1e99999999999999999999", None),
        ({"gt": 5}, "Infinity", True),
        ({"gt": 5}, "NaN", None),
        ({"gt": 5}, "9" * 65, None),
        ({"gt": 5}, 10**4000, True),
        ({"lt": 5}, float("nan"), None),
        ({"gt": 5}, "many", None),
        ({"gt": 5}, True, None),
        ({"gt": 5}, None, None),
        ({"gt": 5}, [6], None),
        ({"eq": 1}, True, None),
        ({"eq": True}, 1, None),
        ({"eq": 1}, 1.0, True),
        ({"eq": 1}, "1", None),
        ({"eq": None}, None, True),
        ({"eq": None}, 0, False),
        ({"eq": "EUR"}, None, False),
        ({"ne": "EUR"}, None, True),
        ({"ne": "EUR"}, {}, None),
        ({"in": ["EUR", "CHF"]}, "CHF", True),
        ({"in": ["EUR", "CHF"]}, "USD", False),
        ({"in": ["EUR", None]}, None, True),
        ({"in": [None]}, "USD", False),
        ({"in": ["EUR"]}, 5, None),
        ({"in": ["EUR", 5]}, "USD", False),
        ({"not_in": ["EUR"]}, "USD", True),
        ({"not_in": ["EUR"]}, 5, None),
        ({"prefix": "DE"}, "DE89", True),
        ({"suffix": "@x.com"}, "a@y.com", False),
        ({"suffix": "@x.com"}, 5, None),
        ({"present": True}, None, False),
        ({"present": False}, ABSENT, True),
        ({"present": True, "gt": 5}, ABSENT, False),
        ({"gt": 5, "lt": 9}, 7, True),
        ({"gt": 5, "prefix": "x"}, 3, False),
        ({"gt": 5, "prefix": "x"}, 7, None),
    ],
)
def test_conditions(condition: dict[str, Any], value: Any, said: bool | None) -> None:
    assert Condition.model_validate(condition).holds(value) is said


@given(conditions, json_values | st.just(ABSENT))
def test_a_condition_never_raises_and_agrees_with_its_parts(condition: dict[str, Any], value: Any) -> None:
    made = Condition.model_validate(condition)
    parts = [OPERATORS[operator](value, operand) for operator, operand in made.wanted]
    assert all(part is None or isinstance(part, bool) for part in parts)
    expected = False if False in parts else None if None in parts else True
    assert made.holds(value) is expected


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_a_number_in_a_text_is_a_number(value: int, bound: int) -> None:
    for operator in ("lt", "le", "gt", "ge"):
        condition = Condition.model_validate({operator: bound})
        assert condition.holds(value) is condition.holds(str(value)) is condition.holds(float(value))


def test_paths_lead_into_objects_and_to_every_element_of_lists() -> None:
    values = {"order": {"lines": [{"cents": 5}, {"cents": 9}, {}]}, "to": ["a@x", "b@y"], "none": []}
    assert list(at("order.lines.*.cents", values)) == [5, 9, ABSENT]
    assert list(at("order.lines", values)) == [values["order"]["lines"]]  # type: ignore[index]
    assert list(at("order.*", values)) == [ABSENT]
    assert list(at("to.x", values)) == [ABSENT]
    inside = {"to.*": Condition(suffix="@x")}
    assert answer(inside, values, all_elements=False) is True
    assert answer(inside, values, all_elements=True) is False
    assert answer({"none.*": Condition(suffix="@x")}, values, all_elements=True) is True
    assert answer({"none.*": Condition(suffix="@x")}, values, all_elements=False) is False


def test_a_rule_about_recipients() -> None:
    policy = policy_with(
        {"name": "outside", "outcome": "deny", "tools": "mail", "when": {"to.*": {"suffix": "@rival.com"}}},
        {"name": "inside", "outcome": "allow", "tools": "mail", "when": {"to.*": {"suffix": "@us.com"}}},
    )

    def rule(*to: Any) -> str:
        return decide(policy, Action("mail", "write", arguments={"to": list(to)})).rule

    assert rule("a@us.com") == "inside"
    assert rule("a@us.com", "b@rival.com") == "outside"
    assert rule("a@us.com", "b@elsewhere.com") == GRANTS
    assert rule("a@us.com", 5) == "outside"  # nobody can tell what that is


# A host


@tool(risk=Risk.WRITE)
async def refund(call: ToolCall, order: str, cents: int, note: object = None) -> int:
    return cents


@tool(risk=Risk.WRITE, scopes=["mail:send"], needs_approval=lambda to, subject: to != "me")
async def mail(call: ToolCall, to: str, *, subject: str) -> None: ...


@tool(risk=Risk.READ, needs_approval=lambda order: bool(1 / 0))
async def shaky(call: ToolCall, order: str) -> None: ...


@agent("desk", version="1")
async def desk(run: Run, payload: Any) -> None: ...


LARGE = """\
rules:
  - {name: small, outcome: allow, tools: refund, when: {cents: {le: 100}}}
  - {name: never, outcome: deny, tools: refund, tenants: globex}
"""
JOB = JobRecord(1, None)


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    opened = await Store.open(settings_for(redis_url, f"t-{uuid.uuid4().hex[:12]}"))
    yield opened
    await opened.close()


async def authority_of(store: Store, *tools: Tool[Any, Any], **settings: Any) -> Authority:
    made = Authority(store, store.settings.model_copy(update=settings))
    await made.open(tools)
    return made


def decided(authority: Authority, job: JobRecord, tool: Tool[Any, Any], *args: Any, **kwargs: Any) -> Decision:
    return authority.decide(tool, tool.signature.bind(args, kwargs)[0], job=job, agent="desk")


async def test_a_host_decides_by_the_policy_that_it_was_given(store: Store) -> None:
    authority = await authority_of(store, refund, policy_yaml=LARGE)
    assert decided(authority, JOB, refund, "O-1", 100).rule == "small"
    assert decided(authority, JOB, refund, "O-1", 101).rule == GRANTS
    assert decided(authority, JobRecord(1, None, grants=("write",)), refund, "O-1", 101).rule == "builtin:write"
    assert decided(authority, JobRecord(1, None, tenant="globex"), refund, "O-1", 1).rule == "never"
    record = await policy_in_force(store)
    assert record is not None
    assert (record.version, record.text, record.by) == (authority.version, LARGE, "deployment")
    published = await store.fields(store.keys.tools)
    assert json.loads(published["refund"]) == {"risk": "write", "arguments": ["order", "cents", "note"]}


async def test_a_host_that_comes_later_does_not_bring_its_own_policy_back(store: Store) -> None:
    first = await authority_of(store, policy_yaml=LARGE)
    await put_policy(store, "other", ALLOW_EVERYTHING, by="ann")
    later = await authority_of(store, policy_yaml=LARGE)
    assert decided(later, JOB, refund, "O-1", 999).outcome is ALLOW
    assert decided(first, JOB, refund, "O-1", 999).outcome is DENY  # nobody has told it yet
    await first.refresh()
    assert decided(first, JOB, refund, "O-1", 999).outcome is ALLOW


async def test_arguments_are_looked_at_only_where_a_rule_asks(store: Store) -> None:
    authority = await authority_of(store, policy_yaml=ALLOW_EVERYTHING)
    strange = ["O-1", 1, object()]  # cannot be written as JSON
    assert authority.decide(refund, strange, job=JOB, agent="desk").outcome is ALLOW
    await put_policy(store, "v", LARGE, by="ann")
    await authority.refresh()
    assert authority.decide(refund, strange, job=JOB, agent="desk").rule == GRANTS


async def test_a_tool_says_itself_when_it_needs_an_approval(store: Store) -> None:
    authority = await authority_of(store)
    job = JobRecord(1, None, grants=("mail:*",))
    assert decided(authority, job, mail, "me", subject="x").outcome is ALLOW
    decision = decided(authority, job, mail, "you", subject="x")
    assert (decision.outcome, decision.rule) == (APPROVE, TOOL)
    assert decided(authority, JOB, mail, "you", subject="x").rule == GRANTS
    assert decided(authority, JOB, shaky, "O-1").outcome is APPROVE  # it failed, and nobody knows


async def test_a_host_that_cannot_read_the_policy_permits_nothing(store: Store) -> None:
    authority = await authority_of(store)
    grants = JobRecord(1, None, grants=("write",))
    assert decided(authority, grants, refund, "O-1", 1).outcome is ALLOW
    await put_policy(store, "future", "rules: [{name: a, outcome: maybe}]", by="a newer client")
    await authority.refresh()
    decision = decided(authority, grants, refund, "O-1", 1)
    assert (decision.outcome, decision.rule, decision.version) == (DENY, UNREADABLE, "future")
    assert authority.version == "future"
    assert "penstock policy set FILE" in decision.text
    await put_policy(store, "default", "", by="ann")
    await authority.refresh()
    assert decided(authority, grants, refund, "O-1", 1).outcome is ALLOW


async def test_hosts_are_told_at_once_and_find_out_by_themselves(redis_url: str) -> None:
    async with spine(redis_url, desk) as deployment:
        host = await deployment.host(heartbeat_s=30.0, lease_s=60.0)
        assert host.authority.version not in (DEFAULT, "told")
        await _listening(deployment)
        await put_policy(deployment.store, "told", LARGE, by="ann")
        await until(lambda: decided(host.authority, JOB, refund, "O-1", 100).rule == "small", "the message")
        beating = await deployment.host()
        store, keys = deployment.store, deployment.store.keys
        await store.set_fields(keys.policy, {"text": "", "version": DEFAULT, "number": "99"})  # nobody is told
        await until(lambda: beating.authority.version == DEFAULT, "the next heartbeat")


async def _listening(deployment: Spine) -> None:
    channel = deployment.store.keys.policy_channel

    async def heard() -> bool:
        said = await deployment.store.command(channel, "PUBSUB", "NUMSUB", channel)
        return int(said[1]) > 0

    await until(heard, "a host that listens")


async def test_a_decision_costs_next_to_nothing(store: Store) -> None:
    """The figures are in docs/policy.md; here only that nothing is looked at twice."""
    authority = await authority_of(store, policy_yaml=LARGE)
    values, other = refund.signature.bind(("O-1", 5), {})[0], mail.signature.bind(("me",), {"subject": ""})[0]
    for arguments_of, asked in ((values, refund), (other, mail)):
        first = authority.decide(asked, arguments_of, job=JOB, agent="desk")
        assert authority.decide(asked, arguments_of, job=JOB, agent="desk") is first
    began = time.perf_counter()
    for _ in range(1000):
        authority.decide(refund, values, job=JOB, agent="desk")
    assert time.perf_counter() - began < 1.0
