"""The specification of an evaluation: a YAML file, checked as a whole, each problem with its line and a fix."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from actors import yaml_file
from actors.job import Job, Name
from actors.simulation import Fault, FaultKind
from penstock.errors import UnusableSpec
from penstock.evals.expectation import Expectation
from penstock.submit_views import Problem

MOST_RUNS: Final = 100_000
_SHOWN: Final = 20
_CONFIG: Final = ConfigDict(extra="forbid", frozen=True)


class SpecError(UnusableSpec):
    """A specification cannot be used. ``problems`` says what is wrong, each with its line and a fix."""

    def __init__(self, place: str, problems: Sequence[Problem]) -> None:
        counted = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        listed = "\n".join(f"  {_told(problem)}" for problem in problems[:_SHOWN])
        super().__init__(f"{counted} in {place}, nothing was run:\n{listed}")
        self.place = place
        self.problems = tuple(problems)


class EvalJob(Job):
    """A job to be run again and again; ``expect`` is what its output must be. Its ``idempotency_key`` has no meaning
    here: each run is one of its own.
    """

    expect: Expectation | None = None


class PlannedFault(BaseModel):
    """A fault and how often it strikes; see :class:`actors.simulation.Fault`."""

    model_config = _CONFIG

    kind: FaultKind
    probability: Annotated[float, Field(gt=0, le=1)]
    tools: tuple[Name, ...] = ()

    @model_validator(mode="after")
    def _tools_are_of_calls(self) -> Self:
        if self.kind is FaultKind.HANDED_BACK and self.tools:
            raise ValueError("handed_back strikes after any step: leave tools out")
        return self

    def fault(self) -> Fault:
        """The fault as a job's record has it."""
        return Fault(self.kind, self.probability, self.tools)


class Threshold(BaseModel):
    """How often it must pass: the mean pass^k of the jobs is at least ``at_least``."""

    model_config = _CONFIG

    k: Annotated[int, Field(ge=1)] = 1
    at_least: Annotated[float, Field(ge=0, le=1)]


class EvalSpec(BaseModel):
    """An evaluation.

    Attributes:
        name: for people, and part of the batches' keys; by default the file's name.
        jobs: what is run.
        jobs_file: a batch file with jobs, beside those; its path is relative to the specification.
        first: only so many jobs of that file.
        repeat: how often each job is run.
        version: of the agents: one for all, or by agent; by default the one that hosts serve.
        expect: for jobs that have no expectation of their own.
        answer: parts of the output that count as the answer when answers are compared; all of it if empty.
        invariants: names of built-in ones, or import paths as ``module:name``.
        simulate_reads: tools without an effect are simulated as well, where they have a ``simulate``.
        approvals: how calls that need an approval are answered.
        allow_missing: effect tools without ``simulate`` that may be in the app; a run that calls one fails.
        seed: of the faults' chance.
        faults: what goes wrong, and how often.
        threshold: what makes the evaluation fail.
        timeout_s: after how many seconds it is given up.
    """

    model_config = _CONFIG

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,47}$")] = "eval"
    jobs: tuple[EvalJob, ...] = ()
    jobs_file: str | None = None
    first: Annotated[int, Field(ge=1)] | None = None
    repeat: Annotated[int, Field(ge=1, le=10_000)] = 20
    version: str | dict[str, str] | None = None
    expect: Expectation | None = None
    answer: tuple[str, ...] = ()
    invariants: tuple[str, ...] = ("one_effect_per_key",)
    simulate_reads: bool = False
    approvals: Literal["approve", "deny"] = "approve"
    allow_missing: bool | tuple[str, ...] = False
    seed: int = 0
    faults: tuple[PlannedFault, ...] = ()
    threshold: Threshold | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 900.0

    @field_validator("version", mode="before")
    @classmethod
    def _as_text(cls, version: Any) -> Any:
        if isinstance(version, bool | float):
            raise ValueError("put the version into quotes")
        if isinstance(version, dict):
            return {name: str(each) if isinstance(each, int) else each for name, each in version.items()}
        return str(version) if isinstance(version, int) else version

    def version_of(self, agent: str) -> str | None:
        """The version that this agent is to have; None where the specification does not say."""
        return self.version.get(agent) if isinstance(self.version, dict) else self.version

    def expectation_of(self, job: EvalJob) -> Expectation | None:
        """What a job's output must be."""
        return job.expect or self.expect

    def allows(self, tool: str) -> bool:
        """Whether a tool without ``simulate`` may be there."""
        return self.allow_missing if isinstance(self.allow_missing, bool) else tool in self.allow_missing


