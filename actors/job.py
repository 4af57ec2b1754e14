"""A job: what a user submits, and the record of it that the store keeps."""

import math
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StringConstraints
from pydantic_core import PydanticCustomError

from actors.simulation import NO_SIMULATION, Simulation
from admission.dependency import seconds_of
from admission.values import Value
from cluster.keys import digest, job_run_id
from cluster.records import NewRun

RECORD_VERSION: Final = 1
_ENCODER: Final = msgspec.msgpack.Encoder(order="deterministic")


class ValueClass(StrEnum):
    """How much a run is worth; the first is the most valuable and goes first."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
    BEST_EFFORT = "best_effort"


LONGEST_S: Final = 366 * 86_400
"""No job may wait for longer, and no deadline is further away."""
_SHORTEST_S: Final = 0.001
_LENGTH: Final = 'seconds, or a text as in "90s", "15m", "24h"'


@lru_cache(maxsize=1024)
def parsed_value(text: str) -> Value:
    """The value that a text says, as in ``high`` or ``high:80``.

    Raises:
        ValueError: it is none.
    """
    return Value.parse(text)


def _value(said: object) -> str:
    """The value in its one form: ``high:50`` is ``high``."""
    if isinstance(said, str):
        return str(parsed_value(str(said)))
    return str(Value.parse(said))


def _length(said: object) -> object:
    """Seconds of a length of time.

    Raises:
        PydanticCustomError: it is none, or too short or too long to be meant.
    """
    if said is None:
        return None
    if isinstance(said, int | float) and not isinstance(said, bool):
        seconds = float(said) if abs(said) < 1e308 else math.inf
    else:
        try:
            seconds = seconds_of(said)
        except ValueError:
            raise PydanticCustomError("length", "no length of time", {"fix": f"give {_LENGTH}"}) from None
    if not _SHORTEST_S <= seconds <= LONGEST_S:
        return _absurd(seconds)
    return seconds


def _absurd(seconds: float) -> object:
    fix = f"give {_LENGTH}, at most 366 days"
    if seconds <= 0 or math.isnan(seconds):
        raise PydanticCustomError("length", "must be above zero (it is {it})", {"it": f"{seconds:g}", "fix": fix})
    if seconds < _SHORTEST_S:
        raise PydanticCustomError(
            "length", "less than a millisecond (it is {it} s)", {"it": f"{seconds:g}", "fix": fix}
        )
    text = "{it} s are more than 366 days"
    if 1e9 < seconds < 1e14:  # what clocks say, in seconds or in milliseconds
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds if seconds < 1e11 else seconds / 1000)
        fix = f"write moments as texts, as in {moment.strftime('%Y-%m-%dT%H:%M:%SZ')}; numbers are seconds from now"
    raise PydanticCustomError("length", text, {"it": f"{seconds:.10g}", "fix": fix})


def _deadline(said: object) -> object:
    """Seconds from submission, or a moment."""
    if isinstance(said, str):
        try:
            moment: object = datetime.fromisoformat(said.strip())
        except ValueError:
            try:
                return _length(said)
            except PydanticCustomError:
                moment = None
    else:
        moment = said if isinstance(said, datetime) else None
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            text = "neither a moment nor a number of seconds: a moment needs an offset from UTC"
            fix = f"give its offset: {moment.isoformat()}Z for UTC, or as in {moment.isoformat()}+02:00"
            raise PydanticCustomError("length", text, {"fix": fix})
        return moment
    if said is None or (isinstance(said, int | float) and not isinstance(said, bool)):
        return _length(said)
    fix = 'give a moment as 2030-01-31T12:00:00Z (with an offset), or seconds from submission ("24h"), at most 366 days'
    raise PydanticCustomError("length", "neither a moment nor a number of seconds", {"fix": fix})


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("only printable characters, no line breaks")
    return text


Name = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_printable)]


class Job(BaseModel):
    """One agent job, as a line of a batch file or from code.

    ``custom_id`` names the job inside its batch and comes back with its result. ``deadline`` is a moment (ISO 8601
    with an offset) or seconds from submission, by the store's clock; a run past it is cancelled at a step boundary.
    ``max_wait`` is how many seconds the job may wait for its first start: it is refused where it would wait for longer,
    and shed when it has; by default what operators have set for its class. Both may be texts such as ``"24h"``.
    ``value`` is a class, or a class and a number from 0 to 99 inside it, as in ``high:80``; higher numbers go first,
    and 50 is the default. ``idempotency_key`` makes the job one and the same over batches of its tenant. ``grants`` are
    the authorities that its tools may use.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    custom_id: Name
    agent: Name
    input: JsonValue = None
    value: Annotated[str, BeforeValidator(_value)] = ValueClass.NORMAL.value
    tenant: Name = "default"
    deadline: Annotated[float | datetime | None, BeforeValidator(_deadline)] = None
    max_wait: Annotated[float | None, BeforeValidator(_length)] = None
    idempotency_key: Name | None = None
    grants: tuple[Name, ...] = ()
    metadata: dict[Name, str] = Field(default_factory=dict)


class JobRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The immutable part of a job as the store keeps it (msgpack map; ``v`` is the record's version).

    ``root`` is the lineage (of child runs and forks), ``by`` who submitted the job, ``simulated`` says that its effects
    are only simulated, and ``simulation`` how; ``forked_from`` and ``forked_at`` are the run and the step that a fork
    parted from.

    A fork has its source's ``by``, and in ``forked_by`` and ``forked_why`` who made it and why. Its journal (with its
    archive) begins with ``inherited`` entries of its source's, chained anew from the fork's own first link;
    ``forked_link`` (hex) is the source's chain where they parted, so that both can be compared while both are kept.
    """

    v: int
    input: Any
    value: str = "normal"
    tenant: str = "default"
    grants: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    root: str = ""
    by: str = ""
    simulated: bool = False
    forked_from: str = ""
    forked_at: str = ""
    forked_by: str = ""
    forked_why: str = ""
    forked_link: str = ""
    inherited: int = 0
    simulation: Simulation = NO_SIMULATION


encode_job: Final = _ENCODER.encode
_DECODER: Final = msgspec.msgpack.Decoder(JobRecord)


def decode_job(raw: bytes) -> JobRecord:
    """The stored record.

    Raises:
        ValueError: it was written by a newer version than this one.
    """
    record = _DECODER.decode(raw)
    if record.v > RECORD_VERSION:
        raise ValueError(f"job record has version {record.v}; this process reads up to {RECORD_VERSION}: update it")
    return record


def rank_of(value: str) -> int:
    """The place of a value's class in the order of all, 0 for the most valuable."""
    return parsed_value(value).rank


def level_of(value: str) -> int:
    """The place of a value in the order of all; smaller ones go first."""
    return parsed_value(value).level


def run_id_of(job: Job, batch: str, partitions: int, *, simulated: bool = False) -> str:
    """The run that this job is or will be. A simulated one is never one and the same as a real one, nor as another
    simulated one that has its idempotency key.
    """
    if simulated:
        return job_run_id(f"simulated:{batch}", job.custom_id, partitions)
    if job.idempotency_key is not None:
        return job_run_id(f"tenant:{job.tenant}", job.idempotency_key, partitions)
    return job_run_id(f"batch:{batch}", job.custom_id, partitions)


def new_run(
    job: Job,
    batch: str,
    partitions: int,
    by: str = "",
    *,
    simulation: Simulation | None = None,
    version: str = "",
) -> NewRun:
    """What the store is asked to make of a validated job.

    Args:
        job: the job.
        batch: the batch that it comes with.
        partitions: how many the deployment has.
        by: who submits it.
        simulation: makes it a simulated run, with a run id that no real one can have.
        version: of the agent; only hosts that serve it start the run. By default whichever host claims it first.
    """
    simulated = simulation is not None
    made = JobRecord(
        RECORD_VERSION, job.input, job.value, job.tenant, job.grants, dict(job.metadata),
        simulated=simulated, simulation=simulation or NO_SIMULATION,
    )  # fmt: skip
    record = _ENCODER.encode(made)
    deadline = _deadline_text(job.deadline)
    max_wait = "" if job.max_wait is None else str(int(job.max_wait * 1000))
    return NewRun(
        id=run_id_of(job, batch, partitions, simulated=simulated),
        custom_id=job.custom_id,
        agent=job.agent,
        level=level_of(job.value),
        # Without who submits it: the same job is the same, whoever submits it again.
        digest=digest(job.agent, record, deadline, max_wait, *filter(None, [version])),
        job=_ENCODER.encode(msgspec.structs.replace(made, by=by)) if by else record,
        deadline=deadline,
        max_wait=max_wait,
        version=version,
        tenant=job.tenant,
    )


def child_run(run_id: str, agent: str, payload: Any, parent: JobRecord, lineage: str, version: str = "") -> NewRun:
    """What the store is asked to make for a child run: it has its parent's value, tenant, grants and submitter, and is
    simulated when its parent is.

    ``lineage`` is the root run and the path of steps from it to this run; the keys of its effects come from it.
    ``version`` is the agent's version that it is pinned to; '' for the one that claims it first.
    """
    simulation = parent.simulation.of_child(lineage.rpartition("/")[2]) if parent.simulated else NO_SIMULATION
    record = _ENCODER.encode(
        JobRecord(
            RECORD_VERSION, payload, parent.value, parent.tenant, parent.grants, parent.metadata, lineage, parent.by,
            simulated=parent.simulated, simulation=simulation,
        )
    )  # fmt: skip
    level = level_of(parent.value)
    return NewRun(run_id, lineage, agent, level, digest(agent, record), record, "", "", version, parent.tenant)


def _deadline_text(deadline: float | datetime | None) -> str:
    if deadline is None:
        return ""
    if isinstance(deadline, datetime):
        return str(int(deadline.astimezone(UTC).timestamp() * 1000))
    return f"+{int(deadline * 1000)}"
