"""Signed records: an HMAC over a canonical encoding, with a key that has a name. Pure.

HMAC-SHA256 (RFC 2104, FIPS 198-1) over length-prefixed parts: no two different records have the same bytes, whatever is
in them. Keys are rotated by name: the first one signs, all of them verify.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import ClassVar, Final, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from admission.approval_errors import ForgedApproval, NoApprovalKeys, UnknownApprovalKey

Part: TypeAlias = str | int | bool
SHORTEST_KEY_BYTES: Final = 16
_KIND: Final = "penstock approval "
_KEY_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


def canonical(*parts: Part) -> bytes:
    """Bytes that no other parts have: how many there are, then each with its type and its length before it.

    Raises:
        ValueError: a text holds what no UTF-8 has (lone surrogates).
    """
    written = [len(parts).to_bytes(8, "big")]
    for part in parts:
        if isinstance(part, bool):
            kind, raw = b"b", b"1" if part else b"0"
        elif isinstance(part, int):
            kind, raw = b"i", str(part).encode()
        else:
            kind, raw = b"s", part.encode()
        written += (kind, len(raw).to_bytes(8, "big"), raw)
    return b"".join(written)


def digest_of(*parts: Part) -> str:
    """SHA-256 of the canonical bytes, as 64 hex digits."""
    return hashlib.sha256(canonical(*parts)).hexdigest()


class Keyring:
    """Keys by name; the first one signs. It shows their names only."""

    __slots__ = ("_keys", "first")

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys = dict(keys)
        self.first = next(iter(self._keys), "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Keys of ``id:base64,id2:base64``; none of an empty text.

        Raises:
            ValueError: it is not of this form; the text says what is wrong, and nothing of a key.
        """
        keys: dict[str, bytes] = {}
        for number, part in enumerate(filter(None, (part.strip() for part in re.split(r"[,\n]", text))), 1):
            name, colon, encoded = part.partition(":")
            if not colon or not _KEY_ID.fullmatch(name):
                raise ValueError(
                    f"key {number}: write id:base64, the id of 1 to 64 letters, digits, dots, dashes and underscores"
                )
            try:
                key = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                raise ValueError(f"key {name!r}: what follows the colon is no base64") from None
            if len(key) < SHORTEST_KEY_BYTES:
                raise ValueError(f"key {name!r} has {len(key)} bytes: give {SHORTEST_KEY_BYTES} at least, or better 32")
            if name in keys:
                raise ValueError(f"key {name!r} is there twice: give each an id of its own")
            keys[name] = key
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __repr__(self) -> str:
        return f"<keys {', '.join(self._keys) or 'none'}>"

    def sign(self, message: bytes, key_id: str) -> str:
        """The signature as 64 hex digits.

        Raises:
            KeyError: there is no such key.
        """
        return hmac.digest(self._keys[key_id], message, "sha256").hex()

    def knows(self, key_id: str) -> bool:
        """Whether it has this key."""
        return key_id in self._keys


class Signed(BaseModel):
    """A record that a holder of a key has signed. The key's id is signed with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[str]
    key: str = ""
    signature: str = ""

    def parts(self) -> list[Part]:
        """What the signature covers, beside the record's kind and the key's id."""
        raise NotImplementedError

    @classmethod
    def read(cls, raw: bytes, approval: str) -> Self:
        """The record in ``raw`` (JSON), with a signature that nobody has looked at.

        Raises:
            ForgedApproval: it is none.
        """
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            what = cls.kind.removeprefix(_KIND)
            raise ForgedApproval(approval, f"its {what} cannot be read ({error.error_count()} misfits)") from None

    def _message(self, key_id: str) -> bytes:
        return canonical(self.kind, key_id, *self.parts())

    def signed(self, keys: Keyring) -> Self:
        """This record, signed with the first key.

        Raises:
            NoApprovalKeys: there is none.
        """
        if not keys:
            raise NoApprovalKeys(
                "",
                "this process has no key to sign approvals with: set PENSTOCK_APPROVAL_KEYS, or use the PENSTOCK_HOME "
                "of the deployment that `penstock up` started",
            )
        signature = keys.sign(self._message(keys.first), keys.first)
        return self.model_copy(update={"key": keys.first, "signature": signature})

    def check_signature(self, keys: Keyring, approval: str) -> None:
        """Refuses what nobody with a key has signed.

        Raises:
            NoApprovalKeys: there is nothing to verify with.
            UnknownApprovalKey: the key that it names is not there.
            ForgedApproval: it is not what was signed.
        """
        what = self.kind.removeprefix(_KIND)
        if not keys:
            raise NoApprovalKeys(approval, "this process has no key to verify it with: set PENSTOCK_APPROVAL_KEYS")
        if not keys.knows(self.key):
            raise UnknownApprovalKey(
                approval, f"its {what} is signed with key {self.key!r}, which this process does not have: {keys!r}"
            )
        if not hmac.compare_digest(keys.sign(self._message(self.key), self.key), self.signature):
            raise ForgedApproval(approval, f"the signature of its {what} does not hold")