class _Text(NamedTuple):
    """A text that was read."""

    content: yaml_file.Content

    def line(self, path: tuple[Any, ...]) -> int:
        """Where something stands; the first line is 1."""
        return 1 if self.content.root is None else yaml_file.line_of(self.content.root, path)


class Changes(NamedTuple):
    """What somebody wants otherwise than the specification says; None where it is to hold."""

    repeat: int | None = None
    timeout_s: float | None = None
    at_least: float | None = None
    k: int | None = None

    def on(self, spec: EvalSpec) -> EvalSpec:
        """The specification with the changes."""
        fields: dict[str, Any] = {"repeat": self.repeat, "timeout_s": self.timeout_s}
        before = spec.threshold
        share = self.at_least if self.at_least is not None or before is None else before.at_least
        if share is not None:
            k = self.k if self.k is not None else before.k if before is not None else 1
            fields["threshold"] = Threshold(k=k, at_least=share)
        return spec.model_copy(update={name: value for name, value in fields.items() if value is not None})


class _Lines(NamedTuple):
    """What is wrong in the files, found so far."""

    problems: list[Problem]

    def add(self, line: int, field: str, reason: str, fix: str = "", custom_id: str = "") -> None:
        self.problems.append(Problem(line, field, reason, fix, custom_id))


def load_spec(path: Path, changes: Changes = Changes()) -> EvalSpec:  # noqa: B008 - it never changes
    """The specification in a file, with the jobs of its jobs file, and with what is wanted otherwise.

    Raises:
        SpecError: it cannot be read, or something in it is wrong; all of it is named.
    """
    return parsed_spec(_text_of(path), path, changes)


def parsed_spec(text: str, path: Path, changes: Changes = Changes()) -> EvalSpec:  # noqa: B008 - it never changes
    """The specification in a text; ``path`` is where it stands, for its name and what it names.

    Raises:
        SpecError: something in it is wrong.
    """
    place = str(path)
    read = _Text(yaml_file.parsed(text, ""))
    if read.content.problems:
        raise SpecError(place, [_of_text(problem) for problem in read.content.problems])
    if not isinstance(read.content.value, dict):
        fix = "write jobs: with a list of jobs, or jobs_file:"
        raise SpecError(place, [Problem(1, "", "no mapping of settings", fix)])
    stem = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in path.stem)[:48].lstrip("._-")
    wrong = _Lines([])
    try:
        said = {str(key): each for key, each in read.content.value.items()}
        spec = EvalSpec.model_validate({"name": stem or "eval"} | said)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            _explain(detail, read, wrong)
        raise SpecError(place, _once(wrong.problems)) from None
    seen: set[str] = set()
    for position, job in enumerate(spec.jobs):
        _check_twice(seen, job, read.line(("jobs", position)), wrong)
    if spec.first is not None and spec.jobs_file is None:
        wrong.add(read.line(("first",)), "first", "there is no jobs_file", "remove it")
    if wrong.problems:
        raise SpecError(place, wrong.problems)
    if spec.jobs_file is not None:
        more = _jobs_in(path.parent / spec.jobs_file, spec, read.line(("jobs_file",)), place)
        spec = spec.model_copy(update={"jobs": spec.jobs + more})
    return _bounded(changes.on(spec), place, read)


def _told(problem: Problem) -> str:
    text = problem.text("line")
    return text if problem.line else text.removeprefix("line 0").lstrip(",: ")


def _of_text(problem: str) -> Problem:
    """A problem of the text as YAML; its line is named where one is known."""
    found = re.fullmatch(r"(?:, line (\d+))?:? ?(.*)", problem, re.DOTALL)
    assert found is not None
    return Problem(int(found[1] or 0), "", found[2], "")


