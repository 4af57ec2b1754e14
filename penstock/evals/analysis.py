"""What repeated runs tell: how often each job passes, which ways its runs take, how far their answers agree. Pure."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from actors.journal import Kind
from cluster.lifecycle import RunState
from penstock.evals.expectation import part_of
from penstock.evals.journal import RunJournal
from penstock.evals.paths import Parting, Way, partings, taken, ways
from penstock.evals.statistics import (
    Passes,
    Quantiles,
    exact_difference,
    fisher_exact,
    pass_hat,
    pass_hat_of_jobs,
    quantiles,
    wilson,
)

KEPT_FAILURES: Final = 50
_ANSWER: Final = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True)
class JudgedRun:
    """One run of a job, and what is wrong with it.

    ``missed`` says why it did not pass but for invariants; ``broken`` are invariants that do not hold: name and text.
    """

    job: str
    repeat: int
    run: RunJournal
    missed: tuple[str, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it succeeded, was as expected, and broke no invariant."""
        return not self.missed and not self.broken


class Violation(msgspec.Struct, frozen=True):
    """An invariant that does not hold in a run."""

    job: str
    run_id: str
    invariant: str
    text: str


class Missed(msgspec.Struct, frozen=True):
    """A run that did not pass, and why."""

    job: str
    run_id: str
    repeat: int
    reasons: tuple[str, ...]


class Answer(msgspec.Struct, frozen=True):
    """An answer (canonical JSON, or how the run ended where there is none) and how many runs gave it."""

    answer: str
    runs: int


class JobReport(msgspec.Struct, frozen=True, kw_only=True):
    """One job under one version.

    Attributes:
        job, agent: which one.
        runs, passed: how many runs, and how many of them passed.
        rate: the share that passed; ``rate_low`` and ``rate_high`` are its 95 % interval (Wilson).
        pass_hat: pass^k for k from 1 to the number of runs.
        by_state: how the runs ended.
        ways: the sequences of tools, most common first.
        partings: where runs part.
        answers: what they answered, most common first.
        agreement: the share of the most common answer.
        steps, attempts, seconds: quantiles over the runs; seconds are from the first start to the end.
    """

    job: str
    agent: str
    runs: int
    passed: int
    rate: float
    rate_low: float
    rate_high: float
    pass_hat: tuple[float, ...]
    by_state: dict[str, int]
    ways: tuple[Way, ...]
    partings: tuple[Parting, ...]
    answers: tuple[Answer, ...]
    agreement: float
    steps: Quantiles | None
    attempts: Quantiles | None
    seconds: Quantiles | None


class VersionReport(msgspec.Struct, frozen=True, kw_only=True):
    """All jobs under one version.

    ``versions`` are those of the agents, by name; ``pass_hat`` is the mean over the jobs. ``missed`` holds the first
    runs that did not pass, ``missed_count`` says how many there are.
    """

    versions: dict[str, str]
    batch: str
    runs: int
    passed: int
    pass_hat: tuple[float, ...]
    by_state: dict[str, int]
    agreement: float
    steps: Quantiles | None
    attempts: Quantiles | None
    seconds: Quantiles | None
    migrations: int
    jobs: tuple[JobReport, ...]
    violations: tuple[Violation, ...]
    missed: tuple[Missed, ...]
    missed_count: int

    def passes(self) -> list[Passes]:
        """How often each job passed."""
        return [Passes(job.passed, job.runs) for job in self.jobs]


class JobDifference(msgspec.Struct, frozen=True):
    """How a job's pass rate differs between two versions; ``p`` is of Fisher's exact test, two-sided."""

    job: str
    rate: float
    other_rate: float
    p: float


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """How pass rates differ from those of the other version. ``p`` is of the exact test over all jobs, each compared
    with itself only.
    """

    rate: float
    other_rate: float
    p: float
    jobs: tuple[JobDifference, ...]


