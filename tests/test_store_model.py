"""The store against a model: hosts, alive and dead, current and late, do what they like in any order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from storehouse import FAR_MS, Audit, append, child_of, finish, new, park, settings_for, submit

from cluster.lifecycle import TERMINAL, RunState
from cluster.records import Claim
from cluster.settling import resolve
from cluster.store import Store
from examples import TIMES, examples

HOSTS = ("h0", "h1", "h2")
SERVES = {"h0": ("echo", "1"), "h1": ("echo", "1", "rare", "1"), "h2": ("echo", "2")}
ENDS = (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.CONFIRMATION_UNKNOWN)


@dataclass
class Modelled:
    """What a run should look like."""

    id: str
    agent: str
    batch: str
    state: str = "queued"
    fence: int = 0
    version: int = 2
    host: str = ""
    pinned: str = ""
    journal: list[bytes] = field(default_factory=list)
    cancel: str = ""
    torn: bool = False
    parent: str = ""
    timer: bool = False
    migrations: int = 0
    losses: int = 0
    mark: int = -1

    def go(self, state: str) -> None:
        self.state = state
        self.version += 1

    @property
    def over(self) -> bool:
        return self.state in {state.value for state in TERMINAL}


class StoreMachine(RuleBasedStateMachine):
    """Every rule does the same to the store and to the model, and compares the answers."""

    url: ClassVar[str]
    loop: ClassVar[asyncio.AbstractEventLoop]

    def __init__(self) -> None:
        super().__init__()
        self.store: Store = self.do(Store.open(settings_for(self.url)))
        self.runs: dict[str, Modelled] = {}
        self.claims: list[tuple[str, Claim]] = []
        self.lives = dict.fromkeys(HOSTS, 0)
        self.steps = 0
        self.written = 0

    def teardown(self) -> None:
        keys = self.do(self.store.command("", "KEYS", f"{self.store.keys.name}:*"))
        if keys:
            self.do(self.store.command("", "DEL", *keys))
        self.do(self.store.close())

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def host(self, name: str) -> str:
        return f"{name}~{self.lives[name]}"

    def pick(self, data: st.DataObject) -> tuple[str, Claim, Modelled, bool]:
        """A claim that was made at some time, with the run's model and whether its owner is still that."""
        # The newest are the likeliest to be current; any other is a late owner's.
        back = data.draw(st.one_of(st.integers(1, 4), st.integers(1, 1000)), "claim")
        host, claim = self.claims[-1 - (back - 1) % len(self.claims)]
        run = self.runs[claim.id]
        return host, claim, run, run.state == "running" and run.fence == claim.fence

    def end(self, run: Modelled, state: str) -> None:
        run.go(state)
        parent = self.runs.get(run.parent)
        if run.over and parent is not None and parent.state == "waiting":
            self.wake(parent)
        if run.over and state != "succeeded":
            self.cancel_children(run, "parent ended")

    def wake(self, run: Modelled) -> None:
        run.go("queued")
        run.timer = False

    # What may happen

    @rule(numbers=st.lists(st.integers(0, 30), min_size=1, max_size=6), rare=st.booleans(), batch=st.sampled_from("ab"))
    def submit(self, numbers: list[int], rare: bool, batch: str) -> None:
        agent = "rare" if rare else "echo"
        runs = [new(self.store, str(number), batch=batch, agent=agent) for number in numbers]
        wanted: list[int] = []
        for run in runs:
            known = self.runs.get(run.id)
            wanted.append(1 if known is None else 0 if known.agent == agent else -1)
            if known is None:
                self.runs[run.id] = Modelled(run.id, agent, batch)
        assert self.do(submit(self.store, runs, batch=batch)) == wanted

    @rule(name=st.sampled_from(HOSTS), most=st.integers(1, 8))
    def claim(self, name: str, most: int) -> None:
        host, serves = self.host(name), SERVES[name]
        served = dict(zip(serves[::2], serves[1::2], strict=True))
        left, claims = self.do(self.store.claim(0, host, most, serves))
        for claim in claims:
            run = self.runs[claim.id]
            assert run.state == "queued"
            assert run.agent in served
            assert run.pinned in ("", served[run.agent])
            assert (claim.fence, claim.journal, claim.migrations) == (run.fence + 1, run.journal, run.migrations)
            assert claim.cancel == run.cancel
            assert claim.losses == (run.losses if run.mark == len(run.journal) else 0)
            run.go("running")
            run.fence, run.host, run.pinned = claim.fence, host, served[run.agent]
            self.claims.append((host, claim))
        if left == 0 and len(claims) < most:
            for run in self.runs.values():
                mine = run.agent in served and run.pinned in ("", served[run.agent])
                assert run.state != "queued" or not mine, f"{run} was left out"

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), back=st.integers(-1, 2), entries=st.integers(0, 3))
    def append(self, data: st.DataObject, back: int, entries: int) -> None:
        _, claim, run, current = self.pick(data)
        length = max(0, len(run.journal) - back)
        written = [b"%d" % (self.written + number) for number in range(entries)]
        said = self.do(append(self.store, claim, length, *written))
        if not current:
            assert said == "STALE"
            return
        if length == len(run.journal):
            run.journal += written
            self.steps += entries
            self.written += entries
        assert said == ("GAP" if length > len(run.journal) else "CANCEL" if run.cancel else None)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), right=st.booleans(), again=st.booleans())
    def checkpoint(self, data: st.DataObject, right: bool, again: bool) -> None:
        _, claim, run, current = self.pick(data)
        length = len(run.journal) + (not right)
        self.written += 1
        entry = b"checkpoint %d" % self.written
        for _ in range(1 + again):
            said = self.do(self.store.compact(claim.id, claim.fence, length, entry))
            assert said == ("STALE" if not current else "OK" if right else "GAP")
        if current and right:
            run.journal = [entry]
            self.steps += 1

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), state=st.sampled_from(ENDS))
    def finish(self, data: st.DataObject, state: RunState) -> None:
        host, claim, run, current = self.pick(data)
        again = run.fence == claim.fence and run.state == state.value
        said = self.do(finish(self.store, claim, state, host=host))
        assert said == (None if current or again else "STALE")
        if current:
            self.end(run, state.value)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), due=st.sampled_from([None, 1, FAR_MS]), wait=st.booleans())
    def park(self, data: st.DataObject, due: int | None, wait: bool) -> None:
        host, claim, run, current = self.pick(data)
        children = tuple(each.id for each in self.runs.values() if each.parent == run.id) if wait else ()
        again = run.fence == claim.fence and run.state == "waiting"
        said = self.do(park(self.store, claim, due, *children, host=host))
        if not current:
            assert said == (None if again else "STALE")
        elif run.cancel:
            assert said == "CANCEL"
        else:
            assert said is None
            run.go("waiting")
            run.torn, run.timer = False, due == 1
            if any(self.runs[child].over for child in children):
                self.wake(run)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), number=st.integers(0, 2))
    def spawn(self, data: st.DataObject, number: int) -> None:
        _, claim, _, current = self.pick(data)
        child = child_of(claim, str(number))
        assert self.do(self.store.submit_child(child, parent=claim.id, fence=claim.fence)) == current
        if current and child.id not in self.runs:
            self.runs[child.id] = Modelled(child.id, "echo", "", parent=claim.id)

    @rule()
    def fire(self) -> None:
        due = [run for run in self.runs.values() if run.state == "waiting" and run.timer]
        assert self.do(self.store.fire(0)).due == len(due)
        for run in due:
            self.wake(run)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), blind=st.booleans())
    def release(self, data: st.DataObject, blind: bool) -> None:
        host, claim, run, current = self.pick(data)
        moves = run.state == "running" and run.host == host and (blind or current)
        assert self.do(self.store.release(0, host, "drain", [(claim.id, None if blind else claim.fence)])) == moves
        if moves:
            self.taken(run)

    @rule(name=st.sampled_from(HOSTS), again=st.booleans())
    def die(self, name: str, again: bool) -> None:
        host = self.host(name)
        owned = [run for run in self.runs.values() if run.state == "running" and run.host == host]
        assert self.do(self.store.reap(0, host, most=2)) == len(owned)
        for run in owned:
            run.losses = run.losses + 1 if run.mark == len(run.journal) else 1
            run.mark = len(run.journal)
            run.torn = True
            self.taken(run)
        assert self.do(self.store.claim(0, host, 5, SERVES[name])) is None
        if again:
            assert self.do(self.store.reap(0, host)) == 0
        self.lives[name] += 1

    @precondition(lambda self: any(run.state == "confirmation_unknown" for run in self.runs.values()))
    @rule(data=st.data(), back=st.integers(0, 1), off=st.integers(0, 1), said=st.booleans(), again=st.booleans())
    def resolve(self, data: st.DataObject, back: int, off: int, said: bool, again: bool) -> None:
        unknown = sorted(run.id for run in self.runs.values() if run.state == "confirmation_unknown")
        run = self.runs[data.draw(st.sampled_from(unknown), "run")]
        self.written += said
        entry = b"%d" % self.written if said else b""
        version, length = run.version - back, len(run.journal) + off
        word = self.do(resolve(self.store, run.id, version, length, entry, "why"))
        assert word == ("moved" if back else "journal" if off else "OK")
        if word != "OK":
            return
        run.go("queued")
        run.journal += [entry] * said
        run.torn, run.losses, run.mark = True, 0, -1
        if again:
            word = self.do(resolve(self.store, run.id, version, length, entry, "why"))
            assert word == ("OK" if said else "state")

    def taken(self, run: Modelled) -> None:
        run.go("queued")
        run.fence += 1
        run.migrations += 1

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.runs)), min_size=1, max_size=3), "runs")
        assert self.do(self.store.cancel(0, "why", chosen)) == [
            self.cancelled(self.runs[each], "why") for each in chosen
        ]

    def cancelled(self, run: Modelled, reason: str) -> str:
        if run.over:
            answer = "ended"
        elif run.state == "confirmation_unknown":
            run.cancel = reason
            answer = "unknown"
        elif run.state == "running" or run.torn:
            run.cancel = reason
            answer = "asked"
        else:
            self.end(run, "cancelled")
            return "cancelled"
        self.cancel_children(run, reason)
        return answer

    def cancel_children(self, run: Modelled, reason: str) -> None:
        for child in [each for each in self.runs.values() if each.parent == run.id]:
            self.cancelled(child, reason)

    # What must always be true

    @invariant()
    def the_store_agrees_with_itself_and_with_the_model(self) -> None:
        audit = Audit(self.store)
        audit.check()
        assert audit.runs.keys() == self.runs.keys()
        for run in self.runs.values():
            there = audit.runs[run.id]
            assert (there["state"], int(there["fence"]), int(there["version"])) == (run.state, run.fence, run.version)
            assert audit.journal(run.id) == run.journal
            assert int(there.get("migrations", 0)) == run.migrations
            assert (("torn" in there), there.get("cancel", "")) == (run.torn, run.cancel)
            if run.state == "running":
                assert there["host"] == run.host
        counted = audit.counts["00"].get("counts", {})
        assert counted.get("steps", 0) == self.steps


@pytest.mark.timeout(120 * TIMES)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_the_store_does_what_the_model_does(redis_url: str) -> None:
    with asyncio.Runner() as runner:
        StoreMachine.url = redis_url
        StoreMachine.loop = runner.get_loop()
        profile = settings(
            max_examples=examples(12),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        )
        run_state_machine_as_test(StoreMachine, settings=profile)
