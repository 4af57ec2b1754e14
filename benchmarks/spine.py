"""``make figures-spine``: the spine's figures as a table and as JSON."""

import argparse
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from benchmarks import effects, workloads
from benchmarks.bench import Bench, run, running
from benchmarks.figures import Figure, show, write

PARTS: Final[dict[str, Callable[[Bench], Coroutine[Any, Any, list[Figure]]]]] = {
    "w1": workloads.throughput,
    "w1-effects": effects.throughput,
    "w2": lambda bench: workloads.many(bench, 2000, 0.2, 1.3, "W2 2,000 runs at once", memory=False),
    "w2-large": lambda bench: workloads.many(bench, 10_000, 2.0, 1.2, "W2 10,000 runs at once", memory=True),
    "w3": workloads.latency,
    "w4": workloads.recovery,
    "submission": workloads.submission,
    "idle": workloads.idle,
}


def main() -> int:
    """Runs the parts that are asked for; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which ones; all by default")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    with running(hosts=os.cpu_count() or 1) as bench:
        for part in arguments.parts or PARTS:
            print(f"{part} …", file=sys.stderr, flush=True)
            figures += run(PARTS[part](bench))
    show(figures, "The spine")
    if arguments.json:
        write(figures, arguments.json)
    return 0 if all(figure.holds is not False for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
