"""What clients get to see of the policy. Times are epoch milliseconds by the store's clock."""

import msgspec

from admission.authority import Explanation
from admission.policy import DEFAULT
from cluster.policies import PolicyRecord

DEFAULT_TEXT = """\
# No policy was set. What holds then, written out (effects need a grant as well):
otherwise:
  read: allow
  draft: allow
  write: allow
  irreversible: approve
"""


class PolicyView(msgspec.Struct, frozen=True, kw_only=True):
    """A policy that is, or was, in force. ``number`` grows with each change; 0 is the default, which nobody has set."""

    version: str
    text: str
    number: int = 0
    in_force: bool = True
    since_ms: int | None = None
    by: str = ""
    why: str = ""


class PolicyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a policy that was set: in force now (``changed``), or it was before.

    ``unchecked`` says what could not be looked at: names of tools and agents, where no host has published any.
    """

    policy: PolicyView
    changed: bool
    rules: int
    unchecked: str = ""


class RuleView(msgspec.Struct, frozen=True, kw_only=True):
    """A rule, what it would say, whether it matches the call, and why."""

    rule: str
    outcome: str
    matches: bool
    why: str


class ApprovalTermsView(msgspec.Struct, frozen=True, kw_only=True):
    """How an approval must be given; nobody named: anybody may."""

    approvers: tuple[str, ...]
    needed: int
    self_approval: bool
    expires_s: float


class PolicyExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy says of a call: ``allow``, ``approve`` or ``deny``, by which rule, and how each rule comes out.

    ``notes`` are what cannot be known without making the call.
    """

    tool: str
    risk: str
    agent: str
    tenant: str
    grants: tuple[str, ...]
    version: str
    outcome: str
    rule: str
    text: str
    terms: ApprovalTermsView | None
    checks: list[RuleView]
    notes: list[str]


def policy_view(record: PolicyRecord | None, *, in_force: bool = True) -> PolicyView:
    """The view of a record; None: nobody has set a policy."""
    if record is None:
        return PolicyView(version=DEFAULT, text=DEFAULT_TEXT)
    return PolicyView(
        version=record.version,
        text=record.text,
        number=record.number,
        in_force=in_force,
        since_ms=record.since,
        by=record.by,
        why=record.why,
    )


def checks_of(explanation: Explanation) -> list[RuleView]:
    """How each rule comes out."""
    return [
        RuleView(rule=check.rule, outcome=check.outcome.value, matches=check.matches, why=check.why)
        for check in explanation.checks
    ]


def terms_of(explanation: Explanation) -> ApprovalTermsView | None:
    """How the approval must be given, where one is needed."""
    terms = explanation.decision.terms
    if terms is None:
        return None
    return ApprovalTermsView(
        approvers=terms.approvers,
        needed=terms.needed,
        self_approval=terms.self_approval,
        expires_s=terms.expires_s,
    )
