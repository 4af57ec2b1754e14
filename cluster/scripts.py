"""The Lua scripts: one file each under ``lua/``, headed by keys, arguments, returns and invariant.

Scripts are called by their SHA-1 and loaded when a server says that it does not know them (a restarted server has
forgotten them), so that processes of two versions can share a server while one replaces the other.
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from cluster.lifecycle import lua_table


@dataclass(frozen=True)
class Script:
    """One script: its name, its whole text and its SHA-1 as the server computes it."""

    name: str
    text: str
    sha: str


def _load(name: str, *, partitioned: bool = True, when_full: bool = True, door: bool = False) -> Script:
    """Reads a script. ``when_full``: it runs at the memory limit too, since it only moves or ends what is there.
    ``door``: it needs the law of the door.
    """
    folder = files("cluster") / "lua"
    body = (folder / f"{name}.lua").read_text(encoding="utf-8")
    prelude = lua_table() + (folder / "prelude.lua").read_text(encoding="utf-8") if partitioned else ""
    if door:
        prelude += (folder / "door.lua").read_text(encoding="utf-8")
    text = ("#!lua flags=allow-oom\n" if when_full else "#!lua\n") + prelude + body
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


SUBMIT: Final = _load("submit", when_full=False, door=True)
FORK: Final = _load("fork", when_full=False)
CLAIM: Final = _load("claim", door=True)
APPEND: Final = _load("append", when_full=False)
COMPACT: Final = _load("compact")
FINISH: Final = _load("finish")
PARK: Final = _load("park")
FIRE: Final = _load("fire", door=True)
EVICT: Final = _load("evict", door=True)
EXCHANGE: Final = _load("exchange", door=True)
REAP: Final = _load("reap")
RELEASE: Final = _load("release")
CANCEL: Final = _load("cancel")
PROMOTE: Final = _load("promote")
RESOLVE: Final = _load("resolve")
HEARTBEAT: Final = _load("heartbeat", partitioned=False)
CONDEMN: Final = _load("condemn", partitioned=False)
HUB: Final = _load("hub", partitioned=False)
EFFECT_BEGIN: Final = _load("effect_begin", partitioned=False, when_full=False)
EFFECT_SETTLE: Final = _load("effect_settle", partitioned=False)
POLICY: Final = _load("policy", partitioned=False)
APPROVAL_ASK: Final = _load("approval_ask", when_full=False)
APPROVAL_DECIDE: Final = _load("approval_decide")
APPROVAL_USE: Final = _load("approval_use")

OF_NO_PARTITION: Final = (HEARTBEAT, CONDEMN, HUB, EFFECT_BEGIN, EFFECT_SETTLE, POLICY)
OF_APPROVALS: Final = (APPROVAL_ASK, APPROVAL_DECIDE, APPROVAL_USE)
ALL: Final = (
    SUBMIT, FORK, CLAIM, APPEND, COMPACT, FINISH, PARK, FIRE, REAP, RELEASE, CANCEL, PROMOTE, RESOLVE, EVICT,
    EXCHANGE, *OF_APPROVALS,
    *OF_NO_PARTITION,
)  # fmt: skip
