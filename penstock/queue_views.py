"""What clients get to see of the queue: values without behaviour. Times are epoch milliseconds by the store's clock."""

from typing import Any

import msgspec


class PauseView(msgspec.Struct, frozen=True, kw_only=True):
    """Something that nothing is started of: ``queue``, ``class:NAME``, ``tenant:NAME`` or ``agent:NAME``; who paused
    it, why and since when. ``partitions`` says of how many, where somebody was interrupted while pausing it; None: all.
    """

    what: str
    by: str = ""
    why: str = ""
    since_ms: int | None = None
    partitions: int | None = None

    def __str__(self) -> str:
        """One line for people."""
        why = f": {self.why}" if self.why else ""
        part = "" if self.partitions is None else f" (in {self.partitions} partitions only: pause it again)"
        return f"{named(self.what)} is paused by {self.by or 'somebody'}{why}{part}"


def named(what: str) -> str:
    """What is paused, in words."""
    kind, _, name = what.partition(":")
    return f"{kind} {name}" if name else "the whole queue"


class ControllerView(msgspec.Struct, frozen=True, kw_only=True):
    """The admission controller. ``fresh`` says that what it has said holds now; ``age_s`` is how old that is (None: it
    has never said anything), ``policy`` the version of what doors go by.
    """

    fresh: bool
    age_s: float | None
    policy: int


class DrainView(msgspec.Struct, frozen=True, kw_only=True):
    """How fast hosts take runs off the queue: live and draining hosts, their slots, how many are busy, how much of the
    slots is really used while runs wait, and the rate: slot-seconds a second, None where no host was ever there.
    """

    hosts: int = 0
    draining: int = 0
    slots: float = 0.0
    busy: float = 0.0
    efficiency: float = 0.0
    rate: float | None = None


class ClassView(msgspec.Struct, frozen=True, kw_only=True):
    """A class. ``queued`` runs may be claimed, ``aside`` ones are set aside (paused, without a host that serves them,
    or over their tenant's cap). ``wait_s`` is predicted for a run that comes now, None where nobody can tell; ``load``
    is what comes of it, as a part of what hosts can do; ``refused`` is why it is refused now, '' where it is not.
    """

    name: str
    queued: int
    aside: int
    started: int
    wait_s: float | None
    max_wait_s: float
    share: float
    load: float | None
    refused: str


class TenantView(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant with its caps (None: none). ``waits_s`` is predicted for its next run, by class in which it has some
    queued; ``used_s`` is slot time of the last hour, ``over_until_ms`` until when it is over its cost.
    """

    tenant: str
    queued: int
    running: int
    queued_s: float
    weight: float | None = None
    waits_s: dict[str, float | None] = {}
    max_queued: int | None = None
    max_running: int | None = None
    used_s: float | None = None
    over_until_ms: int | None = None


class SheddingView(msgspec.Struct, frozen=True, kw_only=True):
    """What is refused at the door (``refused``), shed after it was accepted (``shed``), or would have been without the
    dry run (``would``): by reason and class, ``total`` since the deployment began and ``per_s`` now (None: unknown).
    """

    what: str
    reason: str
    value_class: str = msgspec.field(name="class")
    total: int
    per_s: float | None


class QueueView(msgspec.Struct, frozen=True, kw_only=True):
    """The queue of a deployment. Counts come from the store and are true whatever died; waits, loads and rates come
    from the controller and are as old as it says. ``notes`` is what is out of the ordinary, the worst first.

    ``dependencies`` are those that are not to be called, ``memory`` how full the store is (None: it has no limit).
    """

    name: str
    now_ms: int
    controller: ControllerView
    rules: str
    dry_run: bool
    queued: int
    aside: int
    running: int
    drain: DrainView
    classes: list[ClassView]
    tenants: list[TenantView]
    shedding: list[SheddingView]
    paused: list[PauseView]
    dependencies: dict[str, Any]
    memory: float | None
    notes: list[str]
