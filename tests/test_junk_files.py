"""Batch files full of junk: read in seconds, in bounded memory, every problem counted, the good lines found."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
from collections.abc import Callable

import pytest

from penstock.batchfile import KEPT_PROBLEMS, BatchFile, FirstSeen, Scan
from penstock.checking import Facts, accept_anything

AGENTS = dict.fromkeys(("echo", *(f"agent-{number}" for number in range(20))), accept_anything)
FACTS = Facts(AGENTS, 4096, 1_750_000_000_000)
JUNK: dict[str, Callable[[int], bytes]] = {
    "no json": lambda number: b"hello %d\n" % number,
    "brackets": lambda _: b"[[[[[[[[\n",
    "numbers": lambda number: b"%d\n" % number,
    "bytes": lambda number: b"\xff\xfe%d\n" % number,
    "another format": lambda number: json.dumps({"id": f"x{number}", "prompt": "y", "model": "z"}).encode() + b"\n",
    "almost an agent": lambda number: b'{"custom_id": "x%d", "agent": "agnt-%d"}\n' % (number, number),
    "all duplicates": lambda _: b'{"custom_id": "x", "agent": "echo"}\n',
    "absurd values": lambda number: json.dumps(
        {"custom_id": f"x{number}", "agent": "echo", "value": number, "max_wait": -number, "deadline": 1e300}
    ).encode() + b"\n",
}  # fmt: skip
ENDLESS = b"[" * 10_000


class Lines(io.RawIOBase):
    """A file of so many lines, made as they are read."""

    def __init__(self, count: int, line: Callable[[int], bytes]) -> None:
        self.count, self.line, self.position = count, line, 0

    def readline(self, _limit: int | None = -1) -> bytes:
        self.position += 1
        return self.line(self.position) if self.position <= self.count else b""

    def seek(self, *_: int) -> int:
        self.position = 0
        return 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position


def scanned(count: int, line: Callable[[int], bytes]) -> tuple[Scan, int]:
    """The scan, and how many bytes it took at most."""
    tracemalloc.start()
    scan = Scan(FACTS)
    for _ in BatchFile(Lines(count, line)).scan(scan, FACTS):  # type: ignore[arg-type]
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return scan, peak


@pytest.mark.parametrize("kind", JUNK)
def test_junk_is_counted_in_bounded_memory(kind: str) -> None:
    count = 5000
    scan, peak = scanned(count, JUNK[kind])
    good = 1 if kind == "all duplicates" else 0
    assert scan.jobs == good
    assert len(scan.bad_lines) == count - good
    assert scan.problem_count >= count - good
    assert len(scan.problems) == KEPT_PROBLEMS
    assert all(problem.reason for problem in scan.problems)
    assert peak < 2_000_000


def test_good_lines_are_found_among_junk() -> None:
    def line(number: int) -> bytes:
        if number % 1000:
            return JUNK["no json"](number)
        return json.dumps({"custom_id": f"x{number}", "agent": "echo"}).encode() + b"\n"

    file = BatchFile(Lines(20_000, line))  # type: ignore[arg-type]
    scan = Scan(FACTS)
    for _ in file.scan(scan, FACTS):
        pass
    assert (scan.jobs, scan.problem_count) == (20, 19_980)
    assert [number for number, _ in file.jobs(FACTS, scan.bad_lines)] == list(range(1000, 20_001, 1000))


def test_deep_nesting_and_one_endless_line_are_problems_of_their_lines() -> None:
    scan, peak = scanned(3, lambda _: ENDLESS + b"\n")
    assert scan.problem_count == 3
    assert peak < 2_000_000


@pytest.mark.parametrize("count", [60_000, pytest.param(1_000_000, marks=pytest.mark.figures)])
def test_many_lines_of_junk_take_seconds(count: int) -> None:
    began = time.process_time()
    scan = Scan(FACTS)
    for _ in BatchFile(Lines(count, JUNK["almost an agent"])).scan(scan, FACTS):  # type: ignore[arg-type]
        pass
    took_s = time.process_time() - began
    assert scan.problem_count == count
    assert took_s < 5 + count * 50e-6, f"{took_s / count * 1e6:.0f} us a line"


def test_first_places_are_kept_like_in_a_dict() -> None:
    seen, kept = FirstSeen(), dict[int, int]()
    for place in range(1, 20_000):
        number = (place * 2_654_435_761 % 9973) * 0x9E3779B97F4A7C15 % 2**64
        assert seen.at(number, place) == kept.setdefault(number or 1, place)


def test_first_places_of_a_million_take_less_than_fifty_bytes_each() -> None:
    tracemalloc.start()
    seen = FirstSeen()
    for place in range(100_000):
        seen.at(place * 0x9E3779B97F4A7C15 % 2**64, place)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 50 * 100_000
