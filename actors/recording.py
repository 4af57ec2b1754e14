"""A run's journal as its owner on a host writes it: sealed, fenced, in order; and what follows a refused write."""

import logging
from typing import Final, NoReturn

from actors.errors import PayloadTooLarge, ReadOnlyBranch, RunAborted
from actors.execution import Execution, Phase
from actors.journal import (
    ENTRY_VERSION,
    Entry,
    Kind,
    Status,
    encode_entry,
    first_link,
    is_intent,
    link_of,
    seal,
)
from actors.services import Services
from cluster.records import Append, Claim

_LOG: Final = logging.getLogger("penstock.run")


class Recording(Execution):
    """An execution whose steps are recorded.

    ``read_only``: the run may cause no effects, as far as this owner knows. ``_journal_lost``: what the store has is
    not what this owner believes, so that it must not write any more.
    """

    __slots__ = ("_buffer", "_journal_lost", "_length", "_link", "claim", "read_only", "services")

    def __init__(self, claim: Claim, services: Services) -> None:
        super().__init__(claim.id)
        self.claim = claim
        self.services = services
        self.read_only = claim.readonly
        self._length = len(claim.journal)
        self._link = link_of(claim.journal[-1]) if claim.journal else first_link(claim.id, claim.job)
        self._buffer: list[bytes] = []
        self._journal_lost = False

    def check_size(self, what: str, payload: bytes) -> None:
        """Refuses what the store is not to hold."""
        limit = self.services.payload_limit_bytes
        if len(payload) > limit:
            raise PayloadTooLarge(what, len(payload), limit)

    @property
    def journal_length(self) -> int:
        """How many entries the journal has, as this owner believes."""
        return self._length

    def entry(
        self,
        kind: Kind,
        path: str,
        name: str,
        args: bytes,
        status: Status,
        payload: bytes,
        attempts: int,
        at_ms: int,
        facts: bytes = b"",
    ) -> bytes:
        """An encoded journal entry of this run that ends now; it is sealed when it is written."""
        now_ms = self.services.now_ms()
        return encode_entry(
            Entry(ENTRY_VERSION, kind, path, name, args, status, payload, attempts, at_ms, now_ms, facts)
        )

    @property
    def head(self) -> str:
        """The last link of the journal, as this owner believes (hex)."""
        return self._link.hex()

    def sealed(self, entry: bytes) -> bytes:
        """The entry, chained to the last one; it is the last one now."""
        entry = seal(self._link, entry)
        self._link = link_of(entry)
        return entry

    def later(self, entry: bytes) -> None:
        """Has an entry written with the next one, before anything that depends on it can be."""
        self._buffer.append(entry)

    async def write(self, entries: list[bytes], finished: int) -> None:
        """Appends entries, after the values that were produced since the last time, and obeys what the store says.

        Raises:
            ReadOnlyBranch: one of them is an intent, and the run may cause no effects; none of them is written.
        """
        if self.leaving or self._journal_lost or self._phase is Phase.CLOSED:
            raise RunAborted
        values, self._buffer = self._buffer, []
        claim, link = self.claim, self._link
        entries = [self.sealed(entry) for entry in values + entries]
        append = Append(claim.id, claim.fence, self._length, finished, entries, sum(map(is_intent, entries)))
        self._length += len(entries)
        try:
            said = await self.services.committer.append(append)
        except Exception as error:
            if self.leaving:
                raise RunAborted from None
            self.lost_track(f"the store refused a write: {error}")
        if said is None:
            return
        if said == "CANCEL":
            self.request_cancel("cancelled")
        elif said == "READONLY":
            self._refused(append, link, values)
        elif said == "GAP":
            self.lost_track("its owner lost track of the journal")
        else:
            _LOG.warning("run %s: the store refused a write (%s): this host's ownership is over", claim.id, said)
            self.drop()
            raise RunAborted

    def _refused(self, append: Append, link: bytes, values: list[bytes]) -> NoReturn:
        """An intent of a branch without the right to effects: all is as if nobody had tried to write it."""
        self.read_only = True
        if self._length != append.length + len(append.entries):
            # What was handed over after it counts on it.
            self.lost_track("it lost its right to effects while it wrote")
        self._length, self._link, self._buffer = append.length, link, values + self._buffer
        raise ReadOnlyBranch(f"run {self.claim.id} may cause no effects: it is of a branch that is not promoted")

    def lost_track(self, reason: str) -> NoReturn:
        """What the journal has is not what this owner believes: whoever claims the run next reads it anew."""
        _LOG.warning("run %s is handed back: %s", self.claim.id, reason)
        self._journal_lost = True
        self._departing = self._departing or reason
        self._stop()
        raise RunAborted

    async def record(self, raw: bytes, finished: int = 1) -> None:
        """Appends an entry as a step of its own, so that the run is not unloaded meanwhile."""
        self.active += 1
        try:
            await self.write([raw], finished)
        finally:
            self.active -= 1
            self.step_over()
