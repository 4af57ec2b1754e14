"""The effect protocol's decisions. Pure.

    intent + begin  →  call  →  verify  →  settle  →  journal

The intent is a fenced entry of the run's journal, *begin* claims the effect's own record, which all runs of a tenant
share. Both go out together, and the tool is called only when both are acknowledged. So whoever finds an open intent
and a record that nobody has begun knows that the tool was never called; and a record that was begun by a run that can
write no intent any more is void.

| what begin answers | on new ground                | with an open intent (its host died, or it was interrupted)      |
|--------------------|------------------------------|-----------------------------------------------------------------|
| new                | call                         | call: nobody has called yet                                     |
| mine               | call: the intent was not there | call again (idempotent), ask (reconcile), else unknown         |
| done               | inherit the receipt          | inherit the receipt: it was settled before the journal knew     |
| busy, unknown      | wait for the other owner     | wait for the other owner                                        |
| conflict           | refuse (business key), or stop for reconciliation (another branch of the lineage)              |
| stale              | leave: a later owner has it  | leave                                                           |
"""

from enum import StrEnum
from typing import Final

RECONCILE_FIRST_S: Final = 0.1
RECONCILE_LONGEST_S: Final = 10.0
RECONCILE_FOR_S: Final = 60.0


class Next(StrEnum):
    """What an owner does after *begin*."""

    CALL = "call"
    CALL_AGAIN = "call_again"
    ASK = "ask"
    INHERIT = "inherit"
    WAIT = "wait"
    REFUSE = "refuse"
    STOP = "stop"
    UNKNOWN = "unknown"
    LEAVE = "leave"


def after_begin(word: str, *, intent_open: bool, idempotent: bool, can_ask: bool, has_business_key: bool) -> Next:
    """Decides by the word of the effect's record; see the table above.

    Args:
        word: what ``effect_begin`` answered.
        intent_open: the journal had the intent already when this owner came to the step.
        idempotent: the other side honours the key.
        can_ask: the tool has a ``reconcile``.
        has_business_key: the agent gave the key; otherwise it is the step's own, and only other branches share it.
    """
    if word == "mine" and intent_open:
        if idempotent:
            return Next.CALL_AGAIN
        return Next.ASK if can_ask else Next.UNKNOWN
    if word == "conflict":
        return Next.REFUSE if has_business_key else Next.STOP
    return _AFTER[word]


_AFTER: Final = {
    "new": Next.CALL,
    "mine": Next.CALL,
    "done": Next.INHERIT,
    "busy": Next.WAIT,
    "unknown": Next.WAIT,
    "stale": Next.LEAVE,
}


def reconcile_pause(tries: int, now: float, counts_from: float, began: float) -> float | None:
    """Seconds until the other side is asked again what became of a call; None when it is not asked any more.

    A positive answer counts at once. A negative one says nothing before ``counts_from``: what was sent may still be on
    its way. So that moment is never passed by without asking.

    Args:
        tries: how often it was asked.
        now: the present.
        counts_from: when a negative answer begins to count, by the same clock.
        began: when the asking began.
    """
    pause_s = min(RECONCILE_LONGEST_S, RECONCILE_FIRST_S * 2.0 ** min(tries - 1, 20))
    if now < counts_from:
        return min(pause_s, counts_from - now)
    return None if now + pause_s > max(counts_from, began) + RECONCILE_FOR_S else pause_s
