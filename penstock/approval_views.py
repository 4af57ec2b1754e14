"""What people get to see of an approval, and whether it is what a host has asked and people have said."""

from typing import Any, Final

import msgspec

from admission.approval import ApprovalState, Decision, Request, who_may
from admission.approval_errors import ApprovalRefused, ForgedApproval
from admission.approval_rules import Look, check_request, verified
from admission.signature import Keyring
from cluster.approvals import ApprovalRecord
from penstock.approval_facts import ApprovalView, DecisionView
from penstock.views import JournalStep

_OPEN: Final = (ApprovalState.PENDING, ApprovalState.APPROVED)


class ApprovalDetails(msgspec.Struct, frozen=True, kw_only=True):
    """One approval with what helps to decide: the steps of its run so far, and what people said of the same tool."""

    approval: ApprovalView
    custom_id: str
    batch: str
    run_state: str
    steps: list[JournalStep]
    before: list[ApprovalView]


class Opened(msgspec.Struct, frozen=True):
    """A record as it could be read, and what is wrong with it (None: nothing)."""

    request: Request
    look: Look
    refusal: ApprovalRefused | None


def opened(record: ApprovalRecord, keys: Keyring, now_ms: int) -> Opened:
    """What is in a record, with its signatures looked at.

    Raises:
        ForgedApproval: it cannot even be read.
    """
    request = Request.read(record.request, record.id)
    refusal: ApprovalRefused | None = None
    decisions: tuple[Decision, ...] = ()
    try:
        if request.id != record.id:
            raise ForgedApproval(record.id, f"its request is of approval {request.id}")
        check_request(request, keys)
        decisions = tuple(Decision.read(each, record.id) for each in record.decisions)
        verified(request, decisions, keys)
    except ApprovalRefused as error:
        refusal = error
    return Opened(request, Look(_state(record, now_ms), decisions, None, now_ms), refusal)


def approval_view(record: ApprovalRecord, keys: Keyring, now_ms: int) -> ApprovalView:
    """An approval for people, whatever its state."""
    try:
        found = opened(record, keys, now_ms)
    except ForgedApproval as error:
        return _unreadable(record, error, now_ms)
    request, action, terms = found.request, found.request.action, found.request.terms
    said = sorted(found.look.decisions, key=lambda each: each.at_ms)
    return ApprovalView(
        id=record.id,
        state=found.look.state.value,
        action=action.digest,
        tool=action.tool,
        arguments=_plain(request.shown),
        advisory=request.advisory,
        risk=action.risk,
        run_id=action.run,
        step=action.step,
        agent=action.agent,
        agent_version=action.agent_version,
        submitter=request.submitter,
        tenant=request.tenant,
        rule=request.rule,
        needed=terms.needed,
        approvers=terms.approvers,
        self_approval=terms.self_approval,
        who_may=who_may(request),
        asked_ms=request.asked_ms,
        expires_ms=request.expires_ms,
        left_s=(request.expires_ms - now_ms) / 1000,
        closed_ms=record.closed_ms,
        decisions=tuple(DecisionView(each.approver, each.approve, each.reason, each.at_ms) for each in said),
        problem="" if found.refusal is None else f"{type(found.refusal).__name__}: {found.refusal.why}",
    )


def _state(record: ApprovalRecord, now_ms: int) -> ApprovalState:
    try:
        state = ApprovalState(record.state)
    except ValueError:
        raise ForgedApproval(record.id, f"its state {record.state[:40]!r} is none") from None
    return ApprovalState.EXPIRED if state in _OPEN and record.expires_ms <= now_ms else state


def _plain(shown: str) -> Any:
    try:
        return msgspec.json.decode(shown)
    except msgspec.DecodeError:
        return shown


def _unreadable(record: ApprovalRecord, error: ForgedApproval, now_ms: int) -> ApprovalView:
    return ApprovalView(
        id=record.id, state=record.state, action="", tool=record.tool, arguments=None, risk="", run_id=record.run,
        step="", agent="", agent_version="", submitter="", tenant="", rule="", needed=1, approvers=(),
        self_approval=False, who_may="", asked_ms=0, expires_ms=record.expires_ms,
        left_s=(record.expires_ms - now_ms) / 1000, closed_ms=record.closed_ms,
        problem=f"{type(error).__name__}: {error.why}",
    )  # fmt: skip
