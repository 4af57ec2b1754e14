"""Spans as plain data: what a journal says, before anybody draws or exports it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from telemetry.trace_ids import TraceParent

AttributeValue: TypeAlias = "str | bool | int | float | Sequence[str]"


class SpanKind(StrEnum):
    """As in OpenTelemetry: work of our own, or a call to somebody else."""

    INTERNAL = "internal"
    CLIENT = "client"


class SpanStatus(StrEnum):
    """As in OpenTelemetry; ``unset`` is how most successes end, and how what is still under way stands."""

    UNSET = "unset"
    OK = "ok"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened at one moment (epoch milliseconds of the store's clock) inside a span."""

    name: str
    at_ms: int
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanLink:
    """Another span that this one has to do with, without being its child."""

    to: TraceParent
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """One span. Times are epoch milliseconds of the store's clock; ``ended_ms`` is None while it is under way.

    ``parent_id`` is 0 for a trace's root; ``parent_is_remote`` says that the parent is the submitter's.
    """

    trace_id: int
    span_id: int
    parent_id: int
    name: str
    kind: SpanKind
    started_ms: int
    ended_ms: int | None
    status: SpanStatus = SpanStatus.UNSET
    status_text: str = ""
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    events: Sequence[SpanEvent] = ()
    links: Sequence[SpanLink] = ()
    parent_is_remote: bool = False
