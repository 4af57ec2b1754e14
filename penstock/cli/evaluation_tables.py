"""How evaluations look to people in a terminal, and to programs."""

from typing import Any, Final

from penstock.cli import shown
from penstock.evals.analysis import JobReport
from penstock.evals.page import shown_ks, told
from penstock.evals.running import Evaluation
from penstock.evals.serving import named_versions
from penstock.evals.statistics import Quantiles

_ROWS: Final = 40
_FEW: Final = 10


def as_data(found: Evaluation) -> dict[str, Any]:
    """All of it, as ``--json`` writes it."""
    threshold = found.spec.threshold
    return {
        "name": found.spec.name,
        "repeat": found.repeat,
        "seed": found.spec.seed,
        "faults": [fault.model_dump(mode="json") for fault in found.spec.faults],
        "invariants": list(found.spec.invariants),
        "threshold": threshold.model_dump() if threshold is not None else None,
        "invariants_hold": found.holds,
        "passes_threshold": found.passes_threshold,
        "version": found.ours,
        "against": found.other,
        "difference": found.difference,
    }


def show(found: Evaluation) -> None:
    """Tables on the standard output."""
    out, ours = shown.console(), found.ours
    out.print(
        f"evaluation {found.spec.name}: {len(ours.jobs)} jobs, each {found.repeat} times, "
        f"of {named_versions(ours.versions)}; batch {ours.batch}"
    )
    _jobs(found, out)
    _partings(ours.jobs, out)
    _violations(found, out)
    _missed(found, out)
    if found.difference is not None:
        _difference(found, out)


def _jobs(found: Evaluation, out: Any) -> None:
    ks = shown_ks(found)
    numbers = ("passed", "95 %", *(f"pass^{k}" for k in ks), "agree", "ways", "steps", "attempts", "seconds")
    made = shown.table("job", *numbers, right=numbers)
    for job in found.ours.jobs[:_ROWS]:
        shown.row(
            made,
            job.job,
            f"{job.passed}/{job.runs}",
            f"{job.rate_low:.0%}-{job.rate_high:.0%}",
            *(f"{job.pass_hat[k - 1]:.1%}" for k in ks),
            f"{job.agreement:.0%}",
            len(job.ways),
            _pair(job.steps, "{:g}"),
            _pair(job.attempts, "{:g}"),
            _pair(job.seconds, "{:.2f}"),
        )
    ours = found.ours
    shown.row(
        made,
        "all",
        f"{ours.passed}/{ours.runs}",
        "",
        *(f"{ours.pass_hat[k - 1]:.1%}" for k in ks),
        f"{ours.agreement:.0%}",
        "",
        _pair(ours.steps, "{:g}"),
        _pair(ours.attempts, "{:g}"),
        _pair(ours.seconds, "{:.2f}"),
    )
    out.print(made)
    if len(ours.jobs) > _ROWS:
        out.print(f"… and {len(ours.jobs) - _ROWS} more jobs (--json has all); the last line is of all")
    out.print("steps, attempts and seconds: median/p90 of the runs")


def _partings(jobs: tuple[JobReport, ...], out: Any) -> None:
    parted = [(job, parting) for job in jobs for parting in job.partings]
    if not parted:
        out.print("all runs of each job make the same steps")
        return
    made = shown.table("job", "where runs part")
    for job, parting in parted[:_FEW]:
        shown.row(made, job.job, told(parting))
    out.print(made)
    if len(parted) > _FEW:
        out.print(f"… and {len(parted) - _FEW} more places (--json, --page)")


def _violations(found: Evaluation, out: Any) -> None:
    if not found.ours.violations:
        return
    made = shown.table("run", "job", "invariant", "what does not hold")
    for each in found.ours.violations[:_FEW]:
        shown.row(made, each.run_id, each.job, each.invariant, each.text)
    out.print(made)
    if len(found.ours.violations) > _FEW:
        out.print(f"… and {len(found.ours.violations) - _FEW} more (--json)")


def _missed(found: Evaluation, out: Any) -> None:
    others = [each for each in found.ours.missed if not all(why.startswith("invariant ") for why in each.reasons)]
    if not others:
        return
    made = shown.table("run", "job", "why it did not pass")
    for each in others[:_FEW]:
        shown.row(made, each.run_id, each.job, "; ".join(each.reasons)[:300])
    out.print(made)
    if found.ours.missed_count > _FEW:
        out.print(f"… of {found.ours.missed_count} runs that did not pass (--json has the first 50)")


def _difference(found: Evaluation, out: Any) -> None:
    difference, other = found.difference, found.other
    assert difference is not None
    assert other is not None
    made = shown.table("job", "passed", "passed under the other", "p", right=("passed", "passed under the other", "p"))
    for each in sorted(difference.jobs, key=lambda each: (each.p, each.job))[:_FEW]:
        shown.row(made, each.job, f"{each.rate:.1%}", f"{each.other_rate:.1%}", f"{each.p:.3g}")
    shown.row(made, "all", f"{difference.rate:.1%}", f"{difference.other_rate:.1%}", f"{difference.p:.3g}")
    out.print(f"beside {named_versions(other.versions)} (batch {other.batch}), the same jobs and faults:")
    out.print(made)
    out.print("p: two-sided exact tests; of all jobs, each compared with itself only")


def _pair(found: Quantiles | None, how: str) -> str:
    return f"{how.format(found.median)}/{how.format(found.p90)}" if found is not None else "-"
