"""What calls reserve of token limits, and that what they do not use is everybody's again."""

from __future__ import annotations

from typing import Any

import pytest
from hosting import spine, until

from actors.reservation import UNKNOWN_OUTPUT_TOKENS, Reservations
from admission.dependency import Dependency, Limit
from penstock import Run, ToolCall, agent, tool


@tool(dependency="d", max_tokens=500)
async def ask(call: ToolCall, text: str) -> str:
    call.used(input_tokens=7)
    call.used(output_tokens=20)
    return text


@tool(dependency="d")
async def ask_unbounded(call: ToolCall, text: str) -> str:
    return text


@tool(dependency="d", reserve=lambda text, *, budget=3: {"input_tokens": 2, "output_tokens": budget})
async def ask_exactly(call: ToolCall, text: str, *, budget: int = 3) -> str:
    return text


@tool(dependency="d", reserve=lambda text: {"tokens": float(text)})
async def ask_oddly(call: ToolCall, text: str) -> str:
    return text


@tool(dependency="d", reserve=lambda text: {"output_tokens": 5000})
async def ask_too_much(call: ToolCall, text: str) -> str:
    return text


@agent("asks", version="1")
async def asks(run: Run, texts: list[str]) -> int:
    for text in texts:
        await run.call(ask, text)
    return len(texts)


@agent("greedy", version="1")
async def greedy(run: Run, _: None) -> str:
    return await run.call(ask_too_much, "x")


def test_before_anything_is_known_the_declaration_counts() -> None:
    known = Reservations()
    assert known.cost(ask, "a", ["x" * 400])["output_tokens"] == 500
    assert known.cost(ask, "a", ["x" * 400])["input_tokens"] == pytest.approx(101, abs=3)
    assert known.cost(ask_unbounded, "a", ["x"])["output_tokens"] == UNKNOWN_OUTPUT_TOKENS
    assert known.cost(ask, "a", ["x"])["requests"] == 1.0


def test_what_was_learned_of_one_agent_is_its_own() -> None:
    known = Reservations()
    for _ in range(40):
        known.learn(ask, "a", ["x" * 398], {"input_tokens": 200, "output_tokens": 30})
    cost = known.cost(ask, "a", ["x" * 398])
    assert cost["output_tokens"] <= 60
    assert cost["input_tokens"] == pytest.approx(200, abs=5)
    assert known.cost(ask, "b", ["x"])["output_tokens"] == 500
    assert known.cost(ask_unbounded, "a", ["x"])["output_tokens"] == UNKNOWN_OUTPUT_TOKENS
    known.learn(ask, "a", ["x"], {"input_tokens": -5, "output_tokens": -5})  # what a tool says is not always sense


def test_of_too_many_the_one_that_is_not_used_any_more_is_forgotten() -> None:
    known = Reservations()
    for agent_name in ("busy", "gone"):
        for _ in range(40):
            known.learn(ask, agent_name, ["x"], {"output_tokens": 30})
    for number in range(1500):
        known.cost(ask, f"passing-{number}", ["x"])
        assert known.cost(ask, "busy", ["x"])["output_tokens"] <= 60
    assert known.cost(ask, "gone", ["x"])["output_tokens"] == 500


def test_what_a_tool_says_itself_counts() -> None:
    known = Reservations()
    assert known.cost(ask_exactly, "a", ["x", 9]) == {"requests": 1.0, "input_tokens": 2.0, "output_tokens": 9.0}
    assert known.cost(ask_oddly, "a", ["12"]) == {"requests": 1.0, "tokens": 12.0}


@pytest.mark.parametrize("amount", ["nan", "inf", "-1"])
def test_what_is_no_amount_is_refused(amount: str) -> None:
    with pytest.raises(ValueError, match="reserve gave 'tokens'"):
        Reservations().cost(ask_oddly, "a", [amount])


def test_arguments_of_any_kind_have_a_size() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert Reservations().cost(ask_unbounded, "a", [loop])["input_tokens"] >= 1
    assert Reservations().cost(ask_unbounded, "a", [object()])["input_tokens"] >= 1


async def test_tokens_are_reserved_and_settled(redis_url: str) -> None:
    dependency = Dependency("d", [Limit("output_tokens", 1200, per=8)])
    async with spine(redis_url, asks, greedy, dependencies=[dependency]) as deployment:
        await deployment.host()
        # 8 calls with 500 reserved each would never fit into 1200: what is not used comes back.
        assert await deployment.result(asks, ["x"] * 8) == 8
        limiter = deployment.hubs["d"].hub.limiter
        clock = deployment.hosts[0].loop.time
        await until(lambda: limiter.use(clock())[0]["used"] == 160.0, "settled to what was used")
        error = await deployment.failure(greedy)
        assert (error.error_class, error.end, error.ended_by) == ("NotAdmissible", "refused", "rate of d")
        assert "it takes 5000 output_tokens, and the limit is 1200" in error.message
