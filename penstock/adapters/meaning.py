"""What a failed call says of the world: by what happened on the wire, by the status, never by the text.

httpx and httpx2 have the same errors in different classes, so their modules are asked, if they are loaded at all.
"""

import contextlib
import logging
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from actors.contract import ToolCall
from actors.errors import Ambiguous, NotApplied, RateLimited, Rejected, ToolError
from admission.retry_after import asked_to_wait
from telemetry.redaction import redact

_LOG: Final = logging.getLogger("penstock.adapters")
_HTTP_MODULES: Final = ("httpx2", "httpx")
# No connection was made, not even to the other side's door: a proxy that refuses has passed nothing on either.
_NEVER_SENT: Final = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")
_CANNOT_BE_SENT: Final = ("InvalidURL", "UnsupportedProtocol")
# What an effect has not been served by: it is to be sent elsewhere. 302 and 303 may mean that it was.
_MOVED: Final = frozenset({301, 307, 308})
_ODD_HEADERS_EVERY_S: Final = 60.0

EXCERPT: Final = 300
"""Characters of the other side's text that are shown."""

_LOOKED_AT: Final = 1_000
_SECRETS: Final = (
    (re.compile(r"(https?://[^\s?\"'<>]+)\?[^\s\"'<>]*", re.IGNORECASE), r"\1?***"),
    (re.compile(r"\b(bearer|basic|token)\s+(?=\S*\d)[\w.~+/=*-]{8,}", re.IGNORECASE), r"\1 ***"),
    (re.compile(r"\b(sk|pk|rk|gh[opsu]|github_pat|glpat|xox[abeprs])[-_][\w*.-]{8,}"), r"\1-***"),
    (re.compile(r"\b(AIza|AKIA|ASIA|eyJ)[\w.-]{12,}"), r"\1***"),
    (
        re.compile(
            r"((?:api|access|secret|private)[_-]?key|password|passwd|secret|authorization|signature"
            r"|(?:access|auth|refresh|id|session|bearer)[_-]?token)([\"']?\s*[=:]\s*)"
            r"(?:(?:bearer|basic|digest|token)\s+)?(\"[^\"]*\"?|'[^']*'?|[^\s,;&\"'}]+)",
            re.IGNORECASE,
        ),
        r"\1\2***",
    ),
    # h11 quotes the whole value of a header that it refuses to send, which is most often a key with a line break.
    (re.compile(r"(Illegal header value ).*", re.DOTALL), r"\1***"),
)

_odd_told_at: dict[str, float] = {}


def shown(text: str) -> str:
    """The other side's words for people: on one line, cut, and without what looks like a secret."""
    plain = redact(text[:_LOOKED_AT])
    for pattern, instead in _SECRETS:
        plain = pattern.sub(instead, plain)
    line = " ".join(plain.split())
    return line if len(line) <= EXCERPT else f"{line[: EXCERPT - 1]}…"


def place_of(call: ToolCall, where: str) -> str:
    """``where``, or what the call calls."""
    return where or call.dependency or call.tool


def of_transport(error: BaseException | None, where: str) -> ToolError | None:
    """What an error of httpx, httpx2 or TLS says; None for any other error.

    A request that never left was not applied. Once something was sent and no answer is there, nobody can tell.
    """
    if error is None:
        return None
    kind = _kind_of_transport(error)
    return None if kind is None else kind(f"{where}: {type(error).__name__}: {shown(str(error))}")


def _kind_of_transport(error: BaseException) -> type[ToolError] | None:
    if isinstance(error, ssl.SSLError):
        # The handshake comes before the request; other TLS errors may come at any time.
        return NotApplied if isinstance(error, ssl.SSLCertVerificationError) else Ambiguous
    for module in _loaded():
        if isinstance(error, tuple(getattr(module, name) for name in _NEVER_SENT)):
            return NotApplied
        if isinstance(error, tuple(getattr(module, name) for name in _CANNOT_BE_SENT)):
            return Rejected
        if isinstance(error, module.LocalProtocolError):
            return Rejected if _refused_before_sending(error) else Ambiguous
        if isinstance(error, module.RequestError):
            return Ambiguous
    return None


