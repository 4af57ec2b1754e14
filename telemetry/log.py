"""Logging of Penstock's processes: one structured line an event, on standard error."""

import logging
import os
import re
import sys
from typing import Any, Final

import structlog

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


def _redact_event(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key, value in event.items():
        event[key] = redacted(value)
    return event


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


def configure_logging(level: str | None = None) -> None:
    """Sends the ``penstock`` loggers to standard error: key=value for people, JSON with ``PENSTOCK_LOG_JSON=1``.

    Args:
        level: the least severe level that is shown; ``PENSTOCK_LOG_LEVEL`` or INFO by default.
    """
    as_json = os.environ.get("PENSTOCK_LOG_JSON") == "1"
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso"),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _redact_event,
                renderer,
            ],
        )
    )
    logger = logging.getLogger("penstock")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level or os.environ.get("PENSTOCK_LOG_LEVEL", "INFO"))
