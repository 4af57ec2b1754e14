"""May this exact action go ahead, do people say? Pure: facts and times in, a state and its reason out.

A request names one action (:class:`Action`) and the terms on which people may decide it (:class:`Terms`). It and each
decision are signed (:mod:`admission.signature`), so that whoever reads them from a place that others can write to knows
that they are what was asked and what was said.

States of an approval, as the store keeps them:

    pending → approved | denied | expired | void
    approved → used | expired | void

One "no" denies. It is approved when as many people as its terms need have said "yes", each of them once, each of them
entitled. It is used once, by the step that asked, before it expires. It is void when its run has ended.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from admission.approval_errors import (
    ActionChanged,
    AlreadyApproved,
    AlreadyDenied,
    ApprovalExpired,
    ApprovalUsed,
    ApprovalVoid,
    DecisionReplayed,
    Denied,
    ForgedApproval,
    NotAnApprover,
    RunIsOver,
    SelfApproval,
)
from admission.signature import Keyring, Part, Signed, digest_of

VERSION: Final = 1
MAX_NAME: Final = 256
MAX_REASON: Final = 2000
_LONGEST_S: Final = 366 * 86_400


class ApprovalState(StrEnum):
    """Where an approval stands."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    VOID = "void"
    USED = "used"


class Action(BaseModel):
    """What is to be approved: one call, of one step, of one run.

    Attributes:
        deployment: the deployment's name.
        run: the run's id.
        step: the path of the call in the run.
        tool: the tool's name.
        agent: the agent's name.
        agent_version: the version that the run is pinned to: the code that the call comes from.
        arguments: digest of the canonical arguments, without those that the tool declares as advisory.
        business_key: the agent's own key of the effect, where it gave one.
        risk: the tool's tier.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    deployment: str
    run: str
    step: str
    tool: str
    agent: str
    agent_version: str
    arguments: str
    business_key: str = ""
    risk: str

    @property
    def digest(self) -> str:
        """What an approval is bound to: 64 hex digits, other ones for any other action."""
        return digest_of(
            "penstock action", VERSION, self.deployment, self.run, self.step, self.tool, self.agent,
            self.agent_version, self.arguments, self.business_key, self.risk,
        )  # fmt: skip


def _printable(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError("printable characters, without spaces at its ends")
    return text


Approver = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME), AfterValidator(_printable)]


class Terms(BaseModel):
    """On which terms people may decide.

    Attributes:
        needed: how many different people have to say yes.
        approvers: who may decide; nobody named: everybody.
        self_approval: whether whoever submitted the job may decide.
        expires_s: seconds after which nobody can decide any more, and what was approved and not used is void.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    needed: Annotated[int, Field(ge=1, le=100)] = 1
    approvers: tuple[Approver, ...] = ()
    self_approval: bool = True
    expires_s: Annotated[float, Field(gt=0, le=_LONGEST_S)] = 86_400.0

    def model_post_init(self, _: object) -> None:
        """Refuses terms that nobody can fulfil."""
        there_are = len(set(self.approvers))
        if self.approvers and there_are < self.needed:
            raise ValueError(f"needed is {self.needed}, and only {there_are} approvers are named")


DEFAULT_TERMS: Final = Terms()


class Request(Signed):
    """What people are asked, signed by the host that asks.

    Attributes:
        id: the approval's id (:func:`approval_id`).
        action: what is to be approved.
        terms: on which terms.
        shown: the arguments as people are shown them (JSON); secrets in them are masked.
        submitter: who submitted the job; empty where nobody knows.
        tenant: whose job it is.
        rule: which rule of which policy wants the approval.
        asked_ms: when it was asked (epoch milliseconds, the store's clock).
        expires_ms: when it expires.
    """

    kind = "penstock approval request"

    v: int = VERSION
    id: str
    action: Action
    terms: Terms
    shown: str = "{}"
    submitter: str = ""
    tenant: str = ""
    rule: str = ""
    asked_ms: int
    expires_ms: int

    def parts(self) -> list[Part]:
        """What its signature covers."""
        terms = self.terms
        return [
            self.v, self.id, self.action.digest, terms.needed, len(terms.approvers), *terms.approvers,
            terms.self_approval, repr(terms.expires_s), self.shown, self.submitter, self.tenant, self.rule,
            self.asked_ms, self.expires_ms,
        ]  # fmt: skip


class Decision(Signed):
    """What one person says of one approval, signed with a key of the deployment."""

    kind = "penstock approval decision"

    v: int = VERSION
    approval: str
    action: str
    approver: Approver
    approve: bool
    reason: Annotated[str, StringConstraints(max_length=MAX_REASON)] = ""
    at_ms: int

    def parts(self) -> list[Part]:
        """What its signature covers."""
        return [self.v, self.approval, self.action, self.approver, self.approve, self.reason, self.at_ms]