def _refused_before_sending(error: BaseException) -> bool:
    """HTTP/1.1 checks the head of a request before it sends any of it; HTTP/2 finds out at any time."""
    said_by: Any = error.__cause__
    return isinstance(said_by, Exception) and any(type(each).__module__.startswith("h11") for each in said_by.args)


def answer_in(error: BaseException) -> Any | None:
    """The answer in an error of `raise_for_status()`; None for any other error."""
    for module in _loaded():
        if isinstance(error, module.HTTPStatusError):
            return error.response
    return None


def _loaded() -> list[Any]:
    return [module for name in _HTTP_MODULES if (module := sys.modules.get(name)) is not None]


def kind_of_status(
    call: ToolCall, status: int, headers: Mapping[str, str], meanings: Mapping[int, type[ToolError]] | None = None
) -> type[ToolError] | None:
    """What an answer means by its status; None for an answer that is no failure.

    Args:
        call: the call that was answered.
        status: the answer's status.
        headers: its headers.
        meanings: what statuses mean here, where that differs.
    """
    if meanings and status in meanings:
        return meanings[status]
    if status < 400:
        return Rejected if call.is_effect and status in _MOVED else None
    # 403 with Retry-After is how GitHub says it of its secondary limits.
    if status == 429 or (status == 403 and "retry-after" in headers):
        return RateLimited
    # 425: it will not risk what may be a replay (RFC 8470). 529: overloaded, it has taken nothing (Anthropic).
    if status in (425, 529):
        return NotApplied
    # 408: by RFC 9110 the request has not come whole, but services also say it when their own work takes too long.
    # 409: an earlier attempt with this key may be under way (draft-ietf-httpapi-idempotency-key-header).
    # 503: mostly sent before anything was done, but nothing proves it.
    if status in (408, 409) or status >= 500:
        return Ambiguous
    return Rejected


def of_status(
    kind: type[ToolError], call: ToolCall, status: int, headers: Mapping[str, str], text: str, where: str
) -> ToolError:
    """The error of that kind, with what was said and for how long the other side asked to be left alone."""
    said = f"{where}: {status}: {shown(text)}" if text else f"{where}: {status}"
    if issubclass(kind, Rejected):
        return kind(said)
    hint = asked_to_wait(headers, now_epoch_s=time.time(), maximum_s=call.maximum_retry_after_s, status=status)
    if hint.warning is not None:
        _tell(call, where, hint.warning)
        said = f"{said} ({hint.warning})"
    if issubclass(kind, RateLimited):
        return kind(said, retry_after=hint.seconds)
    return kind(said, retry_after_s=hint.seconds)


@contextlib.contextmanager
def mapped(meant_by: Callable[[Exception], ToolError | None], *, begun: bool = False) -> Iterator[None]:
    """Raises what an error means in its place; an error that means nothing here stays what it is.

    ``begun``: the other side has begun to answer.
    """
    try:
        yield
    except Exception as error:
        meant = meant_by(error)
        if meant is None:
            raise
        raise (_once_begun(meant) if begun else meant) from error


def _once_begun(error: ToolError) -> ToolError:
    """The error, of a call that the other side has begun to answer: nothing can prove then that it was not applied."""
    if not isinstance(error, NotApplied):
        return error
    return Ambiguous(f"while it answered: {error}", retry_after_s=error.retry_after_s)


def _tell(call: ToolCall, where: str, warning: str) -> None:
    """Logs odd headers of a dependency, once a minute: it sends them with each answer."""
    about, now_s = call.dependency or call.tool, time.monotonic()
    if now_s - _odd_told_at.get(about, -_ODD_HEADERS_EVERY_S) >= _ODD_HEADERS_EVERY_S:
        _odd_told_at[about] = now_s
        _LOG.warning("%s, called by tool %s at %s: %s", about, call.tool, where, warning)
