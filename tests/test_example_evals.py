"""The refund desk's own evaluation: its specification, its invariant, and a run in which the world sees no effect."""

from pathlib import Path

import pytest
from hosting import spine

from actors.registry import app_of, not_simulated
from penstock import Client, RunJournal, RunStep
from penstock.evals.running import evaluate
from penstock.evals.spec import Changes, load_spec
from refund_desk import app as desk
from refund_desk import tools
from refund_desk.checks import refund_within_order
from refund_desk.running import running_world

SPEC = Path(desk.__file__).parent / "evals.yaml"


def refunded(cents: int, total: int) -> RunJournal:
    order = RunStep("0", "call", "get_order", "ok", result={"order_id": "O-1", "total_cents": total})
    refund = RunStep("2", "call", "issue_refund", "ok", arguments=("O-1", cents, "late"), idempotency_key="k")
    return RunJournal("r", "ticket-1", "refund-desk", "1", "succeeded", steps=(order, refund))


def test_a_refund_beyond_the_order_is_a_violation() -> None:
    assert refund_within_order.violations(refunded(500, 500)) == ()
    assert refund_within_order.violations(refunded(501, 500)) == ("step 2: 501 cents for order O-1 of 500",)


def test_all_that_it_does_to_the_world_can_be_simulated() -> None:
    assert not_simulated(app_of(desk).tools) == []


async def test_the_world_sees_reads_only(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_of(desk)
    with running_world(tmp_path) as world:
        monkeypatch.setenv("REFUND_DESK_WORLD_URL", world.url)
        monkeypatch.setenv("REFUND_DESK_SEED", "run")
        dependencies = tuple(app.dependencies.values())
        async with spine(redis_url, desk.refund_desk, dependencies=dependencies, tools=app.tools) as deployment:
            await deployment.host()
            async with Client(settings=deployment.settings) as client:
                found = await evaluate(client, load_spec(SPEC, Changes(repeat=8)), app=app)
        # The desk keeps its connections for as long as its process lives, which is here the tests'.
        await tools.connections().http.aclose()
        totals = world.totals()
    assert found.holds
    assert found.passes_threshold
    assert found.ours.by_state == {"succeeded": 40}
    assert len({way.steps for job in found.ours.jobs for way in job.ways}) == 2
    assert any("(decide) gave" in parting.because for job in found.ours.jobs for parting in job.partings)
    assert (totals.refunds_applied, totals.answers_applied) == (0, 0)
    assert totals.requests >= 80
