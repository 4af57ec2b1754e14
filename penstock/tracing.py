"""A run's trace, rebuilt from its journal: no collector is needed, and none has to have been there."""

from collections.abc import Mapping

import msgspec

from actors.journal import Entry, decode_entry
from actors.run_spans import relatives_of, spans_of
from cluster import reader
from cluster.store import Store
from penstock.names import is_run_id
from penstock.trail import DamagedRecord, past_of
from telemetry.spans import AttributeValue, Span


class LinkView(msgspec.Struct, frozen=True, kw_only=True):
    """A span of another trace; ids are hex digits."""

    trace_id: str
    span_id: str
    attributes: Mapping[str, AttributeValue] = {}


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened inside a span (epoch milliseconds)."""

    name: str
    at_ms: int
    attributes: Mapping[str, AttributeValue] = {}


class SpanView(msgspec.Struct, frozen=True, kw_only=True):
    """One span of a run's trace. Ids are hex digits, times epoch milliseconds of the store's clock.

    ``parent_id`` is empty for the root, ``ended_ms`` None while the span is under way; ``status`` is ``ok``, ``error``
    or ``unset``.
    """

    span_id: str
    parent_id: str
    name: str
    kind: str
    started_ms: int
    ended_ms: int | None
    status: str
    status_text: str
    attributes: Mapping[str, AttributeValue]
    events: list[EventView]
    links: list[LinkView]


class RunTrace(msgspec.Struct, frozen=True, kw_only=True):
    """A run's trace: the root first, then the steps as they began. ``now_ms`` is when it was read."""

    run_id: str
    custom_id: str
    agent: str
    state: str
    trace_id: str
    now_ms: int
    spans: list[SpanView]


class TraceCalls:
    """What a client can ask of traces."""

    @property
    def store(self) -> Store:
        """The open store."""
        raise NotImplementedError

    async def trace(self, run_id: str) -> RunTrace:
        """What a run has done and waited for, and for how long, as spans.

        Raises:
            NoSuchRun: there is no such run.
            DamagedRecord: its record or its journal cannot be read.
        """
        past = await past_of(self.store, run_id)
        try:
            entries: list[Entry] = [decode_entry(raw) for raw in (*past.archive, *past.journal)]
        except ValueError as error:
            raise DamagedRecord(run_id, error) from None
        wanted = [each for each in relatives_of(past.record, entries) if is_run_id(each)]
        relatives = {each.id: each for each in await reader.records(self.store, wanted)}
        now_ms = await self.store.server_ms()
        spans = spans_of(past.record, entries, now_ms, relatives)
        return RunTrace(
            run_id=run_id,
            custom_id=past.record.custom_id,
            agent=past.record.agent,
            state=past.record.state.value,
            trace_id=f"{spans[0].trace_id:032x}",
            now_ms=now_ms,
            spans=[_view(span) for span in spans],
        )


def _view(span: Span) -> SpanView:
    return SpanView(
        span_id=f"{span.span_id:016x}",
        parent_id=f"{span.parent_id:016x}" if span.parent_id else "",
        name=span.name,
        kind=span.kind.value,
        started_ms=span.started_ms,
        ended_ms=span.ended_ms,
        status=span.status.value,
        status_text=span.status_text,
        attributes=span.attributes,
        events=[EventView(name=each.name, at_ms=each.at_ms, attributes=each.attributes) for each in span.events],
        links=[
            LinkView(trace_id=f"{to.trace_id:032x}", span_id=f"{to.span_id:016x}", attributes=each.attributes)
            for each in span.links
            for to in [each.to]
        ],
    )
