"""Approvals on real hosts with a real store: the run waits unloaded, goes on at once, and nothing else gets through."""

from __future__ import annotations

import time

import pytest
from approvers import WORLD, asked, client_of, keys_setting, payer
from hosting import output, spine


@pytest.fixture(autouse=True)
def fresh_world() -> None:
    WORLD.__init__()  # type: ignore[misc]


async def test_an_approved_call_goes_on_within_a_second(redis_url: str) -> None:
    async with spine(redis_url, payer, **keys_setting()) as deployment, client_of(deployment) as client:
        await deployment.host()
        await deployment.host()
        took = []
        for number in range(5):
            run_id = await deployment.submit(payer, f"o-{number}")
            view = await asked(client, run_id)
            await deployment.waits(run_id)
            began = time.monotonic()
            await client.approve(view.id, reason="fine")
            record = await deployment.end(run_id)
            took.append(time.monotonic() - began)
            assert output(payer, record) == f"paid 100 for o-{number}"
        print(f"approved → done: {', '.join(f'{1000 * s:.0f}' for s in took)} ms")
        assert max(took) < 1
        print(await client.approvals(all=True))
        print(await deployment.journal(run_id))