def _bounded(spec: EvalSpec, place: str, read: _Text) -> EvalSpec:
    wrong = _Lines([])
    if not spec.jobs:
        wrong.add(1, "jobs", "there are none", "write jobs: with a list of jobs, or jobs_file: with a batch file")
    if spec.threshold is not None and spec.threshold.k > spec.repeat:
        wrong.add(
            read.line(("threshold", "k")),
            "threshold.k",
            f"pass^{spec.threshold.k} needs at least {spec.threshold.k} runs of each job, repeat is {spec.repeat}",
            "raise repeat, or lower k",
        )
    if len(spec.jobs) * spec.repeat > MOST_RUNS:
        count = f"{len(spec.jobs):,} jobs, each {spec.repeat:,} times, are {len(spec.jobs) * spec.repeat:,} runs"
        wrong.add(1, "repeat", f"{count}, at most {MOST_RUNS:,} are analysed at once", "use first:, or a lower repeat")
    if wrong.problems:
        raise SpecError(place, wrong.problems)
    return spec


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(yaml_file.MAXIMUM_BYTES + 1)
    except OSError as error:
        raise SpecError(str(path), [Problem(0, "", f"cannot be read: {error.strerror}", "name a YAML file")]) from None
    if len(raw) > yaml_file.MAXIMUM_BYTES:
        fix = "keep the jobs in a batch file: jobs_file:"
        raise SpecError(str(path), [Problem(0, "", f"longer than {yaml_file.MAXIMUM_BYTES:,} bytes", fix)])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(str(path), [Problem(0, "", f"no UTF-8: byte {error.start}", "save it as UTF-8")]) from None


def _jobs_in(path: Path, spec: EvalSpec, line: int, place: str) -> tuple[EvalJob, ...]:
    found: list[EvalJob] = []
    seen = {job.custom_id for job in spec.jobs}
    wrong = _Lines([])
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if len(found) == spec.first:
                    break
                if not raw.strip():
                    continue
                try:
                    job = EvalJob.model_validate_json(raw)
                except ValidationError as error:
                    for detail in error.errors(include_url=False, include_input=False):
                        wrong.add(number, _dotted(detail["loc"]), detail["msg"])
                    continue
                _check_twice(seen, job, number, wrong)
                found.append(job)
    except OSError as error:
        fix = "the path is relative to the specification"
        raise SpecError(place, [Problem(line, "jobs_file", f"{path}: {error.strerror}", fix)]) from None
    if wrong.problems:
        raise SpecError(str(path), wrong.problems)
    return tuple(found)


def _check_twice(seen: set[str], job: EvalJob, line: int, wrong: _Lines) -> None:
    if job.custom_id in seen:
        reason = f"{job.custom_id!r} is there twice"
        wrong.add(line, "custom_id", reason, "give each job a custom_id of its own", job.custom_id)
    seen.add(job.custom_id)


def _explain(detail: ErrorDetails, read: _Text, wrong: _Lines) -> None:
    location = tuple(part for part in detail["loc"] if not _is_of_a_union(part))
    reason, fix = detail["msg"].removeprefix("Value error, "), ""
    last = str(location[-1]) if location else ""
    if detail["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        near = difflib.get_close_matches(last, known, n=1)
        reason, fix = "unknown field", f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    elif detail["type"] == "missing":
        reason, fix = "missing", f"add {last}:"
    wrong.add(read.line(location), _dotted(location), reason, fix)


_UNION_TAGS: Final = frozenset({"str", "bool", "dict[str,str]", "tuple[str, ...]", "float", "datetime"})


def _is_of_a_union(part: str | int) -> bool:
    """Whether pydantic names an alternative of a union here, and no field."""
    return isinstance(part, str) and (part in _UNION_TAGS or "[" in part)


def _fields_at(location: tuple[str | int, ...]) -> list[str]:
    models: dict[str, type[BaseModel]] = {
        "jobs": EvalJob, "faults": PlannedFault, "threshold": Threshold, "expect": Expectation,
    }  # fmt: skip
    named = [part for part in location if isinstance(part, str)]
    model = models.get(named[-1], EvalSpec) if named else EvalSpec
    return list(model.model_fields)


def _dotted(location: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _once(problems: list[Problem]) -> list[Problem]:
    """One for each place: a union complains once for each of its alternatives."""
    first: dict[tuple[int, str], Problem] = {}
    for problem in problems:
        first.setdefault((problem.line, problem.field), problem)
    return sorted(first.values(), key=lambda each: each.line)
