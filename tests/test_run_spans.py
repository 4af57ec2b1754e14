"""What a record and a journal say as spans: one root, no orphans, nothing outside of the run's time."""

from dataclasses import replace

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from actors.job import RECORD_VERSION, JobRecord, encode_job
from actors.journal import ENTRY_VERSION, Entry, Kind, Status, encode_error
from actors.receipts import IntentFacts, Receipt, encode_facts, encode_receipt
from actors.run_spans import relatives_of, root_of, spans_of, step_span_id
from cluster.lifecycle import TERMINAL, RunState
from cluster.records import RunRecord
from telemetry import conventions as names
from telemetry.spans import Span, SpanStatus
from telemetry.trace_ids import TraceParent, run_trace_id

RUN = "00-" + "a" * 24
CHILD = "00-" + "b" * 24
PARENT = "00-" + "c" * 24


def record(state: RunState = RunState.SUCCEEDED, **more: object) -> RunRecord:
    made = RunRecord(
        id=RUN, state=state, version=5, fence=2, agent="desk", pinned="1", batch="first", custom_id="order-1",
        job=encode_job(JobRecord(RECORD_VERSION, None, tenant="acme", value="high")), reason="", since_ms=1_000,
        accepted_ms=1_000, started_ms=1_100, ended_ms=9_000 if state in TERMINAL else None, deadline_ms=None,
        due_ms=None, host="host-1", migrations=0, parent="", cancel="", output=b"", error=b"",
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def entry(kind: Kind, step: str, status: Status, started: int, ended: int, **more: object) -> Entry:
    made = Entry(ENTRY_VERSION, kind.value, step, "charge", b"\1" * 16, status.value, b"", 1, started, ended)
    return msgspec.structs.replace(made, **more)


def by_step(spans: list[Span], step: str) -> Span:
    (found,) = (span for span in spans if span.attributes.get(names.STEP) == step)
    return found


def test_an_effect_is_one_span_with_what_permitted_and_what_proves_it() -> None:
    facts = encode_facts(
        IntentFacts("secret-key", "id", risk="write", permission={"decision": "allow", "rule": "r1"}, approval="a1")
    )
    receipt = encode_receipt(Receipt("applied", evidence={"id": 7}))
    spans = spans_of(
        record(),
        [
            entry(Kind.INTENT, "0", Status.OPEN, 1_200, 1_210, facts=facts),
            entry(Kind.CALL, "0", Status.OK, 1_200, 1_900, attempts=3, facts=receipt),
        ],
        10_000,
    )
    span = by_step(spans, "0")
    assert (span.name, span.started_ms, span.ended_ms, span.status) == ("execute_tool charge", 1_200, 1_900, "ok")
    found = span.attributes
    assert (found[names.RISK], found[names.PERMISSION], found[names.PERMISSION_RULE]) == ("write", "allow", "r1")
    assert (found[names.RECEIPT], found[names.EVIDENCE], found[names.ATTEMPTS]) == ("applied", True, 3)
    assert found[names.APPROVAL] == "a1"
    assert "secret-key" not in str(spans), "whoever has the key could send the call"
    assert [event.name for event in span.events] == ["intent recorded"]


def test_a_failed_step_says_its_class_and_not_its_message() -> None:
    failed = encode_error("NotApplied", "card 4111 refused", "0", "attempts_exhausted", "maximum_attempts=3")
    error = encode_error("StepFailed", "card 4111 refused")
    spans = spans_of(
        record(RunState.FAILED, error=error, reason="StepFailed"),
        [entry(Kind.CALL, "0", Status.FAILED, 1_200, 1_900, payload=failed)],
        10_000,
    )
    root, step = spans[0], by_step(spans, "0")
    assert (root.status, root.attributes[names.ERROR_TYPE]) == (SpanStatus.ERROR, "StepFailed")
    assert (step.status, step.status_text) == (SpanStatus.ERROR, "NotApplied")
    assert step.attributes[names.ENDED_BY] == "maximum_attempts=3"
    assert "4111" not in str(spans)


def test_what_goes_on_has_no_end() -> None:
    spans = spans_of(
        record(RunState.WAITING, reason="timer"),
        [
            entry(Kind.TIMER, "0", Status.OPEN, 1_200, 1_200, payload=b"2000", name="sleep"),
            entry(Kind.TIMER, "1", Status.OPEN, 2_000, 2_000, payload=b"90000", name="sleep"),
        ],
        5_000,
    )
    assert spans[0].ended_ms is None
    assert by_step(spans, "0").ended_ms == 2_000
    assert by_step(spans, "1").ended_ms is None


def test_a_run_that_ends_leaves_nothing_under_way() -> None:
    spans = spans_of(record(RunState.CANCELLED), [entry(Kind.INTENT, "0", Status.OPEN, 1_200, 1_210)], 10_000)
    assert by_step(spans, "0").ended_ms == 9_000
    assert by_step(spans, "0").attributes[names.LEFT_OPEN] is True


def test_a_run_that_never_started_has_only_waited() -> None:
    spans = spans_of(record(RunState.SHED, started_ms=None, reason="queue"), [], 10_000)
    assert [span.name for span in spans] == ["invoke_agent desk", "queue"]
    assert spans[0].status is SpanStatus.ERROR
    assert spans[1].ended_ms == 9_000


def test_child_parent_and_source_are_linked() -> None:
    child, parent = record(id=CHILD, parent=RUN, accepted_ms=2_000), record(id=PARENT, accepted_ms=500)
    started = entry(Kind.CHILD, "0", Status.OPEN, 2_000, 2_000, payload=CHILD.encode(), name="helper")
    mine = record(parent=PARENT)
    assert relatives_of(mine, [started]) == [PARENT, CHILD]
    spans = spans_of(mine, [started], 10_000, {CHILD: child, PARENT: parent})
    assert [link.to for link in spans[0].links] == [root_of(parent)]
    assert [link.to for link in by_step(spans, "0").links] == [root_of(child)]
    assert spans_of(mine, [started], 10_000)[0].links == []
    fork = record(job=encode_job(JobRecord(RECORD_VERSION, None, forked_from=PARENT)), inherited=1)
    spans = spans_of(fork, [started, entry(Kind.CALL, "1", Status.OK, 3_000, 3_100)], 10_000, {PARENT: parent})
    assert [span.attributes.get(names.STEP) for span in spans] == [None, None, "1"], "what it inherited is its source's"
    assert spans[0].links[0].attributes == {names.LINK: "forked from"}


_steps = st.sampled_from([str(number) for number in range(4)] + ["b0.1", "0.approval"])
_times = st.integers(0, 20_000)
_entries = st.lists(
    st.builds(
        entry,
        st.sampled_from(list(Kind)), _steps, st.sampled_from(list(Status)), _times, _times,
        payload=st.sampled_from([b"", b"{}", b"[1]", b"1500", b"\xff", CHILD.encode(), b'{"class":"X"}']),
        facts=st.sampled_from([b"", b"{}", b"3", b'{"permission":3,"key":"k","state":"applied"}']),
    ),
    max_size=12,
)  # fmt: skip


@given(_entries, st.sampled_from(list(RunState)), st.integers(0, 30_000), st.one_of(st.none(), _times))
def test_any_journal_is_one_tree_within_the_runs_time(
    entries: list[Entry], state: RunState, now_ms: int, started_ms: int | None
) -> None:
    run = record(state, started_ms=started_ms)
    spans = spans_of(run, entries, now_ms)
    ids = {span.span_id for span in spans}
    assert len(ids) == len(spans)
    assert [span for span in spans if not span.parent_id] == spans[:1]
    assert all(span.parent_id in ids for span in spans[1:])
    assert {span.trace_id for span in spans} == {run_trace_id(RUN, 1_000)}
    root = spans[0]
    for span in spans:
        assert span.started_ms >= root.started_ms
        assert span.ended_ms is None or span.started_ms <= span.ended_ms
        if root.ended_ms is not None:
            assert span.ended_ms is not None
            assert span.ended_ms <= root.ended_ms
    assert spans == spans_of(run, entries, now_ms)


def test_whoever_knows_a_run_knows_the_spans_of_its_steps() -> None:
    spans = spans_of(record(), [entry(Kind.CALL, "3", Status.OK, 1_200, 1_300)], 10_000)
    assert by_step(spans, "3").span_id == step_span_id(root_of(record()).trace_id, "3")


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_a_traceparent_is_read_as_it_was_written(trace_id: int, span_id: int, sampled: bool) -> None:
    made = TraceParent(trace_id, span_id, sampled)
    assert TraceParent.parse(str(made)) == made


def test_a_traceparent_that_is_none_is_none() -> None:
    good = str(TraceParent(1, 2))
    assert TraceParent.parse(good + "-later") is None
    assert TraceParent.parse("cc" + good[2:] + "-later") == TraceParent(1, 2)
    for bad in ("", "ff" + good[2:], good.upper().replace("0", "Z"), f"00-{0:032x}-{2:016x}-01", good[:-1]):
        assert TraceParent.parse(bad) is None
