"""A process that submits jobs slowly, so that it can be struck half-way: python -m submitter BATCH START STOP STEP.

Which deployment: by the environment. Says "ready", waits for a line, and prints the report as JSON when all is done.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

from deployment import job

from penstock import Client

PAUSE_S = 0.01


async def slowly(numbers: range) -> AsyncIterator[dict[str, Any]]:
    for number in numbers:
        if number % 8 == 0:
            await asyncio.sleep(PAUSE_S)
        yield job(number)


async def main(batch: str, numbers: range) -> None:
    async with Client() as client:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        report = await client.submit(slowly(numbers), batch=batch)
    print(json.dumps({"accepted": report.accepted, "existing": report.existing}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], range(*map(int, sys.argv[2:5]))))
