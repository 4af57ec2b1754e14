"""How the queue looks to people: a few lines and tables, once or again and again."""

from typing import TYPE_CHECKING, Any, Self

from penstock.cli import shown
from penstock.cli.outcome import plain

if TYPE_CHECKING:
    from rich.live import Live

    from penstock.queue_views import ClassView, QueueView, SheddingView, TenantView

_WORDS = {"refused": "refused", "shed": "shed", "would": "would be refused or shed"}


def show(view: "QueueView") -> None:
    """Writes it to the standard output."""
    out = shown.console()
    for part in parts(view):
        out.print(part)


class Screen:
    """Shows views one after the other: in place on a terminal, else each below the one before. A context manager."""

    def __init__(self) -> None:
        self._live: Live | None = None

    def __enter__(self) -> Self:
        console = shown.console()
        if console.is_terminal:
            from rich.live import Live

            self._live = Live(console=console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, view: "QueueView") -> None:
        """Shows it now."""
        if self._live is None:
            show(view)
            return
        from rich.console import Group

        self._live.update(Group(*parts(view)), refresh=True)


def parts(view: "QueueView") -> list[Any]:
    """Lines and tables."""
    dry = "; DRY RUN: nothing is refused or evicted" if view.dry_run else ""
    found: list[Any] = [plain(f"{_head(view)}{dry}"), plain(_hosts(view))]
    found += [plain(f"! {note}") for note in view.notes]
    found.append(_classes(view.classes))
    if view.tenants:
        found.append(_tenants(view))
    if view.shedding:
        found.append(_shedding(view.shedding))
    elif view.controller.fresh:
        found.append("nothing was refused or shed so far")
    return found


def _head(view: "QueueView") -> str:
    aside = f", {view.aside:,} set aside" if view.aside else ""
    rules = "no rules for admission" if view.rules == "default" else f"rules {view.rules}"
    return f"queue of {view.name}: {view.queued:,} queued{aside}, {view.running:,} running; {rules}"


def _hosts(view: "QueueView") -> str:
    drain, age_s = view.drain, view.controller.age_s
    if not view.controller.fresh:
        return "drain: not known"
    draining = f" ({drain.draining} draining)" if drain.draining else ""
    rate = "not known yet" if drain.rate is None else f"{drain.rate:.2f} slot-seconds a second"
    memory = "" if view.memory is None else f"; the store's memory is {view.memory:.0%} full"
    return (
        f"drain: {rate}: {drain.slots:g} slots of {drain.hosts} hosts{draining}, {drain.busy:g} busy, "
        f"{drain.efficiency:.0%} of them used while runs wait{memory}; policy {view.controller.policy}, "
        f"{age_s:.1f} s old"
    )


def _classes(found: "list[ClassView]") -> Any:
    made = shown.table(
        "class", "queued", "set aside", "started", "predicted wait", "max_wait", "share", "load", "now",
        right=("queued", "set aside", "started", "predicted wait", "max_wait", "share", "load"),
    )  # fmt: skip
    for each in found:
        load = "" if each.load is None else f"{each.load:.0%}"
        share = f"{each.share:.0%}" if each.share else ""
        now = f"refused: {each.refused}" if each.refused else ""
        shown.row(
            made, each.name, f"{each.queued:,}", f"{each.aside:,}", f"{each.started:,}", shown.wait(each.wait_s),
            shown.length(each.max_wait_s), share, load, now,
        )  # fmt: skip
    return made


def _tenants(view: "QueueView") -> Any:
    made = shown.table(
        "tenant", "queued", "running", "work queued", "weight", "predicted wait of its next run", "over its cost",
        right=("queued", "running", "work queued", "weight"),
    )  # fmt: skip
    for each in view.tenants:
        waits = ", ".join(f"{name} {shown.wait(wait_s)}" for name, wait_s in each.waits_s.items())
        shown.row(
            made, each.tenant, _of(each.queued, each.max_queued), _of(each.running, each.max_running),
            shown.length(each.queued_s), "" if each.weight is None else f"{each.weight:g}", waits, _over(each, view),
        )  # fmt: skip
    return made


def _of(count: int, most: int | None) -> str:
    return f"{count:,}" if most is None else f"{count:,} of {most:,}"


def _over(each: "TenantView", view: "QueueView") -> str:
    if each.over_until_ms is None or each.over_until_ms <= view.now_ms:
        return ""
    return f"for {shown.length((each.over_until_ms - view.now_ms) / 1000)}"


def _shedding(found: "list[SheddingView]") -> Any:
    from penstock.refusals import in_words

    made = shown.table("what", "class", "reason", "a second", "in all", "meaning", right=("a second", "in all"))
    for each in found:
        rate = "unknown" if each.per_s is None else f"{each.per_s:.2f}" if each.per_s else ""
        shown.row(
            made, _WORDS.get(each.what, each.what), each.value_class, each.reason, rate, f"{each.total:,}",
            in_words(each.reason),
        )  # fmt: skip
    return made
