"""Numbers about repeated runs. Pure."""

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

_NEGLIGIBLE: Final = 1e-30
_EQUAL: Final = 1 + 1e-7
_Z_95: Final = 1.959963984540054


class Passes(NamedTuple):
    """How many of ``runs`` passed."""

    passed: int
    runs: int


def pass_hat(passes: Passes, k: int) -> float:
    """pass^k: the chance that ``k`` runs of a job all pass, from ``runs`` independent ones of which ``passed`` passed.

    The unbiased estimator C(passed, k) / C(runs, k), the share of all ways to choose k of the runs in which all of them
    passed: Yao, Shinn, Razavi and Narasimhan, "τ-bench", arXiv 2406.12045; the sibling of the pass@k estimator of Chen
    et al., arXiv 2107.03374.

    Raises:
        ValueError: k is below 1 or above the number of runs.
    """
    if not 1 <= k <= passes.runs:
        raise ValueError(f"pass^{k} of {passes.runs} runs: k is from 1 to the number of runs")
    return math.comb(passes.passed, k) / math.comb(passes.runs, k)


def pass_hat_of_jobs(jobs: Sequence[Passes], k: int) -> float:
    """The mean of the jobs' pass^k, as τ-bench has it: each job counts alike. NaN without jobs."""
    return math.fsum(pass_hat(each, k) for each in jobs) / len(jobs) if jobs else math.nan


def wilson(passes: Passes) -> tuple[float, float]:
    """The 95 % interval of a pass rate: Wilson's score interval (1927), which also holds near 0 and 1."""
    if passes.runs == 0:
        return 0.0, 1.0
    rate, weight = passes.passed / passes.runs, _Z_95**2 / passes.runs
    middle = (rate + weight / 2) / (1 + weight)
    half = _Z_95 / (1 + weight) * math.sqrt(rate * (1 - rate) / passes.runs + weight / (4 * passes.runs))
    # At the ends rounding would leave the rate outside.
    return max(0.0, min(rate, middle - half)), min(1.0, max(rate, middle + half))


def fisher_exact(ours: Passes, theirs: Passes) -> float:
    """Two-sided p of Fisher's exact test for two pass rates: how likely, if both were the same, were a table at most as
    likely as this one? (R. A. Fisher, "Statistical Methods for Research Workers", section 21.02; two-sided by the sum
    over the tables that are not more likely, as R's ``fisher.test`` has it.)
    """
    return exact_difference([(ours, theirs)])


def exact_difference(jobs: Iterable[tuple[Passes, Passes]]) -> float:
    """The same over several jobs, each with rates of its own: the exact conditional test of a common odds ratio of 1
    (Mehta, Patel and Gray, J. Am. Stat. Assoc. 80, 1985). Runs are only compared with runs of the same job.

    Given how many runs of a job passed in all, the passes among ours are hypergeometric; the sum over the jobs has the
    convolution of these distributions.
    """
    law, lowest, seen = [1.0], 0, 0
    for ours, theirs in jobs:
        first, chances = _hypergeometric(ours.runs, theirs.runs, ours.passed + theirs.passed)
        law, lowest, seen = *_convolved(law, lowest, chances, first), seen + ours.passed
    there = seen - lowest
    # What was seen may have been cut off with what is negligible.
    limit = law[there] * _EQUAL if 0 <= there < len(law) else 0.0
    return min(1.0, math.fsum(chance for chance in law if chance <= limit))


def _hypergeometric(ours: int, theirs: int, passed: int) -> tuple[int, list[float]]:
    """How likely it is that so many of ``passed`` passes are among ours, from the lowest possible number on."""
    first, last = max(0, passed - theirs), min(ours, passed)
    ways = math.comb(ours + theirs, passed)
    return first, [math.comb(ours, n) * math.comb(theirs, passed - n) / ways for n in range(first, last + 1)]


def _convolved(law: list[float], lowest: int, other: list[float], first: int) -> tuple[list[float], int]:
    made = [0.0] * (len(law) + len(other) - 1)
    for place, chance in enumerate(law):
        for offset, factor in enumerate(other):
            made[place + offset] += chance * factor
    begin, end = 0, len(made)
    while end - begin > 1 and made[begin] < _NEGLIGIBLE:
        begin += 1
    while end - begin > 1 and made[end - 1] < _NEGLIGIBLE:
        end -= 1
    return made[begin:end], lowest + first + begin


class Quantiles(msgspec.Struct, frozen=True):
    """Nearest-rank quantiles: each of them is one of the values."""

    minimum: float
    median: float
    p90: float
    maximum: float


def quantiles(values: Iterable[float]) -> Quantiles | None:
    """The quantiles; None where there are no values."""
    ordered = sorted(values)
    if not ordered:
        return None

    def at(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return Quantiles(ordered[0], at(0.5), at(0.9), ordered[-1])
