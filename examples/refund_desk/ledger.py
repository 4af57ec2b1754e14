"""The ledger of the world outside: what was asked of it, and what it applied.

SQLite in WAL mode with `synchronous=NORMAL`: committed rows survive a crash or kill of this process, but a loss of
power may take the last ones. Rows are committed in groups, a few milliseconds apart; a mutation is answered only after
the commit that holds it, so the ledger never knows less than those who asked.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, Field

from refund_desk.faults import Endpoint

GROUP_COMMIT_S = 0.002

SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    endpoint TEXT NOT NULL, idempotency_key TEXT, order_id TEXT, at REAL NOT NULL, outcome TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS requests_by_key ON requests (endpoint, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE TABLE IF NOT EXISTS refunds (
    idempotency_key TEXT PRIMARY KEY, order_id TEXT NOT NULL, amount_cents INTEGER NOT NULL,
    body_digest BLOB NOT NULL, response BLOB NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
    idempotency_key TEXT PRIMARY KEY, ticket_id TEXT NOT NULL, amount_cents INTEGER NOT NULL,
    body_digest BLOB NOT NULL, response BLOB NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS payments (
    service TEXT NOT NULL, action TEXT NOT NULL, idempotency_key TEXT NOT NULL, reference TEXT NOT NULL,
    body_digest BLOB NOT NULL, response BLOB NOT NULL, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS payments_by_action ON payments (action);
CREATE INDEX IF NOT EXISTS payments_by_key ON payments (service, idempotency_key);
CREATE INDEX IF NOT EXISTS payments_by_reference ON payments (service, reference);
"""

FIND = {
    Endpoint.REFUNDS: "SELECT body_digest, response FROM refunds WHERE idempotency_key = ?",
    Endpoint.ANSWERS: "SELECT body_digest, response FROM answers WHERE idempotency_key = ?",
}
APPLY = {
    Endpoint.REFUNDS: "INSERT INTO refunds VALUES (?, ?, ?, ?, ?, ?)",
    Endpoint.ANSWERS: "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)",
}
KEYS = """
SELECT endpoint, idempotency_key, max(order_id), count(*),
    CASE endpoint
        WHEN 'refunds' THEN EXISTS (SELECT 1 FROM refunds WHERE idempotency_key = requests.idempotency_key)
        WHEN 'answers' THEN EXISTS (SELECT 1 FROM answers WHERE idempotency_key = requests.idempotency_key)
        ELSE 0 END
FROM requests WHERE idempotency_key IS NOT NULL AND (endpoint, idempotency_key) > (?, ?)
GROUP BY endpoint, idempotency_key ORDER BY endpoint, idempotency_key LIMIT ?
"""
REPEATED = """
SELECT endpoint, count(*) FROM (
    SELECT endpoint FROM requests WHERE idempotency_key IS NOT NULL
    GROUP BY endpoint, idempotency_key HAVING count(*) > 1)
GROUP BY endpoint
"""


FIND_PAYMENT = "SELECT body_digest, response FROM payments WHERE service = ? AND idempotency_key = ?"
PAY = "INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?, ?)"
ASK_PAYMENT = "SELECT response FROM payments WHERE service = ? AND reference = ? ORDER BY rowid LIMIT 1"
ACTIONS = "SELECT action, count(*) FROM payments WHERE action > ? GROUP BY action ORDER BY action LIMIT ?"


class Outcome(StrEnum):
    """What the ledger says about one request."""

    OK = "ok"  # a read that was answered
    APPLIED = "applied"  # a mutation that was applied and answered
    REPLAYED = "replayed"  # a mutation that had been applied before: the first answer again
    CONFLICT = "conflict"  # a key that had been used with another body
    INVALID = "invalid"  # refused as it stands
    NOT_FOUND = "not_found"
    RATE_LIMITED = "rate_limited"
    ERROR = "error"
    LOST_REQUEST = "lost_request"
    LOST_RESPONSE = "lost_response"  # done or applied, but the answer never left


