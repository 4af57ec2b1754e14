"""An evaluation as one page: pictures and tables in one file that needs no network and no script. Pure."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from penstock.evals import pictures
from penstock.evals.analysis import JobReport, VersionReport
from penstock.evals.page_style import STYLE
from penstock.evals.paths import Parting
from penstock.evals.running import Evaluation
from penstock.evals.serving import named_versions
from penstock.evals.statistics import Quantiles

_JOBS_IN_FULL: Final = 20
_WAYS_DRAWN: Final = 24
_ROWS: Final = 50
_PARTINGS: Final = 8


def page(found: Evaluation) -> str:
    """The page's HTML."""
    ours, other = found.ours, found.other
    parts = [
        f"<h1>{escape(found.spec.name)}</h1>",
        f'<p class="faint">{escape(_subtitle(found))}</p>',
        *_verdicts(found),
        _facts(found),
        _curve(found),
        *(_differences(found) if other is not None else ()),
        "<h2>Jobs</h2>",
        _jobs(ours, other),
        *_wrong(ours),
        "<h2>Ways that runs take</h2>",
        "<p>Steps that runs share are in one box; they part where it branches. "
        "Below each box, the share of its runs that passed.</p>",
        *(_ways(job) for job in _most_telling(ours.jobs)),
    ]
    left = len(ours.jobs) - _JOBS_IN_FULL
    if left > 0:
        parts.append(f'<p class="faint">{left} more jobs, whose runs part less, are in the JSON (--json).</p>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluation {escape(found.spec.name)}</title><style>\n{STYLE}\n</style></head>\n<body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _subtitle(found: Evaluation) -> str:
    against = f", beside {named_versions(found.other.versions)}" if found.other is not None else ""
    faults = ", ".join(f"{each.kind} {each.probability:.0%}" for each in found.spec.faults)
    return (
        f"{len(found.ours.jobs)} jobs, each {found.repeat} times, of {named_versions(found.ours.versions)}{against}; "
        f"effects simulated; faults: {faults or 'none'}; batch {found.ours.batch}"
    )


def _verdicts(found: Evaluation) -> list[str]:
    count = len(found.ours.violations)
    said = [
        _verdict("All invariants hold.", good=True)
        if found.holds
        else _verdict(f"Invariants are violated, {count} times.", good=False)
    ]
    threshold = found.spec.threshold
    if threshold is not None:
        text = f"pass^{threshold.k} is {found.pass_hat:.1%}, at least {threshold.at_least:.1%} is wanted."
        said.append(_verdict(text, good=found.passes_threshold))
    return said


def _verdict(text: str, *, good: bool) -> str:
    return f'<p class="verdict {"good" if good else "bad"}">{"✓" if good else "✗"} {escape(text)}</p>'


def _facts(found: Evaluation) -> str:
    ours = found.ours
    facts = [
        (f"{ours.passed} of {ours.runs}", "runs passed"),
        *((f"{ours.pass_hat[k - 1]:.1%}", f"pass^{k}") for k in shown_ks(found)),
        (f"{ours.agreement:.1%}", "answers agree"),
        (_quantiles(ours.steps, "{:g}"), "steps, median / p90"),
        (_quantiles(ours.attempts, "{:g}"), "attempts"),
        (_quantiles(ours.seconds, "{:.2f}"), "seconds"),
    ]
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for value, name in facts)
    return f'<ul class="facts">{items}</ul>'


def shown_ks(found: Evaluation) -> list[int]:
    """The k for which pass^k is shown in figures: the first, the threshold's, some between, and the last."""
    most = len(found.ours.pass_hat)
    wanted = {
        1,
        most,
        *([found.spec.threshold.k] if found.spec.threshold else ()),
        *(k for k in (2, 5, 10) if k < most),
    }
    return sorted(wanted)[:6]


def _curve(found: Evaluation) -> str:
    threshold = found.spec.threshold
    limit = (threshold.k, threshold.at_least) if threshold else None
    picture = pictures.curve(found.ours, found.other, limit)
    return (
        "<h2>pass^k</h2><p>The chance that k runs of a job all pass, the mean over the jobs "
        "(unbiased: C(passed, k) / C(runs, k), as in τ-bench, arXiv 2406.12045).</p>"
        f'<div class="wide">{picture}{_key(found)}</div>'
    )


def _key(found: Evaluation) -> str:
    if found.other is None:
        return ""
    return (
        f'<p class="key"><i style="background:var(--ours)"></i>{escape(named_versions(found.ours.versions))}'
        f'<i style="background:var(--theirs)"></i>{escape(named_versions(found.other.versions))}</p>'
    )


