"""What the provider has counted: one row for each call that reached it, kept by column, sent as msgpack."""

from array import array
from typing import Final, NamedTuple

import msgspec

UNDER_WAY: Final = 0


class Arrival(NamedTuple):
    """One call, as the provider saw it.

    Attributes:
        at_ns: when it had arrived, by the system's monotonic clock (``time.monotonic_ns()`` of any process here).
        ended_ns: when it was answered or dropped; 0 while it is under way.
        status: HTTP status; 0 for a connection that was closed in the place of an answer.
        host: the label that it came with.
        attempt: the number that it came with.
        tokens: the number that it came with.
        value: the value class that it came with.
        retry_after_s: what a 429 asked for; otherwise 0.
    """

    at_ns: int
    ended_ns: int
    status: int
    host: str
    attempt: int
    tokens: int
    value: str
    retry_after_s: float


class Arrivals:
    """All calls since the last time that somebody asked to forget them. A million of them take about 40 MB."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._at_ns = array("q")
        self._ended_ns = array("q")
        self._status = array("H")
        self._host = array("I")
        self._attempt = array("I")
        self._tokens = array("I")
        self._value = array("I")
        self._retry_after_ms = array("I")

    def __len__(self) -> int:
        return len(self._at_ns)

    def add(
        self, at_ns: int, status: int, host: str, attempt: int, tokens: int, value: str, retry_after_ms: int
    ) -> int:
        """Notes a call that has begun, and returns its number."""
        names = self._names
        self._at_ns.append(at_ns)
        self._ended_ns.append(UNDER_WAY)
        self._status.append(status)
        self._host.append(names.setdefault(host, len(names)))
        self._attempt.append(attempt)
        self._tokens.append(tokens)
        self._value.append(names.setdefault(value, len(names)))
        self._retry_after_ms.append(retry_after_ms)
        return len(self._at_ns) - 1

    def ended(self, number: int, at_ns: int) -> None:
        """Notes when a call has ended."""
        self._ended_ns[number] = at_ns

    def rows(self) -> list[Arrival]:
        """The calls in the order of their arrival."""
        names = list(self._names)
        return [
            Arrival(at_ns, ended_ns, status, names[host], attempt, tokens, names[value], retry_after_ms / 1000)
            for at_ns, ended_ns, status, host, attempt, tokens, value, retry_after_ms in zip(
                *self._columns().values(), strict=True
            )
        ]

    def encoded(self) -> bytes:
        """All of it in bytes, for :func:`decode_arrivals` on the same kind of machine."""
        columns = {name: column.tobytes() for name, column in self._columns().items()}
        return msgspec.msgpack.encode(_Encoded(list(self._names), columns))

    def _columns(self) -> "dict[str, array[int]]":
        return {
            "at_ns": self._at_ns,
            "ended_ns": self._ended_ns,
            "status": self._status,
            "host": self._host,
            "attempt": self._attempt,
            "tokens": self._tokens,
            "value": self._value,
            "retry_after_ms": self._retry_after_ms,
        }


class _Encoded(msgspec.Struct):
    names: list[str]
    columns: dict[str, bytes]


def decode_arrivals(raw: bytes) -> list[Arrival]:
    """The rows of what :meth:`Arrivals.encoded` made.

    Raises:
        msgspec.DecodeError: these bytes are no arrivals.
    """
    encoded = msgspec.msgpack.decode(raw, type=_Encoded)
    arrivals = Arrivals()
    arrivals._names.update((name, number) for number, name in enumerate(encoded.names))
    for name, column in arrivals._columns().items():
        column.frombytes(encoded.columns[name])
    return arrivals.rows()
