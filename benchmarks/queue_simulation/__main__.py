"""``make sim`` and ``make sim-scale``: admission in virtual time."""

import argparse
import sys
import time
from pathlib import Path

from benchmarks.figures import Figure, show, write
from benchmarks.queue_simulation.figures import PARTS
from benchmarks.queue_simulation.scale import scale


def main() -> int:
    """Runs the parts that are asked for; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS, "scale"], help="which ones; all but scale by default")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--pictures", type=Path, help="draw the pictures into this folder")
    parser.add_argument("--most", type=int, default=10_000_000, help="scale: up to so many queued runs")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    for part in arguments.parts or PARTS:
        began = time.monotonic()
        print(f"{part} …", file=sys.stderr, flush=True)
        figures += scale(arguments.most) if part == "scale" else PARTS[part](f"make sim PART={part}")
        print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    show(figures, "Admission, simulated")
    if arguments.json:
        write(figures, arguments.json)
    if arguments.pictures:
        # Only who draws needs the library.
        from benchmarks.queue_simulation.pictures import pictures

        for path in pictures(arguments.pictures):
            print(f"drawn: {path}", file=sys.stderr)
    return 1 if any(figure.holds is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
