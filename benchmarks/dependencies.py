"""``make figures-dependencies``: the figures about dependencies as a table and as JSON."""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from benchmarks.bench import run
from benchmarks.dependency_figures import breaker, hot_path, hub_kill, rates, storms
from benchmarks.dependency_figures.bench import Bench, running
from benchmarks.figures import Figure, show, write

HOSTS: Final = 8
Part = Callable[[Bench, str], Coroutine[Any, Any, list[Figure]]]
PARTS: Final[dict[str, Part]] = {
    "rate-error": rates.rate_error,
    "hot-path": hot_path.hot_path,
    "breaker": breaker.breaker,
    "retry-storm": storms.retry_storm,
    "429-storm": storms.too_many_requests,
    "hub-kill": hub_kill.hub_kill,
}


def command_of(part: str) -> str:
    """How to measure one part again."""
    return f"make figures-dependencies PART={part}"


def main() -> int:
    """Runs the parts that are asked for; exit code 1 when a target is missed, or a part could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which ones; all by default")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    failed = False
    with running(hosts=HOSTS) as bench:
        for part in arguments.parts or PARTS:
            began = time.monotonic()
            print(f"{part} …", file=sys.stderr, flush=True)
            try:
                figures += run(PARTS[part](bench, command_of(part)))
            except Exception:
                # What the other parts take minutes to find out is not thrown away.
                traceback.print_exc()
                failed = True
            print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    show(figures, "Dependencies")
    if arguments.json:
        write(figures, arguments.json)
    return 1 if failed or any(figure.holds is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
