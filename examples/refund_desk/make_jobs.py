"""Make the jobs of the refund desk, always the same: `python -m refund_desk.make_jobs --count 1000 > jobs.jsonl`."""

import argparse
import json
import random
import sys
from collections.abc import Iterator

DEFAULT_COUNT = 1_000
MESSAGES = (
    "My parcel has not come. I want my money back.",
    "The lamp arrived broken. What will you do about it?",
    "Half of what I ordered is missing.",
    "This is the wrong size, and I need it on Friday.",
    "It stopped working after two days.",
    "I was charged twice for this order.",
    "The colour is not what the picture showed.",
    "Your courier left it in the rain.",
)
VALUES = {"critical": 2, "high": 13, "normal": 60, "low": 20, "best_effort": 5}
TENANTS = {"acme": 50, "globex": 30, "initech": 20}
# What a ticket needs, and nothing more: the scopes of the two tools that change the world.
GRANTS = ("refunds:issue", "answers:write")
CHANNELS = {"email": 60, "chat": 30, "phone": 10}


def jobs(count: int) -> Iterator[dict[str, object]]:
    """`count` jobs, each with a ticket and an order of its own. A longer list begins with the shorter one."""
    draws = random.Random(20_260_101)

    def one_of(weights: dict[str, int]) -> str:
        return draws.choices(list(weights), list(weights.values()))[0]

    for number in range(1, count + 1):
        ticket = {"ticket_id": f"T-{number}", "order_id": f"O-{number}", "message": draws.choice(MESSAGES)}
        yield {
            "custom_id": f"ticket-{number}",
            "agent": "refund-desk",
            "input": ticket,
            "value": one_of(VALUES),
            "tenant": one_of(TENANTS),
            "grants": list(GRANTS),
            "metadata": {"channel": one_of(CHANNELS)},
        }


def main() -> None:
    """Write the jobs to the standard output, one a line."""
    parser = argparse.ArgumentParser(prog="refund_desk.make_jobs", description=__doc__)
    parser.add_argument("--count", type=int, default=DEFAULT_COUNT)
    for job in jobs(parser.parse_args().count):
        sys.stdout.write(json.dumps(job, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
