"""May this call be made? Grants first, then a policy's rules, the most restrictive of those that match. Pure.

Who may do what comes from three places, in this order:

1. *Grants*: a tool's scopes must all be among the job's grants, whatever a policy says. A tool that changes the world
   and declares no scopes needs a grant of its own name (``tool:NAME``) or of its tier (``write``, ``irreversible``), or
   a rule that allows it.
2. *Rules*: those that match decide together. Deny beats approve, and approve beats allow, whatever their order in the
   file: so a rule can be read alone, and adding one that denies never permits anything. An approval is asked for on top
   of a grant; it stands in for none.
3. *Otherwise*, where no rule matches: what the policy says of the tool's tier.

A tool that needs an approval by its own declaration needs it whatever the rules say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from admission.conditions import answer, weighed
from admission.policy import Approval, Permission, Policy, Rule, Tier, covered, covers

GRANTS: Final = "builtin:grants"
"""The rule by which a call without a grant is denied."""
TOOL: Final = "builtin:needs_approval"
"""The rule by which a tool's own declaration asks for an approval."""
UNREADABLE: Final = "builtin:unreadable"
"""The rule by which a host denies everything when it cannot read the policy in force."""
_TIERS: Final = {tier.value: tier for tier in Tier}
_SHOWN: Final = 20
_MOST_KEPT: Final = 256


def otherwise_of(tier: str) -> str:
    """The name of the rule that holds for a tier where no other matches."""
    return f"builtin:{tier}"


class Subject(NamedTuple):
    """What is known of a call before its arguments.

    Attributes:
        tool: the tool's name.
        risk: its tier, as in ``write``; a tier that nobody knows counts as the worst one.
        scopes: the grants that it declares to need.
        agent: the agent's name.
        tenant: the job's tenant.
        grants: the job's grants.
        needs_approval: the tool itself asks for an approval of this call.
    """

    tool: str
    risk: str
    scopes: tuple[str, ...]
    agent: str
    tenant: str
    grants: tuple[str, ...]
    needs_approval: bool = False

    @property
    def tier(self) -> Tier:
        """The tool's tier."""
        return _TIERS.get(self.risk, Tier.IRREVERSIBLE)


@dataclass(frozen=True)
class Action:
    """A call that somebody wants to make; see :class:`Subject`. ``arguments`` are JSON-like, by parameter name."""

    tool: str
    risk: str
    scopes: tuple[str, ...] = ()
    agent: str = ""
    tenant: str = "default"
    arguments: Mapping[str, Any] | None = None
    grants: tuple[str, ...] = ()
    needs_approval: bool = False

    @property
    def subject(self) -> Subject:
        """Everything but the arguments."""
        identity = (self.agent, self.tenant, self.grants)
        return Subject(self.tool, self.risk, self.scopes, *identity, self.needs_approval)


@dataclass(frozen=True)
class Decision:
    """What was decided of a call, and by what.

    Attributes:
        outcome: allow, approve or deny.
        rule: the name of the rule that decided; several of an approval, with commas. Those of ours begin ``builtin:``.
        version: of the policy.
        text: a sentence for people and agents, with the fix where there is one.
        terms: how the approval must be given, where one is needed.
    """

    outcome: Permission
    rule: str
    version: str
    text: str
    terms: Approval | None = None

    @property
    def facts(self) -> dict[str, str]:
        """For journals: what was decided, by which rule of which policy."""
        return {"decision": self.outcome.value, "rule": self.rule, "version": self.version}


class Check(NamedTuple):
    """One rule, what it would say, whether it matches, and why."""

    rule: str
    outcome: Permission
    matches: bool
    why: str


@dataclass(frozen=True)
class Explanation:
    """A decision with all that was looked at for it, in the order in which it is looked at."""

    decision: Decision
    checks: tuple[Check, ...]


def decide(policy: Policy, action: Action) -> Decision:
    """What the policy says of a call. Never raises on JSON-like arguments."""
    return Plan(policy, action.subject).decide(action.arguments or {})


