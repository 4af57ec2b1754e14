"""Is this job one that can be accepted? Pure: jobs and facts in, problems out; for files and for code."""

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

import jsonschema_rs
import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json, to_jsonable_python

from actors.job import LONGEST_S, RECORD_VERSION, Job, JobRecord
from penstock.submit_views import Problem

_TEXT_LIMIT: Final = 300
_CLOCK_NOTICED_MS: Final = 2000
_SIZING: Final = msgspec.msgpack.Encoder()
_NO_JSON_NUMBERS: Final = (b"NaN", b"Infinity")


class Mismatch(NamedTuple):
    """What does not fit at one place of an input; ``path`` is below the input, such as ``order.items[2]``."""

    path: str
    reason: str


JobLike: TypeAlias = Job | Mapping[str, Any]
InputCheck: TypeAlias = Callable[[Any], list[Mismatch]]


@dataclass(frozen=True)
class Facts:
    """What a job is checked against: agents with their inputs, the payload limit, the store's clock, and how far this
    machine's clock is ahead of that (negative: behind).
    """

    agents: Mapping[str, InputCheck]
    payload_limit_bytes: int
    now_ms: int
    clock_ahead_ms: int = 0


def adapter_check(adapter: TypeAdapter[Any]) -> InputCheck:
    """Checks inputs as a host will: by the agent's own pydantic adapter, as JSON."""

    def check(value: Any) -> list[Mismatch]:
        try:
            adapter.validate_json(msgspec.json.encode(value))
        except ValidationError as error:
            return [Mismatch(_path(detail["loc"]), detail["msg"]) for detail in _details(error)]
        return []

    return check


def schema_check(schema: Mapping[str, Any]) -> InputCheck:
    """Checks inputs by the JSON schema that hosts have published: what the agent's own validators ask is not in it.

    jsonschema-rs gives every error in half a microsecond a job, where jsonschema takes 25, which is as long as all
    the rest of a submission; its regular expressions are of the dialect that pydantic uses.
    """
    validator = jsonschema_rs.validator_for(dict(schema))

    def check(value: Any) -> list[Mismatch]:
        if validator.is_valid(value):
            return []
        return [Mismatch(_path(error.instance_path), _cut(error.message)) for error in validator.iter_errors(value)]

    return check


def accept_anything(_: Any) -> list[Mismatch]:
    """The check of an agent of which nothing is known but its name."""
    return []


def read_job(line: int, raw: bytes, facts: Facts, *, with_fixes: bool = True) -> Job | list[Problem] | None:
    """The job in one line of a batch file, or all that is wrong with it; None for an empty line. Without fixes, which
    take long to find, a million bad lines are read in seconds.
    """
    raw = raw.strip()
    if not raw:
        return None
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}"
        return [Problem(line, "", reason, "save the file as UTF-8")]
    if any(word in raw for word in _NO_JSON_NUMBERS) and (word := _non_number(raw)):
        return [Problem(line, "", f"not JSON: {word} is no JSON value", "use null, or leave the field out")]
    try:
        job = Job.model_validate_json(raw)
    except ValidationError as error:
        return _all_problems(line, error, _object(raw), facts, with_fixes=with_fixes)
    return check_job(line, job, facts, with_fixes=with_fixes) or job


def as_job(position: int, item: JobLike) -> Job | list[Problem]:
    """The job that code gave, or all that is wrong with it. Models as inputs are taken as their JSON values."""
    if isinstance(item, Job):
        return item
    try:
        return Job.model_validate(_plain(item))
    except ValidationError as error:
        return job_problems(position, error)


def checked(position: int, item: JobLike, facts: Facts) -> Job | list[Problem]:
    """The job that code gave, or all that is wrong with it, here and now as well."""
    if isinstance(item, Job):
        return check_job(position, item, facts) or item
    fields = _plain(item)
    try:
        job = Job.model_validate(fields)
    except ValidationError as error:
        return _all_problems(position, error, fields, facts)
    return check_job(position, job, facts) or job


def check_job(line: int, job: Job, facts: Facts, *, with_fixes: bool = True) -> list[Problem]:
    """What is wrong with a well-formed job here and now."""
    problems: list[Problem] = []

    def add(field: str, reason: str, fix: str) -> None:
        problems.append(Problem(line, field, reason, fix, job.custom_id))

    check = facts.agents.get(job.agent)
    if check is None or _misfits(check, job.input):
        named = {"agent": job.agent, "input": job.input, "custom_id": job.custom_id}
        problems = _agent_problems(line, named, facts, with_fixes=with_fixes)
    if isinstance(job.deadline, datetime) and (wrong := _bad_moment(job.deadline, facts)):
        add("deadline", *wrong)
    try:
        # Half of the cost of making the whole run, which takes two digests more.
        record = JobRecord(RECORD_VERSION, job.input, job.value, job.tenant, job.grants, job.metadata)
        size = len(_SIZING.encode(record))
    except (OverflowError, ValueError, TypeError, RecursionError) as error:
        reason = f"cannot be stored: {_cut(str(error))}"
        add("input", reason, "use integers of at most 64 bits, Unicode text, and less nesting")
        return problems
    if size > facts.payload_limit_bytes:
        limit = f"{facts.payload_limit_bytes} (PENSTOCK_PAYLOAD_LIMIT_BYTES)"
        fix = "store large content elsewhere and pass a reference to it"
        add("input", f"the job takes {size} bytes, and the limit is {limit}", fix)
    return problems


