"""Grafana dashboards as code: what they show, and the JSON that Grafana imports (the classic schema).

Built here and not with Grafana's SDK: that has a class for each of hundreds of options, of which a dozen are used.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

SCHEMA_VERSION: Final = 39
TAG: Final = "penstock"
_COLUMNS: Final = 24
_DATASOURCE: Final[dict[str, str]] = {"type": "prometheus", "uid": "${datasource}"}
_LINK: Final[dict[str, Any]] = {
    "type": "dashboards", "tags": [TAG], "title": "Penstock", "asDropdown": True, "keepTime": True, "includeVars": True
}  # fmt: skip
DEPLOYMENT: Final = 'deployment=~"$deployment"'


@dataclass(frozen=True, slots=True)
class Query:
    """One line of a panel: PromQL, and what its series are called."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: of it; runbooks name it.
        queries: what it shows.
        description: what it says, and what to do when it is bad.
        unit: as Grafana names units.
        kind: ``timeseries`` or ``stat``.
        bounds: from which values on it is yellow and red; what is missing is never reached.
        width: of 24 columns.
        stacked: whether series add up.
    """

    title: str
    queries: tuple[Query, ...]
    description: str
    unit: str = "short"
    kind: str = "timeseries"
    bounds: tuple[float | None, float | None] = (None, None)
    width: int = 8
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard; ``variables`` are labels to choose from: name → the metric that has them."""

    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...]
    variables: dict[str, str] = field(default_factory=dict)


def as_json(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana imports it; the same each time, so that it can be compared."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "links": [_LINK],
        "annotations": {"list": _annotations()},
        "templating": {"list": _variables(dashboard)},
        "panels": _panels(dashboard.panels),
    }  # fmt: skip


def text_of(dashboard: Dashboard) -> str:
    """The dashboard as the text of a file."""
    return json.dumps(as_json(dashboard), indent=2, ensure_ascii=False) + "\n"


def _annotations() -> list[dict[str, Any]]:
    marks = (
        ("breaker opened", "changes(penstock_dependency_breaker_openings{[D]}[1m]) > 0", "red", "{{dependency}}"),
        ("runs moved", "increase(penstock_migrations_total{[D]}[1m]) > 0", "orange", "{{deployment}}"),
        ("paused", "penstock_paused{[D]}", "blue", "{{what}}"),
    )
    return [
        {
            "name": name, "datasource": _DATASOURCE, "enable": True, "iconColor": color, "titleFormat": name,
            "textFormat": text, "expr": expression.replace("[D]", DEPLOYMENT), "step": "30s",
        }
        for name, expression, color, text in marks
    ]  # fmt: skip


def _variables(dashboard: Dashboard) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
    for name, metric in {"deployment": "penstock_up", **dashboard.variables}.items():
        chosen = "" if name == "deployment" else "{" + DEPLOYMENT + "}"
        question = f"label_values({metric}{chosen}, {name})"
        found.append(
            {
                "name": name, "type": "query", "datasource": _DATASOURCE, "query": question, "definition": question,
                "refresh": 2, "includeAll": True, "multi": True, "current": {"text": "All", "value": "$__all"},
            }
        )  # fmt: skip
    return found


def _panels(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    x = y = row_height = 0
    for number, panel in enumerate(panels, 1):
        height = 4 if panel.kind == "stat" else 8
        if x + panel.width > _COLUMNS:
            x, y, row_height = 0, y + row_height, 0
        found.append(_panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": height}))
        x, row_height = x + panel.width, max(row_height, height)
    return found


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [
        {"color": color, "value": bound}
        for color, bound in zip(("yellow", "red"), panel.bounds, strict=True)
        if bound is not None
    ]
    custom: dict[str, Any] = {}
    if panel.kind == "timeseries":
        custom = {"lineWidth": 1, "fillOpacity": 20 if panel.stacked else 5, "showPoints": "never"}
        custom["stacking"] = {"mode": "normal" if panel.stacked else "none"}
        custom["thresholdsStyle"] = {"mode": "line" if len(steps) > 1 else "off"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit, "min": 0, "custom": custom, "thresholds": {"mode": "absolute", "steps": steps}
            },
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        if panel.kind == "timeseries"
        else {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value"},
        "targets": [
            {"refId": letter, "datasource": _DATASOURCE, "expr": query.expression, "legendFormat": query.legend}
            for letter, query in zip("ABCDEFGH", panel.queries, strict=False)
        ],
    }  # fmt: skip