class Use(Signed):
    """That an approved action has begun, signed by the host: nobody else can say so afterwards."""

    kind = "penstock approval use"

    v: int = VERSION
    approval: str
    action: str
    at_ms: int

    def parts(self) -> list[Part]:
        """What its signature covers."""
        return [self.v, self.approval, self.action, self.at_ms]


def approval_id(action: Action) -> str:
    """The approval that an action has: the same whenever it is asked for; it begins with its run's partition."""
    return f"a{action.run[:2]}-{digest_of('penstock approval', action.run, action.step, action.digest)[:24]}"


def new_request(
    action: Action, terms: Terms, now_ms: int, *, shown: str, submitter: str, tenant: str, rule: str, keys: Keyring
) -> Request:
    """A signed request; it expires by its terms, counted from ``now_ms``."""
    request = Request(
        id=approval_id(action),
        action=action,
        terms=terms,
        shown=shown,
        submitter=submitter,
        tenant=tenant,
        rule=rule,
        asked_ms=now_ms,
        expires_ms=now_ms + round(terms.expires_s * 1000),
    )
    return request.signed(keys)


# Deciding


class Standing(NamedTuple):
    """Where an approval stands, why, and who has brought it there."""

    state: ApprovalState
    why: str
    by: tuple[str, ...] = ()


def decide(request: Request, decisions: Iterable[Decision], now_ms: int) -> Standing:
    """Where an approval stands by the decisions on it, in whatever order they come.

    They are taken as they are: :func:`verified` says whether they can be.

    Args:
        request: what was asked.
        decisions: what was said.
        now_ms: the present, by the store's clock.
    """
    said = sorted(decisions, key=lambda each: (each.at_ms, each.approver))
    against = [each for each in said if not each.approve]
    if against:
        return Standing(ApprovalState.DENIED, against[0].reason or "no reason given", (against[0].approver,))
    people = tuple(dict.fromkeys(each.approver for each in said))
    count = f"{len(people)} of {request.terms.needed} needed"
    if now_ms >= request.expires_ms:
        return Standing(ApprovalState.EXPIRED, f"{count} had approved it when it expired", people)
    if len(people) >= request.terms.needed:
        return Standing(ApprovalState.APPROVED, "; ".join(each.reason for each in said if each.reason), people)
    return Standing(ApprovalState.PENDING, f"{count} have approved it", people)


def check_approver(request: Request, approver: str) -> None:
    """Refuses who may not decide.

    Raises:
        NotAnApprover: the terms name others.
        SelfApproval: it is who submitted the job, or nobody can tell whether it is.
    """
    terms = request.terms
    if terms.approvers and approver not in terms.approvers:
        raise NotAnApprover(request.id, f"{approver!r} may not decide it: {who_may(request)}")
    if not terms.self_approval and request.submitter in ("", approver):
        if request.submitter:
            raise SelfApproval(request.id, f"{approver!r} has submitted the job, and may not decide it as well")
        raise SelfApproval(
            request.id,
            "whoever submitted the job may not decide it, and the job does not say who that was: submit it again with "
            "PENSTOCK_USER",
        )


def check_request(request: Request, keys: Keyring, action: Action | None = None) -> None:
    """Refuses a request that is not what a host has asked, or is of another action than the one that is to be made.

    Raises:
        ForgedApproval, UnknownApprovalKey: its signature does not hold.
        ActionChanged: it is of another action.
    """
    request.check_signature(keys, request.id)
    if request.id != approval_id(request.action):
        raise ForgedApproval(request.id, "its id is not that of its action")
    if action is not None and request.action != action:
        changed = [name for name in Action.model_fields if getattr(request.action, name) != getattr(action, name)]
        raise ActionChanged(request.id, f"it is of another action: {', '.join(changed)} changed since it was asked")


def verified(request: Request, decisions: Sequence[Decision], keys: Keyring) -> None:
    """Refuses decisions that do not count: one that does not is a sign that somebody has been at the record.

    Raises:
        ForgedApproval, UnknownApprovalKey: a signature does not hold.
        DecisionReplayed: a decision was made on another approval, or is there twice.
        NotAnApprover, SelfApproval: somebody without the right decided.
        ApprovalExpired: somebody decided too late.
    """
    seen: set[str] = set()
    for each in decisions:
        each.check_signature(keys, request.id)
        if (each.approval, each.action) != (request.id, request.action.digest):
            raise DecisionReplayed(request.id, f"{each.approver!r} has decided on {each.approval}, not on this one")
        if each.approver in seen:
            raise DecisionReplayed(request.id, f"the decision of {each.approver!r} is there twice")
        seen.add(each.approver)
        check_approver(request, each.approver)
        if each.at_ms >= request.expires_ms:
            raise ApprovalExpired(request.id, f"{each.approver!r} decided after it had expired")


