"""The outside world of the refund desk, as a real process over real connections: what it says it did is what it did."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from pydantic import ValidationError

from penstock import Ambiguous, NotApplied, Rejected, ToolCall

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from refund_desk.faults import Dice, Endpoint, Fate, Faults, Switches  # noqa: E402
from refund_desk.make_jobs import jobs  # noqa: E402
from refund_desk.models import Order, Ticket  # noqa: E402
from refund_desk.running import RunningWorld, command, environment, running_world, wait_until_ready  # noqa: E402


def refund(world: RunningWorld, key: str | None, order_id: str, amount_cents: int = 100) -> httpx2.Response:
    body = {"order_id": order_id, "amount_cents": amount_cents, "reason": "it was late"}
    return world.http.post("/refunds", json=body, headers={} if key is None else {"Idempotency-Key": key})


def answer(world: RunningWorld, key: str, ticket_id: str, text: str = "We are sorry.") -> httpx2.Response:
    body = {"ticket_id": ticket_id, "order_id": "O-1", "refund_cents": 0, "text": text}
    return world.http.post("/answers", json=body, headers={"Idempotency-Key": key})


def chat(text: str, **parameters: object) -> dict[str, object]:
    return {"model": "any", "messages": [{"role": "user", "content": text}], **parameters}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorld]:
    with running_world(tmp_path_factory.mktemp("world"), "--seed", "7") as world:
        yield world


@pytest.fixture
def world(shared: RunningWorld) -> Iterator[RunningWorld]:
    """The shared world, without faults: use orders, tickets and keys of your own."""
    shared.set_faults()
    yield shared
    shared.set_faults()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[RunningWorld]:
    """A world of your own, with an empty ledger."""
    with running_world(tmp_path, "--seed", "7") as world:
        yield world


def test_same_key_is_applied_once_and_answered_alike(world: RunningWorld) -> None:
    before = world.totals().refunds_applied
    first, second = refund(world, "once-1", "O-101"), refund(world, "once-1", "O-101")
    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    assert first.json()["order_id"] == "O-101"
    assert world.totals().refunds_applied == before + 1


def test_same_key_with_another_body_is_refused(world: RunningWorld) -> None:
    assert refund(world, "body-1", "O-102", 100).status_code == 200
    refused = refund(world, "body-1", "O-102", 200)
    assert refused.status_code == 422
    assert refused.json()["error"]["type"] == "idempotency_error"
    assert refund(world, "body-1", "O-102", 100).status_code == 200


def test_answers_honour_the_key_too(world: RunningWorld) -> None:
    first, second = answer(world, "answer-1", "T-101"), answer(world, "answer-1", "T-101")
    assert first.raise_for_status().content == second.content
    assert answer(world, "answer-1", "T-101", "Something else.").status_code == 422


@pytest.mark.parametrize("key", [None, "", "k" * 256])
def test_a_mutation_needs_a_key(world: RunningWorld, key: str | None) -> None:
    refused = refund(world, key, "O-103")
    assert refused.status_code == 400
    assert "Idempotency-Key" in refused.json()["error"]["message"]


def test_what_is_wrong_is_named_and_not_applied(world: RunningWorld) -> None:
    before = world.totals().refunds_applied
    refused = world.http.post("/refunds", json={"order_id": "nonsense"}, headers={"Idempotency-Key": "wrong-1"})
    assert refused.status_code == 422
    for field in ("order_id", "amount_cents", "reason"):
        assert field in refused.json()["error"]["message"]
    assert world.http.post("/refunds", content=b"{", headers={"Idempotency-Key": "wrong-2"}).status_code == 422
    assert refund(world, "wrong-3", "O-104", 99_000_000).status_code == 422, "more than the order's total"
    assert world.totals().refunds_applied == before


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_what_was_answered_is_carried_on(tmp_path: Path, ending: str) -> None:
    with running_world(tmp_path) as world:
        assert world.url.startswith("http://127.0.0.1:")
        first = refund(world, "restart-1", "O-1")
        if ending == "stop":
            assert world.stop() == 0
            assert not (tmp_path / "ready.json").exists()
        else:
            world.process.kill()
            world.process.wait()
    with running_world(tmp_path) as world:
        assert refund(world, "restart-1", "O-1").content == first.content
        assert world.totals().outcomes_by_endpoint["refunds"] == {"applied": 1, "replayed": 1}


def test_lost_response_then_retry_gives_one_refund(fresh: RunningWorld) -> None:
    fresh.set_faults(refunds={"lost_response_rate": 1.0})
    with pytest.raises(httpx2.RemoteProtocolError):
        refund(fresh, "lost-1", "O-1")
    fresh.set_faults()
    assert refund(fresh, "lost-1", "O-1").status_code == 200
    totals = fresh.totals()
    assert (totals.refunds_applied, totals.duplicate_refunds) == (1, 0)
    assert totals.outcomes_by_endpoint["refunds"] == {"lost_response": 1, "replayed": 1}


def test_lost_response_then_retry_with_another_key_is_counted_as_a_duplicate(fresh: RunningWorld) -> None:
    fresh.set_faults(refunds={"lost_response_rate": 1.0}, answers={"lost_response_rate": 1.0})
    with pytest.raises(httpx2.RemoteProtocolError):
        refund(fresh, "careless-1", "O-1")
    with pytest.raises(httpx2.RemoteProtocolError):
        answer(fresh, "careless-1", "T-1")
    fresh.set_faults()
    assert refund(fresh, "careless-2", "O-1").status_code == 200
    assert answer(fresh, "careless-2", "T-1").status_code == 200
    totals = fresh.totals()
    assert (totals.refunds_applied, totals.duplicate_refunds) == (2, 1)
    assert (totals.answers_applied, totals.duplicate_answers) == (2, 1)


def test_lost_request_is_not_applied_but_counted(fresh: RunningWorld) -> None:
    fresh.set_faults(refunds={"lost_request_rate": 1.0})
    with pytest.raises(httpx2.RemoteProtocolError):
        refund(fresh, "gone-1", "O-1")
    assert fresh.totals().refunds_applied == 0
    assert fresh.totals().outcomes_by_endpoint["refunds"] == {"lost_request": 1}


def test_429_says_when_to_come_again(world: RunningWorld) -> None:
    world.set_faults(orders={"rate_limited_rate": 1.0, "retry_after_s": 7}, model={"rate_limited_rate": 1.0})
    limited = world.http.get("/orders/O-201")
    assert limited.status_code == 429
    assert limited.headers["Retry-After"] == "7"
    assert limited.json()["error"]["type"] == "rate_limit_error"
    assert world.http.post("/v1/chat/completions", json=chat("x")).headers["Retry-After"] == "1"
    assert refund(world, "unlimited-1", "O-201").status_code == 200, "other endpoints are not limited"


def test_errors_are_500_and_nothing_is_applied(world: RunningWorld) -> None:
    before = world.totals().answers_applied
    world.set_faults(answers={"error_rate": 1.0})
    assert answer(world, "error-1", "T-201").status_code == 500
    assert world.totals().answers_applied == before


def test_latency_is_waited_and_giving_up_does_not_undo_what_it_asked(fresh: RunningWorld) -> None:
    fresh.set_faults(refunds={"latency_ms": 300})
    fresh.http.timeout = 0.1
    with pytest.raises(httpx2.ReadTimeout):
        refund(fresh, "patience-1", "O-1")
    fresh.http.timeout = 10
    time.sleep(0.5)
    assert fresh.totals().refunds_applied == 1


@pytest.mark.parametrize(
    "body",
    [
        {"nowhere": {"error_rate": 1.0}},
        {"orders": {"error_rate": 1.5}},
        {"orders": {"typo_rate": 0.5}},
        {"orders": {"error_rate": 0.6, "lost_request_rate": 0.6}},
        {"orders": {"latency_ms": -1}},
    ],
)
def test_wrong_switches_change_nothing(world: RunningWorld, body: dict[str, object]) -> None:
    world.set_faults(model={"latency_ms": 1})
    before = world.http.get("/faults").json()
    assert world.http.put("/faults", json=body).status_code == 422
    assert world.http.get("/faults").json() == before
    assert before["model"]["latency_ms"] == 1


def test_the_same_requests_meet_the_same_faults_in_any_order(world: RunningWorld) -> None:
    def statuses(numbers: list[int]) -> dict[int, int]:
        world.set_faults(orders={"error_rate": 0.3, "rate_limited_rate": 0.3})
        return {number: world.http.get(f"/orders/O-{number}").status_code for number in numbers}

    numbers = list(range(300, 360))
    first = statuses(numbers)
    assert statuses(numbers[::-1]) == first
    assert set(first.values()) == {200, 429, 500}


def test_rates_are_met_over_many_draws() -> None:
    rates = {Fate.ERROR: 0.2, Fate.RATE_LIMITED: 0.1, Fate.LOST_RESPONSE: 0.3, Fate.LOST_REQUEST: 0.05}
    faults = Faults.model_validate({f"{fate}_rate": rate for fate, rate in rates.items()})
    dice = Dice(1)
    fates = [faults.fate(dice.roll(Endpoint.REFUNDS, f"O-{number % 500}").fate) for number in range(20_000)]
    shares = {fate: fates.count(fate) / len(fates) for fate in Fate}
    assert shares == pytest.approx({**rates, Fate.SERVE: 0.35}, abs=0.02)


def test_a_fate_belongs_to_each_draw() -> None:
    certain = Faults(lost_response_rate=0.5, error_rate=0.5)
    assert {certain.fate(draw) for draw in (0.0, 0.49, 0.5, 0.999999)} == {Fate.ERROR, Fate.LOST_RESPONSE}
    assert Faults().fate(0.0) is Fate.SERVE
    assert Faults(latency_ms=10, latency_jitter_ms=20).delay_s(0.5) == pytest.approx(0.02)
    with pytest.raises(ValidationError, match=r"add up to 1\.1"):
        Faults(error_rate=0.6, lost_request_rate=0.5)
    assert Switches().of(Endpoint.MODEL) is None


def test_the_ledger_counts_every_request(fresh: RunningWorld) -> None:
    for number in (1, 2, 2):
        fresh.http.get(f"/orders/O-{number}", headers={"Idempotency-Key": f"read-{number}"})
    fresh.http.get("/orders/unknown")
    refund(fresh, "a", "O-1")
    refund(fresh, "a", "O-1")
    refund(fresh, "a", "O-2")
    refund(fresh, "b", "O-2", 250)
    answer(fresh, "a", "T-1")
    totals = fresh.totals()
    assert totals.requests == 9
    assert totals.requests_by_endpoint == {"orders": 4, "model": 0, "refunds": 4, "answers": 1}
    assert totals.outcomes_by_endpoint["orders"] == {"ok": 3, "not_found": 1}
    assert totals.outcomes_by_endpoint["refunds"] == {"applied": 2, "replayed": 1, "conflict": 1}
    assert totals.repeated_keys == 2
    assert totals.repeated_keys_by_endpoint == {"orders": 1, "model": 0, "refunds": 1, "answers": 0}
    assert (totals.refunds_applied, totals.refunded_cents, totals.answers_applied) == (2, 350, 1)
    assert (totals.duplicate_refunds, totals.duplicate_answers) == (0, 0)
    database = sqlite3.connect(f"file:{fresh.ledger_path}?mode=ro", uri=True)
    with contextlib.closing(database):
        rows = database.execute("SELECT endpoint, idempotency_key, order_id, outcome FROM requests ORDER BY rowid")
        assert rows.fetchall()[4:6] == [("refunds", "a", "O-1", "applied"), ("refunds", "a", "O-1", "replayed")]


def test_keys_come_page_by_page(fresh: RunningWorld) -> None:
    for number in range(5):
        refund(fresh, f"key:{number}", f"O-{number}")
    refund(fresh, "key:3", "O-3")
    answer(fresh, "key:1", "T-1")
    fresh.http.get("/orders/O-1", headers={"Idempotency-Key": "key:1"})
    assert fresh.http.get("/ledger/keys", params={"limit": 3}).json()["next"] == "refunds:key:0"
    found = list(fresh.keys(page_size=3))
    assert [(key.endpoint, key.idempotency_key, key.requests, key.applied) for key in found] == [
        ("answers", "key:1", 1, 1),
        ("orders", "key:1", 1, 0),
        ("refunds", "key:0", 1, 1),
        ("refunds", "key:1", 1, 1),
        ("refunds", "key:2", 1, 1),
        ("refunds", "key:3", 2, 1),
        ("refunds", "key:4", 1, 1),
    ]
    assert found[-1].order_id == "O-4"


async def test_200_requests_at_once(fresh: RunningWorld) -> None:
    """One hundred orders, each refunded twice at once under one key: the ledger has each once."""
    limits = httpx2.Limits(max_connections=200)
    async with httpx2.AsyncClient(base_url=fresh.url, limits=limits, timeout=30) as client:
        bodies = [{"order_id": f"O-{number % 100}", "amount_cents": 100, "reason": "late"} for number in range(200)]
        requests = (client.post("/refunds", json=one, headers={"Idempotency-Key": f"{one}"}) for one in bodies)
        responses = await asyncio.gather(*requests)
    assert {response.status_code for response in responses} == {200}
    assert len({response.content for response in responses}) == 100
    totals = await asyncio.to_thread(fresh.totals)
    assert totals.requests_by_endpoint["refunds"] == 200
    assert totals.refunds_applied == 100
    assert totals.outcomes_by_endpoint["refunds"] == {"applied": 100, "replayed": 100}


def test_orders_depend_on_the_seed_alone(world: RunningWorld, tmp_path: Path) -> None:
    order = world.http.get("/orders/O-401").json()
    assert Order.model_validate(order).total_cents >= 500
    assert world.http.get("/orders/O-401").json() == order
    assert world.http.get("/orders/O-402").json() != order
    assert world.http.get("/orders/elsewhere").status_code == 404
    with running_world(tmp_path, "--seed", "8") as other:
        assert other.http.get("/orders/O-401").json() != order


async def test_the_model_is_deterministic_through_its_client(world: RunningWorld) -> None:
    from openai import AsyncOpenAI, RateLimitError

    text = json.dumps({"order": {"status": "lost", "total_cents": 4_000}})

    async def content(client: AsyncOpenAI, text: str, seed: int) -> str:
        completion = await client.chat.completions.create(
            model="any", messages=[{"role": "user", "content": text}], seed=seed
        )
        assert completion.usage is not None
        assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
        assert completion.usage.prompt_tokens > len(text) // 8
        assert completion.choices[0].finish_reason == "stop"
        return completion.choices[0].message.content or ""

    async with AsyncOpenAI(base_url=f"{world.url}/v1", api_key="unused", max_retries=0) as client:
        answers = [await content(client, text, seed) for seed in (1, 1, 2, 3, 4, 5)]
        decision = json.loads(answers[0])
        assert answers[0] == answers[1]
        assert set(decision) == {"refund_cents", "reason"}
        assert decision["refund_cents"] in (4_000, 4_800)
        late = json.dumps({"order": {"status": "in_transit", "total_cents": 4_000}})
        assert len({await content(client, late, seed) for seed in range(20)}) > 1, "the seed matters"
        await asyncio.to_thread(world.set_faults, model={"rate_limited_rate": 1.0})
        with pytest.raises(RateLimitError):
            await content(client, text, 1)


def test_the_model_refuses_what_it_cannot_do(world: RunningWorld) -> None:
    assert world.http.post("/v1/chat/completions", json=chat("x", stream=True)).status_code == 400
    assert world.http.post("/v1/chat/completions", json={"model": "any", "messages": []}).status_code == 422


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's help is Linux's")
def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    start = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); p.wait()"
    arguments = [sys.executable, "-c", start, *command(tmp_path, "--die-with-parent")]
    parent = subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE)
    try:
        pid = int(parent.stdout.readline()) if parent.stdout else 0
        assert wait_until_ready(tmp_path, parent)
        assert json.loads((tmp_path / "ready.json").read_text())["pid"] == pid
    finally:
        parent.kill()
        parent.communicate()
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_a_port_in_use_is_named(world: RunningWorld, tmp_path: Path) -> None:
    port = world.url.rpartition(":")[2]
    ended = subprocess.run(
        command(tmp_path, "--port", port), env=environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode != 0
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr


def test_the_jobs_in_the_repository_are_those_that_are_made() -> None:
    lines = (EXAMPLES / "refund_desk" / "jobs.jsonl").read_text().splitlines()
    made = list(jobs(1_000))
    assert [json.loads(line) for line in lines] == made
    assert len({job["custom_id"] for job in made}) == 1_000
    assert len({Ticket.model_validate(job["input"]).order_id for job in made}) == 1_000
    assert {job["agent"] for job in made} == {"refund-desk"}
    assert max(map(len, lines)) < 300


@pytest.mark.parametrize(
    ("fault", "known"),
    [("error_rate", Ambiguous), ("lost_response_rate", Ambiguous), ("rate_limited_rate", NotApplied), ("", Rejected)],
)
async def test_a_tool_that_fails_says_what_is_known(
    world: RunningWorld, monkeypatch: pytest.MonkeyPatch, fault: str, known: type[Exception]
) -> None:
    from refund_desk import tools

    monkeypatch.setenv("REFUND_DESK_WORLD_URL", world.url)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{world.url}/v1" if fault else f"{world.url}/nowhere")
    order = Order.model_validate_json(world.http.get("/orders/O-501").content)
    ticket = Ticket(ticket_id="T-501", order_id=order.order_id, message="It is broken.")
    call = ToolCall("tool", "run", "1", 1, lambda: f"tool-{fault}", 5.0, "default", time.monotonic)
    faults = {fault: 1.0} if fault else {}
    world.set_faults(orders=faults, model=faults, refunds=faults)
    with pytest.raises(known):
        await tools.get_order.function(call, order.order_id if fault else "elsewhere")
    with pytest.raises(known):
        await tools.decide.function(call, ticket, order)
    with pytest.raises(known):
        await tools.issue_refund.function(call, order.order_id, 100 if fault else 99_000_000, "It is broken.")
    await tools.connections().http.aclose()