def _bad_moment(deadline: datetime, facts: Facts) -> tuple[str, str] | None:
    """What is wrong with a deadline, and what to do; None where nothing is."""
    at_ms = int(deadline.timestamp() * 1000)
    late_ms, ahead_ms = facts.now_ms - at_ms, facts.clock_ahead_ms
    if -late_ms > LONGEST_S * 1000:
        reason = f"{deadline.isoformat()} is in {-late_ms / 86_400_000:,.0f} days by the store's clock"
        return reason, "give a moment within 366 days, or none"
    if late_ms < 0:
        return None
    reason = f"{deadline.isoformat()} was {_amount(late_ms)} ago by the store's clock"
    if abs(ahead_ms) >= _CLOCK_NOTICED_MS:
        reason += f"; this machine's clock is {_amount(abs(ahead_ms))} {'ahead of' if ahead_ms > 0 else 'behind'} it"
        if facts.now_ms + ahead_ms < at_ms:
            return reason, "set this machine's clock right, or give seconds from submission as a number"
    return reason, "give a later moment, or seconds from submission as a number"


def _amount(milliseconds: int) -> str:
    """A length of time for people, in its two largest units."""
    minutes = round(milliseconds / 60_000)
    if minutes < 2:
        return f"{milliseconds / 1000:.0f} s"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    named = [f"{count:,} {unit}" for count, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if count]
    return " ".join(named[:2])


def job_problems(line: int, error: ValidationError, custom_id: str = "", *, with_fixes: bool = True) -> list[Problem]:
    """What pydantic says of a job, in our words."""
    words = _in_our_words if with_fixes else _in_short
    return [Problem(line, *words(detail), custom_id) for detail in _details(error)]


def _all_problems(
    line: int, error: ValidationError, item: Mapping[str, Any], facts: Facts, *, with_fixes: bool = True
) -> list[Problem]:
    """What is wrong with the fields of a job, and, as far as these can be told, with its agent and input."""
    named = job_problems(line, error, _custom_id(item), with_fixes=with_fixes)
    return named + _agent_problems(line, item, facts, with_fixes=with_fixes)


def _agent_problems(line: int, item: Mapping[str, Any], facts: Facts, *, with_fixes: bool = True) -> list[Problem]:
    """What is wrong with agent and input, of a job or of what should have been one."""
    agent = item.get("agent")
    if not isinstance(agent, str) or not agent:
        return []
    custom_id = _custom_id(item)
    check = facts.agents.get(agent)
    if check is None:
        reason = f"no agent {_cut(repr(agent))} is served here"
        return [Problem(line, "agent", reason, _agent_fix(agent, facts) if with_fixes else "", custom_id)]
    return [
        Problem(line, f"input.{path}" if path and path[0] != "[" else f"input{path}", reason, "", custom_id)
        for path, reason in _misfits(check, item.get("input"))
    ]


def _misfits(check: InputCheck, value: Any) -> list[Mismatch]:
    """What the check says; nothing of what cannot be stored anyhow, which is said where it is found."""
    try:
        return check(value)
    except (OverflowError, ValueError, TypeError, RecursionError):
        return []


def _plain(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """The job's fields, with a model as its input turned into what it is as JSON."""
    if isinstance(item.get("input"), BaseModel):
        return {**item, "input": to_jsonable_python(item["input"])}
    return item


def _object(raw: bytes) -> dict[str, Any]:
    """The JSON object in a line; empty where there is none."""
    try:
        found = from_json(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _custom_id(item: Mapping[str, Any]) -> str:
    named = item.get("custom_id")
    return _cut(named) if isinstance(named, str) else ""


def _in_our_words(detail: ErrorDetails) -> tuple[str, str, str]:
    kind, location = detail["type"], detail["loc"]
    field = _path(location)
    if kind == "json_invalid":
        return "", f"not JSON: {detail['ctx']['error']}", "write one JSON object a line"
    if not location:
        return "", "not a JSON object", 'write one JSON object a line, such as {"custom_id": …, "agent": …, "input": …}'
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(location[0]), Job.model_fields, n=1)
        return (
            _cut(field),
            "unknown field",
            f"did you mean {near[0]}?" if near else "remove it, or put it into metadata",
        )
    if kind == "missing":
        return field, "missing", "every job needs custom_id and agent"
    fix = str(detail["ctx"]["fix"]) if kind == "length" else ""
    return _cut(field), _cut(detail["msg"].removeprefix("Value error, ")), fix


def _in_short(detail: ErrorDetails) -> tuple[str, str, str]:
    return _path(detail["loc"]), detail["msg"], ""


def _details(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_input=False)


def _agent_fix(agent: str, facts: Facts) -> str:
    if not facts.agents:
        return "start hosts that serve it: penstock up --app MODULE"
    near = difflib.get_close_matches(agent, facts.agents, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    known = sorted(facts.agents)
    return f"use one of {', '.join(known[:8])}{' …' if len(known) > 8 else ''}, or start hosts that serve it"


def _path(location: tuple[int | str, ...] | list[str | int]) -> str:
    """A location as people write it: ``items[2].name``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + " …"


def _non_number(raw: bytes) -> str | None:
    """The first of the words that some parsers take for numbers and that no JSON has."""
    found: list[str] = []
    try:
        json.loads(raw, parse_constant=found.append)
    except (ValueError, RecursionError):
        return None  # what is wrong with it is said where it is read
    return found[0] if found else None
