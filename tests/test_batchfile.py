"""Batch files: every problem is found and named, memory is bounded, and a file is what it was when it was checked."""

import dataclasses
import io
import json
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, field_validator

from actors.job import Job, level_of, new_run, rank_of
from penstock.batchfile import KEPT_PROBLEMS, BatchFile, Scan, line_limit
from penstock.checking import Facts, accept_anything, adapter_check, check_job, checked, read_job, schema_check
from penstock.errors import BatchFileError
from penstock.submit_views import Problem

NOW_MS = 1_750_000_000_000


class Item(BaseModel):
    sku: str
    count: Annotated[int, Field(gt=0)]


class Order(BaseModel):
    order_id: Annotated[str, Field(pattern="^O-[0-9]+$")]
    items: list[Item] = []

    @field_validator("items")
    @classmethod
    def not_too_many(cls, items: list[Item]) -> list[Item]:
        if len(items) > 3:
            raise ValueError("at most three")
        return items


ADAPTER: TypeAdapter[Order] = TypeAdapter(Order)
BY_ADAPTER = Facts({"shop": adapter_check(ADAPTER), "any": accept_anything}, 4096, NOW_MS)
BY_SCHEMA = Facts({"shop": schema_check(ADAPTER.json_schema()), "any": accept_anything}, 4096, NOW_MS)


def line(**fields: Any) -> bytes:
    return json.dumps({"custom_id": "a", "agent": "any", **fields}).encode()


def problems(raw: bytes, facts: Facts = BY_ADAPTER) -> list[Problem]:
    found = read_job(7, raw, facts)
    assert isinstance(found, list), found
    assert all(problem.line == 7 for problem in found)
    return found


def test_a_good_line_is_a_job() -> None:
    job = read_job(1, line(input={"x": [1, None]}, value="high", deadline=60, tenant="acme"), BY_ADAPTER)
    assert isinstance(job, Job)
    assert (job.input, job.value, job.deadline, job.tenant) == ({"x": [1, None]}, "high", 60, "acme")


