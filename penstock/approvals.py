"""Approvals as people see and decide them: read from the store, signed with a key that the store does not have."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from pydantic import ValidationError

from actors.approval_keys import keyring
from actors.journal import decode_entry
from admission.approval import ApprovalState, Decision
from admission.approval_errors import (
    AlreadyApproved,
    AlreadyDenied,
    ApprovalExpired,
    ApprovalRefused,
    ApprovalUsed,
    DecisionReplayed,
    ForgedApproval,
    NoSuchApproval,
    RunIsOver,
)
from admission.approval_rules import check_approver, check_open, decide
from admission.signature import Keyring
from cluster import approvals, reader
from cluster.approvals import ApprovalRecord
from cluster.config import Settings
from cluster.lifecycle import TERMINAL
from cluster.records import RunRecord
from cluster.store import Store
from penstock.approval_facts import ApprovalView
from penstock.approval_views import ApprovalDetails, approval_view, opened
from penstock.errors import ClientError
from penstock.inspection import journal_step
from penstock.waiting import POLL_S, signals, told_within

_TRIES: Final = 20
_BEFORE: Final = 5
# An approval that came to an end of its own says so, whatever its run has come to since.
_HAD_AN_END: Final = (ApprovalState.DENIED, ApprovalState.EXPIRED, ApprovalState.USED)
_WORDS: Final[dict[str, tuple[type[ApprovalRefused], str]]] = {
    "missing": (NoSuchApproval, "it is gone"),
    "over": (RunIsOver, "its run has ended, or is to be cancelled"),
    "twice": (DecisionReplayed, "you have decided it already: each person decides once"),
    "approved": (AlreadyApproved, "it has been approved meanwhile"),
    "denied": (AlreadyDenied, "it has been denied meanwhile"),
    "expired": (ApprovalExpired, "it has expired"),
    "used": (ApprovalUsed, "it has been approved, and its action has begun"),
    "void": (RunIsOver, "its run has ended"),
}


class InvalidDecision(ClientError):
    """An approver's name, or a reason, that cannot be recorded."""