class Effect(NamedTuple):
    """A mutation that is to be applied once per key. `about` is the order (refunds) or the ticket (answers)."""

    endpoint: Endpoint
    idempotency_key: str
    about: str
    amount_cents: int
    body_digest: bytes
    response: bytes


class PaymentRow(NamedTuple):
    """A payment that is to be made; `action` is what should happen once."""

    service: str
    action: str
    idempotency_key: str
    reference: str
    body_digest: bytes
    response: bytes


class Applied(NamedTuple):
    """What became of an effect, and the answer that belongs to its key (none after a conflict)."""

    outcome: Outcome
    response: bytes


class Totals(BaseModel):
    """The ledger in numbers."""

    requests: int
    requests_by_endpoint: dict[str, int]
    outcomes_by_endpoint: dict[str, dict[str, int]]
    refunds_applied: int
    refunded_cents: int
    answers_applied: int
    duplicate_refunds: Annotated[int, Field(description="applied refunds beyond the first of each order")]
    duplicate_answers: Annotated[int, Field(description="applied answers beyond the first of each ticket")]
    repeated_keys: Annotated[int, Field(description="pairs of endpoint and key with more than one request")]
    repeated_keys_by_endpoint: dict[str, int]


class KeyHistory(BaseModel):
    """What came with one idempotency key at one endpoint."""

    endpoint: str
    idempotency_key: str
    order_id: str | None
    requests: int
    applied: int


class KeyPage(BaseModel):
    """Some keys in the order of endpoint and key, and the `after` that asks for the next ones (None at the end)."""

    keys: list[KeyHistory]
    next: str | None


class ActionHistory(BaseModel):
    """How often one action was applied."""

    action: str
    applied: int


class ActionPage(BaseModel):
    """Some actions in their order, and the `after` that asks for the next ones (None at the end)."""

    actions: list[ActionHistory]
    next: str | None


class Seen(BaseModel):
    """What the world has seen of an action since it was started: requests that came, were carried out, are over."""

    received: int = 0
    carried_out: int = 0
    over: int = 0


class Witness(BaseModel):
    """What there is to say of one action, to those who judge."""

    seen: Seen
    applied: int = Field(description="how often it was applied, by the ledger")


