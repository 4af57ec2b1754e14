"""A run's audit trail: read from what the store keeps of it, and proved."""

import dataclasses
from itertools import accumulate
from typing import Final

from actors.core.chain import Ended
from actors.core.proof import Anchors, Chain, Parting, Proof, anchor_of, prove
from actors.journal import first_link
from cluster import reader
from cluster.keys import partition_of
from cluster.lifecycle import TERMINAL, RunState
from cluster.records import RunRecord
from cluster.store import Store
from penstock.errors import ClientError, NoSuchRun
from penstock.names import is_run_id
from penstock.trail_rows import Entries, closing_row, fork_of, opening_rows, promotion_rows, record_row
from penstock.trail_views import Trail, TrailFinding, TrailRow, TrailVerification

_SEALED: Final = TERMINAL | {RunState.CONFIRMATION_UNKNOWN}
# Only a run's owner can say this of it; the store itself cancels and sheds.
_SAID_BY_OWNERS: Final = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CONFIRMATION_UNKNOWN})


class DamagedRecord(ClientError):
    """A run's record cannot be read: somebody has changed it by hand."""

    def __init__(self, run_id: str, error: Exception) -> None:
        super().__init__(
            f"the record of run {run_id} cannot be read ({error}): it was changed by hand, or by a newer version. "
            "Compare it with a backup of the store"
        )
        self.run_id = run_id


class TrailCalls:
    """What a client can ask of trails."""

    @property
    def store(self) -> Store:
        """The open store."""
        raise NotImplementedError

    async def trail(self, run_id: str, *, deep: bool = False, verify: bool = False, kept: str = "") -> Trail:
        """Who asked for a run, what was decided, approved and done, what proves it, and how it ended.

        Args:
            run_id: the run.
            deep: its child runs too, and theirs, in the order of time.
            verify: prove it as well, see :meth:`verify_trail`.
            kept: for that, an anchor of the run that was kept elsewhere.

        Raises:
            NoSuchRun: there is no such run.
            DamagedRecord: its record cannot be read.
        """
        past = await past_of(self.store, run_id)
        record = past.record
        told: dict[str, list[TrailRow]] = {}
        told[run_id], children = await _rows(self.store, past)
        while deep and children:
            child = children.pop()
            if child in told:
                continue
            try:
                told[child], more = await _rows(self.store, await past_of(self.store, child))
            except NoSuchRun:
                continue
            children += more
        verification = await self.verify_trail(run_id, deep=deep, kept=kept) if verify else None
        return Trail(
            run_id=run_id,
            custom_id=record.custom_id,
            agent=record.agent,
            state=record.state.value,
            rows=[each for _, each in sorted(_timed(told, run_id, 0), key=lambda pair: pair[0])],
            verification=verification,
        )

    async def verify_trail(self, run_id: str, *, deep: bool = False, kept: str = "") -> TrailVerification:
        """Proves a run's trail: that no entry was changed, is missing, was inserted or moved, that the last ones are
        there, and that its outcome is the one that its owner has sealed.

        Args:
            run_id: the run.
            deep: its child runs too, and theirs.
            kept: an anchor of the run that was kept elsewhere: it must be found in the trail.

        Raises:
            NoSuchRun: there is no such run.
            DamagedRecord: its record cannot be read.
        """
        return await _verified(self.store, run_id, kept, {run_id} if deep else None)


async def past_of(store: Store, run_id: str) -> reader.Past:
    """A run's record and all that is kept of its journal.

    Raises:
        NoSuchRun: there is no such run.
        DamagedRecord: its record cannot be read.
    """
    if not is_run_id(run_id) or partition_of(run_id) not in store.partitions:
        raise NoSuchRun(run_id)
    try:
        found = await reader.past(store, run_id)
    except ValueError as error:
        raise DamagedRecord(run_id, error) from None
    if found is None:
        raise NoSuchRun(run_id)
    return found