@pytest.mark.parametrize(
    ("said", "value", "level"),
    [
        ("high", "high", 149),
        ("high:50", "high", 149),
        ("high:80", "high:80", 119),
        ("best_effort:0", "best_effort:0", 499),
    ],
)
def test_a_value_is_a_class_or_a_class_and_a_number(said: str, value: str, level: int) -> None:
    job = read_job(1, line(value=said), BY_ADAPTER)
    assert isinstance(job, Job)
    assert (job.value, level_of(job.value), rank_of(job.value)) == (value, level, level // 100)


def test_lengths_of_time_may_be_texts() -> None:
    job = read_job(1, line(max_wait="24h", deadline="90s"), BY_ADAPTER)
    assert isinstance(job, Job)
    assert (job.max_wait, job.deadline) == (86_400, 90)


@pytest.mark.parametrize(
    ("ahead_ms", "said", "fix"),
    [
        (
            -7_200_000,
            "was 59 min ago by the store's clock; this machine's clock is 2 h behind it",
            "set this machine's",
        ),
        (-7_200_000 - 26 * 3_600_000, "this machine's clock is 1 d 4 h behind it", "set this machine's clock right"),
        (7_200_000, "this machine's clock is 2 h ahead of it", "give a later moment, or seconds"),
        (500, "was 59 min ago by the store's clock", "give a later moment"),
    ],
)
def test_a_late_deadline_tells_of_a_client_whose_clock_is_wrong(ahead_ms: int, said: str, fix: str) -> None:
    facts = dataclasses.replace(BY_ADAPTER, clock_ahead_ms=ahead_ms)
    moment = datetime.fromtimestamp(NOW_MS / 1000 - 59 * 60, UTC).isoformat()
    (found,) = problems(line(deadline=moment), facts)
    assert said in found.reason
    assert fix in found.fix
    assert ("clock is" in found.reason) == (abs(ahead_ms) > 1000)


@pytest.mark.parametrize("raw", [b"", b"\n", b"  \t\r\n"])
def test_empty_lines_are_ignored(raw: bytes) -> None:
    assert read_job(1, raw, BY_ADAPTER) is None


@pytest.mark.parametrize(
    ("raw", "field", "reason", "fix"),
    [
        (b"{", "", "not JSON: EOF while parsing an object at line 1 column 1", "one JSON object a line"),
        (b"[]", "", "not a JSON object", "one JSON object"),
        (b"3", "", "not a JSON object", "one JSON object"),
        (b'{"custom_id": "\xff"}', "", "not UTF-8: byte 0xff at column 16", "UTF-8"),
        (line(input=float("nan")), "", "not JSON: NaN is no JSON value", "null"),
        (line(input=[1, -float("inf")]), "", "not JSON: -Infinity is no JSON value", "null"),
        (b'{"agent": "any"}', "custom_id", "missing", "custom_id and agent"),
        (line(colour="red"), "colour", "unknown field", "metadata"),
        (line(dead_line=3), "dead_line", "unknown field", "did you mean deadline?"),
        (line(agent="shopp"), "agent", "no agent 'shopp' is served here", "did you mean 'shop'?"),
        (line(agent="zzzzz"), "agent", "no agent 'zzzzz' is served here", "use one of any, shop"),
        (line(value="huge"), "value", "'huge' is no value: give a class (critical, high", ""),
        (line(value="high:100"), "value", "must be whole, from 0 to 99, as in high:80", ""),
        (line(value="high:-1"), "value", "must be whole, from 0 to 99", ""),
        (line(value=80), "value", "80 is no value", ""),
        (line(deadline="2020-01-31T12:00:00Z"), "deadline", "by the store's clock", "a later moment"),
        (line(deadline="2099-01-31T12:00:00"), "deadline", "neither a moment nor a number", "offset"),
        (line(deadline="soon"), "deadline", "neither a moment nor a number", "seconds from submission"),
        (line(deadline=-1), "deadline", "must be above zero (it is -1)", "at most 366 days"),
        (line(deadline=1e-6), "deadline", "less than a millisecond", "90s"),
        (line(deadline=1e9), "deadline", "1000000000 s are more than 366 days", "at most 366 days"),
        (line(deadline=1893499200), "deadline", "more than 366 days", "as in 2030-01-01T12:00:00Z"),
        (line(deadline=1893499200000), "deadline", "more than 366 days", "as in 2030-01-01T12:00:00Z"),
        (line(deadline=10**400), "deadline", "inf s are more than 366 days", "at most 366 days"),
        (line(deadline="9999-01-31T12:00:00Z"), "deadline", "days by the store's clock", "within 366 days"),
        (line(deadline=True), "deadline", "neither a moment nor a number", "seconds"),
        (line(deadline=[60]), "deadline", "neither a moment nor a number", "seconds"),
        (line(max_wait=0), "max_wait", "must be above zero (it is 0)", "24h"),
        (line(max_wait=-3600), "max_wait", "must be above zero (it is -3600)", "24h"),
        (line(max_wait=True), "max_wait", "no length of time", "24h"),
        (line(max_wait="long"), "max_wait", "no length of time", "24h"),
        (line(max_wait=4e7), "max_wait", "40000000 s are more than 366 days", "at most 366 days"),
        (line(custom_id=""), "custom_id", "at least 1 character", ""),
        (line(custom_id="a\nb"), "custom_id", "only printable characters", ""),
        (line(input="x" * 5000), "input", "the limit is 4096 (PENSTOCK_PAYLOAD_LIMIT_BYTES)", "reference"),
        (line(input=2**70), "input", "cannot be stored", "64 bits"),
    ],
)
def test_a_problem_has_field_reason_and_fix(raw: bytes, field: str, reason: str, fix: str) -> None:
    (found,) = problems(raw)
    assert found.field == field
    assert reason in found.reason
    assert fix in found.fix


@pytest.mark.parametrize("facts", [BY_ADAPTER, BY_SCHEMA], ids=["adapter", "schema"])
def test_all_problems_of_an_input_are_named_with_their_place(facts: Facts) -> None:
    bad = {"order_id": "X", "items": [{"sku": "a", "count": 1}, {"sku": 3, "count": 0}]}
    found = problems(line(agent="shop", input=bad, deadline="2020-01-31T12:00:00Z"), facts)
    assert {problem.field for problem in found} == {
        "input.order_id",
        "input.items[1].sku",
        "input.items[1].count",
        "deadline",
    }
    assert all(problem.custom_id == "a" for problem in found)


def test_a_line_with_bad_fields_is_told_of_its_agent_and_input_as_well() -> None:
    found = problems(line(agent="shop", input={"order_id": "X"}, colour="red", value=3))
    assert [(problem.field, problem.custom_id) for problem in found] == [
        ("value", "a"),
        ("colour", "a"),
        ("input.order_id", "a"),
    ]
    assert {problem.field for problem in problems(line(agent="ecco", colour="red"))} == {"agent", "colour"}


@pytest.mark.parametrize("value", [2**70, "\ud800", object(), {"x": float("nan")}])
def test_what_code_gives_and_cannot_be_stored_is_a_problem_and_no_exception(value: object) -> None:
    for facts in (BY_ADAPTER, BY_SCHEMA):
        found = checked(5, {"custom_id": "a", "agent": "shop", "input": value}, facts)
        assert isinstance(found, list)
        assert {problem.field.partition(".")[0] for problem in found} == {"input"}


def test_an_input_that_is_no_object_is_named_as_a_whole() -> None:
    assert [problem.field for problem in problems(line(agent="shop", input=[1]))] == ["input"]


def test_only_the_app_itself_knows_its_own_validators() -> None:
    many = line(agent="shop", input={"order_id": "O-1", "items": [{"sku": "a", "count": 1}] * 4})
    assert problems(many)[0].reason == "Value error, at most three"
    assert isinstance(read_job(1, many, BY_SCHEMA), Job)


def test_no_agents_at_all_has_a_fix_of_its_own() -> None:
    (found,) = problems(line(), Facts({}, 4096, NOW_MS))
    assert "penstock up --app" in found.fix


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from([*Job.model_fields, "colour"])
NEAR = st.fixed_dictionaries(
    {"custom_id": st.text(min_size=1), "agent": st.sampled_from(["any", "shop", "none"]), "input": JSON},
    optional={"deadline": JSON, "metadata": JSON, "tenant": st.text(), "colour": JSON},
)


@pytest.mark.parametrize("facts", [BY_ADAPTER, BY_SCHEMA], ids=["adapter", "schema"])
@given(
    raw=st.binary(max_size=200)
    | (NEAR | st.dictionaries(FIELDS, JSON, max_size=8)).map(lambda each: json.dumps(each).encode())
)
def test_any_line_is_a_job_that_can_be_stored_or_has_problems(facts: Facts, raw: bytes) -> None:
    """Whatever the bytes are: no exception, and what is let through has a record and can be written as JSON."""
    found = read_job(3, raw, facts)
    if isinstance(found, Job):
        run = new_run(found, "batch", 8)
        assert len(run.job) <= 4096
        json.dumps(found.input, allow_nan=False)
    elif found is None:
        assert not raw.strip()
    else:
        assert found
        assert all(problem.line == 3 and problem.reason for problem in found)


@given(st.builds(Job, custom_id=st.just("a"), agent=st.just("any"), input=JSON, tenant=st.just("t")))
def test_a_good_job_survives_being_written_as_a_line(job: Job) -> None:
    if check_job(1, job, BY_SCHEMA):
        return
    back = read_job(1, job.model_dump_json().encode(), BY_SCHEMA)
    if isinstance(back, Job):
        again = read_job(1, back.model_dump_json().encode(), BY_SCHEMA)
        assert again == back


def scanned(content: bytes, facts: Facts = BY_ADAPTER) -> tuple[Scan, list[tuple[int, Job]]]:
    with BatchFile(io.BytesIO(content)) as file:
        scan = Scan(facts)
        for _ in file.scan(scan, facts):
            pass
        return scan, list(file.jobs(facts, scan.bad_lines))


def test_duplicates_name_both_lines() -> None:
    content = b"\n".join([line(), line(custom_id="b"), b"", line(), line(custom_id="b")])
    scan, jobs = scanned(content)
    assert [(problem.line, problem.field, problem.reason) for problem in scan.problems] == [
        (4, "custom_id", "'a' is already on line 1"),
        (5, "custom_id", "'b' is already on line 2"),
    ]
    assert [number for number, _ in jobs] == [1, 2]


def test_a_bad_line_is_a_duplicate_too() -> None:
    scan, jobs = scanned(b"\n".join([line(), line(colour="red"), line(custom_id="b", agent="x"), line(custom_id="b")]))
    assert [(problem.line, problem.field) for problem in scan.problems] == [
        (2, "colour"),
        (2, "custom_id"),
        (3, "agent"),
        (4, "custom_id"),
    ]
    assert (list(scan.bad_lines), [number for number, _ in jobs]) == ([2, 3, 4], [1])


def test_the_same_idempotency_key_is_a_duplicate_within_its_tenant_only() -> None:
    content = b"\n".join(
        [
            line(idempotency_key="k"),
            line(custom_id="b", idempotency_key="k"),
            line(custom_id="c", idempotency_key="k", tenant="other"),
        ]
    )
    scan, _ = scanned(content)
    assert [(problem.line, problem.field) for problem in scan.problems] == [(2, "idempotency_key")]


def test_good_lines_pass_between_bad_ones() -> None:
    content = b"\r\n".join(
        [b"\xef\xbb\xbf" + line(), b"{", line(custom_id="b"), line(custom_id="c", x=1), line(custom_id="d")]
    )
    scan, jobs = scanned(content)
    assert (scan.jobs, scan.problem_count, list(scan.bad_lines)) == (3, 2, [2, 4])
    assert [job.custom_id for _, job in jobs] == ["a", "b", "d"]


def test_problems_are_bounded_and_counted() -> None:
    scan, jobs = scanned(b"{\n" * 5000)
    assert (len(scan.problems), scan.problem_count, jobs) == (KEPT_PROBLEMS, 5000, [])


def test_a_line_without_end_is_refused_in_pieces_and_the_next_one_is_read() -> None:
    content = line(input="x" * 3 * line_limit(BY_ADAPTER)) + b"\n" + line(custom_id="b")
    scan, jobs = scanned(content)
    assert [(problem.line, "the most that a line may have" in problem.reason) for problem in scan.problems] == [
        (1, True)
    ]
    assert [number for number, _ in jobs] == [2]
    other, _ = scanned(content.replace(b'xx"}\n', b'xy"}\n'))
    assert other.digest != scan.digest, "the digest is of the whole content"


def test_many_lines_take_no_more_than_their_digests() -> None:
    class Endless(io.RawIOBase):
        """The lines of a file that nobody holds."""

        position = 0

        def readline(self, _limit: int | None = -1) -> bytes:
            self.position += 1
            return line(custom_id=str(self.position), input="x" * 1000) if self.position <= 20_000 else b""

        def seek(self, *_: int) -> int:
            self.position = 0
            return 0

        def seekable(self) -> bool:
            return True

        def tell(self) -> int:
            return self.position

    tracemalloc.start()
    scan = Scan(BY_SCHEMA)
    for _ in BatchFile(Endless()).scan(scan, BY_SCHEMA):  # type: ignore[arg-type]
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert scan.jobs == 20_000
    assert peak < 20_000 * 200, f"{peak / 20_000:.0f} bytes a line"


def test_the_content_names_the_file(tmp_path: Path) -> None:
    first, second = scanned(line() + b"\n")[0], scanned(line() + b"\n")[0]
    assert first.digest == second.digest != scanned(line())[0].digest


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(line() + b"\n" + line(custom_id="b") + b"\n")
    with BatchFile(path) as file:
        scan = Scan(BY_ADAPTER)
        list(file.scan(scan, BY_ADAPTER))
        jobs = file.jobs(BY_ADAPTER, scan.bad_lines)
        next(jobs)
        with path.open("ab") as writer:
            writer.write(line(custom_id="c"))
        with pytest.raises(BatchFileError, match=r"jobs.jsonl' changed while it was read"):
            list(jobs)
        with pytest.raises(BatchFileError, match="changed"):
            next(file.jobs(BY_ADAPTER, scan.bad_lines))


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(BatchFileError, match=r"nothing.jsonl' cannot be read: No such file"):
        BatchFile(tmp_path / "nothing.jsonl")
    with pytest.raises(BatchFileError, match="Is a directory"):
        BatchFile(tmp_path)
