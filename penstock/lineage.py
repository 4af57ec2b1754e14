"""Forks, lineages and promotions, as a client asks for them."""

import asyncio
import json
import uuid
from typing import Any, Final, NamedTuple

import msgspec

from actors.core.forking import ForkPoint, NoForkPoint, fork_point
from actors.job import JobRecord, decode_job, encode_job, level_of
from actors.journal import first_link
from cluster import lineage as branches
from cluster import reader
from cluster.keys import digest, fork_run_id, lineage_root
from cluster.records import NewFork, RunRecord
from cluster.store import Store
from penstock.checking import Facts, checked
from penstock.errors import CannotFork, CannotPromote, NoSuchRun
from penstock.lineage_views import (
    CHILD,
    FORK,
    ROOT,
    ForkReport,
    LineageNode,
    LineageView,
    PromotionReport,
    promotion_note,
)
from telemetry.redaction import redact

_MOST_CHILDREN: Final = 500
_LONGEST_WHY: Final = 2000
_LONGEST_NAME: Final = 256


class LineageCalls:
    """What a client can do with branches of a run."""

    @property
    def store(self) -> Store:
        """The open store."""
        raise NotImplementedError

    async def _record(self, run_id: str) -> RunRecord:
        raise NotImplementedError

    async def _facts(self) -> Facts:
        raise NotImplementedError

    async def fork(
        self,
        run_id: str,
        at: str,
        *,
        input: Any = msgspec.UNSET,
        version: str | None = None,
        key: str | None = None,
        by: str | None = None,
        why: str = "",
    ) -> ForkReport:
        """Makes a run that goes on from what another one had recorded before a step. The other one is not touched.

        The fork inherits the receipts of that past. It may cause no effects before it is promoted: it waits for that in
        front of the first one. It has neither its source's deadline nor its parent.

        Args:
            run_id: the source, in whatever state it is.
            at: the step's path, as ``show`` tells it; ``start`` for a fork without any past, ``now`` for one with all
                that has been recorded.
            input: another input than the source's.
            version: another version of the agent, one that is served here.
            key: the same key gives the same fork of this source, however often it is asked for.
            by: who wants it; by default ``settings.user`` (``PENSTOCK_USER``, or the user of this process).
            why: the reason, for everybody who looks.

        Raises:
            NoSuchRun: there is no such run.
            CannotFork: not at this step, or not with this input, version or key; nothing was made.
        """
        record = await self._record(run_id)
        job = decode_job(record.job)
        point = await self._point(record, at)
        if input is not msgspec.UNSET:
            await self._check_input(record, at, input)
        if version is not None and version != record.pinned:
            await self._check_version(record, at, version)
        named = fork_run_id(run_id, uuid.uuid4().hex if key is None else key)
        new = _new_fork(_Asked(record, job, at, named, input, version, self._who(by), _text("why", why)), point)
        limit = self.store.settings.payload_limit_bytes
        if len(new.job) > limit:
            reason = f"its job would take {len(new.job)} bytes, and the limit is {limit} (PENSTOCK_PAYLOAD_LIMIT_BYTES)"
            raise CannotFork(run_id, at, reason)
        answer = await branches.fork(self.store, new)
        if answer is None:
            raise NoSuchRun(run_id)
        if answer < 0:
            raise CannotFork(run_id, at, f"key {key!r} stands for another fork of this run, {named}: use another key")
        return ForkReport(
            run_id=named,
            source=run_id,
            at=at,
            root=new.lineage,
            agent=new.agent,
            agent_version=new.version,
            made=answer == 1,
            inherited=point.inherited,
            left_open=point.left_open,
            at_risk=input is not msgspec.UNSET and point.inherited > 0,
            may_cause_effects=not new.readonly,
        )

    async def lineage(self, run_id: str) -> LineageView:
        """The whole family of a run: its root, all forks, and the child runs of each.

        Raises:
            NoSuchRun: there is no such run.
        """
        return await _Family(self.store).view(await self._record(run_id))

    async def promote(self, run_id: str, *, why: str, by: str | None = None) -> PromotionReport:
        """Gives a branch, with its child runs, the right to effects, and takes it from all others, in one step.

        Args:
            run_id: a fork, or the run that was forked, that has not ended.
            why: the reason; it is kept with the runs and with the lineage.
            by: who wants it; by default ``settings.user`` (``PENSTOCK_USER``, or the user of this process).

        Raises:
            NoSuchRun: there is no such run.
            CannotPromote: it has ended, it is no branch, or an effect of the branch that has the right is under way,
                unproven, or was undone; nothing was changed.
        """
        if not why.strip():
            raise ValueError("why must say something: it is kept with the promotion")
        await self._record(run_id)
        answer = await branches.promote(self.store, run_id, self._who(by), _text("why", why))
        if answer.word == "missing":
            raise NoSuchRun(run_id)
        if answer.word not in ("promoted", "owner"):
            raise CannotPromote(run_id, answer.word, *answer.more)
        return PromotionReport(run_id=run_id, changed=answer.word == "promoted", from_=answer.more)

    def _who(self, by: str | None) -> str:
        return _text("by", self.store.settings.user if by is None else by)

    async def _point(self, record: RunRecord, at: str) -> ForkPoint:
        archive, journal = await reader.history(self.store, record.id)
        try:
            return fork_point(record.id, archive, journal, at)
        except NoForkPoint as error:
            raise CannotFork(record.id, at, str(error)) from None

    async def _check_input(self, record: RunRecord, at: str, value: Any) -> None:
        job = checked(1, {"custom_id": "fork", "agent": record.agent, "input": value}, await self._facts())
        if isinstance(job, list):
            told = "; ".join(f"{p.field}: {p.reason}" + (f" ({p.fix})" if p.fix else "") for p in job[:5])
            raise CannotFork(record.id, at, f"the input cannot be taken: {told}")

    async def _check_version(self, record: RunRecord, at: str, version: str) -> None:
        published, hosts = await asyncio.gather(reader.catalog(self.store), self.store.hosts())
        served = {str(info.get("agents", {}).get(record.agent, "")) for info in hosts.values()}
        if record.agent in published:
            served.add(str(json.loads(published[record.agent]).get("version", "")))
        known = sorted(served - {""})
        if version not in known:
            there_are = ", ".join(known) if known else "none: start hosts that serve it"
            raise CannotFork(
                record.id,
                at,
                f"version {version!r} of agent {record.agent!r} is not served here; versions: {there_are}",
            )