def explain(policy: Policy, action: Action) -> Explanation:
    """The same decision, with every rule and why it matches or does not."""
    subject, arguments = action.subject, action.arguments or {}
    plan = Plan(policy, subject)
    decision, tier = plan.decide(arguments), subject.tier
    waived = "" if not plan.lacking or decision.rule == GRANTS else "; but what matches below goes before that"
    grants = f"{plan.lacking}{waived}" if plan.lacking else "the job's grants cover it"
    checks = [Check(GRANTS, Permission.DENY, decision.rule == GRANTS, grants)]
    for rule in policy.rules:
        mismatch = _mismatch(rule, subject)
        matches, why = (False, mismatch) if mismatch else _weighed(rule, arguments)
        checks.append(Check(rule.name, rule.outcome, matches, why))
    asks = "its declaration asks for one" if subject.needs_approval else "its declaration asks for none"
    checks.append(Check(TOOL, Permission.APPROVE, subject.needs_approval, asks))
    name, said = otherwise_of(tier), policy.otherwise.of(tier)
    holds = name in decision.rule.split(", ")
    checks.append(Check(name, said, holds, "no rule says anything" if holds else "a rule decides"))
    return Explanation(decision, tuple(checks))


class Plan:
    """A policy for one subject: the rules that can match, sorted out once for all calls with whatever arguments.

    ``fixed`` is the decision where no argument can change it.
    """

    def __init__(self, policy: Policy, subject: Subject) -> None:
        self._policy = policy
        self._subject = subject
        self._rules = tuple(rule for rule in policy.rules if _mismatch(rule, subject) == "")
        self.missing_scopes = _missing_scopes(subject)
        self.lacking = _lacking(subject, self.missing_scopes)
        self._decisions: dict[tuple[bool, ...], Decision] = {}
        certain = [rule for rule in self._rules if not rule.when]
        denied = self.missing_scopes or any(rule.outcome is Permission.DENY for rule in certain)
        self.fixed = self._decided(certain) if denied or len(certain) == len(self._rules) else None

    def decide(self, arguments: Mapping[str, Any]) -> Decision:
        """The decision for a call with these arguments."""
        if self.fixed is not None:
            return self.fixed
        matching = tuple([not rule.when or _holds(rule, arguments) for rule in self._rules])
        decision = self._decisions.get(matching)
        if decision is None:
            if len(self._decisions) >= _MOST_KEPT:
                self._decisions.clear()
            decision = self._decided([rule for rule, holds in zip(self._rules, matching, strict=True) if holds])
            self._decisions[matching] = decision
        return decision

    def _decided(self, matching: list[Rule]) -> Decision:
        policy, subject = self._policy, self._subject
        if self.missing_scopes:
            return Decision(Permission.DENY, GRANTS, policy.version, self.lacking)
        by_outcome: dict[Permission, list[Rule]] = {outcome: [] for outcome in Permission}
        for rule in matching:
            by_outcome[rule.outcome].append(rule)
        asking, allowing = by_outcome[Permission.APPROVE], by_outcome[Permission.ALLOW]
        for rule in by_outcome[Permission.DENY]:
            text = _said(f"rule {rule.name!r} forbids {_call(subject)}", rule)
            return Decision(Permission.DENY, rule.name, policy.version, text)
        if self.lacking and not allowing:
            return Decision(Permission.DENY, GRANTS, policy.version, self.lacking)
        said = Permission.ALLOW if allowing else policy.otherwise.of(subject.tier)
        name = otherwise_of(subject.tier)
        if said is Permission.DENY and not asking:
            text = f"no rule allows {_call(subject)}, and what no rule allows is denied"
            return Decision(Permission.DENY, name, policy.version, text)
        if asking or subject.needs_approval or said is Permission.APPROVE:
            return self._approval(asking, otherwise="" if asking or said is not Permission.APPROVE else name)
        for rule in allowing:
            text = _said(f"rule {rule.name!r} allows {_call(subject)}", rule)
            return Decision(Permission.ALLOW, rule.name, policy.version, text)
        text = f"{subject.tier} tools are allowed where no rule says more"
        return Decision(Permission.ALLOW, name, policy.version, text)

    def _approval(self, asking: list[Rule], otherwise: str) -> Decision:
        """An approval that satisfies everything that asks for one."""
        policy, subject = self._policy, self._subject
        names = [rule.name for rule in asking]
        names += [TOOL] if subject.needs_approval else []
        names += [otherwise] if otherwise else []
        asked = [policy.approvals[rule.name] for rule in asking]
        asked += [policy.approval] if len(names) > len(asking) else []
        rule = ", ".join(names)
        terms = _together(asked)
        if terms is None:
            text = f"{rule} together name too few people who may approve it: change their approvers in the policy"
            return Decision(Permission.DENY, rule, policy.version, text)
        what = {TOOL: "the tool itself", otherwise: f"the policy for {subject.tier} tools"}
        by = ", ".join(what.get(name, f"rule {name!r}") for name in names)
        text = f"{_call(subject)} needs an approval: {by} asks for it"
        for each in asking:
            text = _said(text, each)
        return Decision(Permission.APPROVE, rule, policy.version, text, terms)


