"""A run's audit trail as clients get to see it: values without behaviour. Times are epoch milliseconds."""

from typing import Any

import msgspec


class TrailRow(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened.

    Attributes:
        at_ms: when, by the store's clock; of entries as their host estimated it.
        run_id: in which run.
        step: at which step; empty for what concerns the run as a whole.
        what: one word or two, of a fixed list (docs/trail.md): asked, permitted, approved, intent, applied, resolved …
        by: who did it: a person, a policy, a tool, a run, a host, the store.
        detail: for people.
        link: the first hex digits of the entry's link (of an end: of its seal); empty for what no entry says.
        place: of the entry in archive and journal, from 0.
        facts: the same and more as data.
    """

    at_ms: int
    run_id: str
    step: str
    what: str
    by: str = ""
    detail: str = ""
    link: str = ""
    place: int | None = None
    facts: dict[str, Any] = {}


class TrailFinding(msgspec.Struct, frozen=True, kw_only=True):
    """A place where the trail is broken; ``place`` is of the entry, from 0, where one is meant."""

    what: str
    place: int | None
    step: str
    text: str


class TrailVerification(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's trail proves.

    Attributes:
        run_id: the run.
        holds: nothing is broken, in this run and in the child runs that were looked at.
        entries: how many there are; ``chained`` of them are unchanged and where they belong.
        head: link of the last entry (hex).
        anchor: what to keep elsewhere, see docs/trail.md (hex).
        sealed_by: who has sealed the run's end: ``owner``, or ``nobody``; empty as long as it goes on.
        broken: how many places are; ``findings`` has the first ones.
        notes: what is not proved, and why.
        children: the same of child runs, where they were looked at too.
    """

    run_id: str
    holds: bool
    entries: int
    chained: int
    head: str
    anchor: str
    sealed_by: str
    broken: int
    findings: list[TrailFinding]
    notes: list[str]
    children: "list[TrailVerification]" = []

    @property
    def first(self) -> tuple[str, TrailFinding] | None:
        """The first place that is broken, and the run that it is in; of this run before its children."""
        if self.findings:
            return self.run_id, self.findings[0]
        return next((found for child in self.children if (found := child.first) is not None), None)


class Trail(msgspec.Struct, frozen=True, kw_only=True):
    """A run's audit trail; ``verification`` where it was asked for."""

    run_id: str
    custom_id: str
    agent: str
    state: str
    rows: list[TrailRow]
    verification: TrailVerification | None = None
