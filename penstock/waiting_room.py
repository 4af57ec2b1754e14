"""Refused jobs that are to come back: on disk, so that a million of them take no more memory than their times."""

import heapq
import os
import tempfile
from typing import IO, Final, NamedTuple, Self

import msgspec

from cluster.records import NewRun

_PLACE_BITS: Final = 48
_LENGTH_BYTES: Final = 4


class Returning(NamedTuple):
    """A job that comes back. ``place`` is where the room keeps it, so that it can be kept on without being written."""

    run: NewRun
    line: int
    place: int


class _Kept(NamedTuple):
    run: NewRun
    line: int


class WaitingRoom:
    """Jobs by the time at which they may come back. A context manager: its file goes with it.

    In memory a job has one whole number, its time and its place in a temporary file: some 45 bytes. A job is written
    once, however often it is refused again.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._end = 0
        self._due: list[int] = []
        self._decoder = msgspec.msgpack.Decoder(_Kept)
        self._encoder = msgspec.msgpack.Encoder()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._due)

    @property
    def next_ms(self) -> int | None:
        """When the next one may come back; None where nobody waits."""
        return self._due[0] >> _PLACE_BITS if self._due else None

    def add(self, at_ms: int, run: NewRun, line: int, place: int | None = None) -> None:
        """Has a job wait.

        Args:
            at_ms: until when, by whatever clock :meth:`due` is asked.
            run: the job.
            line: its line, for reports.
            place: where it is kept already, if it has come back before.

        Raises:
            OSError: the temporary file cannot be written.
        """
        if place is None:
            place = self._write(self._encoder.encode(_Kept(run, line)))
        heapq.heappush(self._due, (at_ms << _PLACE_BITS) | place)

    def due(self, now_ms: int, most: int) -> list[Returning]:
        """Those who may come back by now, at most so many of them; they wait no more."""
        found: list[Returning] = []
        while self._due and len(found) < most and self._due[0] >> _PLACE_BITS <= now_ms:
            place = heapq.heappop(self._due) & ((1 << _PLACE_BITS) - 1)
            kept = self._decoder.decode(self._read(place))
            found.append(Returning(kept.run, kept.line, place))
        return found

    def _write(self, raw: bytes) -> int:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="penstock-refused-")  # noqa: SIM115 - closed by __exit__
        place = self._end
        self._file.seek(0, os.SEEK_END)
        self._file.write(len(raw).to_bytes(_LENGTH_BYTES, "big"))
        self._file.write(raw)
        self._end += _LENGTH_BYTES + len(raw)
        return place

    def _read(self, place: int) -> bytes:
        assert self._file is not None
        self._file.seek(place)
        length = int.from_bytes(self._file.read(_LENGTH_BYTES), "big")
        return self._file.read(length)
