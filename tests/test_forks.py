"""Forks end to end: real hosts, a real server, a client, and a world that counts what was done to it."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hosting import Spine, output, spine, until
from pydantic import BaseModel

from actors.journal import Kind, decode_error
from actors.receipts import decode_receipt
from cluster.lifecycle import RunState
from penstock import Client, Risk, Run, ToolCall, agent, tool
from penstock.errors import CannotFork, CannotPromote, NoSuchRun
from penstock.lineage_views import LineageNode


class World:
    """What was done to it, and where it makes the first one who comes wait."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.keys: defaultdict[str, list[str]] = defaultdict(list)
        self.undone: list[str] = []
        self.reads = 0
        self.held: dict[str, asyncio.Event] = {}
        self.reached: set[str] = set()

    async def pass_by(self, place: str) -> None:
        first = place not in self.reached
        self.reached.add(place)
        if first and place in self.held:
            await self.held[place].wait()

    def hold(self, *places: str) -> None:
        self.held |= {place: asyncio.Event() for place in places}

    def let_go(self, *places: str) -> None:
        for place in places:
            self.held.pop(place).set()


WORLD = World()


@pytest.fixture(autouse=True)
def world() -> World:
    WORLD.__init__()  # type: ignore[misc]
    return WORLD


class Order(BaseModel):
    id: str
    text: str = "sorry"


async def unsay(call: ToolCall, result: str | None, text: str) -> None:
    WORLD.undone.append(text)


@tool(timeout=30)
async def look(call: ToolCall, place: str) -> str:
    WORLD.reads += 1
    await WORLD.pass_by(place)
    return f"seen {place}"


@tool(risk=Risk.WRITE, compensate=unsay, timeout=30)
async def pay(call: ToolCall, text: str) -> str:
    await WORLD.pass_by(f"pay {text}")
    WORLD.done[f"pay {text}"] += 1
    WORLD.keys[f"pay {text}"].append(call.idempotency_key)
    return f"paid {text} as {call.run_id}"


@tool(risk=Risk.WRITE, compensate=unsay, timeout=30)
async def mail(call: ToolCall, text: str) -> str:
    await WORLD.pass_by(f"mail {text}")
    WORLD.done[f"mail {text}"] += 1
    return f"mailed {text} as {call.run_id}"


@agent("desk", version="1")
async def desk(run: Run, order: Order) -> list[str]:
    """0 look, 1 pay, 2 look, 3 mail."""
    said = [await run.call(look, "file"), await run.call(pay, order.id)]
    await run.call(look, "counter")
    return [*said, await run.call(mail, order.text)]


@agent("desk", version="2")
async def second_desk(run: Run, order: Order) -> list[str]:
    """Looks where it is mailed to."""
    return [*await desk.function(run, order), await run.call(look, "after")]


@agent("failing", version="1")
async def failing(run: Run, order: Order) -> None:
    await run.call(pay, order.id)
    await run.call(look, "before the end")
    await run.call(mail, order.text)
    raise ValueError("no way to go on")


@agent("failing", version="2")
async def better(run: Run, order: Order) -> str:
    return await run.call(pay, order.id)


@agent("both", version="1")
async def both(run: Run, order: Order) -> list[str]:
    await run.call(look, "counter")

    async def rest() -> str:
        await run.sleep(0.01)
        return await run.call(look, "beside")

    return list(await asyncio.gather(run.call(mail, order.text), rest(), rest()))


@agent("clerk", version="1")
async def clerk(run: Run, text: str) -> str:
    return await run.call(mail, text)


@agent("boss", version="1")
async def boss(run: Run, order: Order) -> str:
    await run.call(look, "file")
    return await run.spawn(clerk, order.text)


@agent("keeper", version="1")
async def keeper(run: Run, order: Order) -> list[str]:
    if run.state is None:
        paid = await run.call(pay, order.id)
        await run.call(look, "file")
        await run.checkpoint([paid])
    await run.call(look, "after")
    return [*run.state, await run.call(mail, order.text)]


AGENTS = (desk, failing, both, clerk, boss, keeper)


@pytest.fixture
async def deployment(redis_url: str) -> AsyncIterator[Spine]:
    async with spine(redis_url, *AGENTS, tools=[look, pay, mail]) as made:
        yield made


