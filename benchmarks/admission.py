"""``make figures-admission``: admission on a real cluster; ``make sim`` has the same at size."""

import argparse
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from benchmarks.admission_figures import door, flood, overload, recovery
from benchmarks.bench import Bench, a_ray_node, a_store, run
from benchmarks.figures import Figure, show, write

PARTS: Final[dict[str, Callable[[Bench], Coroutine[Any, Any, list[Figure]]]]] = {
    "overload": overload.figures,
    "refusal": door.figures,
    "eviction": door.evictions,
    "recovery": recovery.figures,
    "fairness": overload.fairness,
    "returns": overload.returns,
    "flood": flood.figures,
    "full": flood.full,
}


def main() -> int:
    """Runs the parts that are asked for; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which ones; all by default")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    for part in arguments.parts or PARTS:
        print(f"{part} …", file=sys.stderr, flush=True)
        with a_store() as store, a_ray_node(max(2, os.cpu_count() or 1)):
            figures += run(PARTS[part](Bench(store.url, store.pid or 0)))
    show(figures, "Admission on a real cluster")
    if arguments.json:
        write(figures, arguments.json)
    return 1 if any(figure.holds is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