@dataclass(frozen=True, slots=True)
class Look:
    """What the store has of an approval: the state that it says, decisions, who used it, and the store's time."""

    state: ApprovalState
    decisions: tuple[Decision, ...]
    use: Use | None
    now_ms: int


def judge(request: Request, look: Look, keys: Keyring) -> Standing:
    """Where an approval stands, for the host that is to act on it: it believes signatures, and not the store's word.

    Returns:
        PENDING, APPROVED (it may be used now) or USED (by this step, before its host died).

    Raises:
        Denied, ApprovalExpired, ApprovalVoid: it comes to nothing.
        ForgedApproval and the others of :func:`verified`: it is not what people have said.
    """
    verified(request, look.decisions, keys)
    if look.use is not None:
        check_use(request, look.use, keys)
        standing = decide(request, look.decisions, look.use.at_ms)
        if standing.state is not ApprovalState.APPROVED:
            raise ForgedApproval(request.id, f"it was used, and its decisions say that it is {standing.state}")
        return standing._replace(state=ApprovalState.USED)
    standing = decide(request, look.decisions, look.now_ms)
    if standing.state is ApprovalState.DENIED:
        raise Denied(request.id, standing.why, standing.by)
    if standing.state is ApprovalState.EXPIRED or look.state is ApprovalState.EXPIRED:
        raise ApprovalExpired(request.id, standing.why)
    if look.state is ApprovalState.VOID:
        raise ApprovalVoid(request.id, "its run had come to an end")
    if look.state is ApprovalState.USED:
        raise ApprovalUsed(request.id, "it has been used, and not by this step")
    if look.state is not standing.state:
        raise ForgedApproval(request.id, f"the store says that it is {look.state}, its decisions say {standing.state}")
    return standing


def check_use(request: Request, use: Use, keys: Keyring) -> None:
    """Refuses the use of another approval, and what no host has signed.

    Raises:
        ForgedApproval, UnknownApprovalKey, ApprovalUsed: it is not this one's.
    """
    use.check_signature(keys, request.id)
    if (use.approval, use.action) != (request.id, request.action.digest):
        raise ApprovalUsed(request.id, f"the use is of {use.approval}, not of this one")


def check_open(request: Request, look: Look, approver: str, action: str | None = None) -> None:
    """Refuses a decision that comes to nothing, with the reason; for whoever is about to make one.

    Args:
        request: what was asked.
        look: where it stands.
        approver: who is about to decide.
        action: digest of the action that was shown to them, where they say.

    Raises:
        ActionChanged, AlreadyApproved, AlreadyDenied, ApprovalExpired, ApprovalUsed, DecisionReplayed,
        NotAnApprover, RunIsOver, SelfApproval: nobody, or not this person, can decide it in this way.
    """
    if action is not None and action != request.action.digest:
        raise ActionChanged(request.id, "it is of another action than the one that was shown to you: look at it again")
    check_approver(request, approver)
    standing = decide(request, look.decisions, look.now_ms)
    refuse_closed(request.id, look.state, standing)
    if standing.state is ApprovalState.EXPIRED:
        raise ApprovalExpired(request.id, standing.why)
    if any(each.approver == approver for each in look.decisions):
        raise DecisionReplayed(request.id, f"{approver!r} has decided it already: each person decides once")


def refuse_closed(approval: str, state: ApprovalState, standing: Standing) -> None:
    """Raises what says that nobody can decide an approval in this state any more; nothing while it is pending."""
    by = ", ".join(standing.by)
    if state is ApprovalState.APPROVED:
        raise AlreadyApproved(approval, f"{by} approved it; its run goes on")
    if state is ApprovalState.DENIED:
        raise AlreadyDenied(approval, f"{by} denied it: {standing.why}")
    if state is ApprovalState.EXPIRED:
        raise ApprovalExpired(approval, standing.why)
    if state is ApprovalState.USED:
        raise ApprovalUsed(approval, f"{by} approved it, and its action has begun")
    if state is ApprovalState.VOID:
        raise RunIsOver(approval, "its run has come to an end")


def who_may(request: Request) -> str:
    """Who may decide, for people."""
    terms = request.terms
    people = " or ".join(terms.approvers) if terms.approvers else "anybody"
    but = "" if terms.self_approval else f", but not who submitted the job ({request.submitter or 'unknown'})"
    return f"{people}{but}; {terms.needed} needed" if terms.needed > 1 else f"{people}{but}"
