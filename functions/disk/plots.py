"""Curves as a PNG."""

from pathlib import Path
from typing import NamedTuple

from functions.disk import files


class Point(NamedTuple):
    """y at x with its spread, and what was published for it; None where there is none."""

    x: float
    y: float
    spread: float | None
    published: float | None


Curve = list[Point]

MOST_TICKS = 10


def lines(path: Path, curves: dict[str, Curve], x_label: str, y_label: str, log_x: bool) -> None:
    """Each curve as a line with its name; published values are crosses. y is logarithmic where it is above 0."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        curve = sorted(curve)
        x, y = [point.x for point in curve], [point.y for point in curve]
        line = axes.errorbar(x, y, [point.spread or 0 for point in curve], marker="o", capsize=3, label=name)
        known = [(point.x, point.published) for point in curve if point.published is not None]
        if known:
            axes.plot(
                *zip(*known, strict=True), "x", color=line.lines[0].get_color(), label=f"{name}, published"
            )
    if log_x:
        axes.set_xscale("log")
    if all(point.y > 0 for curve in curves.values() for point in curve):
        axes.set_yscale("log")
    ticks = sorted({point.x for curve in curves.values() for point in curve})
    if len(ticks) <= MOST_TICKS:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.legend()
    with files.atomic(path, durable=False) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
