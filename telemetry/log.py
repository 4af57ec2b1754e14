"""Logging of Penstock's processes: one structured line an event, on standard error."""

import logging
import os
import sys
from typing import Any

import structlog

from telemetry.redaction import redact, redacted

__all__ = ["configure_logging", "redact", "redacted"]


def _redact_event(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key, value in event.items():
        event[key] = redacted(value)
    return event


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