async def _rows(store: Store, past: reader.Past) -> tuple[list[TrailRow], list[str]]:
    """A run's rows; and its child runs."""
    record = past.record
    rows: list[TrailRow] = []
    agent = f"{record.agent}@{record.pinned}" if record.pinned else record.agent
    entries = Entries(record.id, agent)
    rows += opening_rows(record, first_link(record.id, record.job).hex())
    rows += entries.rows([*past.archive, *past.journal])
    for effect in entries.open_effects:
        if effect.identity:
            rows.append(record_row(record.id, effect, await store.effect(effect.identity)))
    for promotion in promotion_rows(record):
        _insert(rows, promotion)
    rows.append(closing_row(record))
    return rows, entries.children


def _insert(rows: list[TrailRow], row: TrailRow) -> None:
    """Puts a row that stands in no chain where its time is."""
    later = (place for place, at_ms in enumerate(accumulate((each.at_ms for each in rows), max)) if at_ms > row.at_ms)
    rows.insert(next(later, len(rows)), row)


def _timed(told: dict[str, list[TrailRow]], run_id: str, at_ms: int) -> list[tuple[int, TrailRow]]:
    """The rows of a run and of its child runs, and when each happened at the earliest; to be sorted by that alone.

    Hosts estimate the store's clock: a run's rows stay in the order of its chain, and a child's are between its start
    and its end, whatever clocks said.
    """
    found: list[tuple[int, TrailRow]] = []
    ends: dict[str, int] = {}
    for row in told.pop(run_id):
        child = row.facts.get("child")
        at_ms = max(at_ms, row.at_ms, ends.get(child, 0) if child else 0)
        found.append((at_ms, row))
        if child in told:
            found += (below := _timed(told, child, at_ms))
            ends[child] = max(each for each, _ in below)
    return found


async def _verified(store: Store, run_id: str, kept: str, seen: set[str] | None) -> TrailVerification:
    past = await past_of(store, run_id)
    anchors = _anchors(past.record)
    proof = prove(await _chain(store, past), anchors, kept)
    below: list[TrailVerification] = []
    if seen is not None:
        entries = Entries(run_id, "")
        list(entries.rows([*past.archive, *past.journal]))
        for child in entries.children:
            if child in seen:
                continue
            seen.add(child)
            try:
                below.append(await _verified(store, child, "", seen))
            except NoSuchRun:
                proof.notes.append(f"child run {child} is not there: it was never made, or its retention is over")
    return _verification(run_id, proof, anchors, below)


def _verification(run_id: str, proof: Proof, anchors: Anchors, below: list[TrailVerification]) -> TrailVerification:
    sealed_by = "" if anchors.ended is None else "owner" if anchors.seal else "nobody"
    return TrailVerification(
        run_id=run_id,
        holds=proof.holds and all(child.holds for child in below),
        entries=proof.entries,
        chained=proof.chained,
        head=proof.head,
        anchor=anchor_of(proof, anchors.ended),
        sealed_by=sealed_by,
        broken=proof.broken,
        findings=[
            TrailFinding(what=each.what.value, place=each.place, step=each.step, text=each.text)
            for each in proof.findings
        ],
        notes=proof.notes,
        children=below,
    )


def _anchors(record: RunRecord) -> Anchors:
    state, over = record.state, record.state in _SEALED
    ended = Ended(
        record.id, record.job, record.agent, record.pinned, record.batch, record.custom_id, record.parent, state.value,
        record.reason, record.output, record.error,
    )  # fmt: skip
    return Anchors(
        head=record.head,
        at_rest=state is RunState.WAITING or (over and bool(record.end_seal)),
        needs_seal=state in _SAID_BY_OWNERS,
        seal=record.end_seal if over else "",
        ended=ended if over else None,
    )


async def _chain(store: Store, past: reader.Past) -> Chain:
    """A run's chain, with that of the run that it was forked from, where it can be read."""
    chain, fork = _chain_of(past), fork_of(past.record)
    if not fork.forked_from:
        return chain
    try:
        source = _chain_of(await past_of(store, fork.forked_from))
    except (NoSuchRun, DamagedRecord):
        source = None
    return dataclasses.replace(chain, parting=Parting(fork.forked_from, fork.forked_link, fork.inherited, source))


def _chain_of(past: reader.Past) -> Chain:
    return Chain(past.record.id, past.record.job, past.archive, past.journal)
