"""Batch files: JSON lines, one job each, read in bounded memory and checked as a whole before any of it is submitted.

What is kept of a line is eight bytes of its ``custom_id``'s digest and its number (:class:`FirstSeen`), so a file may
have millions of lines. :class:`Scan` decides and takes bytes; :class:`BatchFile` reads.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, Self

from actors.job import Job
from penstock.checking import Facts, read_job
from penstock.errors import BatchFileError
from penstock.submit_views import Problem

KEPT_PROBLEMS: Final = 100
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class FirstSeen:
    """Where a number was seen first: an open-addressing table of 24 to 48 bytes a number, where a dict takes 150."""

    def __init__(self) -> None:
        self._count = 0
        self._mask = 1023
        self._numbers = array("Q", bytes(8 * 1024))
        self._places = array("Q", bytes(8 * 1024))

    def at(self, number: int, place: int) -> int:
        """The first place of a 64-bit number; ``place`` if it is new. Numbers must be spread evenly."""
        number = number or 1  # 0 marks what is free
        slot = self._slot(number)
        if self._numbers[slot]:
            return self._places[slot]
        self._numbers[slot], self._places[slot] = number, place
        self._count += 1
        if 3 * self._count > 2 * self._mask:
            self._grow()
        return place

    def _slot(self, number: int) -> int:
        numbers, mask = self._numbers, self._mask
        slot = number & mask
        while (there := numbers[slot]) and there != number:
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        numbers, places = self._numbers, self._places
        self._mask = 2 * self._mask + 1
        self._numbers = array("Q", bytes(8 * (self._mask + 1)))
        self._places = array("Q", bytes(8 * (self._mask + 1)))
        for number, place in zip(numbers, places, strict=True):
            if number:
                slot = self._slot(number)
                self._numbers[slot], self._places[slot] = number, place


def line_limit(facts: Facts) -> int:
    """Bytes that a line may have. Six bytes of JSON (an escaped letter) may be two when stored, names need some."""
    return 6 * facts.payload_limit_bytes + 65536


class Scan:
    """The first pass: feed every line, then read off what is wrong, and which file this is.

    ``problems`` holds the first ones, ``problem_count`` how many there are; ``bad_lines`` the numbers of all lines
    that have one.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._limit = line_limit(facts)
        self._content = hashlib.blake2b(digest_size=16)
        self._seen = FirstSeen()
        self.jobs = 0
        self.problems: list[Problem] = []
        self.problem_count = 0
        self.bad_lines = array("Q")

    def feed(self, line: int, raw: bytes) -> None:
        """Takes the next line with its line end, or the first ``line_limit + 1`` bytes of one that is too long."""
        self._content.update(raw)
        if line == 1 and raw.startswith(_BYTE_ORDER_MARK):
            raw = raw[len(_BYTE_ORDER_MARK) :]
        if len(raw) > self._limit:
            fix = "store large content elsewhere and pass a reference to it"
            self._refuse(
                line, [Problem(line, "", f"longer than {self._limit} bytes, the most that a line may have", fix)]
            )
            return
        # Once enough problems are kept, the others are only counted.
        outcome = read_job(line, raw, self._facts, with_fixes=len(self.problems) < KEPT_PROBLEMS)
        if outcome is None:
            return
        if isinstance(outcome, Job):
            problems = self._duplicates(line, outcome.custom_id, outcome.idempotency_key, outcome.tenant)
        else:
            # A bad line has its name all the same: both lines are told of, whatever else is wrong with one of them.
            problems = outcome + self._duplicates(line, outcome[0].custom_id, None, "")
        if problems:
            self._refuse(line, problems)
        else:
            self.jobs += 1

    def also(self, raw: bytes) -> None:
        """Takes the rest of a line that was too long: it belongs to the content, and to nothing else."""
        self._content.update(raw)

    @property
    def digest(self) -> str:
        """24 hex digits of the content fed so far."""
        return self._content.hexdigest()[:24]

    def _duplicates(self, line: int, custom_id: str, idempotency_key: str | None, tenant: str) -> list[Problem]:
        problems: list[Problem] = []
        for field, value, scope in (("custom_id", custom_id, ""), ("idempotency_key", idempotency_key, tenant)):
            if not value:
                continue
            # 64 bits are enough to tell a million apart: the chance that any two of them look alike is 3e-8.
            short = hashlib.blake2b(f"{field}\n{scope}\n{value}".encode(errors="replace"), digest_size=8).digest()
            first = self._seen.at(int.from_bytes(short, "big"), line)
            if first != line:
                reason = f"{value!r} is already on line {first}"
                problems.append(Problem(line, field, reason, f"give each job a {field} of its own", custom_id))
        return problems

    def _refuse(self, line: int, problems: list[Problem]) -> None:
        self.bad_lines.append(line)
        self.problem_count += len(problems)
        self.problems.extend(problems[: KEPT_PROBLEMS - len(self.problems)])


