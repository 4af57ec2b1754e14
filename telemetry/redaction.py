"""Texts without secrets: what goes into logs, errors, journals and onto screens."""

import re
from typing import Any, Final

_WORD: Final = re.compile(r"\S+")
# Bounded, so that no text takes longer than its length; of a longer scheme the end is found.
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]{0,31}://", re.IGNORECASE)


def redact(text: str) -> str:
    """The text without credentials in URLs."""
    return _WORD.sub(_without_credentials, text) if "://" in text else text


def _without_credentials(found: re.Match[str]) -> str:
    """user:password@ in a URL is the one secret that errors of clients like to quote. To the last @ of the word: a
    password that was not percent-encoded may have / and @ in it, and hiding too much of a URL does no harm.
    """
    word = found.group()
    end = word.rfind("@")
    scheme = _SCHEME.search(word, 0, end) if end > 0 else None
    return word if scheme is None else f"{word[: scheme.end()]}***{word[end:]}"


def redacted(value: Any) -> Any:
    """The value without credentials in the texts inside it; what is no plain data becomes its text."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redacted(key): redacted(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redacted(each) for each in value]
    return redact(repr(value))
