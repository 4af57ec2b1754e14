"""What is asked, said and done of an approval, as signed records. Pure.

A request names one action (:class:`Action`) and the terms on which people may decide it (:class:`Terms`). It, each
decision, and its use are signed (:mod:`admission.signature`), so that whoever reads them from a place that others can
write to knows that they are what was asked, said and done. What follows is in :mod:`admission.approval_rules`.
"""

from enum import StrEnum
from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from admission.policy import Approval
from admission.signature import Keyring, Part, Signed, digest_of

VERSION: Final = 1
MAX_NAME: Final = 256
MAX_REASON: Final = 2000


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


Terms: TypeAlias = Approval
"""On which terms people may decide: as the policy's rules say."""
DEFAULT_TERMS: Final = Terms()


class Request(Signed):
    """What people are asked, signed by the host that asks.

    Attributes:
        id: the approval's id (:func:`approval_id`).
        action: what is to be approved.
        terms: on which terms.
        shown: the arguments as people are shown them (JSON); secrets in them are masked.
        advisory: names of those arguments that the approval does not bind.
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
    advisory: tuple[str, ...] = ()
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
            terms.self_approval, repr(terms.expires_s), self.shown, len(self.advisory), *self.advisory,
            self.submitter, self.tenant, self.rule, self.asked_ms, self.expires_ms,
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
    action: Action,
    terms: Terms,
    now_ms: int,
    *,
    shown: str,
    advisory: tuple[str, ...] = (),
    submitter: str,
    tenant: str,
    rule: str,
    keys: Keyring,
) -> Request:
    """A signed request; it expires by its terms, counted from ``now_ms``."""
    request = Request(
        id=approval_id(action),
        action=action,
        terms=terms,
        shown=shown,
        advisory=advisory,
        submitter=submitter,
        tenant=tenant,
        rule=rule,
        asked_ms=now_ms,
        expires_ms=now_ms + round(terms.expires_s * 1000),
    )
    return request.signed(keys)


def who_may(request: Request) -> str:
    """Who may decide, for people."""
    terms = request.terms
    people = " or ".join(terms.approvers) if terms.approvers else "anybody"
    but = "" if terms.self_approval else f", but not who submitted the job ({request.submitter or 'unknown'})"
    return f"{people}{but}; {terms.needed} needed" if terms.needed > 1 else f"{people}{but}"