class Ledger:
    """The writing side; belongs to one event loop and its thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.executescript(SCHEMA)
        self._group: asyncio.Future[None] | None = None

    def record(self, endpoint: Endpoint, idempotency_key: str | None, order_id: str | None, outcome: Outcome) -> None:
        """Count one request. It is durable after `committed()`."""
        self._begin()
        row = (endpoint.value, idempotency_key, order_id, time.time(), outcome.value)
        self._database.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", row)

    def apply(self, effect: Effect) -> Applied:
        """Apply `effect` unless its key was used before. It is durable after `committed()`."""
        self._begin()
        found = self._database.execute(FIND[effect.endpoint], (effect.idempotency_key,)).fetchone()
        if found is None:
            row = (*effect[1:], time.time())
            self._database.execute(APPLY[effect.endpoint], row)
            return Applied(Outcome.APPLIED, effect.response)
        if found[0] != effect.body_digest:
            return Applied(Outcome.CONFLICT, b"")
        return Applied(Outcome.REPLAYED, found[1])

    def pay(self, row: PaymentRow, *, once_per_key: bool) -> Applied:
        """Make a payment, again unless its key is to be honoured. It is durable after `committed()`."""
        self._begin()
        found = None
        if once_per_key:
            found = self._database.execute(FIND_PAYMENT, (row.service, row.idempotency_key)).fetchone()
        if found is None:
            self._database.execute(PAY, (*row, time.time()))
            return Applied(Outcome.APPLIED, row.response)
        same = found[0] == row.body_digest
        return Applied(Outcome.REPLAYED, found[1]) if same else Applied(Outcome.CONFLICT, b"")

    async def committed(self) -> None:
        """Wait until all that was written so far is committed; raises sqlite3.Error if it could not be."""
        if self._group is not None:
            await asyncio.shield(self._group)

    def close(self) -> None:
        """Commit what is left and close."""
        self._commit()
        self._database.close()

    def _begin(self) -> None:
        if self._group is None:
            self._database.execute("BEGIN")
            loop = asyncio.get_running_loop()
            self._group = loop.create_future()
            loop.call_later(GROUP_COMMIT_S, self._commit)

    def _commit(self) -> None:
        group, self._group = self._group, None
        if group is None:
            return
        try:
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            # Nothing of this group is durable: undo it, and tell all who wait that it was not applied.
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            if not group.done():
                group.set_exception(error)
                group.exception()
            return
        if not group.done():
            group.set_result(None)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        # One read transaction, so that the numbers are all of one moment.
        database.execute("BEGIN")
        yield database
    finally:
        database.close()


def _number(database: sqlite3.Connection, query: str) -> int:
    return int(database.execute(query).fetchone()[0])


def read_totals(path: Path) -> Totals:
    """The totals of what is committed in the ledger at `path`."""
    with _reading(path) as database:
        outcomes: dict[str, dict[str, int]] = {endpoint.value: {} for endpoint in Endpoint}
        for endpoint, outcome, count in database.execute(
            "SELECT endpoint, outcome, count(*) FROM requests GROUP BY endpoint, outcome"
        ):
            outcomes[endpoint][outcome] = count
        by_endpoint = {endpoint: sum(counts.values()) for endpoint, counts in outcomes.items()}
        repeated = dict(database.execute(REPEATED).fetchall())
        return Totals(
            requests=sum(by_endpoint.values()),
            requests_by_endpoint=by_endpoint,
            outcomes_by_endpoint=outcomes,
            refunds_applied=_number(database, "SELECT count(*) FROM refunds"),
            refunded_cents=_number(database, "SELECT coalesce(sum(amount_cents), 0) FROM refunds"),
            answers_applied=_number(database, "SELECT count(*) FROM answers"),
            duplicate_refunds=_number(database, "SELECT count(*) - count(DISTINCT order_id) FROM refunds"),
            duplicate_answers=_number(database, "SELECT count(*) - count(DISTINCT ticket_id) FROM answers"),
            repeated_keys=sum(repeated.values()),
            repeated_keys_by_endpoint={endpoint.value: repeated.get(endpoint.value, 0) for endpoint in Endpoint},
        )


def read_keys(path: Path, after: str, limit: int) -> KeyPage:
    """Up to `limit` keys that come after `after`, which is empty or the `next` of the page before."""
    endpoint, _, key = after.partition(":")
    with _reading(path) as database:
        rows = database.execute(KEYS, (endpoint, key, limit)).fetchall()
    keys = [
        KeyHistory(endpoint=row[0], idempotency_key=row[1], order_id=row[2], requests=row[3], applied=row[4])
        for row in rows
    ]
    following = f"{keys[-1].endpoint}:{keys[-1].idempotency_key}" if len(keys) == limit else None
    return KeyPage(keys=keys, next=following)


def read_payment(path: Path, service: str, reference: str) -> bytes | None:
    """The answer of the first payment with a reference at a service."""
    with _reading(path) as database:
        found = database.execute(ASK_PAYMENT, (service, reference)).fetchone()
    return None if found is None else bytes(found[0])


def read_applied(path: Path, action: str) -> int:
    """How often an action was applied."""
    with _reading(path) as database:
        return int(database.execute("SELECT count(*) FROM payments WHERE action = ?", (action,)).fetchone()[0])


def read_actions(path: Path, after: str, limit: int) -> ActionPage:
    """Up to `limit` actions that come after `after`, which is empty or the `next` of the page before."""
    with _reading(path) as database:
        rows = database.execute(ACTIONS, (after, limit)).fetchall()
    actions = [ActionHistory(action=action, applied=applied) for action, applied in rows]
    return ActionPage(actions=actions, next=actions[-1].action if len(actions) == limit else None)