def _together(asked: list[Approval]) -> Approval | None:
    """An approval that satisfies all of these; None: too few people may give it."""
    named = [each.approvers for each in asked if each.approvers]
    approvers = tuple(name for name in named[0] if all(name in others for others in named)) if named else ()
    needed = max(each.needed for each in asked)
    if named and len(approvers) < needed:
        return None
    return Approval(
        approvers=approvers,
        needed=needed,
        self_approval=all(each.self_approval for each in asked),
        expires_s=min(each.expires_s for each in asked),
    )


def _missing_scopes(subject: Subject) -> tuple[str, ...]:
    return tuple(scope for scope in subject.scopes if not _granted(scope, subject.grants))


def _granted(needed: str, grants: tuple[str, ...]) -> bool:
    return any(covers(grant, needed) for grant in grants)


def _lacking(subject: Subject, missing_scopes: tuple[str, ...]) -> str:
    """What the job's grants lack for this tool, with the fix; nothing where they cover it."""
    has = f"the job's grants are {_names(subject.grants)}" if subject.grants else "the job has none"
    if missing_scopes:
        fix = f"add {_quoted(missing_scopes)} to the job's `grants`"
        return f"{_call(subject)} needs the grants {_names(subject.scopes)}, and {has}: {fix}"
    tier, own = subject.tier, f"tool:{subject.tool}"
    if subject.scopes or not tier.is_effect or _granted(own, subject.grants) or _granted(tier, subject.grants):
        return ""
    return (
        f"{_call(subject)} changes the world, which needs a grant, and {has}: add {_quoted((own,))} to the job's "
        f"`grants` (or {_quoted((tier,))}, for every {tier} tool), or have a rule of the policy allow it"
    )


def _mismatch(rule: Rule, subject: Subject) -> str:
    """Why a rule is not about a subject; nothing where it is."""
    if not covered(subject.tool, rule.tools):
        return f"tool {subject.tool} is not among its tools {_names(rule.tools)}"
    if rule.tiers and subject.tier not in rule.tiers:
        return f"tier {subject.tier} is not among its tiers {_names(tuple(rule.tiers))}"
    if subject.tier is Tier.IRREVERSIBLE and rule.outcome is Permission.ALLOW and not rule.tiers:
        return "an allow reaches irreversible tools only where it says `tiers: [irreversible]`"
    if not covered(subject.tenant, rule.tenants):
        return f"tenant {subject.tenant} is not among its tenants {_names(rule.tenants)}"
    if not covered(subject.agent, rule.agents):
        return f"agent {subject.agent} is not among its agents {_names(rule.agents)}"
    without = tuple(grant for grant in rule.grants if not _granted(grant, subject.grants))
    return f"the job has no grant {_names(without)}" if without else ""


def _holds(rule: Rule, arguments: Mapping[str, Any]) -> bool:
    """Whether a rule's conditions hold; what nobody can tell holds for all rules but those that allow."""
    if rule.outcome is Permission.ALLOW:
        return answer(rule.when, arguments, all_elements=True) is True
    return answer(rule.when, arguments, all_elements=False) is not False


def _weighed(rule: Rule, arguments: Mapping[str, Any]) -> tuple[bool, str]:
    """The same, and why."""
    if not rule.when:
        return True, "it is about this call"
    allows = rule.outcome is Permission.ALLOW
    said = answer(rule.when, arguments, all_elements=allows)
    if said is True:
        return True, " and ".join(f"{path} is {condition}" for path, condition in rule.when.items())
    wanted = False if said is False else None
    path, condition = next(
        (path, condition)
        for path, condition in rule.when.items()
        if weighed(path, condition, arguments, all_elements=allows) is wanted
    )
    if said is False:
        return False, f"{path} is not {condition}"
    unknown = f"whether {path} is {condition} cannot be told (it is not there, or of another kind)"
    return (False, f"{unknown}, so nothing is allowed by it") if allows else (True, f"{unknown}, so it counts")


def _call(subject: Subject) -> str:
    return f"tool {subject.tool!r} ({subject.tier})"


def _said(text: str, rule: Rule) -> str:
    """A text with the rule's reason."""
    return f"{text}: {rule.reason}" if rule.reason else text


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names)