class ApprovalCalls:
    """What a client can ask of approvals, and decide."""

    settings: Settings

    @property
    def store(self) -> Store:
        """The open store."""
        raise NotImplementedError

    async def approvals(self, *, all: bool = False, limit: int = 1000) -> list[ApprovalView]:
        """The approvals that can be decided, the next one to expire first.

        Args:
            all: then those that cannot be decided any more as well, the last ones first.
            limit: how many of each at most.
        """
        store, keys = self.store, keyring(self.settings.approval_keys)
        now_ms, waiting, closed = await asyncio.gather(
            store.server_ms(), approvals.pending(store, limit), approvals.closed(store, limit if all else 1)
        )
        found = [approval_view(each, keys, now_ms) for each in await approvals.records(store, waiting)]
        open_ones = sorted((each for each in found if each.state == ApprovalState.PENDING), key=lambda e: e.expires_ms)
        if not all:
            return open_ones[:limit]
        over = [approval_view(each, keys, now_ms) for each in await approvals.records(store, dict.fromkeys(closed))]
        over += [each for each in found if each.state != ApprovalState.PENDING]
        over.sort(key=lambda each: each.closed_ms or each.expires_ms, reverse=True)
        return open_ones[:limit] + over[:limit]

    async def approval(self, approval_id: str) -> ApprovalDetails:
        """One approval, with the steps of its run so far and what people said of the same tool before.

        Raises:
            NoSuchApproval: there is none of this id.
        """
        store, keys = self.store, keyring(self.settings.approval_keys)
        record = await self._approval_record(approval_id)
        run, entries, before, now_ms = await asyncio.gather(
            reader.record(store, record.run),
            reader.journal(store, record.run),
            approvals.decided_before(store, record.tool, _BEFORE + 1),
            store.server_ms(),
        )
        earlier = [each for each in await approvals.records(store, before) if each.id != approval_id]
        earlier.sort(key=lambda each: each.closed_ms or 0, reverse=True)
        return ApprovalDetails(
            approval=approval_view(record, keys, now_ms),
            custom_id="" if run is None else run.custom_id,
            batch="" if run is None else run.batch,
            run_state="" if run is None else run.state.value,
            steps=[journal_step(decode_entry(raw)) for raw in entries],
            before=[approval_view(each, keys, now_ms) for each in earlier[:_BEFORE]],
        )

    async def approve(
        self, approval_id: str, *, by: str | None = None, reason: str = "", action: str | None = None
    ) -> ApprovalView:
        """Says yes to one exact action, signed. When it returns, the decision is durable.

        Args:
            approval_id: see :meth:`approvals`.
            by: who decides; the settings' ``user`` by default.
            reason: why, for everybody who looks.
            action: the ``action`` of what you have seen, to be sure that it is still the same.

        Raises:
            ApprovalRefused: nothing was decided; each reason has an error of its own (``admission.approval_errors``).
        """
        return await self._decide_approval(approval_id, True, by, reason, action)

    async def deny(
        self, approval_id: str, *, reason: str, by: str | None = None, action: str | None = None
    ) -> ApprovalView:
        """Says no, for everybody: the agent gets :class:`ApprovalDenied` with the reason; see :meth:`approve`."""
        return await self._decide_approval(approval_id, False, by, reason, action)

    async def watch_approvals(self) -> AsyncGenerator[ApprovalView]:
        """Approvals that can be decided now, then each that is asked for, decided, used or over, as it happens."""
        store, keys = self.store, keyring(self.settings.approval_keys)
        known: dict[str, tuple[str, int]] = {}
        async with signals(store, store.keys.approvals_channel) as told:
            while True:
                now_ms, waiting = await asyncio.gather(store.server_ms(), approvals.pending(store))
                ids = dict.fromkeys([*waiting, *known])
                for record in await approvals.records(store, ids):
                    view = approval_view(record, keys, now_ms)
                    mark = view.state, len(view.decisions)
                    if known.get(view.id) != mark:
                        known[view.id] = mark
                        yield view
                    if view.state not in (ApprovalState.PENDING, ApprovalState.APPROVED):
                        known.pop(view.id)
                await told_within(told, POLL_S)

    async def _approval_record(self, approval_id: str) -> ApprovalRecord:
        try:
            record = await approvals.record(self.store, approval_id)
        except ValueError as error:
            raise NoSuchApproval(approval_id, str(error)) from None
        if record is None:
            raise NoSuchApproval(
                approval_id, "there is none: it was never asked for here, or its run's retention is over. "
                "`penstock approvals --all` lists those that there are",
            )  # fmt: skip
        return record

    async def _decide_approval(
        self, approval_id: str, approve: bool, by: str | None, reason: str, action: str | None
    ) -> ApprovalView:
        store, keys = self.store, keyring(self.settings.approval_keys)
        approver = self.settings.user if by is None else by
        for _ in range(_TRIES):
            record = await self._approval_record(approval_id)
            decision, becomes = await self._checked_decision(record, keys, approve, approver, reason, action)
            raw = decision.model_dump_json().encode()
            word = await approvals.decide(
                store, approval_id, approver, raw, seen=len(record.decisions), becomes=becomes
            )  # fmt: skip
            if word == "ok":
                return approval_view(await self._approval_record(approval_id), keys, await store.server_ms())
            if word != "again":
                kind, why = _WORDS[word]
                raise kind(approval_id, why)
        raise ForgedApproval(approval_id, "its record does not agree with the number of decisions that it says it has")

    async def _checked_decision(
        self, record: ApprovalRecord, keys: Keyring, approve: bool, approver: str, reason: str, action: str | None
    ) -> tuple[Decision, str]:
        """A signed decision on what the record says now, and what becomes of the approval by it.

        Raises:
            ApprovalRefused: nothing can be decided, or not by this person.
        """
        store = self.store
        now_ms, run = await asyncio.gather(store.server_ms(), reader.record(store, record.run))
        found = opened(record, keys, now_ms)
        if found.refusal is not None:
            raise found.refusal
        request, decisions = found.request, found.look.decisions
        try:
            decision = Decision(
                approval=request.id, action=request.action.digest, approver=approver, approve=approve, reason=reason,
                at_ms=now_ms,
            ).signed(keys)  # fmt: skip
        except ValidationError as error:
            said = "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors(include_input=False))
            raise InvalidDecision(f"this decision cannot be recorded: {said}") from None
        over = run is None or run.state in TERMINAL or bool(run.cancel)
        if over and found.look.state not in _HAD_AN_END:
            check_approver(request, approver)
            raise RunIsOver(request.id, f"run {record.run} {_end_of(run)}: nothing would come of a decision")
        check_open(request, found.look, approver, action)
        standing = decide(request, [*decisions, decision], now_ms)
        decided = standing.state in (ApprovalState.APPROVED, ApprovalState.DENIED)
        return decision, standing.state.value if decided else ""


def _end_of(run: RunRecord | None) -> str:
    if run is None:
        return "is gone"
    return f"has ended as {run.state}" if run.state in TERMINAL else f"is to be cancelled ({run.cancel})"


__all__ = ["ApprovalCalls", "InvalidDecision"]
