"""Evaluations on real hosts and a real store: simulated effects, their faults, versions, the command."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hosting import Spine, output, spine, until

from actors.job import Job, new_run
from actors.journal import Kind, decode_error
from actors.receipts import decode_intent_facts, decode_receipt
from actors.simulation import Fault, FaultKind, Simulation
from cluster.keys import partition_of
from cluster.lifecycle import RunState
from penstock import (
    Applied,
    ApprovalDenied,
    Client,
    NotPermitted,
    RetryPolicy,
    Risk,
    Run,
    ToolCall,
    agent,
    invariant,
    tool,
)
from penstock.errors import WaitTimedOut
from penstock.evals.running import Evaluation, evaluate
from penstock.evals.serving import EvalError
from penstock.evals.spec import EvalSpec
from penstock.evals.statistics import Passes, fisher_exact

pytestmark = pytest.mark.timeout(60)
QUICK = RetryPolicy(initial_interval=0.001, maximum_interval=0.002, maximum_attempts=4)
REAL: list[tuple[str, Any]] = []
PRETENDED: list[tuple[str, str]] = []


def pretend(call: ToolCall, what: str) -> str:
    PRETENDED.append((what, call.idempotency_key))
    return f"pretended {what}"


async def nothing(call: ToolCall, what: str) -> Applied[str] | None:
    REAL.append(("reconcile", what))
    return None


@tool(risk=Risk.WRITE, simulate=pretend, retry=QUICK, idempotent=True)
async def pay(call: ToolCall, what: str) -> str:
    REAL.append(("pay", what))
    return f"paid {what}"


@tool(risk=Risk.WRITE, simulate=pretend, retry=QUICK)
async def mail(call: ToolCall, what: str) -> str:
    REAL.append(("mail", what))
    return f"mailed {what}"


@tool(risk=Risk.WRITE, simulate=pretend, reconcile=nothing, retry=QUICK)
async def book(call: ToolCall, what: str) -> str:
    REAL.append(("book", what))
    return f"booked {what}"


@tool(risk=Risk.IRREVERSIBLE)
async def launch(call: ToolCall) -> str:
    REAL.append(("launch", ""))
    return "gone"


@tool(simulate=lambda call, what: f"pretended {what}", retry=QUICK)
async def look(call: ToolCall, what: str) -> str:
    REAL.append(("look", what))
    return f"seen {what}"


TOOLS = (pay, mail, book, look)


@agent("shop", version="1")
async def shop(run: Run, what: str) -> dict[str, Any]:
    """Looks, and pays in about half of its runs."""
    seen = await run.call(look, what)
    if run.random() < 0.5:
        return {"paid": await run.call(pay, what), "seen": seen}
    return {"paid": "", "seen": seen}


@agent("shop", version="2")
async def better_shop(run: Run, what: str) -> dict[str, Any]:
    """Always pays."""
    seen = await run.call(look, what)
    return {"paid": await run.call(pay, what), "seen": seen}


@agent("parent", version="1")
async def parent(run: Run, what: str) -> str:
    """Pays itself, has its child pay, and pays the same again under one key."""
    await run.call(pay, what)
    first = await run.effect(key=f"order:{what}").call(pay, what)
    again = await run.effect(key=f"order:{what}").call(pay, what)
    below = await run.spawn(child, what)
    return f"{first == again} {below}"


@agent("child", version="1")
async def child(run: Run, what: str) -> str:
    return await run.call(mail, f"{what} below")


@agent("one-call", version="1")
async def one_call(run: Run, name: str) -> str:
    by_name = {each.name: each for each in TOOLS}
    return await run.call(by_name[name], name)


@agent("launcher", version="1")
async def launcher(run: Run, _: str) -> str:
    try:
        return await run.call(launch)
    except NotPermitted as refused:
        return f"{refused.end} {refused.ended_by} {refused.message}"


@agent("sleeper", version="1")
async def sleeper(run: Run, seconds: float) -> str:
    await run.sleep(seconds)
    return "awake"


@agent("walker", version="1")
async def walker(run: Run, what: str) -> int:
    """Ten steps."""
    for number in range(5):
        await run.call(look, f"{what}{number}")
        await run.call(pay, f"{what}{number}")
    return 10


@pytest.fixture(autouse=True)
def nothing_real_yet() -> None:
    REAL.clear()
    PRETENDED.clear()


def real_effects() -> list[tuple[str, Any]]:
    return [each for each in REAL if each[0] != "look"]


def spec(agent_name: str, *inputs: Any, **fields: Any) -> EvalSpec:
    jobs = [{"custom_id": f"job-{place}", "agent": agent_name, "input": each} for place, each in enumerate(inputs)]
    return EvalSpec.model_validate({"jobs": jobs, "repeat": 6, "timeout_s": 20, **fields})


async def evaluated(deployment: Spine, what: EvalSpec, **how: Any) -> Evaluation:
    async with Client(settings=deployment.settings) as client:
        return await evaluate(client, what, **how)


async def simulated(deployment: Spine, agent_name: str, payload: Any, *faults: Fault, seed: str = "s") -> str:
    """Submits one simulated run; its id."""
    job = Job(custom_id=f"job-{seed}", agent=agent_name, input=payload)
    run = new_run(job, "simulated", deployment.store.keys.partitions, simulation=Simulation(seed, faults=faults))
    await deployment.store.submit("simulated", partition_of(run.id), [run])
    return run.id


# Simulation in the engine


async def test_a_simulated_effect_is_recorded_and_never_made(redis_url: str) -> None:
    async with spine(redis_url, parent, child, tools=TOOLS) as deployment:
        await deployment.host()
        record = await deployment.end(await simulated(deployment, "parent", "x"))
        assert output(parent, record) == "True pretended x below"
        assert REAL == []
        entries = await deployment.journal(record.id)
        intents = [decode_intent_facts(entry.facts) for entry in entries if entry.kind == Kind.INTENT]
        receipts = [decode_receipt(entry.facts) for entry in entries if entry.kind == Kind.CALL]
        assert [each.simulated for each in intents] == [True] * 3
        assert [each.state for each in receipts] == ["simulated"] * 3
        assert [each.by for each in receipts] == ["simulate", "simulate", "step 1"]
        # The store's records of effects know nothing of it, and no key is one that a real run would have.
        assert [await deployment.store.effect(each.identity) for each in intents] == [None] * 3
        assert len(PRETENDED) == 3
        real = await deployment.result(parent, "x")
        assert real == "True mailed x below"
        made = await deployment.store.effect(intents[1].identity)
        assert made is None
        assert Counter(real_effects()) == {("pay", "x"): 2, ("mail", "x below"): 1}


async def test_simulated_runs_are_no_real_ones_whatever_their_names(redis_url: str) -> None:
    job = Job(custom_id="a", agent="shop", input="x", idempotency_key="k")
    real = {new_run(job, "b", 8).id, new_run(job.model_copy(update={"idempotency_key": None}), "b", 8).id}
    pretended = new_run(job, "b", 8, simulation=Simulation()).id
    assert pretended not in real
    assert new_run(job, "c", 8, simulation=Simulation()).id != pretended
    assert new_run(job, "b", 8, version="2").digest != new_run(job, "b", 8).digest


async def test_a_tool_that_cannot_be_simulated_is_refused_and_not_called(redis_url: str) -> None:
    async with spine(redis_url, launcher) as deployment:
        await deployment.host()
        said = output(launcher, await deployment.end(await simulated(deployment, "launcher", "x")))
        assert said.startswith("not_permitted simulate= tool 'launch' has no simulate=")
        assert "declare one, as in @tool(..., simulate=" in said
        assert REAL == []


@pytest.mark.parametrize("kind", [FaultKind.NOT_APPLIED, FaultKind.RATE_LIMITED, FaultKind.AMBIGUOUS])
async def test_faults_strike_by_the_seed_and_the_real_tools_policy_decides(redis_url: str, kind: FaultKind) -> None:
    async with spine(redis_url, one_call, tools=TOOLS) as deployment:
        await deployment.host()
        fault = Fault(kind, 0.5, ("pay",))
        runs = [await simulated(deployment, "one-call", "pay", fault, seed=str(n)) for n in range(12)]
        ends = [await deployment.end(run_id) for run_id in runs]
        attempts = []
        for record in ends:
            *_, last = await deployment.journal(record.id)
            attempts.append(last.attempts)
            plan = Simulation(record.custom_id.removeprefix("job-"), faults=(fault,))
            struck = [plan.fault_of_call("pay", "0", attempt) is not None for attempt in range(1, 5)]
            wanted = struck.index(False) + 1 if False in struck else 4
            # Where nobody could say what became of the last attempt, the intent stays open.
            assert last.attempts == wanted or (kind is FaultKind.AMBIGUOUS and False not in struck)
            assert (record.state is RunState.SUCCEEDED) == (False in struck)
        assert len(set(attempts)) > 1
        assert REAL == []


async def test_what_nobody_could_prove_ends_a_simulated_run_and_leaves_nobody_waiting(redis_url: str) -> None:
    async with spine(redis_url, one_call, tools=TOOLS) as deployment:
        await deployment.host()
        record = await deployment.end(await simulated(deployment, "one-call", "mail", Fault(FaultKind.AMBIGUOUS, 1.0)))
        assert record.state is RunState.FAILED
        error = decode_error(record.error)
        assert (error.error_class, error.step, error.ended_by) == ("ConfirmationUnknown", "0", "idempotent=False")


async def test_a_lost_answer_is_found_out_by_a_pretended_reconcile(redis_url: str) -> None:
    async with spine(redis_url, one_call, tools=TOOLS) as deployment:
        await deployment.host()
        fault = Fault(FaultKind.AMBIGUOUS, 0.7)
        seeds = [str(n) for n in range(12)]
        ends = [
            await deployment.end(await simulated(deployment, "one-call", "book", fault, seed=seed)) for seed in seeds
        ]
        states = Counter(record.state for record in ends)
        assert states[RunState.SUCCEEDED] >= 6
        assert RunState.CONFIRMATION_UNKNOWN not in states
        assert REAL == []  # the real reconcile would ask the real world


async def test_a_run_that_is_handed_back_between_steps_is_replayed_and_comes_to_its_end(redis_url: str) -> None:
    async with spine(redis_url, walker, tools=TOOLS) as deployment:
        await deployment.host()
        record = await deployment.end(await simulated(deployment, "walker", "w", Fault(FaultKind.HANDED_BACK, 0.5)))
        assert output(walker, record) == 10
        assert record.fence >= 3
        assert len(PRETENDED) == 5


async def test_a_simulated_run_whose_host_dies_is_pretended_on(redis_url: str) -> None:
    asked = asyncio.Event()

    async def slow(call: ToolCall, what: str) -> str:
        asked.set()
        await asyncio.sleep(0.05 if call.run_id in seen else 30)
        return "done"

    seen: set[str] = set()

    @tool(risk=Risk.WRITE, simulate=slow)
    async def lingers(call: ToolCall, what: str) -> str:
        raise AssertionError("never")

    @agent("lingers", version="1")
    async def lingering(run: Run, what: str) -> str:
        return await run.call(lingers, what)

    async with spine(redis_url, lingering, tools=[lingers]) as deployment:
        host = await deployment.host()
        run_id = await simulated(deployment, "lingers", "x")
        await asked.wait()
        seen.add(run_id)
        await deployment.lose(host)
        await deployment.host()
        assert output(lingering, await deployment.end(run_id)) == "done"
        intents = [entry for entry in await deployment.journal(run_id) if entry.kind == Kind.INTENT]
        assert len(intents) == 1


@agent("asker", version="1")
async def asker(run: Run, _: str) -> str:
    """Wants to do what people have to approve."""
    try:
        return await run.call(wire, 5)
    except ApprovalDenied as denied:
        return f"denied by {denied.ended_by}"


@tool(risk=Risk.IRREVERSIBLE, needs_approval=True, simulate=lambda call, cents: f"pretended {cents}")
async def wire(call: ToolCall, cents: int) -> str:
    REAL.append(("wire", cents))
    return "gone"


@pytest.mark.parametrize(("answer", "said"), [("approve", '"pretended 5"'), ("deny", '"denied by simulated approver"')])
async def test_approvals_are_answered_as_the_specification_says(redis_url: str, answer: str, said: str) -> None:
    async with spine(redis_url, asker, tools=[wire]) as deployment:
        await deployment.host()
        what = spec("asker", "x", approvals=answer, invariants=["one_effect_per_key", "no_write_without_grant"])
        found = await evaluated(deployment, what)
        assert found.holds
        assert [(each.answer, each.runs) for each in found.ours.jobs[0].answers] == [(said, 6)]
        assert REAL == []


# Evaluations


@invariant
def never_pays(run: Any) -> str | None:
    """Nothing is paid."""
    return f"paid at step {run.calls(pay)[0].path}" if run.calls(pay) else None


async def test_paths_that_part_are_counted_and_explained(redis_url: str) -> None:
    async with spine(redis_url, shop, tools=TOOLS) as deployment:
        await deployment.host()
        what = spec("shop", "a", "b", repeat=20, expect={"matches": {"properties": {"paid": {"minLength": 1}}}})
        seen: list[int] = []
        found = await evaluated(deployment, what, on_status=lambda status: seen.append(status.total))
        assert seen[-1] == 40
        assert real_effects() == []
        assert len(REAL) == 40  # reads are really made
        report = found.ours
        assert (report.runs, report.by_state, report.versions) == (40, {"succeeded": 40}, {"shop": "1"})
        for job in report.jobs:
            assert 0 < job.passed < 20  # the chance that it is not is 2 in a million
            assert {way.steps for way in job.ways} == {("look", "pay"), ("look",)}
            assert sum(way.runs for way in job.ways) == 20
            (parting,) = job.partings
            assert (parting.position, parting.path, parting.before) == (1, "2", ("look",))
            assert "random numbers" in parting.because
            assert {each.step: each.passed for each in parting.branches} == {"pay": job.passed, "end: succeeded": 0}
            assert job.agreement == max(job.passed, 20 - job.passed) / 20
            assert job.rate == job.pass_hat[0] == job.passed / 20
        assert report.pass_hat[1] < report.pass_hat[0]
        assert found.holds
        assert found.passes_threshold
        assert report.missed_count == 40 - report.passed


async def test_versions_run_beside_each_other_and_are_compared(redis_url: str) -> None:
    async with spine(redis_url, tools=TOOLS) as deployment:
        await deployment.host(shop)
        what = spec("shop", "a", repeat=20, expect={"matches": {"properties": {"paid": {"minLength": 1}}}})
        with pytest.raises(EvalError, match="no living host serves that version; this deployment has shop@1 only"):
            await evaluated(deployment, what, against="2")
        await deployment.host(better_shop)
        with pytest.raises(EvalError, match="versions 1, 2: say which one"):
            await evaluated(deployment, what)
        found = await evaluated(deployment, what.model_copy(update={"version": "2"}), against="1")
        assert found.other is not None
        assert found.difference is not None
        assert (found.ours.versions, found.other.versions) == ({"shop": "2"}, {"shop": "1"})
        assert found.ours.passed == 20
        assert 0 < found.other.passed < 20
        assert found.difference.p == pytest.approx(fisher_exact(Passes(20, 20), Passes(found.other.passed, 20)))
        assert {way.steps for way in found.ours.jobs[0].ways} == {("look", "pay")}
        with pytest.raises(EvalError, match="version 3 is served by no living host; versions served: 1, 2"):
            await evaluated(deployment, what.model_copy(update={"version": "3"}))
        with pytest.raises(EvalError, match="is the version that is evaluated"):
            await evaluated(deployment, what.model_copy(update={"version": "2"}), against="2")


async def test_broken_invariants_and_thresholds(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.evals.invariants.BUILT_IN", {"never_pays": never_pays})
    async with spine(redis_url, better_shop, tools=TOOLS) as deployment:
        await deployment.host()
        what = spec("shop", "a", invariants=["never_pays"], threshold={"k": 2, "at_least": 0.5})
        found = await evaluated(deployment, what)
        assert not found.holds
        assert not found.passes_threshold
        assert [(each.invariant, each.text) for each in found.ours.violations] == [("never_pays", "paid at step 1")] * 6
        assert found.ours.passed == 0


async def test_reads_are_pretended_where_asked_and_faults_are_the_same_again(redis_url: str) -> None:
    async with spine(redis_url, walker, tools=TOOLS) as deployment:
        await deployment.host()
        faults = [{"kind": "rate_limited", "probability": 0.3}]
        what = spec("walker", "w", simulate_reads=True, seed=3, faults=faults)
        first, again = await evaluated(deployment, what), await evaluated(deployment, what)
        assert REAL == []
        assert first.ours.attempts == again.ours.attempts
        assert first.ours.attempts is not None
        assert first.ours.attempts.maximum > 10
        other = await evaluated(deployment, what.model_copy(update={"seed": 4}))
        assert other.ours.batch != first.ours.batch


async def test_an_app_that_cannot_be_simulated_is_refused_before_anything_runs(redis_url: str) -> None:
    async with spine(redis_url, launcher, shop, tools=(*TOOLS, launch)) as deployment:
        await deployment.host()
        with pytest.raises(EvalError, match="tool launch of launcher@1 changes the world and has no simulate="):
            await evaluated(deployment, spec("launcher", "x"))
        assert await deployment.counts() == {}
        found = await evaluated(deployment, spec("launcher", "x", allow_missing=["launch"]))
        assert found.ours.by_state == {"succeeded": 6}
        assert REAL == []
        with pytest.raises(EvalError, match="nobody in any version is served by no living host"):
            await evaluated(deployment, spec("nobody", "x"))


async def test_an_evaluation_that_takes_too_long_is_cancelled_and_says_what_waits(redis_url: str) -> None:
    async with spine(redis_url, sleeper) as deployment:
        await deployment.host()
        with pytest.raises(WaitTimedOut, match="waits: timer"):
            await evaluated(deployment, spec("sleeper", 600.0, repeat=2, timeout_s=1.0))

        async def all_cancelled() -> bool:
            return await deployment.counts() == {"cancelled": 2}

        await until(all_cancelled)


async def test_children_are_read_too(redis_url: str) -> None:
    async with spine(redis_url, parent, child, tools=TOOLS) as deployment:
        await deployment.host()
        found = await evaluated(deployment, spec("parent", "x", repeat=2))
        assert found.holds
        assert found.ours.steps is not None
        assert found.ours.steps.maximum == 5
        assert found.ours.jobs[0].ways[0].steps == ("pay", "pay", "pay", "spawn child")
