"""Curves as a PNG."""

from pathlib import Path
from typing import NamedTuple

from functions.disk import files

MOST_TICKS = 10


class Point(NamedTuple):
    """y at x with its spread, and what was published for it; None where there is none."""

    x: float
    y: float
    spread: float | None
    published: float | None


def lines(path: Path, curves: dict[str, list[Point]], x_label: str, y_label: str, *, log_x: bool) -> None:
    """Each curve as a line with its name, published values as crosses. y is logarithmic where it can be."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    points = [point for curve in curves.values() for point in curve]
    for name, curve in curves.items():
        x, y, spread, _ = zip(*sorted(curve), strict=True)
        line = axes.errorbar(x, y, [s or 0 for s in spread], marker="o", capsize=3, label=name)
        published = [(point.x, point.published) for point in sorted(curve) if point.published is not None]
        if published:
            color = line.lines[0].get_color()
            axes.plot(*zip(*published, strict=True), "x", color=color, label=f"{name}, published")
    if log_x:
        axes.set_xscale("log")
    if all(point.y > 0 for point in points):
        axes.set_yscale("log")
    ticks = sorted({point.x for point in points})
    if len(ticks) <= MOST_TICKS:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.legend()
    with files.atomic(path, durable=False) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
