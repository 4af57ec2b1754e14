"""Running an evaluation on a deployment: who serves it, simulated runs, their journals, what they tell."""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from actors.job import decode_job, new_run
from actors.journal import Kind, decode_entry
from actors.registry import App
from actors.simulation import Simulation
from cluster import reader
from cluster.keys import child_run_id
from cluster.lifecycle import RunState
from cluster.records import RunRecord
from cluster.store import Store
from penstock.catalog import Catalog
from penstock.client import Client
from penstock.errors import Refused, WaitTimedOut
from penstock.evals.analysis import Difference, JudgedRun, VersionReport, analysed, compared
from penstock.evals.invariants import Invariant, found_invariant
from penstock.evals.journal import RunJournal, run_journal
from penstock.evals.serving import pinned_versions
from penstock.evals.spec import EvalJob, EvalSpec
from penstock.submission import Submission, check_all
from penstock.views import BatchStatus

_POLL_S: Final = 0.1
_DEEPEST: Final = 32
_PAGE: Final = 100

StatusCallback = Callable[[BatchStatus], None]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. ``other`` and ``difference`` are there where another version was asked for."""

    spec: EvalSpec
    repeat: int
    ours: VersionReport
    other: VersionReport | None = None
    difference: Difference | None = None

    @property
    def pass_hat(self) -> float:
        """The pass^k that the threshold is about, or pass^1."""
        k = self.spec.threshold.k if self.spec.threshold else 1
        return self.ours.pass_hat[k - 1]

    @property
    def passes_threshold(self) -> bool:
        """Whether it passes often enough; true where nobody has said how often that is."""
        return self.spec.threshold is None or self.pass_hat >= self.spec.threshold.at_least

    @property
    def holds(self) -> bool:
        """Whether all invariants hold in the runs of the version that is evaluated."""
        return not self.ours.violations


@dataclass(frozen=True)
class _Arm:
    """The runs under one version: their batch, and which run is which repeat of which job."""

    versions: dict[str, str]
    batch: str
    runs: dict[str, tuple[EvalJob, int]]


async def evaluate(
    client: Client,
    spec: EvalSpec,
    *,
    against: str | None = None,
    app: App | None = None,
    on_status: StatusCallback | None = None,
) -> Evaluation:
    """Runs each job of a specification ``spec.repeat`` times, simulated, and says what came of it.

    Args:
        client: an open client of the deployment, whose hosts must serve the agents.
        spec: what to run.
        against: another version of the agents; the same jobs run under it too, at the same time and with the same
            faults.
        app: checks inputs by its own models, where it is at hand.
        on_status: told now and then how far the runs are, of both versions together.

    Raises:
        EvalError: no host serves a version, or a tool that has an effect has no ``simulate``; nothing was run.
        DefinitionError: an invariant cannot be found.
        InvalidBatch: some jobs are not valid.
        Refused: a run was refused for good: without all of them there is nothing to compare.
        WaitTimedOut: not all runs have ended within ``spec.timeout_s``; they are cancelled.
    """
    invariants = [found_invariant(path) for path in spec.invariants]
    agents = sorted({job.agent for job in spec.jobs})
    hosts = await client.hosts()
    key = f"eval/{spec.name}/{uuid.uuid4().hex[:12]}"
    versions, other = pinned_versions(spec, agents, hosts, against)
    facts = await Catalog(client.store, app).facts()
    await check_all(spec.jobs, facts, key)
    arms = [_Arm(versions, key, {})] + ([_Arm(other, f"{key}/against", {})] if other else [])
    try:
        async with asyncio.timeout(spec.timeout_s):
            await _submit(client, spec, arms, facts.now_ms)
            await _until_settled(client, arms, on_status)
    except TimeoutError:
        waiting = await client.runs(batch=arms[0].batch, state=RunState.WAITING, limit=1)
        why = f"; run {waiting[0].run_id} waits: {waiting[0].reason}" if waiting else ""
        raise WaitTimedOut(f"the evaluation (batch {key}{why})", spec.timeout_s) from None
    finally:
        await asyncio.shield(_cancel_rest(client, arms))
    reports = [await _report(client.store, spec, arm, invariants) for arm in arms]
    if len(reports) == 1:
        return Evaluation(spec, spec.repeat, reports[0])
    return Evaluation(spec, spec.repeat, reports[0], reports[1], compared(reports[0], reports[1]))


async def _submit(client: Client, spec: EvalSpec, arms: Sequence[_Arm], now_ms: int) -> None:
    """Repeat by repeat, and version beside version, so that none of them has better times than the others."""
    store, by = client.store, client.settings.user
    async with contextlib.AsyncExitStack() as stack:
        submissions = [
            await stack.enter_async_context(Submission(store, arm.batch, now_ms, retry=True)) for arm in arms
        ]
        for arm in arms:
            await store.note_batch(arm.batch, now_ms)
        for repeat in range(spec.repeat):
            for job in spec.jobs:
                plan = _plan(spec, job, repeat)
                for arm, submission in zip(arms, submissions, strict=True):
                    # The repeat is part of the run's name and not of the job: the agent cannot see it.
                    place = f"{arm.batch}/{repeat}"
                    version = arm.versions[job.agent]
                    run = new_run(job, place, store.keys.partitions, by, simulation=plan, version=version)
                    arm.runs[run.id] = (job, repeat)
                    if submission.put(run):
                        await submission.turn()
        for submission in submissions:
            await submission.finish()
            if refusals := submission.report().refusals:
                raise Refused(refusals[0])


def _plan(spec: EvalSpec, job: EvalJob, repeat: int) -> Simulation:
    return Simulation(
        seed=f"{spec.seed}/{job.custom_id}/{repeat}",
        reads=spec.simulate_reads,
        approves=spec.approvals == "approve",
        faults=tuple(each.fault() for each in spec.faults),
    )


async def _until_settled(client: Client, arms: Sequence[_Arm], on_status: StatusCallback | None) -> None:
    previous: BatchStatus | None = None
    while True:
        status = _together([await client.status(arm.batch) for arm in arms])
        if on_status is not None and status != previous:
            on_status(status)
        if status.settled:
            return
        previous = status
        await asyncio.sleep(_POLL_S)


def _together(statuses: Sequence[BatchStatus]) -> BatchStatus:
    by_state: dict[str, int] = {}
    for status in statuses:
        for state, count in status.by_state.items():
            by_state[state] = by_state.get(state, 0) + count
    return BatchStatus(
        batch=statuses[0].batch,
        total=sum(status.total for status in statuses),
        by_state=by_state,
        steps=sum(status.steps for status in statuses),
        migrations=sum(status.migrations for status in statuses),
        migrated_runs=sum(status.migrated_runs for status in statuses),
        ended=sum(status.ended for status in statuses),
        terminal=all(status.terminal for status in statuses),
        settled=all(status.settled for status in statuses),
    )


async def _cancel_rest(client: Client, arms: Sequence[_Arm]) -> None:
    """Nobody else needs what is left of an evaluation that was given up."""
    for arm in arms:
        if arm.runs and not (await client.status(arm.batch)).settled:
            await client.cancel(arm.batch)


async def _report(store: Store, spec: EvalSpec, arm: _Arm, invariants: Sequence[Invariant]) -> VersionReport:
    judged: list[JudgedRun] = []
    run_ids = list(arm.runs)
    for start in range(0, len(run_ids), _PAGE):
        page = await reader.records(store, run_ids[start : start + _PAGE])
        for journal in await asyncio.gather(*(_journal(store, record) for record in page)):
            job, repeat = arm.runs[journal.run_id]
            judged.append(judge(spec, job, repeat, journal, invariants))
    order = {job.custom_id: place for place, job in enumerate(spec.jobs)}
    judged.sort(key=lambda each: (order[each.job], each.repeat))
    return analysed(judged, arm.versions, arm.batch, spec.answer)


def judge(spec: EvalSpec, job: EvalJob, repeat: int, run: RunJournal, invariants: Sequence[Invariant]) -> JudgedRun:
    """Whether a run did what it should. Pure, but for what the invariants do."""
    missed: list[str] = []
    if run.state != RunState.SUCCEEDED:
        error = f": {run.error.error_class}: {run.error.message}" if run.error is not None else ""
        missed.append(f"{run.state}{error or (f' ({run.reason})' if run.reason else '')}")
    elif (expected := spec.expectation_of(job)) is not None:
        missed += expected.misfits(run.output)
    broken = tuple((each.name, text) for each in invariants for text in each.violations(run))
    return JudgedRun(job.custom_id, repeat, run, tuple(missed), broken)


async def _journal(store: Store, record: RunRecord, depth: int = 0) -> RunJournal:
    """The view of a run and of all runs below it."""
    raw = await reader.archive(store, record.id) + await reader.journal(store, record.id)
    entries = [decode_entry(each) for each in raw]
    paths = dict.fromkeys(entry.step for entry in entries if entry.kind == Kind.CHILD)
    children = [child_run_id(record.id, path) for path in paths] if depth < _DEEPEST else []
    found = await reader.records(store, children)
    below = await asyncio.gather(*(_journal(store, child, depth + 1) for child in found))
    return run_journal(record, decode_job(record.job), entries, below)
