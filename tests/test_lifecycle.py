"""The one table of a run's states, in Python and in the store."""

from __future__ import annotations

import itertools

import pytest
import redis

from cluster import scripts
from cluster.lifecycle import TERMINAL, TRANSITIONS, RunState, lua_table, may_go

LIVE = [state for state in RunState if state not in TERMINAL]


def reachable(start: RunState) -> set[RunState]:
    found, edge = {start}, [start]
    while edge:
        state = edge.pop()
        for row in TRANSITIONS:
            if row.source is state and row.target not in found:
                found.add(row.target)
                edge.append(row.target)
    return found


def test_every_state_can_be_reached() -> None:
    assert reachable(RunState.ACCEPTED) == set(RunState)


@pytest.mark.parametrize("state", sorted(TERMINAL - {RunState.SHED}))
def test_an_end_is_an_end(state: RunState) -> None:
    assert reachable(state) == {state}


def test_what_was_shed_was_never_started_and_can_be_submitted_again() -> None:
    assert [row.target for row in TRANSITIONS if row.source is RunState.SHED] == [RunState.QUEUED]


@pytest.mark.parametrize("state", LIVE)
def test_every_other_state_can_come_to_every_end(state: RunState) -> None:
    assert reachable(state) >= TERMINAL


def test_only_a_claim_makes_an_owner() -> None:
    assert [row.source for row in TRANSITIONS if row.target is RunState.RUNNING] == [RunState.QUEUED]


def test_no_row_is_there_twice_or_goes_nowhere() -> None:
    pairs = [(row.source, row.target) for row in TRANSITIONS]
    assert len(set(pairs)) == len(pairs)
    assert all(source is not target for source, target in pairs)
    assert all(row.cause for row in TRANSITIONS)


def test_the_function_is_the_table() -> None:
    allowed = {(row.source, row.target) for row in TRANSITIONS}
    for source, target in itertools.product(RunState, RunState):
        assert may_go(source, target) == ((source, target) in allowed)


def test_the_store_has_the_same_table(redis_url: str) -> None:
    """Asked of the server itself, by the Lua that every script begins with."""
    probe = lua_table() + "return {ALLOWED[ARGV[1] .. '>' .. ARGV[2]] and 1 or 0, TERMINAL[ARGV[1]] and 1 or 0}"
    with redis.Redis.from_url(redis_url) as client:
        for source, target in itertools.product(RunState, RunState):
            said = client.eval(probe, 0, source.value, target.value)
            assert said == [int(may_go(source, target)), int(source in TERMINAL)]


def test_every_partition_script_has_the_table() -> None:
    for script in scripts.ALL:
        assert (lua_table() in script.text) == (script not in scripts.OF_NO_PARTITION)
