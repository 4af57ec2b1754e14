"""Ids of traces and spans, made from what names a run and its steps: whoever knows the run knows its trace.

Every process that has to name a span (a host that sends the context to a tool, a command that shows the journal, the
process that exports) comes to the same ids without asking anybody, and whatever died. The text form is W3C Trace
Context, https://www.w3.org/TR/trace-context/.
"""

import hashlib
import re
from typing import Final, NamedTuple

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1


class TraceParent(NamedTuple):
    """A span of somebody's that something of ours belongs to.

    Attributes:
        trace_id: of its trace, not zero.
        span_id: its own, not zero.
        sampled: whether it was, or will be, exported.
    """

    trace_id: int
    span_id: int
    sampled: bool = True

    def __str__(self) -> str:
        """The text of the W3C header ``traceparent``."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"

    @classmethod
    def parse(cls, text: str) -> "TraceParent | None":
        """What a header says; None where it says nothing that can be used, as the specification wants it."""
        found = _TRACEPARENT.fullmatch(text.strip())
        if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
            return None
        trace_id, span_id = int(found[2], 16), int(found[3], 16)
        return cls(trace_id, span_id, bool(int(found[4], 16) & _SAMPLED)) if trace_id and span_id else None


def run_trace_id(run_id: str, accepted_ms: int) -> int:
    """The trace of a run that was submitted without a parent. The moment of its acceptance keeps it apart from one of
    the same name in another deployment, or of an earlier life of this one.
    """
    return _number(16, run_id, str(accepted_ms))


def span_id(trace_id: int, *names: str) -> int:
    """The span of a trace that is called by these names: the run, then the step, then the attempt."""
    return _number(8, f"{trace_id:032x}", *names)


def _number(size: int, *parts: str) -> int:
    state = hashlib.blake2b("\0".join(parts).encode(), digest_size=size)
    return int.from_bytes(state.digest(), "big") or 1
