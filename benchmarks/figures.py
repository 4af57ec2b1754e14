"""Figures: what was measured, what was aimed at, and whether it holds."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One figure. ``target`` is a text for people; ``holds`` is None for a figure without a target."""

    name: str
    measured: float
    unit: str
    target: str
    holds: bool | None
    command: str


def at_least(name: str, measured: float, unit: str, bound: float, command: str) -> Figure:
    """A figure that should not be lower than ``bound``."""
    return Figure(name, round(measured, 3), unit, f">= {bound:g}", measured >= bound, command)


def at_most(name: str, measured: float, unit: str, bound: float, command: str) -> Figure:
    """A figure that should not be higher than ``bound``."""
    return Figure(name, round(measured, 3), unit, f"<= {bound:g}", measured <= bound, command)


def beside(name: str, measured: float, unit: str, command: str) -> Figure:
    """A figure that stands beside others: a floor, an ideal, a share."""
    return Figure(name, round(measured, 3), unit, "", None, command)


def show(figures: list[Figure], title: str) -> None:
    """Prints the figures as a table."""
    table = Table(title=title)
    for column in ("figure", "measured", "unit", "target", "holds"):
        table.add_column(column, justify="right" if column == "measured" else "left")
    for figure in figures:
        verdict = {True: "yes", False: "NO", None: ""}[figure.holds]
        table.add_row(figure.name, f"{figure.measured:,g}", figure.unit, figure.target, verdict)
    Console().print(table)


def write(figures: list[Figure], path: Path) -> None:
    """Writes the figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n", encoding="utf-8")
