"""May this exact action go ahead, do people say? Pure: facts and times in, a state and its reason out.

States of an approval, as the store keeps them:

    pending → approved | denied | expired | void
    approved → used | expired | void

One "no" denies. It is approved when as many people as its terms need have said "yes", each of them once, each of them
entitled. It is used once, by the step that asked, before it expires. It is void when its run has ended.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from admission.approval import Action, ApprovalState, Decision, Request, Use, approval_id, who_may
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
from admission.signature import Keyring


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