class _Asked(NamedTuple):
    """A fork that somebody wants."""

    record: RunRecord
    job: JobRecord
    at: str
    run_id: str
    input: Any
    version: str | None
    by: str
    why: str


def _new_fork(asked: _Asked, point: ForkPoint) -> NewFork:
    """What the store is asked to make."""
    record, job, same_input = asked.record, asked.job, asked.input is msgspec.UNSET
    lineage = job.root or record.id
    link = point.link or first_link(record.id, record.job)
    made = msgspec.structs.replace(
        job,
        input=job.input if same_input else asked.input,
        root=lineage,
        forked_from=record.id,
        forked_at=asked.at,
        forked_by=asked.by,
        forked_why=asked.why,
        forked_link=link.hex(),
        inherited=point.inherited,
    )
    version = record.pinned if asked.version is None else asked.version
    raw = encode_job(made)
    sealed = point.sealed(first_link(asked.run_id, raw))
    # Who asks and why makes no other fork of it.
    wanted = digest(record.id, asked.at, version, b"" if same_input else b"1" + msgspec.msgpack.encode(made.input))
    return NewFork(
        record.id, asked.run_id, record.agent, version, record.custom_id, level_of(job.value), wanted,
        raw, lineage, job.tenant, not job.simulated, sealed.archive, sealed.journal,
    )  # fmt: skip


class _Family:
    """Reads a lineage: few runs with forks, maybe many child runs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._nodes: dict[str, LineageNode] = {}
        self._below: dict[str, list[str]] = {}
        self._children = 0
        self._left_out = 0

    async def view(self, asked: RunRecord) -> LineageView:
        """The family that a run is in."""
        store = self._store
        root = lineage_root(_lineage_of(asked))
        heads, notes = await asyncio.gather(branches.branches(store, root), branches.promotions(store, root))
        found = {record.id: record for record in await reader.records(store, sorted({root, *heads}))}
        for record in sorted(found.values(), key=lambda each: (each.accepted_ms, each.id)):
            await self._add(record)
            await self._add_children(record.id)
        self._nodes.setdefault(root, LineageNode(run_id=root, relation=ROOT))
        self._place_under(root)
        promotions = tuple(note for raw in notes if (note := promotion_note(raw)) is not None)
        return LineageView(
            run_id=asked.id, root=self._tree(root, set()), promotions=promotions, left_out=self._left_out
        )

    async def _add(self, record: RunRecord) -> None:
        if record.id in self._nodes:
            return
        job = decode_job(record.job)
        source, at = job.forked_from, job.forked_at
        if not source and record.parent:
            source, at = record.parent, record.custom_id.rpartition("/")[2]
        self._nodes[record.id] = LineageNode(
            run_id=record.id,
            relation=FORK if job.forked_from else CHILD if record.parent else ROOT,
            at=at,
            agent=record.agent,
            agent_version=record.pinned,
            state=record.state.value,
            reason=record.reason,
            since_ms=record.since_ms,
            may_cause_effects=not record.readonly,
            simulated=job.simulated,
            by=job.forked_by or job.by,
            why=job.forked_why,
            inherited=record.inherited or 0,
            promoted=promotion_note(record.promoted),
            demoted=promotion_note(record.demoted),
        )
        if source:
            self._below.setdefault(source, []).append(record.id)

    async def _add_children(self, top: str) -> None:
        left = [top]
        while left:
            found = [child for child in await branches.children(self._store, left.pop()) if child not in self._nodes]
            room = max(0, _MOST_CHILDREN - self._children)
            self._left_out += len(found[room:])
            self._children += len(found[:room])
            for record in await reader.records(self._store, found[:room]):
                await self._add(record)
                left.append(record.id)

    def _place_under(self, root: str) -> None:
        """What came from a run that is not kept any more stands below it, and it below the root."""
        for source in [each for each in self._below if each not in self._nodes]:
            self._nodes[source] = LineageNode(run_id=source, relation=FORK)
            self._below.setdefault(root, []).append(source)

    def _tree(self, run_id: str, seen: set[str]) -> LineageNode:
        seen.add(run_id)
        below = tuple(self._tree(each, seen) for each in self._below.get(run_id, ()) if each not in seen)
        return msgspec.structs.replace(self._nodes[run_id], below=below)


def _lineage_of(record: RunRecord) -> str:
    """A run's lineage. A child run has it as its custom_id."""
    return record.lineage or (record.custom_id if record.parent else record.id)


def _text(what: str, text: str) -> str:
    longest = _LONGEST_WHY if what == "why" else _LONGEST_NAME
    if len(text) > longest:
        raise ValueError(f"{what} has {len(text)} characters; give {longest} at most")
    # Lone surrogates (from undecodable arguments, say) have no place in the store.
    return redact(text.encode("utf-8", "backslashreplace").decode("utf-8"))