@pytest.fixture
async def client(deployment: Spine) -> AsyncIterator[Client]:
    async with Client(settings=deployment.settings) as made:
        yield made


async def has_reached(place: str) -> None:
    await until(lambda: place in WORLD.reached, f"{place} reached")


async def promotion_is_due(deployment: Spine, run_id: str) -> None:
    record = await deployment.waits(run_id)
    assert (record.reason, record.readonly) == ("promotion", True)


async def ended(deployment: Spine, agent_: Any, payload: Any) -> str:
    run_id = await deployment.submit(agent_, payload)
    assert (await deployment.end(run_id)).state is RunState.SUCCEEDED
    return run_id


def step_of(view: Any, step: str) -> Any:
    return next(each for each in reversed(view.journal) if each.step == step)


ORDER = {"id": "17"}


# -------------------------------------------------------------------------------------------------------- receipts


async def test_a_fork_inherits_what_was_done_and_waits_to_be_promoted(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await ended(deployment, desk, ORDER)
    report = await client.fork(run_id, "3", by="ann", why="what else could it say?")
    assert (report.made, report.inherited, report.may_cause_effects, report.at_risk) == (True, 4, False, False)
    fork = report.run_id
    await promotion_is_due(deployment, fork)
    assert WORLD.reads == 2
    why = await client.why(fork)
    assert f"penstock promote {fork} --why" in why.next
    assert f"penstock lineage {fork}" in why.owner
    promoted = await client.promote(fork, why="go on", by="ben")
    assert (promoted.changed, promoted.from_) == (True, (run_id,))
    said = output(desk, await deployment.end(fork))
    # The same logical effect: its receipt is inherited, also where the fork comes to it anew.
    assert said == ["seen file", f"paid 17 as {run_id}", f"mailed sorry as {run_id}"]
    assert WORLD.done == {"pay 17": 1, "mail sorry": 1}
    entries = await deployment.journal(fork)
    receipts = [decode_receipt(each.facts) for each in entries if each.kind == Kind.CALL and each.facts]
    assert [(each.state, each.by) for each in receipts] == [("applied", f"run {run_id}")] * 2
    view = await client.show(fork)
    assert (view.forked_from, view.forked_at, view.forked_by, view.root) == (run_id, "3", "ann", run_id)
    assert view.may_cause_effects


async def test_a_fork_that_would_do_it_otherwise_stops_for_a_person(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await ended(deployment, desk, ORDER)
    report = await client.fork(run_id, "3", input={"id": "17", "text": "no"})
    assert report.at_risk
    await promotion_is_due(deployment, report.run_id)
    await client.promote(report.run_id, why="say it otherwise")
    record = await deployment.end(report.run_id)
    assert record.state is RunState.CONFIRMATION_UNKNOWN
    assert run_id in decode_error(record.error).message
    assert WORLD.done == {"pay 17": 1, "mail sorry": 1}


async def test_another_input_that_leads_elsewhere_ends_the_fork_and_nothing_else(
    deployment: Spine, client: Client
) -> None:
    await deployment.host()
    run_id = await ended(deployment, desk, ORDER)
    before = await deployment.record(run_id), await deployment.journal(run_id)
    report = await client.fork(run_id, "3", input={"id": "18"})
    record = await deployment.end(report.run_id)
    assert (record.state, record.reason) == (RunState.FAILED, "replay_divergence")
    assert (await deployment.record(run_id), await deployment.journal(run_id)) == before
    assert (WORLD.done, WORLD.undone) == ({"pay 17": 1, "mail sorry": 1}, [])
    anew = await client.fork(run_id, "start", input={"id": "18", "text": "no"})
    assert (anew.at_risk, anew.inherited) == (False, 0)
    await promotion_is_due(deployment, anew.run_id)


async def test_a_fork_that_fails_undoes_nothing_that_it_has_not_done(deployment: Spine, client: Client) -> None:
    await deployment.host()
    WORLD.hold("before the end")
    run_id = await deployment.submit(failing, ORDER)
    await has_reached("before the end")
    fork = (await client.fork(run_id, "now")).run_id
    await promotion_is_due(deployment, fork)
    await client.promote(fork, why="it goes on")
    WORLD.let_go("before the end")
    record = await deployment.end(fork)
    assert record.state is RunState.FAILED
    error = decode_error(record.error)
    assert error.undone == ["mail at step 2"]
    assert error.still_applied == [f"pay at step 0 (it was caused by run {run_id})"]
    assert WORLD.undone == ["sorry"]
    # Its source has lost the right; what it has done the fork has counted on.
    await promotion_is_due(deployment, run_id)
    assert await deployment.cancel(run_id) == "asked"
    error = decode_error((await deployment.end(run_id)).error)
    assert error.still_applied == ["pay at step 0 (another branch has the right to effects)"]
    assert WORLD.undone == ["sorry"]


async def test_a_past_that_was_undone_is_not_forked(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await deployment.submit(failing, ORDER)
    await deployment.end(run_id)
    with pytest.raises(CannotFork, match=r"the effect of step 0 was undone later, by step 0!undo: fork at step 0"):
        await client.fork(run_id, "2")


async def test_what_was_undone_is_done_anew_and_with_another_key(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await deployment.submit(failing, ORDER)
    await deployment.end(run_id)
    assert WORLD.undone == ["sorry", "17"]
    forks = [(await client.fork(run_id, "0")).run_id for _ in range(2)]
    for fork in forks:
        await promotion_is_due(deployment, fork)
    for done, fork in enumerate(forks, 2):
        await client.promote(fork, why="once more")
        await deployment.end(fork)
        # The first receipt is of what is not there any more, and so is the second one's by then.
        assert WORLD.done == {"pay 17": done, "mail sorry": done}
        assert WORLD.undone == ["sorry", "17"] * done
    assert len(set(WORLD.keys["pay 17"])) == 3, "a remote that knows the key would answer as if it were still done"


async def test_what_was_undone_and_done_anew_is_inherited_by_the_next(deployment: Spine, client: Client) -> None:
    await deployment.host(failing)
    run_id = await deployment.submit(failing, ORDER)
    await deployment.end(run_id)
    await deployment.host(better)
    first, second = [(await client.fork(run_id, "0", version="2")).run_id for _ in range(2)]
    for fork in (first, second):
        await promotion_is_due(deployment, fork)
    await client.promote(first, why="the fix")
    assert output(better, await deployment.end(first)) == f"paid 17 as {first}"
    await client.promote(second, why="again")
    assert output(better, await deployment.end(second)) == f"paid 17 as {first}"
    assert WORLD.done["pay 17"] == 2
    (key,) = {decode_receipt(each.facts).key for each in await deployment.journal(first) if each.kind == Kind.CALL}
    assert key == WORLD.keys["pay 17"][1]


# ------------------------------------------------------------------------------------------------- the right to effects


async def test_the_right_goes_over_and_back_and_nothing_is_done_twice(deployment: Spine, client: Client) -> None:
    await deployment.host()
    WORLD.hold("counter")
    run_id = await deployment.submit(desk, ORDER)
    await has_reached("counter")
    fork = (await client.fork(run_id, "now")).run_id
    assert (await client.promote(fork, why="this one")).from_ == (run_id,)
    assert output(desk, await deployment.end(fork))[2] == f"mailed sorry as {fork}"
    WORLD.let_go("counter")
    # It believed to have the right until it wrote its intent.
    await promotion_is_due(deployment, run_id)
    with pytest.raises(CannotPromote, match="has ended"):
        await client.promote(fork, why="again")
    await client.promote(run_id, why="that one after all")
    assert output(desk, await deployment.end(run_id))[2] == f"mailed sorry as {fork}"
    assert WORLD.done == {"pay 17": 1, "mail sorry": 1}


async def test_an_effect_under_way_holds_a_promotion_up(deployment: Spine, client: Client) -> None:
    await deployment.host()
    WORLD.hold("mail sorry")
    run_id = await deployment.submit(desk, ORDER)
    await has_reached("mail sorry")
    fork = (await client.fork(run_id, "2")).run_id
    with pytest.raises(CannotPromote, match=f"run {run_id} has an effect under way at step 3"):
        await client.promote(fork, why="now")
    WORLD.let_go("mail sorry")
    await deployment.end(run_id)
    await client.promote(fork, why="now")
    assert output(desk, await deployment.end(fork))[2] == f"mailed sorry as {run_id}"
    assert WORLD.done["mail sorry"] == 1


async def test_a_run_that_loses_its_right_while_it_writes_does_the_rest_of_its_work(
    deployment: Spine, client: Client
) -> None:
    await deployment.host()
    WORLD.hold("counter")
    run_id = await deployment.submit(both, ORDER)
    await has_reached("counter")
    fork = (await client.fork(run_id, "start")).run_id
    await client.promote(fork, why="this one")
    WORLD.let_go("counter")
    await deployment.end(fork)
    await promotion_is_due(deployment, run_id)
    assert sum(each.name == "look" for each in await deployment.journal(run_id)) == 3
    await client.promote(run_id, why="that one")
    assert output(both, await deployment.end(run_id)) == [f"mailed sorry as {fork}", "seen beside", "seen beside"]
    assert WORLD.done == {"mail sorry": 1}


async def test_a_waiting_branch_survives_its_host(deployment: Spine, client: Client) -> None:
    host = await deployment.host()
    run_id = await ended(deployment, desk, ORDER)
    fork = (await client.fork(run_id, "1")).run_id
    await promotion_is_due(deployment, fork)
    await deployment.lose(host)
    await client.promote(fork, why="now")
    await deployment.host()
    assert output(desk, await deployment.end(fork))[1] == f"paid 17 as {run_id}"


async def test_a_waiting_branch_can_be_cancelled(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await ended(deployment, desk, ORDER)
    fork = (await client.fork(run_id, "1")).run_id
    await promotion_is_due(deployment, fork)
    assert await client.cancel(fork) == 1
    record = await deployment.end(fork)
    assert (record.state, WORLD.undone) == (RunState.CANCELLED, [])


# ---------------------------------------------------------------------------------------------------------- child runs


async def test_child_runs_go_with_their_branch(deployment: Spine, client: Client) -> None:
    await deployment.host()
    WORLD.hold("mail sorry")
    run_id = await deployment.submit(boss, ORDER)
    await has_reached("mail sorry")
    fork = (await client.fork(run_id, "1")).run_id
    await deployment.waits(fork)
    view = await client.lineage(fork)
    child = next(node for node in view.nodes() if node.relation == "child" and not node.may_cause_effects)
    await promotion_is_due(deployment, child.run_id)
    mine = next(node for node in view.nodes() if node.relation == "child" and node.may_cause_effects)
    with pytest.raises(CannotPromote, match=f"run {mine.run_id} has an effect under way at step 0"):
        await client.promote(fork, why="now")
    with pytest.raises(CannotPromote, match=f"child of run {fork}"):
        await client.promote(child.run_id, why="now")
    WORLD.let_go("mail sorry")
    assert output(boss, await deployment.end(run_id)) == f"mailed sorry as {mine.run_id}"
    await client.promote(fork, why="now")
    assert output(boss, await deployment.end(fork)) == f"mailed sorry as {mine.run_id}"
    assert WORLD.done == {"mail sorry": 1}
    after = await client.fork(run_id, "1", key="later")
    assert after.left_open == ()


async def test_a_fork_of_a_child_run_wakes_no_parent(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await ended(deployment, boss, ORDER)
    (child,) = (await client.lineage(run_id)).root.below
    fork = (await client.fork(child.run_id, "0")).run_id
    await promotion_is_due(deployment, fork)
    await client.promote(fork, why="once more")
    assert output(clerk, await deployment.end(fork)) == f"mailed sorry as {child.run_id}"
    assert WORLD.done == {"mail sorry": 1}


# ----------------------------------------------------------------------------------------------- versions, checkpoints


async def test_a_fork_may_go_on_in_another_version(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await ended(deployment, desk, ORDER)
    with pytest.raises(CannotFork, match=r"version '2' of agent 'desk' is not served here; versions: 1"):
        await client.fork(run_id, "3", version="2")
    await deployment.host(second_desk)
    report = await client.fork(run_id, "3", version="2")
    assert report.agent_version == "2"
    await promotion_is_due(deployment, report.run_id)
    await client.promote(report.run_id, why="try it")
    assert output(second_desk, await deployment.end(report.run_id))[-1] == "seen after"


async def test_forks_before_and_after_a_checkpoint_and_their_trails(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await ended(deployment, keeper, ORDER)
    late = (await client.fork(run_id, "c1.1")).run_id
    early = (await client.fork(run_id, "1")).run_id
    nested = (await client.fork(late, "c1.0")).run_id
    for fork, mailed in ((late, True), (early, True), (nested, True)):
        await until(lambda fork=fork: _is_waiting(deployment, fork))  # type: ignore[misc]
        await client.promote(fork, why="all of them")
        said = output(keeper, await deployment.end(fork))
        assert said == [f"paid 17 as {run_id}", f"mailed sorry as {run_id}"], (fork, mailed)
    assert WORLD.done == {"pay 17": 1, "mail sorry": 1}
    for each, source in ((late, run_id), (early, run_id), (nested, late)):
        verification = await client.verify_trail(each)
        assert verification.holds, verification
        assert any(f"forked from run {source}" in note for note in verification.notes), verification.notes


async def _is_waiting(deployment: Spine, run_id: str) -> bool:
    return (await deployment.record(run_id)).state is RunState.WAITING


# ------------------------------------------------------------------------------------------------------------- lineages


async def test_a_lineage_is_a_tree_with_all_that_happened_in_it(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await ended(deployment, boss, ORDER)
    first = (await client.fork(run_id, "1", by="ann", why="first")).run_id
    second = (await client.fork(first, "start", by="ben", why="second")).run_id
    for each in (first, second):
        await deployment.waits(each)
    await client.promote(second, why="the better one", by="ann")
    await deployment.end(second)
    for asked in (run_id, first, second):
        view = await client.lineage(asked)
        assert view.run_id == asked
        root = view.root
        assert (root.run_id, root.relation, root.may_cause_effects) == (run_id, "root", False)
        assert root.demoted is not None
        assert root.demoted.run == second
        by_id: dict[str, LineageNode] = {node.run_id: node for node in view.nodes()}
        assert len(by_id) == 6
        assert {node.run_id for node in root.below if node.relation == "fork"} == {first}
        assert second in {node.run_id for node in by_id[first].below}
        assert (by_id[second].at, by_id[second].by, by_id[second].why) == ("start", "ben", "second")
        assert [node.run_id for node in view.nodes() if node.may_cause_effects and node.relation != "child"] == [second]
        assert [(note.run, note.from_, note.by, note.why) for note in view.promotions] == [
            (second, (run_id,), "ann", "the better one")
        ]
    alone = await ended(deployment, desk, ORDER)
    view = await client.lineage(alone)
    assert (view.root.run_id, view.root.below, view.root.may_cause_effects) == (alone, (), True)


async def test_a_source_that_is_forgotten_leaves_a_place(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await ended(deployment, desk, ORDER)
    middle = (await client.fork(run_id, "3")).run_id
    last = (await client.fork(middle, "1")).run_id
    for each in (middle, last):
        await promotion_is_due(deployment, each)
    keys = deployment.store.keys
    await deployment.store.command(keys.run(middle), "DEL", keys.run(middle), keys.journal(middle))
    view = await client.lineage(last)
    by_id = {node.run_id: node for node in view.nodes()}
    assert by_id[middle].state == "forgotten"
    assert [node.run_id for node in by_id[middle].below] == [last]
    with pytest.raises(NoSuchRun):
        await client.fork(middle, "1")
    await client.promote(last, why="it is there")


async def test_bad_wishes_make_nothing(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await ended(deployment, desk, ORDER)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"at": "33"}, r"no step '33'; did you mean 3"),
        ({"at": "1", "input": {"text": 3}}, "the input cannot be taken: .*input"),
        ({"at": "1", "input": {"id": "x" * 300_000}}, "PENSTOCK_PAYLOAD_LIMIT_BYTES"),
        ({"at": "1", "version": "9"}, "version '9'"),
    ]
    for wish, message in wrong:
        with pytest.raises(CannotFork, match=message):
            await client.fork(run_id, **wish)
    with pytest.raises(NoSuchRun):
        await client.fork("00-0123456789abcdef01234567", "1")
    waiting = await deployment.submit("nobody", None)
    with pytest.raises(CannotPromote, match="no other branches"):
        await client.promote(waiting, why="w")
    with pytest.raises(ValueError, match="why must say something"):
        await client.promote(run_id, why=" ")
    assert len((await client.lineage(run_id)).nodes()) == 1
    first = await client.fork(run_id, "3", key="mine")
    again = await client.fork(run_id, "3", key="mine", by="somebody else")
    assert (again.run_id, again.made) == (first.run_id, False)
    with pytest.raises(CannotFork, match="key 'mine' stands for another fork"):
        await client.fork(run_id, "1", key="mine")
