"""Pictures of overload and of a metastable failure, over time, for all arms."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from admission.values import CLASSES
from benchmarks.queue_simulation.arms.dagor import Dagor
from benchmarks.queue_simulation.arms.penstock import Penstock
from benchmarks.queue_simulation.arms.queues import CodelLifo, Fifo, Heap, TailDrop
from benchmarks.queue_simulation.figures import STRIKES, Maker, simulated, stricken
from benchmarks.queue_simulation.plan import Plan
from benchmarks.queue_simulation.record import Record

matplotlib.use("Agg")

SHOWN: Final[tuple[tuple[str, Maker, str], ...]] = (
    (Penstock.name, Penstock, "#0b5fa5"),
    (Fifo.name, Fifo, "#c0392b"),
    (Heap.name, Heap, "#e08e0b"),
    (TailDrop.name, TailDrop, "#7f8c8d"),
    (CodelLifo.name, CodelLifo, "#8e44ad"),
    (Dagor.name, Dagor, "#1e8449"),
)
SHADES: Final = ("#08306b", "#2171b5", "#6baed6", "#fd8d3c", "#a63603")
OVERLOAD: Final = Plan(load=((0.0, 0.7), (60_000.0, 10.0), (180_000.0, 0.7)), until_ms=300_000)


def smoothed(values: Sequence[float], count: int) -> list[float]:
    """Means over the last so many values."""
    out: list[float] = []
    for at in range(len(values)):
        part = values[max(0, at + 1 - count) : at + 1]
        out.append(sum(part) / len(part))
    return out


def draw(path: Path, title: str, plan: Plan, trouble: str, from_s: float, to_s: float) -> None:
    """Goodput and critical success of all arms, and the waits of Penstock's classes, over time."""
    records = [(name, simulated(plan, make, f"picture, {name}"), colour) for name, make, colour in SHOWN]
    picture = Picture(figsize=(10, 10.5), layout="constrained")
    picture.suptitle(title, fontsize=13)
    axes: list[Axes] = list(picture.subplots(3, 1, sharex=True))
    bins = int(plan.until_ms / plan.bin_ms)
    seconds = [at * plan.bin_ms / 1000 for at in range(bins)]
    for name, record, colour in records:
        wide, above = (2.4, 5) if name == Penstock.name else (1.3, 3)
        useful = smoothed([100 * each / plan.capacity for each in record.useful.slots[:bins]], 10)
        axes[0].plot(seconds, useful, label=name, color=colour, linewidth=wide, zorder=above)
        axes[1].plot(seconds, _critical(record, bins), label=name, color=colour, linewidth=wide, zorder=above)
    _waits(axes[2], records[0][1], seconds)
    axes[0].set_ylabel("goodput: slots used for work\nthat ends in time, %")
    axes[1].set_ylabel("critical runs that succeed,\nby their arrival, %")
    axes[2].set_ylabel("mean wait for the start,\npenstock by class, s")
    axes[2].set_xlabel("time, s")
    for each in axes:
        each.axvspan(from_s, to_s, color="#f4d9d0", alpha=0.6, zorder=0, label=trouble)
        each.grid(alpha=0.3)
        each.set_xlim(0, seconds[-1])
        each.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)
    for each in axes[:2]:
        each.set_ylim(-3, 105)
    axes[2].set_ylim(bottom=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the date and the version, the same simulation gives the same bytes.
    picture.savefig(path, dpi=100, metadata={"Software": None})


def _critical(record: Record, bins: int) -> list[float]:
    """Part of the critical runs that came within the last five seconds and succeeded."""
    able = smoothed([float(each[0]) for each in record.critical_by_bin[:bins]], 10)
    done = smoothed([float(each[1]) for each in record.critical_by_bin[:bins]], 10)
    return [100 * good / all_of if all_of else float("nan") for good, all_of in zip(done, able, strict=True)]


def _waits(axes: Axes, record: Record, seconds: Sequence[float]) -> None:
    for rank, (name, shade) in enumerate(zip(CLASSES, SHADES, strict=True)):
        sums = smoothed([each[rank][0] for each in record.wait_by_bin[: len(seconds)]], 10)
        counts = smoothed([each[rank][1] for each in record.wait_by_bin[: len(seconds)]], 10)
        waits = [total / count / 1000 if count else float("nan") for total, count in zip(sums, counts, strict=True)]
        axes.plot(seconds, waits, label=name.replace("_", " "), color=shade, linewidth=1.6)


def pictures(folder: Path) -> list[Path]:
    """Draws them."""
    over, meta = folder / "simulation-overload.png", folder / "simulation-metastability.png"
    draw(over, "Ten times the capacity for two minutes (200 slots)", OVERLOAD, "10x load", 60, 180)
    what, strike = next(iter(STRIKES.items()))
    title = f"Load 0.95, {what}: who comes back? (450 slots)"
    draw(meta, title, stricken(strike), "capacity -90 %", strike.at_ms / 1000, strike.over_ms / 1000)
    return [over, meta]