def _differences(found: Evaluation) -> Iterable[str]:
    difference, other = found.difference, found.other
    assert difference is not None
    assert other is not None
    yield "<h2>Versions beside each other</h2>"
    yield (
        f"<p>{difference.rate:.1%} of the runs passed, {difference.other_rate:.1%} under "
        f"{escape(named_versions(other.versions))}: p = {difference.p:.3g} (two-sided exact test, each job compared "
        "with itself only). For single jobs, Fisher's exact test; many jobs make a small p by chance likely.</p>"
    )
    rows = sorted(difference.jobs, key=lambda each: (each.p, each.job))[:_ROWS]
    yield _table(
        ("job", "passed", "passed under the other", "p"),
        ([each.job, f"{each.rate:.1%}", f"{each.other_rate:.1%}", f"{each.p:.3g}"] for each in rows),
        numbers=(1, 2, 3),
    )


def _jobs(ours: VersionReport, other: VersionReport | None) -> str:
    rows = (
        [
            job.job,
            f"{job.passed}/{job.runs}",
            f"{job.rate_low:.0%} to {job.rate_high:.0%}",
            f"{job.agreement:.0%}",
            str(len(job.answers)),
            str(len(job.ways)),
            _quantiles(job.steps, "{:g}"),
            _quantiles(job.attempts, "{:g}"),
            _quantiles(job.seconds, "{:.2f}"),
            ", ".join(f"{count} {state}" for state, count in job.by_state.items()),
        ]
        for job in ours.jobs[:_ROWS]
    )
    columns = ("job", "passed", "95 %", "agree", "answers", "ways", "steps", "attempts", "seconds", "ended as")
    picture = pictures.rates(ours.jobs[:_ROWS], () if other is None else other.jobs)
    shown = f'<div class="wide">{picture}</div>' + _table(columns, rows, range(1, 9))
    left = len(ours.jobs) - _ROWS
    return shown + (f'<p class="faint">… and {left} more</p>' if left > 0 else "")


def _wrong(ours: VersionReport) -> Iterable[str]:
    if ours.violations:
        yield "<h2>Violated invariants</h2>"
        yield _table(
            ("job", "run", "invariant", "what does not hold"),
            ([each.job, each.run_id, each.invariant, each.text] for each in ours.violations[:_ROWS]),
        )
        yield from _more(len(ours.violations))
    others = [each for each in ours.missed if not all(reason.startswith("invariant ") for reason in each.reasons)]
    if others:
        yield "<h2>Runs that did not pass</h2>"
        yield _table(
            ("job", "run", "repeat", "why"),
            ([each.job, each.run_id, str(each.repeat + 1), "; ".join(each.reasons)] for each in others[:_ROWS]),
        )
        yield from _more(ours.missed_count)


def _more(count: int) -> Iterable[str]:
    if count > _ROWS:
        yield f'<p class="faint">The first of {count}.</p>'


def _most_telling(jobs: Sequence[JobReport]) -> Sequence[JobReport]:
    """The jobs that are shown in full: all, or those whose runs part most."""
    if len(jobs) <= _JOBS_IN_FULL:
        return jobs
    chosen = sorted(jobs, key=lambda job: (-len(job.ways), job.rate))[:_JOBS_IN_FULL]
    return [job for job in jobs if job in chosen]


def _ways(job: JobReport) -> str:
    drawn = job.ways[:_WAYS_DRAWN]
    picture = pictures.tree(drawn, f"Ways of the runs of {job.job}")
    partings = "".join(f"<li>{escape(told(each))}</li>" for each in job.partings[:_PARTINGS])
    answers = "".join(
        f"<li>{each.runs} of {job.runs}: <code>{escape(each.answer[:300])}</code></li>" for each in job.answers[:3]
    )
    left = len(job.ways) - len(drawn)
    more = f'<p class="faint">{left} more ways are not drawn.</p>' if left else ""
    return (
        f'<h3>{escape(job.job)}</h3><div class="wide">{picture}</div>{more}'
        + (f"<ul>{partings}</ul>" if partings else "<p>All runs make the same steps.</p>")
        + f"<p>Answers, {job.agreement:.0%} agree:</p><ul>{answers}</ul>"
    )


def told(parting: Parting) -> str:
    """A parting in words."""
    branches = ", ".join(f"{each.step} ({each.runs} runs, {each.passed} passed)" for each in parting.branches)
    before = f"after {' → '.join(parting.before[-3:])}" if parting.before else "at once"
    at = f" (step {parting.path})" if parting.path else ""
    because = f"; {parting.because}" if parting.because else ""
    return f"{before}{at}: {branches}{because}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)

    def cell(tag: str, place: int, said: str) -> str:
        return f"<{tag}{' class=n' if place in right else ''}>{escape(said)}</{tag}>"

    head = "".join(cell("th", place, name) for place, name in enumerate(columns))
    body = "".join(f"<tr>{''.join(cell('td', place, said) for place, said in enumerate(row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _quantiles(found: Quantiles | None, how: str) -> str:
    return f"{how.format(found.median)} / {how.format(found.p90)}" if found is not None else "-"