def analysed(
    runs: Sequence[JudgedRun], versions: Mapping[str, str], batch: str, answer: Sequence[str] = ()
) -> VersionReport:
    """The report of one version.

    Args:
        runs: all of its runs.
        versions: of the agents.
        batch: the batch of the runs.
        answer: parts of the output that count as the answer, such as ``refund.cents``; all of it if empty.
    """
    by_job: dict[str, list[JudgedRun]] = {}
    for each in runs:
        by_job.setdefault(each.job, []).append(each)
    jobs = tuple(_job_report(job, members, answer) for job, members in by_job.items())
    missed = [each for each in runs if not each.passed]
    fewest = min((job.runs for job in jobs), default=0)
    passes = [Passes(job.passed, job.runs) for job in jobs]
    journals = [each.run for each in runs]
    return VersionReport(
        versions=dict(versions),
        batch=batch,
        runs=len(runs),
        passed=sum(each.passed for each in runs),
        pass_hat=tuple(pass_hat_of_jobs(passes, k) for k in range(1, fewest + 1)),
        by_state=_by_state(journals),
        agreement=math.fsum(job.agreement for job in jobs) / len(jobs) if jobs else math.nan,
        steps=quantiles(map(_steps, journals)),
        attempts=quantiles(map(_attempts, journals)),
        seconds=quantiles(_seconds(journals)),
        migrations=sum(journal.migrations for journal in journals),
        jobs=jobs,
        violations=tuple(Violation(each.job, each.run.run_id, *broken) for each in runs for broken in each.broken),
        missed=tuple(Missed(each.job, each.run.run_id, each.repeat, _reasons(each)) for each in missed[:KEPT_FAILURES]),
        missed_count=len(missed),
    )


def compared(ours: VersionReport, theirs: VersionReport) -> Difference:
    """The difference between two versions, over the jobs that both have."""
    others = {job.job: job for job in theirs.jobs}
    pairs = [(job, others[job.job]) for job in ours.jobs if job.job in others]
    tables = [(Passes(job.passed, job.runs), Passes(other.passed, other.runs)) for job, other in pairs]
    return Difference(
        rate=_rate(table[0] for table in tables),
        other_rate=_rate(table[1] for table in tables),
        p=exact_difference(tables),
        jobs=tuple(
            JobDifference(job.job, job.rate, other.rate, fisher_exact(*table))
            for (job, other), table in zip(pairs, tables, strict=True)
        ),
    )


def _job_report(job: str, runs: Sequence[JudgedRun], answer: Sequence[str]) -> JobReport:
    passes = Passes(sum(each.passed for each in runs), len(runs))
    low, high = wilson(passes)
    journals = [each.run for each in runs]
    all_taken = [taken(each.run, passed=each.passed) for each in runs]
    counts = Counter(answer_of(journal, answer) for journal in journals)
    answers = tuple(Answer(*each) for each in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return JobReport(
        job=job,
        agent=journals[0].agent,
        runs=passes.runs,
        passed=passes.passed,
        rate=passes.passed / passes.runs,
        rate_low=low,
        rate_high=high,
        pass_hat=tuple(pass_hat(passes, k) for k in range(1, passes.runs + 1)),
        by_state=_by_state(journals),
        ways=tuple(ways(all_taken)),
        partings=tuple(partings(all_taken)),
        answers=answers,
        agreement=answers[0].runs / passes.runs,
        steps=quantiles(map(_steps, journals)),
        attempts=quantiles(map(_attempts, journals)),
        seconds=quantiles(_seconds(journals)),
    )


def answer_of(run: RunJournal, parts: Sequence[str]) -> str:
    """What a run answered, as canonical JSON: equal answers are equal texts. Runs without one answer by their end."""
    if run.state != RunState.SUCCEEDED:
        return f"({run.state}: {run.error.error_class})" if run.error is not None else f"({run.state})"
    answer: Any = run.output
    if parts:
        answer = {part: part_of(run.output, part) for part in parts}
    return _ANSWER.encode(answer).decode()


def _reasons(each: JudgedRun) -> tuple[str, ...]:
    return (*each.missed, *(f"invariant {name}: {text}" for name, text in each.broken))


def _steps(run: RunJournal) -> float:
    return sum(step.kind in (Kind.CALL, Kind.CHILD) for each in run.all_runs() for step in each.steps)


def _attempts(run: RunJournal) -> float:
    return sum(step.attempts for each in run.all_runs() for step in each.steps if step.kind == Kind.CALL)


def _seconds(runs: Iterable[RunJournal]) -> list[float]:
    return [
        (run.ended_ms - run.started_ms) / 1000
        for run in runs
        if run.started_ms is not None and run.ended_ms is not None
    ]


def _by_state(runs: Iterable[RunJournal]) -> dict[str, int]:
    return dict(Counter(run.state for run in runs).most_common())


def _rate(passes: Iterable[Passes]) -> float:
    found = list(passes)
    runs = sum(each.runs for each in found)
    return sum(each.passed for each in found) / runs if runs else math.nan
