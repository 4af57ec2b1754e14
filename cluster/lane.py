"""A lane: one pipelined connection to one server, shared by everything that a process asks of it.

redis-py's own pipelines own a connection for a round trip and wait for it. A host must have the next batch on its
way while the last one is being synced to disk, so a lane writes in order, reads in order and keeps at most a fixed
number of writes in flight; whatever is asked meanwhile goes out together with the next write. redis-py still makes
the connection (TLS, authentication, protocol) and hiredis packs and parses.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    ClusterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from cluster.errors import StoreFull, StoreUnavailable
from cluster.scripts import Script
from cluster.tasks import end

Argument: TypeAlias = bytes | str | int
_LOG: Final = logging.getLogger("penstock.store")
_RECONNECT_FIRST_S: Final = 0.02
_RECONNECT_MOST_S: Final = 0.5
_FAILED_CONNECTS: Final = 4
# Disk trouble, a script that runs for too long, too few replicas: states of the server and not faults of the call.
_PASSING: Final = ("MISCONF", "BUSY ", "NOREPLICAS")
_TRANSACTION_BYTES: Final = 512 * 1024
_REPLICA_MS: Final = 1000
_MULTI: Final = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC: Final = b"*1\r\n$4\r\nEXEC\r\n"


def _pack(arguments: tuple[Argument, ...]) -> bytes:
    # hiredis declares a tuple of exactly one item.
    packed: bytes = hiredis.pack_command(arguments)  # type: ignore[arg-type]
    return packed


class Moved(Exception):
    """The server does not serve this slot any more (cluster mode): look the slot up again and ask there."""


class _Call:
    """One command on its way: its packed bytes, who waits for it, and the script to load if the server lacks it."""

    __slots__ = ("alone", "expires", "future", "packed", "script")

    def __init__(self, packed: bytes, future: "asyncio.Future[Any]", script: Script | None, expires: float) -> None:
        self.packed = packed
        self.future = future
        self.script = script
        self.expires = expires
        self.alone = script is None


class _Unit:
    """Calls that are answered together: one call, or the calls of one transaction (MULTI … EXEC)."""

    __slots__ = ("answer", "calls", "left", "wait")

    def __init__(self, calls: list[_Call], wait: bytes) -> None:
        self.calls = calls
        self.wait = wait
        self.answer: Any = None
        # A transaction is answered by OK, one QUEUED a call, and then all answers at once; then comes WAIT's answer.
        self.left = (1 if len(calls) == 1 else len(calls) + 2) + bool(wait)

    @property
    def packed(self) -> bytes:
        """The bytes to send."""
        if len(self.calls) == 1:
            return self.calls[0].packed + self.wait
        return b"".join([_MULTI, *[call.packed for call in self.calls], _EXEC, self.wait])


def _units(calls: list[_Call], *, transactions: bool, wait: bytes) -> Iterator[_Unit]:
    """Groups script calls into transactions, in order and bounded in size; other commands go alone."""
    group: list[_Call] = []
    size = 0
    for call in calls:
        alone = call.alone or not transactions
        if group and (alone or size + len(call.packed) > _TRANSACTION_BYTES):
            yield _Unit(group, wait)
            group, size = [], 0
        if alone:
            yield _Unit([call], wait)
        else:
            group.append(call)
            size += len(call.packed)
    if group:
        yield _Unit(group, wait)


class Lane:
    """Sends commands over one connection, in order, many at a time.

    After a lost connection everything that was not answered is sent again, in its order: use it for calls that
    may be sent twice only.

    Args:
        connect: makes an unconnected redis-py connection without a socket time-out of its own.
        timeout_s: seconds that a call may take, reconnects included, before it raises :class:`StoreUnavailable`;
            infinite for a host, which stops by its lease and not by a call.
        answer_timeout_s: seconds without an answer after which the connection is given up and made anew.
        in_flight: writes that may be unanswered at a time.
        transactions: wrap the script calls of one write into a transaction. A server reads a connection in small
            pieces and syncs its log after each piece that wrote something; a transaction is synced once, as a whole.
            A server in cluster mode has no transactions over several slots.
        replicas: how many replicas must have a write before it counts as answered; a write that too few have in time
            is sent again over a new connection.
        elsewhere: another server may take this one's place (cluster mode): when it cannot be reached, calls raise
            :class:`Moved`, so that they can be routed anew.
        on_reconnected: called after every connect but the first.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractConnection],
        *,
        timeout_s: float,
        answer_timeout_s: float = 5.0,
        in_flight: int = 2,
        transactions: bool = False,
        replicas: int = 0,
        elsewhere: bool = False,
        on_reconnected: Callable[[], None] | None = None,
    ) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._in_flight = in_flight
        self._transactions = transactions
        self._replicas = replicas
        self._wait = _pack(("WAIT", replicas, _REPLICA_MS)) if replicas else b""
        self._elsewhere = elsewhere
        self._on_reconnected = on_reconnected
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Call] = []
        self._sent: deque[_Unit] = deque()
        self._write_ends: deque[int] = deque()
        self._answered = 0
        self._last_heard = self._loop.time()
        self._wanted = asyncio.Event()
        self._closed = False
        self._problem: str = "not connected yet"
        self._runner = self._loop.create_task(self._run(), name="penstock-lane")

    def call(self, script: Script, key: str, *arguments: Argument) -> "asyncio.Future[Any]":
        """Calls a script that is routed by ``key``. The answer is raw: bytes, ints, lists."""
        return self._put(_pack(("EVALSHA", script.sha, 1, key, *arguments)), script)

    def call_keys(self, script: Script, keys: Sequence[str], *arguments: Argument) -> "asyncio.Future[Any]":
        """Calls a script with several declared keys."""
        return self._put(_pack(("EVALSHA", script.sha, len(keys), *keys, *arguments)), script)

    def command(self, *arguments: Argument) -> "asyncio.Future[Any]":
        """Sends a plain command that may be sent twice."""
        return self._put(_pack(arguments), None)

    def _put(self, packed: bytes, script: Script | None) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._closed:
            future.set_exception(StoreUnavailable("this connection to the store has been closed"))
            return future
        self._waiting.append(_Call(packed, future, script, self._loop.time() + self._timeout_s))
        self._wanted.set()
        return future

    async def _run(self) -> None:
        """Keeps the connection, until closed."""
        delay_s = _RECONNECT_FIRST_S
        first = True
        failures = 0
        while not self._closed:
            connection = self._connect()
            try:
                async with asyncio.timeout(self._answer_timeout_s):
                    await connection.connect()  # type: ignore[no-untyped-call]
                self._repeat_unanswered()
                delay_s, failures = _RECONNECT_FIRST_S, 0
                if not first and self._on_reconnected is not None:
                    self._on_reconnected()
                first = False
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._write(connection))
                    group.create_task(self._read(connection))
                    group.create_task(self._watch())
            except* (RedisError, OSError, EOFError) as errors:
                self._problem = "; ".join(f"{type(error).__name__}: {error}" for error in errors.exceptions)
                _LOG.debug("connection to the store lost: %s", self._problem)
                failures += 1
            except* Exception:
                # A defect of ours must not leave callers without an answer for ever.
                _LOG.exception("the connection to the store failed")
            finally:
                with contextlib.suppress(Exception):
                    await connection.disconnect(nowait=True)
            self._fail_expired()
            if self._elsewhere and failures >= _FAILED_CONNECTS:
                self._fail_all(Moved, f"a node of the store's cluster cannot be reached ({self._problem})")
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _RECONNECT_MOST_S)

    def _repeat_unanswered(self) -> None:
        """Puts what was sent and not answered before what waits; a new server must learn the scripts first."""
        calls = [call for call in self._unanswered() if not call.future.done()]
        self._sent.clear()
        self._write_ends.clear()
        self._waiting = []
        self._last_heard = self._loop.time()
        if calls:
            for script in {call.script for call in calls if call.script is not None}:
                self._put(_pack(("SCRIPT", "LOAD", script.text)), None).add_done_callback(_look)
        self._waiting.extend(calls)
        self._wanted.set()

    async def _write(self, connection: AbstractConnection) -> None:
        """Writes all that was asked since the last write, as one write, while few enough are unanswered."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._waiting and len(self._write_ends) < self._in_flight:
                calls, self._waiting = self._waiting, []
                if not self._sent:
                    self._last_heard = self._loop.time()
                units = list(_units(calls, transactions=self._transactions, wait=self._wait))
                self._sent.extend(units)
                self._write_ends.append(self._answered + len(self._sent))
                await connection.send_packed_command(b"".join([unit.packed for unit in units]), check_health=False)

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            try:
                answer = await connection.read_response(disable_decoding=True, disconnect_on_error=False)
            except ResponseError as error:
                answer = error
            unit = self._sent[0]
            unit.left -= 1
            if unit.left == bool(unit.wait):
                unit.answer = answer
            if unit.left:
                continue
            if unit.wait:
                if not isinstance(answer, int) or answer < self._replicas:
                    raise RedisTimeoutError(f"{answer} replicas have the last write, {self._replicas} must")
                answer = unit.answer
            self._took()
            if len(unit.calls) == 1:
                self._settle(unit.calls[0], answer)
            elif isinstance(answer, ResponseError):
                self._repeat_alone(unit.calls)
            else:
                for call, own in zip(unit.calls, answer, strict=True):
                    self._settle(call, own)

    def _settle(self, call: _Call, answer: Any) -> None:
        if isinstance(answer, NoScriptError):
            self._load_and_repeat(call)
        elif isinstance(answer, ResponseError):
            self._refuse(call, answer)
        elif not call.future.done():
            call.future.set_result(answer)

    def _repeat_alone(self, calls: list[_Call]) -> None:
        """A transaction was refused as a whole (at the memory limit, say): each call gets an answer of its own."""
        for call in calls:
            call.alone = True
        self._waiting[:0] = [call for call in calls if not call.future.done()]
        self._wanted.set()

    async def _watch(self) -> None:
        """Gives the connection up when the server has been silent for too long."""
        while True:
            await asyncio.sleep(min(1.0, self._answer_timeout_s / 2))
            if self._sent and self._loop.time() - self._last_heard > self._answer_timeout_s:
                raise RedisTimeoutError(f"no answer for {self._answer_timeout_s} s")

    def _took(self) -> None:
        """The first unit is answered; frees a place for a write when a whole write is."""
        self._sent.popleft()
        self._answered += 1
        self._last_heard = self._loop.time()
        if self._write_ends and self._answered >= self._write_ends[0]:
            self._write_ends.popleft()
            if self._waiting:
                self._wanted.set()

    def _load_and_repeat(self, call: _Call) -> None:
        if call.script is None or call.future.done():
            return
        self._put(_pack(("SCRIPT", "LOAD", call.script.text)), None).add_done_callback(_look)
        self._waiting.append(call)

    def _refuse(self, call: _Call, error: ResponseError) -> None:
        if call.future.done():
            return
        text = str(error)
        if isinstance(error, AskError | ClusterDownError | TryAgainError | ReadOnlyError):
            call.future.set_exception(Moved(text))
        elif isinstance(error, OutOfMemoryError) or "OOM" in text:
            call.future.set_exception(StoreFull("the store is at its memory limit (maxmemory) and refuses writes"))
        elif text.startswith(_PASSING):
            call.future.set_exception(StoreUnavailable(f"the store takes no writes at present: {text}"))
        else:
            call.future.set_exception(error)

    def _unanswered(self) -> list[_Call]:
        return [*(call for unit in self._sent for call in unit.calls), *self._waiting]

    def _fail_expired(self) -> None:
        now = self._loop.time()
        for call in self._unanswered():
            if call.expires <= now and not call.future.done():
                call.future.set_exception(StoreUnavailable(f"the store did not answer in time ({self._problem})"))

    def _fail_all(self, error: type[Exception], text: str) -> None:
        for call in self._unanswered():
            if not call.future.done():
                call.future.set_exception(error(text))
                call.future.exception()

    async def close(self) -> None:
        """Closes the connection; what is unanswered fails with :class:`StoreUnavailable`."""
        self._closed = True
        await end([self._runner])
        self._fail_all(StoreUnavailable, "this connection to the store has been closed")


def _look(done: "asyncio.Future[Any]") -> None:
    """Looks at an outcome that nobody waits for, so that asyncio does not warn of it."""
    if not done.cancelled():
        done.exception()
