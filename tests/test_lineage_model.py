"""Lineages against a model: branches that fork, are promoted, crash and cause the same effects, in any order.

Every effect goes through the real scripts as engines do it: intent and begin together, call, settle, journal. The world
outside counts what was applied. Whatever happens, no logical intent is applied twice, and no two branches of a lineage
may append intents.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from family import call, chained, child_of, entry, fork_of, intent, is_chained, job
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from storehouse import Audit, finish, new, settings_for, submit

from actors.core.forking import START
from actors.journal import Entry, Kind, Status, decode_entry, first_link, link_of
from cluster import lineage, reader
from cluster.keys import effect_identity, lineage_root
from cluster.lifecycle import TERMINAL
from cluster.records import Append, Claim, EffectBegun
from cluster.store import Store
from examples import TIMES, examples

HOSTS = ("h0", "h1")
STEPS = 3
WORKS = ("alike", "alike", "otherwise")


@dataclass
class Branch:
    """What a run should look like, and how far its owner is with the effect that it is at."""

    id: str
    line: str
    works: str
    parent: str = ""
    entitled: bool = True
    claim: Claim | None = None
    host: str = ""
    phase: str = "new"
    over: bool = False
    is_branch: bool = False


class LineageMachine(RuleBasedStateMachine):
    """Each rule does one thing that a host or a person may do next."""

    url: ClassVar[str]
    loop: ClassVar[asyncio.AbstractEventLoop]

    def __init__(self) -> None:
        super().__init__()
        self.store: Store = self.do(Store.open(settings_for(self.url)))
        self.runs: dict[str, Branch] = {}
        self.holders: dict[str, str] = {}
        self.lives = dict.fromkeys(HOSTS, 0)
        self.late: list[Claim] = []
        self.applied: Counter[str] = Counter()
        self.number = self.roots = 0

    def teardown(self) -> None:
        keys = self.do(self.store.command("", "KEYS", f"{self.store.keys.name}:*"))
        if keys:
            self.do(self.store.command("", "DEL", *keys))
        self.do(self.store.close())

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def journal(self, run_id: str) -> list[Entry]:
        return [decode_entry(raw) for raw in self.do(reader.journal(self.store, run_id))]

    def step(self, run: Branch) -> int:
        """The first step that the run's journal has not closed."""
        return sum(each.kind == Kind.CALL and each.status != Status.OPEN for each in self.journal(run.id))

    def identity(self, run: Branch, step: int) -> str:
        return effect_identity("default", "step", run.line, str(step), "pay")

    def is_open(self, run_id: str) -> bool:
        last = {each.step: each.kind for each in self.journal(run_id)}
        return Kind.INTENT.value in last.values()

    def write(self, run: Branch, raw: bytes) -> str | None:
        claim = run.claim
        assert claim is not None
        before = self.do(reader.journal(self.store, run.id))
        (sealed,) = chained(link_of(before[-1]) if before else first_link(run.id, claim.job), [raw])
        intents = int(decode_entry(raw).kind == Kind.INTENT)
        said: dict[str, str] = self.do(
            self.store.append(0, [Append(run.id, claim.fence, len(before), 1, [sealed], intents)])
        )
        return said.get(run.id)

    def begin(self, run: Branch, step: int, void: str = "") -> EffectBegun:
        claim = run.claim
        assert claim is not None
        identity = self.identity(run, step)
        made = self.do(
            self.store.begin_effect(identity, f"{run.id}:{step}", claim.fence, run.works, "pay", "k", void_owner=void)
        )
        if made.word == "busy" and not void and self.is_void(made.owner):
            return self.begin(run, step, made.owner)
        assert isinstance(made, EffectBegun)
        return made

    def is_void(self, owner: str) -> bool:
        """As engines find it out: its owner can never cause the effect."""
        record = self.do(reader.record(self.store, owner.partition(":")[0]))
        return record is None or record.state in TERMINAL or (record.readonly and not self.is_open(record.id))

    # What hosts do

    @precondition(lambda self: self.roots < 2)
    @rule()
    def submit(self) -> None:
        self.number, self.roots = self.number + 1, self.roots + 1
        run = new(self.store, str(self.number), job=job())
        assert self.do(submit(self.store, [run])) == [1]
        self.runs[run.id] = Branch(run.id, run.id, "alike")

    @rule(name=st.sampled_from(HOSTS))
    def claim(self, name: str) -> None:
        host = f"{name}~{self.lives[name]}"
        _, claims = self.do(self.store.claim(0, host, 100, ("echo", "1")))
        for claim in claims:
            run = self.runs[claim.id]
            assert claim.readonly is not run.entitled
            assert is_chained(first_link(run.id, claim.job), claim.journal)
            run.claim, run.host = claim, host
            run.phase = "resumes" if self.is_open(run.id) else "new"

    @rule(name=st.sampled_from(HOSTS))
    def crash(self, name: str) -> None:
        host = f"{name}~{self.lives[name]}"
        self.do(self.store.reap(0, host))
        self.lives[name] += 1
        for run in self.runs.values():
            if run.claim is not None and run.host == host:
                self.late.append(run.claim)
                run.claim = None

    def owned(self, data: st.DataObject) -> Branch | None:
        found = [run for run in self.runs.values() if run.claim is not None and not run.over]
        return data.draw(st.sampled_from(found)) if found else None

    @rule(data=st.data(), most=st.integers(1, 4))
    def advance(self, data: st.DataObject, most: int) -> None:
        """The owner of some run gets on with its effect, by as much as it can before something else happens."""
        run = self.owned(data)
        for _ in range(most if run is not None else 0):
            assert run is not None
            step = self.step(run)
            if step >= STEPS or run.over:
                return
            getattr(self, f"when_{run.phase}")(run, step)

    def when_new(self, run: Branch, step: int) -> None:
        begun: EffectBegun | None = None
        if step % 2:  # both go out together: either may be first
            begun = self.begin(run, step)
        said = self.write(run, intent(str(step)))
        begun = begun or self.begin(run, step)
        assert said == (None if run.entitled else "READONLY"), (run, said)
        if said is None:
            self.decide(run, step, begun, "begun" if begun.word in ("new", "mine") else begun.word)

    def when_resumes(self, run: Branch, step: int) -> None:
        begun = self.begin(run, step)
        lost = self.applied[self.identity(run, step)] > 0 if begun.word == "mine" else False
        self.decide(run, step, begun, "called" if lost else "begun" if begun.word in ("new", "mine") else begun.word)

    def decide(self, run: Branch, step: int, begun: EffectBegun, phase: str) -> None:
        if phase == "done":
            assert self.applied[self.identity(run, step)] == 1
            assert self.write(run, call(str(step), applied=True)) is None
            phase = "new"
        elif phase in ("busy", "unknown", "conflict"):
            if phase == "conflict":
                assert begun.arguments != run.works
            assert self.write(run, entry(Kind.CALL, str(step), Status.OPEN, b"{}")) is None
            phase = "new"
        assert phase in ("new", "begun", "called"), phase
        run.phase = phase

    def when_begun(self, run: Branch, step: int) -> None:
        self.applied[self.identity(run, step)] += 1
        run.phase = "called"

    def when_called(self, run: Branch, step: int) -> None:
        assert run.claim is not None
        owner = f"{run.id}:{step}"
        assert self.do(
            self.store.settle_effect(
                self.identity(run, step), owner, run.claim.fence, "applied", b'{"state":"applied"}'
            )
        )
        run.phase = "settled"

    def when_settled(self, run: Branch, step: int) -> None:
        assert self.write(run, call(str(step), applied=True)) is None
        run.phase = "new"

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def late_owner_writes(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.late))
        length = len(self.do(reader.journal(self.store, claim.id)))
        said = self.do(self.store.append(0, [Append(claim.id, claim.fence, length, 0, [intent("0")], 1)]))
        assert said == {claim.id: "STALE"}

    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        run = self.owned(data)
        if run is not None and run.phase == "new":
            assert run.claim is not None
            assert self.do(finish(self.store, run.claim, host=run.host)) is None
            run.over, run.claim = True, None

    @precondition(lambda self: len(self.runs) < 12)
    @rule(data=st.data(), number=st.sampled_from([0, 0, 1]))
    def spawn(self, data: st.DataObject, number: int) -> None:
        run = self.owned(data)
        if run is None or "/" in run.line:
            return
        assert run.claim is not None
        child = child_of(run.claim, f"9{number}")
        assert self.do(self.store.submit_child(child, parent=run.id, fence=run.claim.fence))
        if child.id not in self.runs:
            line = f"{run.line}/9{number}"
            free = self.holders.get(line, child.id) == child.id
            self.runs[child.id] = Branch(child.id, line, run.works, run.id, run.entitled and free)

    # What people do

    @precondition(lambda self: self.runs and len(self.runs) < 12)
    @rule(data=st.data(), works=st.sampled_from(WORKS))
    def fork(self, data: st.DataObject, works: str) -> None:
        # Forks of child runs are the rarest and have the most to go wrong.
        children = sorted(each.id for each in self.runs.values() if each.parent)
        source = self.runs[data.draw(st.sampled_from([*sorted(self.runs), *children, *children]))]
        steps = sorted({each.step for each in self.journal(source.id)})
        at = data.draw(st.sampled_from([START, *steps]))
        self.number += 1
        run_id, answer = self.do(fork_of(self.store, source.id, at, str(self.number)))
        assert answer == 1
        self.runs[run_id] = Branch(run_id, source.line, works, entitled=False, is_branch=True)
        for each in (source.id, lineage_root(source.line)):
            self.runs[each].is_branch = True

    def tree(self, top: str) -> set[str]:
        below = {each.id for each in self.runs.values() if each.parent == top}
        return {top}.union(*(self.tree(each) for each in below))

    @precondition(lambda self: any(run.is_branch for run in self.runs.values()))
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        branch = self.runs[data.draw(st.sampled_from(sorted(each.id for each in self.runs.values() if each.is_branch)))]
        mine = self.tree(branch.id)
        covered = {line for line in {e.line for e in self.runs.values()} if f"{line}/".startswith(f"{branch.line}/")}
        losers = [e for e in self.runs.values() if e.entitled and e.line in covered and e.id not in mine]
        busy = {each.id for each in losers if not each.over and self.is_open(each.id)}
        answer = self.do(lineage.promote(self.store, branch.id, "ann", "why"))
        if branch.over:
            assert answer.word == "ended"
        elif busy:
            assert answer.word == "busy"
            assert answer.more[0] in busy
        elif not losers and all(self.runs[each].entitled for each in mine):
            assert answer.word == "owner"
        else:
            assert answer.word == "promoted"
            assert set(answer.more) == {each.id for each in losers if each.line == branch.line}
            for each in losers:
                each.entitled = False
            for one in mine:
                self.runs[one].entitled = True
            self.holders = {line: run for line, run in self.holders.items() if line not in covered}
            self.holders[branch.line] = branch.id

    # What must always be true

    @invariant()
    def nothing_is_applied_twice(self) -> None:
        assert max(self.applied.values(), default=0) <= 1, self.applied

    @invariant()
    def one_branch_of_a_lineage_may_cause_effects(self) -> None:
        audit = Audit(self.store)
        audit.check()
        assert audit.runs.keys() == self.runs.keys()
        for run in self.runs.values():
            assert ("readonly" not in audit.runs[run.id]) is run.entitled, run
            assert audit.lineage(run.id) == run.line
            if not run.entitled:
                assert not self.is_open(run.id), f"{run} has an open intent"
            for each in self.journal(run.id):
                if each.kind == Kind.CALL and each.status == Status.OK:
                    assert self.applied[self.identity(run, int(each.step))] == 1, (run, each)


@pytest.mark.timeout(120 * TIMES)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_lineages_do_what_the_model_does(redis_url: str) -> None:
    with asyncio.Runner() as runner:
        LineageMachine.url = redis_url
        LineageMachine.loop = runner.get_loop()
        profile = settings(
            max_examples=examples(12),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        )
        run_state_machine_as_test(LineageMachine, settings=profile)