class BatchFile:
    """A batch file that is read twice, through one open descriptor; a context manager.

    Raises:
        BatchFileError: it is missing, unreadable, no regular file, or changed between its two readings.
    """

    def __init__(self, source: str | os.PathLike[str] | IO[bytes]) -> None:
        if isinstance(source, str | os.PathLike):
            self.name = os.fspath(source)
            try:
                self._file: IO[bytes] = Path(source).open("rb")  # noqa: SIM115 - closed by __exit__
            except OSError as error:
                raise BatchFileError(f"batch file {self.name!r} cannot be read: {error.strerror or error}") from None
            self._ours = True
        else:
            name = getattr(source, "name", None)
            self.name = name if isinstance(name, str) else "the given stream"
            self._file = source
            self._ours = False
        if not self._file.seekable():
            self.__exit__()
            raise BatchFileError(f"{self.name!r} cannot be read twice (a pipe?): save it as a file first")
        self._first_state = self._state()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            self._file.close()

    @property
    def size_bytes(self) -> int:
        """How large the file is."""
        return self._first_state[0]

    @property
    def position_bytes(self) -> int:
        """How far it has been read."""
        return self._file.tell()

    def scan(self, scan: Scan, facts: Facts) -> Iterator[int]:
        """The first pass: feeds every line; yields line numbers, so that the caller may do other things meanwhile."""
        limit = line_limit(facts)
        for line, raw in self._lines(limit):
            if line:
                scan.feed(line, raw)
                yield line
            else:
                scan.also(raw)

    def jobs(self, facts: Facts, bad_lines: "array[int]") -> Iterator[tuple[int, Job]]:
        """The second pass: line numbers and jobs of the lines that were good in the first.

        Raises:
            BatchFileError: the file has changed since it was opened.
        """
        self.check_unchanged()
        position, limit = 0, line_limit(facts)
        for line, raw in self._lines(limit):
            if position < len(bad_lines) and bad_lines[position] == line:
                position += 1
            elif line and (raw := raw.removeprefix(_BYTE_ORDER_MARK) if line == 1 else raw).strip():
                try:
                    yield line, Job.model_validate_json(raw)
                except ValueError:
                    raise self._changed() from None
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Refuses to go on when somebody has written to the file."""
        if self._state() != self._first_state:
            raise self._changed()

    def _changed(self) -> BatchFileError:
        return BatchFileError(f"batch file {self.name!r} changed while it was read: submit it again when complete")

    def _state(self) -> tuple[int, int]:
        try:
            found = os.fstat(self._file.fileno())
        except OSError:  # a file in memory
            return self._file.seek(0, os.SEEK_END), 0
        return found.st_size, found.st_mtime_ns

    def _lines(self, limit: int) -> Iterator[tuple[int, bytes]]:
        """Line numbers and lines; of a line over the limit its beginning, then number 0 with each further piece."""
        self._file.seek(0)
        number = 0
        while raw := self._file.readline(limit + 1):
            number += 1
            yield number, raw
            while len(raw) > limit and not raw.endswith(b"\n") and (raw := self._file.readline(limit + 1)):
                yield 0, raw


@contextlib.contextmanager
def spooled(source: str, stream: IO[bytes]) -> Iterator[str | IO[bytes]]:
    """The file's name; for ``-`` a temporary copy of ``stream``, which can be read twice."""
    if source != "-":
        yield source
        return
    with tempfile.TemporaryFile(prefix="penstock-") as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)
        copy.flush()
        yield copy
