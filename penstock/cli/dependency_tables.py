"""How dependencies look to people."""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from penstock.cli import shown

if TYPE_CHECKING:
    from rich.table import Table

    from penstock.dependency_views import BudgetView, DependencyView

_TENANTS_IN_A_LINE: Final = 3


def listing(found: list["DependencyView"]) -> None:
    """A line or two for each dependency."""
    made = shown.table(
        "dependency", "state", "for", "why", "limits (used)", "under way", "waiting", "retries left", "retry-after",
        "pace", right=("under way",),
    )  # fmt: skip
    for each in found:
        shown.row(
            made, each.name, each.breaker.state, _since(each, each.breaker.since_ms), _why(each), _limits(each),
            _under_way(each), _waiting(each.waiting), _budgets(each.budgets), _retry_after(each), _pace(each),
        )  # fmt: skip
    shown.console().print(made)


def details(view: "DependencyView") -> None:
    """One dependency: what is in force, who uses it, and who waits."""
    out = shown.console()
    breaker = view.breaker
    definition = {name: value for name, value in view.definition.items() if name not in ("name", "rate")}
    facts: list[tuple[str, object]] = [
        ("dependency", view.name),
        ("state", breaker.state),
        ("since", _at(view, breaker.since_ms)),
        ("why", _why(view)),
        ("openings", _number(breaker.openings) if breaker.openings else ""),
        (
            "in its window",
            f"{_number(breaker.calls)} calls, {_number(breaker.failed)} failed, {_number(breaker.slow)} slow",
        ),
        ("under way", _under_way(view)),
        ("waiting", _waiting(view.waiting)),
        ("pace", _pace(view)),
        ("last Retry-After", _retry_after(view)),
        ("in all", ", ".join(f"{_number(count)} {word.replace('_', ' ')}" for word, count in view.totals.items())),
        ("hub", f"life {view.epoch}, {_spoke(view)}"),
        *((name, _plain(value)) for name, value in definition.items()),
        ("set by operators", json.dumps(view.override) if view.override else ""),
        ("not understood", ", ".join(view.unread)),
    ]
    made = shown.table("field", "value")
    for name, value in facts:
        if str(value):
            shown.row(made, name, value)
    out.print(made)
    for made in (_limit_table(view), _host_table(view), _budget_table(view)):
        if made.row_count:
            out.print(made)


def _limit_table(view: "DependencyView") -> "Table":
    columns = ("limit", "used", "with hosts", "available")
    made = shown.table(*columns, right=columns[1:])
    for limit in view.limits:
        what = f"{_number(limit.amount)} {limit.resource} per {_duration(limit.per)}"
        shown.row(made, what, _number(limit.used), _number(limit.outstanding), _number(limit.available))
    return made


def _host_table(view: "DependencyView") -> "Table":
    columns = ("host", "state", "under way", "waiting", "permits", "spoke")
    made = shown.table(*columns, right=columns[2:5])
    for host in view.hosts:
        shown.row(
            made, host.host, host.breaker, _of(host.in_flight, host.places), _number(host.waiting),
            _number(host.permits), f"{host.silent_ms / 1000:.1f} s ago",
        )  # fmt: skip
    return made


def _budget_table(view: "DependencyView") -> "Table":
    columns = ("tenant", "retries left", "calls", "retries", "waiting")
    made = shown.table(*columns, right=columns[1:])
    for tenant, budget in sorted(view.budgets.items()):
        shown.row(
            made,
            tenant,
            f"{budget.available:.1f}",
            _number(budget.calls),
            _number(budget.retries),
            _number(budget.waiting),
        )
    return made


def silence(view: "DependencyView") -> str:
    """What to know of a hub whose last word is old; empty where it is not."""
    if view.at_ms is None:
        return "its hub has not spoken yet"
    return f"hub silent for {shown.length(view.silent_s or 0.0)}" if view.stale else ""


def _why(view: "DependencyView") -> str:
    breaker = view.breaker
    said = [silence(view), breaker.reason, f"by {breaker.by}" if breaker.by else ""]
    if breaker.until_ms is not None and breaker.until_ms > view.now_ms:
        said.append(f"probes in {_left(view, breaker.until_ms)}")
    return "; ".join(part for part in said if part)


def _limits(view: "DependencyView") -> str:
    return "\n".join(
        f"{_number(limit.used)}/{_number(limit.amount)} {limit.resource}/{_duration(limit.per)}"
        for limit in view.limits
    )


def _under_way(view: "DependencyView") -> str:
    return _of(view.concurrency.in_flight, view.concurrency.max)


def _of(there: float, bound: float | None) -> str:
    return _number(there) if bound is None else f"{_number(there)} of {_number(bound)}"


def _waiting(waiting: Mapping[str, float]) -> str:
    return ", ".join(f"{_number(count)} {rank}" for rank, count in waiting.items() if count)


def _budgets(budgets: Mapping[str, "BudgetView"]) -> str:
    """The tenants with the least first."""
    if len(budgets) == 1:
        return "".join(f"{budget.available:.1f}" for budget in budgets.values())
    least = sorted(budgets.items(), key=lambda item: (item[1].available, item[0]))
    told = [f"{budget.available:.1f} {tenant}" for tenant, budget in least[:_TENANTS_IN_A_LINE]]
    more = len(least) - len(told)
    return ", ".join([*told, f"{more} more"] if more else told)


def _retry_after(view: "DependencyView") -> str:
    said = []
    if view.retry_after is not None:
        said.append(f"{_number(view.retry_after.seconds)} s, said {_since(view, view.retry_after.at_ms)} ago")
    if view.not_before_ms is not None and view.not_before_ms > view.now_ms:
        said.append(f"no call for {_left(view, view.not_before_ms)}")
    return "; ".join(said)


def _pace(view: "DependencyView") -> str:
    return "" if view.pace is None or view.pace == 1 else f"{view.pace:.0%}"


def _spoke(view: "DependencyView") -> str:
    return "has not spoken yet" if view.silent_s is None else f"spoke {view.silent_s:.1f} s ago"


def _at(view: "DependencyView", at_ms: int | None) -> str:
    return "" if at_ms is None else f"{shown.moment(at_ms)}, {_since(view, at_ms)} ago"


def _since(view: "DependencyView", at_ms: int | None) -> str:
    return "" if at_ms is None else shown.length(max(0.0, (view.now_ms - at_ms) / 1000))


def _left(view: "DependencyView", at_ms: int) -> str:
    return f"{max(0.0, (at_ms - view.now_ms) / 1000):.1f} s"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _duration(seconds: float) -> str:
    from admission.dependency import duration_text

    return duration_text(seconds)


def _plain(value: Any) -> str:
    """A part of a definition in a line."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_plain(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ",".join(str(each) for each in value)
    return format(value, "g") if isinstance(value, float) else str(value)
