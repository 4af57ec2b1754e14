"""Hosts watch each other's processes: a connection that closes tells of a death long before a lease runs out.

Each host listens, and keeps a connection to the next few hosts of a ring. When the kernel closes one because the
process is gone, and nobody listens there any more, the host is called dead at once. That may be wrong, and then its
runs move with a higher fence, and its own writes are refused; but what it was about to send before its next write, it
sends. So only a refused connection or another name there counts: whoever is merely silent is left to its lease, and
so is a host that was never reached, which may be on another network.
"""

import asyncio
import contextlib
import enum
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Final

_LOG: Final = logging.getLogger("penstock.host")
_NEIGHBOURS: Final = 3
_CONNECT_S: Final = 1.0
_MOST_CONNECTIONS: Final = 64
_UNCLEAR_TRIES: Final = 3
_PAUSE_S: Final = 0.02


class _Found(enum.Enum):
    """How an attempt to keep a connection ended."""

    HELD = "it was there, and the connection closed"
    GONE = "the kernel refuses, or somebody else is there"
    UNCLEAR = "no answer, or not from whom it should be"


def neighbours(me: str, live: list[str], most: int = _NEIGHBOURS) -> list[str]:
    """The hosts that ``me`` watches: the next ones of the sorted ring, so that everybody is watched by some."""
    others = sorted(host for host in live if host != me)
    start = sum(host < me for host in others)
    return (others[start:] + others[:start])[:most]


class Watch:
    """One host's half of the ring."""

    def __init__(self, address: str, on_death: Callable[[str], None]) -> None:
        self._address = address
        self._on_death = on_death
        self._server: asyncio.Server | None = None
        self._me = ""
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._connected: set[asyncio.StreamWriter] = set()

    async def start(self, me: str) -> tuple[str, int]:
        """Listens; the address that others are to be told."""
        self._me = me
        self._server = await asyncio.start_server(self._serve, self._address, 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return str(host), int(port)

    def rename(self, me: str) -> None:
        """This host goes on under another identity; those who watch the old one must not mistake it."""
        self._me = me
        for writer in list(self._connected):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connected) >= _MOST_CONNECTIONS:
            writer.close()
            return
        self._connected.add(writer)
        try:
            writer.write(self._me.encode() + b"\n")
            # Nothing is ever read but the end.
            await reader.read(1)
        except OSError:
            pass
        finally:
            self._connected.discard(writer)
            writer.close()

    def update(self, live: Mapping[str, tuple[str, int]]) -> None:
        """Watches those that the ring now says, by their addresses."""
        wanted = neighbours(self._me, list(live))
        for host in set(self._watching) - set(wanted):
            self._watching.pop(host).cancel()
        for host in wanted:
            if host not in self._watching:
                task = asyncio.get_running_loop().create_task(self._watch(host, *live[host]))
                self._watching[host] = task
                task.add_done_callback(functools.partial(self._watched, host))

    def _watched(self, host: str, done: "asyncio.Task[None]") -> None:
        if self._watching.get(host) is done:
            del self._watching[host]
        if not done.cancelled() and done.exception() is not None:
            _LOG.error("watching %s failed", host, exc_info=done.exception())

    async def _watch(self, host: str, address: str, port: int) -> None:
        found, unclear = await self._hold(host, address, port), 0
        if found is not _Found.HELD:
            return
        # The connection is gone. A process that lives listens still: ask again before judging.
        while (found := await self._hold(host, address, port)) is not _Found.GONE:
            unclear = unclear + 1 if found is _Found.UNCLEAR else 0
            if unclear == _UNCLEAR_TRIES:
                _LOG.warning("host %s does not answer any more: its lease will tell", host)
                return
            if unclear:
                await asyncio.sleep(_PAUSE_S)
        _LOG.warning("host %s is gone: its connection closed and nobody listens there", host)
        self._on_death(host)

    async def _hold(self, host: str, address: str, port: int) -> _Found:
        """Keeps a connection until it closes."""
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await asyncio.open_connection(address, port)
        except ConnectionRefusedError:
            return _Found.GONE
        except (OSError, TimeoutError):
            return _Found.UNCLEAR
        try:
            async with asyncio.timeout(_CONNECT_S):
                said = await reader.readline()
            if said.strip().decode(errors="replace") != host:
                return _Found.GONE if said.endswith(b"\n") else _Found.UNCLEAR
            with contextlib.suppress(OSError):
                await reader.read(1)
            return _Found.HELD
        except (OSError, TimeoutError):
            return _Found.UNCLEAR
        finally:
            writer.close()

    async def stop(self) -> None:
        """Lets go of everything."""
        for task in self._watching.values():
            task.cancel()
        if self._server is not None:
            self._server.close()
        for writer in list(self._connected):
            writer.close()
