"""Lineages as clients see them: a run, its forks, theirs, and the child runs of each."""

import msgspec

ROOT = "root"
FORK = "fork"
CHILD = "child"
FORGOTTEN = "forgotten"


class ForkReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a fork.

    ``made`` is False where the same fork was there already. ``inherited`` counts the journal entries that it has of its
    source; ``left_open`` are steps that had begun and not ended where it parted: they stay with the source, and the
    fork asks for them anew. ``at_risk`` says that it has another input and a past: where its code does not ask for the
    recorded steps again, it ends as failed (``replay_divergence``). ``may_cause_effects`` is False until it is
    promoted.
    """

    run_id: str
    source: str
    at: str
    root: str
    agent: str
    agent_version: str
    made: bool
    inherited: int
    left_open: tuple[str, ...]
    at_risk: bool
    may_cause_effects: bool


class PromotionNote(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """One promotion: when, which run for which lineage, from which branches, by whom and why."""

    at_ms: int
    run: str
    lineage: str
    by: str
    why: str
    from_: tuple[str, ...] = ()


class LineageNode(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a lineage, and what came of it.

    ``relation`` is ``root``, ``fork`` or ``child``; ``at`` the step at which it was forked, or which it is of its
    parent. ``state`` is ``forgotten`` where the store does not keep the run any more. ``promoted`` and ``demoted`` are
    how it got, and lost, the right to effects for the last time.
    """

    run_id: str
    relation: str
    at: str = ""
    agent: str = ""
    agent_version: str = ""
    state: str = FORGOTTEN
    reason: str = ""
    since_ms: int = 0
    may_cause_effects: bool = False
    simulated: bool = False
    by: str = ""
    why: str = ""
    inherited: int = 0
    promoted: PromotionNote | None = None
    demoted: PromotionNote | None = None
    below: tuple["LineageNode", ...] = ()


class LineageView(msgspec.Struct, frozen=True, kw_only=True):
    """A lineage: its tree from the root on, and what was promoted, oldest first.

    ``left_out`` counts child runs that are not in the tree because there are too many.
    """

    run_id: str
    root: LineageNode
    promotions: tuple[PromotionNote, ...] = ()
    left_out: int = 0

    def nodes(self) -> list[LineageNode]:
        """All runs, each before what is below it."""
        found: list[LineageNode] = []
        left = [self.root]
        while left:
            node = left.pop()
            found.append(node)
            left.extend(reversed(node.below))
        return found


class PromotionReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a promotion. ``changed`` is False where the run had the right already; ``from_`` had it before."""

    run_id: str
    changed: bool
    from_: tuple[str, ...] = msgspec.field(default=(), name="from")


def promotion_note(raw: bytes) -> PromotionNote | None:
    """The note in JSON; None where there is none, or one that this version does not understand."""
    try:
        return msgspec.json.decode(raw, type=PromotionNote) if raw else None
    except msgspec.DecodeError:
        return None
