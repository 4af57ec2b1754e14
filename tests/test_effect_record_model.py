"""An effect's record against a model: owners of several runs, current and late, concurrent, and calls sent twice."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from storehouse import settings_for

from actors.receipts import APPLIED, NOT_APPLIED, UNDONE, UNKNOWN
from cluster.records import EffectBegun
from cluster.store import Store
from examples import TIMES, examples

IDENTITIES = ("one", "two")
OWNERS = ("run-a:0", "run-b:0", "run-c:3")
SETTLED = (APPLIED, NOT_APPLIED, UNKNOWN, UNDONE)
FREE = ("", NOT_APPLIED, UNDONE)


@dataclass(frozen=True)
class Record:
    """What the record of one effect should hold."""

    state: str = ""
    owner: str = ""
    fence: int = 0
    arguments: str = ""
    receipt: bytes = b""
    undone: int = 0
    key: str = ""

    def begun_by(self, owner: str, fence: int, arguments: str) -> Record:
        """The record once somebody has begun it anew: with another key each time that it was undone."""
        key = hashlib.sha1(b"key:%d" % self.undone).hexdigest()[:24] if self.undone else "key"
        return Record("begun", owner, fence, arguments, undone=self.undone, key=key)


@dataclass(frozen=True)
class Begin:
    identity: str
    owner: str
    fence: int
    arguments: str
    void: str

    def after(self, there: Record) -> tuple[str, Record]:
        """The word that the store should say, and the record as it should be then."""
        mine = there.owner == self.owner
        if there.state and mine and there.fence > self.fence and there.state != APPLIED:
            return "stale", there
        void = bool(self.void) and there.owner == self.void and there.state == "begun"
        if there.state in FREE or void:
            return "new", there.begun_by(self.owner, self.fence, self.arguments)
        if there.arguments != self.arguments:
            return "conflict", there
        if there.state == APPLIED:
            return "done", there
        if not mine:
            return "unknown" if there.state == UNKNOWN else "busy", there
        return "mine", replace(there, fence=self.fence)

    async def sent(self, store: Store) -> str:
        return (await self.begun(store)).word

    async def begun(self, store: Store) -> EffectBegun:
        return await store.begin_effect(
            self.identity, self.owner, self.fence, self.arguments, "tool", "key", void_owner=self.void
        )


@dataclass(frozen=True)
class Settle:
    identity: str
    owner: str
    fence: int
    state: str
    receipt: bytes

    def after(self, there: Record) -> tuple[str, Record]:
        """The word that the store should say, and the record as it should be then."""
        if there.owner != self.owner:
            return "stale", there
        if there.state == UNDONE:
            return "OK" if self.state in (APPLIED, UNDONE) else "stale", there
        if there.state == APPLIED and self.state == UNDONE:
            fence = max(there.fence, self.fence)
            return "OK", replace(there, state=UNDONE, receipt=self.receipt, fence=fence, undone=there.undone + 1)
        if there.state == APPLIED or self.state == UNDONE:
            return "OK" if self.state == there.state else "stale", there
        if there.fence > self.fence and self.state != APPLIED:
            return "stale", there
        fence = max(there.fence, self.fence)
        return "OK", replace(there, state=self.state, receipt=self.receipt, fence=fence)

    async def sent(self, store: Store) -> str:
        settled = await store.settle_effect(self.identity, self.owner, self.fence, self.state, self.receipt)
        return "OK" if settled else "stale"


Call = Begin | Settle
identities, owners, fences = st.sampled_from(IDENTITIES), st.sampled_from(OWNERS), st.integers(1, 4)
begins = st.builds(
    Begin, identities, owners, fences, st.sampled_from(["x", "x", "x", "y"]), st.sampled_from(["", "", *OWNERS])
)
settles = st.builds(Settle, identities, owners, fences, st.sampled_from(SETTLED), st.binary(min_size=1, max_size=4))


class EffectRecordMachine(RuleBasedStateMachine):
    """Does the same to the store and to the model; laws that must hold whatever the model says are checked as well."""

    stores: ClassVar[list[Store]]
    loop: ClassVar[asyncio.AbstractEventLoop]

    def __init__(self) -> None:
        super().__init__()
        self.records = dict.fromkeys(IDENTITIES, Record())
        for identity in IDENTITIES:
            key = self.stores[0].keys.effect(identity)
            self.do(self.stores[0].command(key, "DEL", key))

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def there(self, identity: str) -> Record:
        key = self.stores[0].keys.effect(identity)
        fields = ("state", "owner", "fence", "arguments", "receipt", "undone", "key")
        found = self.do(self.stores[0].command(key, "HMGET", key, *fields))
        if found[0] is None:
            return Record()
        state, owner, fence, arguments, receipt, undone, key = found
        return Record(
            state.decode(),
            owner.decode(),
            int(fence),
            arguments.decode(),
            receipt or b"",
            int(undone or 0),
            key.decode(),
        )

    def lawful(self, call: Call, said: str, before: Record, after: Record) -> None:
        """What holds of every single call, whatever was before."""
        if before.state == APPLIED and after != before:
            assert after.state == UNDONE, "a record that is applied stays so, until it is undone"
            assert call.owner == before.owner
        if before.state == UNDONE and after != before:
            assert said == "new"
            assert after.key != before.key, "what was undone is caused anew with another key"
        if said in ("conflict", "busy", "unknown", "stale", "done"):
            assert after == before, f"{said} changes nothing"
        if after.owner != before.owner:
            void = isinstance(call, Begin) and before.owner == call.void and before.state == "begun"
            assert before.state in FREE or void, "between two receipts 'not applied' there is one owner"
            assert said == "new"
        if call.owner == before.owner and call.fence < before.fence and after != before:
            assert after.state in (APPLIED, UNDONE), "a late owner may say what it has done, and nothing else"
        if after.owner == before.owner:
            assert after.fence >= before.fence, "fences only grow"
        if said == "new":
            assert (after.state, after.owner, after.fence) == ("begun", call.owner, call.fence)

    @rule(call=st.one_of(begins, settles), times=st.sampled_from([1, 1, 1, 2]))
    def one(self, call: Call, times: int) -> None:
        """One call, or one whose answer was lost and that is sent again."""
        for _ in range(times):
            before = self.records[call.identity]
            wanted, after = call.after(before)
            assert self.do(call.sent(self.stores[0])) == wanted
            found = self.there(call.identity)
            self.lawful(call, wanted, before, found)
            assert found == after
            self.records[call.identity] = after

    @rule(call=begins)
    def what_was_is_shown(self, call: Begin) -> None:
        before = self.records[call.identity]
        wanted, self.records[call.identity] = call.after(before)
        begun: EffectBegun = self.do(call.begun(self.stores[0]))
        assert begun.word == wanted
        if wanted in ("new", "mine"):
            assert begun.key == self.records[call.identity].key
        if before.state:
            assert (begun.owner, begun.arguments, begun.receipt) == (before.owner, before.arguments, before.receipt)

    @rule(
        calls=st.lists(st.one_of(begins, settles), min_size=2, max_size=4),
        identity=identities,
    )
    def race(self, calls: list[Call], identity: str) -> None:
        """Calls at the same time: their answers are those of some order in which they came one after the other."""
        calls = [replace(call, identity=identity) for call in calls]

        async def all_at_once() -> list[str]:
            sent = (call.sent(self.stores[number % 3]) for number, call in enumerate(calls))
            return await asyncio.gather(*sent)

        said = self.do(all_at_once())
        found = self.there(identity)
        for order in itertools.permutations(range(len(calls))):
            record, answers = self.records[identity], [""] * len(calls)
            for number in order:
                answers[number], record = calls[number].after(record)
            if answers == said and record == found:
                self.records[identity] = record
                return
        raise AssertionError(f"{calls} were answered {said} and left {found}: in no order could that be")

    @rule(identity=identities, arguments=st.sampled_from("xy"), fence=fences)
    def everybody_begins(self, identity: str, arguments: str, fence: int) -> None:
        """Owners of different runs begin at the same time: one of them has it at most."""
        calls = [Begin(identity, owner, fence, arguments, "") for owner in OWNERS]
        before = self.records[identity]

        async def all_at_once() -> list[str]:
            return await asyncio.gather(*(call.sent(store) for call, store in zip(calls, self.stores, strict=True)))

        said = self.do(all_at_once())
        found = self.there(identity)
        assert said.count("new") <= (before.state in FREE)
        if "new" in said:
            assert found == before.begun_by(OWNERS[said.index("new")], fence, arguments)
        else:
            assert replace(found, fence=0) == replace(before, fence=0)
        self.records[identity] = found

    @invariant()
    def what_is_applied_or_unknown_is_not_forgotten_before_its_time(self) -> None:
        store = self.stores[0]
        for identity, record in self.records.items():
            key = store.keys.effect(identity)
            left_ms = self.do(store.command(key, "PTTL", key))
            assert (left_ms > 0) == (record.state in (APPLIED, NOT_APPLIED, UNDONE)), (record, left_ms)


@pytest.mark.timeout(120 * TIMES)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_the_record_of_an_effect_does_what_the_model_does(redis_url: str) -> None:
    shared = settings_for(redis_url)
    with asyncio.Runner() as runner:
        # Connections of their own: what is sent through different ones may arrive in any order.
        stores = [runner.run(Store.open(shared)) for _ in range(3)]
        EffectRecordMachine.stores, EffectRecordMachine.loop = stores, runner.get_loop()
        profile = settings(
            max_examples=examples(100),
            stateful_step_count=20,
            # Short ones from the start: making a long one shorter takes longer than a test may.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        )
        try:
            run_state_machine_as_test(EffectRecordMachine, settings=profile)
        finally:
            for store in stores:
                runner.run(store.close())
