"""Approvals as clients get to see them: values without behaviour."""

from typing import Any

import msgspec


class DecisionView(msgspec.Struct, frozen=True):
    """What one person said, when and why."""

    approver: str
    approve: bool
    reason: str
    at_ms: int

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.approver} {'approved' if self.approve else 'denied'}" + (
            f": {self.reason}" if self.reason else ""
        )


class ApprovalView(msgspec.Struct, frozen=True, kw_only=True):
    """One approval.

    ``advisory`` names the arguments that it does not bind. ``action`` is the digest of the exact action: give it with a
    decision to be sure that it is on what you have seen. ``who_may`` says who can decide, for people. ``problem`` says
    why it must not be believed; it is empty where all signatures hold. Times are epoch milliseconds (store's clock).
    """

    id: str
    state: str
    action: str
    tool: str
    arguments: Any
    advisory: tuple[str, ...] = ()
    risk: str
    run_id: str
    step: str
    agent: str
    agent_version: str
    submitter: str
    tenant: str
    rule: str
    needed: int
    approvers: tuple[str, ...]
    self_approval: bool
    who_may: str
    asked_ms: int
    expires_ms: int
    left_s: float
    closed_ms: int | None
    decisions: tuple[DecisionView, ...] = ()
    problem: str = ""

    @property
    def progress(self) -> str:
        """How far it is, in a few words."""
        if self.state != "pending" or self.needed == 1:
            return self.state
        return f"{self.state}, {sum(each.approve for each in self.decisions)} of {self.needed}"
