"""Runs of equal steps by different recipes, side by side: loss, gradient norms, clipping, Fréchet distance.

    python -m benchmarks.recipes --exp E --runs upstream_1 upstream_2 ddpm_1 ddpm_2 \
        --grid recipes --out docs/benchmarks/recipes --plot docs/pictures/recipes.png

Reads what training wrote to {exp}/tensorboard, and a grid over the runs' snapshots, where there is one
(--sample --fid --metrics fid --ckpt).
Losses are a dimension's: a sum over the image is divided by its number of values. Runs that differ in the
ending _SEED alone have the same colour.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.measuring import Row, write
from configs import Config, load_config
from functions.runtime.device import choose_device

LAST = 100  # steps, of which the loss at the end is the mean


class Run:
    """What a run wrote."""

    def __init__(self, exp: Path, doc: str):
        self.doc, self.recipe = doc, doc.rpartition("_")[0]
        self.config: Config = load_config(str(exp / "logs" / doc / "config.yml"))
        events = EventAccumulator(str(exp / "tensorboard" / doc), size_guidance={"scalars": 0})
        self.events = events.Reload()
        data = self.config.data
        values = data.channels * data.image_size**2
        self.values = values if self.config.training.loss == "sum" else 1  # that a loss is summed over

    def scalars(self, tag: str) -> dict[int, float]:
        return {event.step: event.value for event in self.events.Scalars(tag)}

    def losses(self, tag: str = "loss") -> dict[int, float]:
        """By step, a dimension's."""
        return {step: value / self.values for step, value in self.scalars(tag).items()}

    def row(self, distances: dict[int, str]) -> Row:
        norms, most = list(self.scalars("grad_norm").values()), self.config.optim.grad_clip
        clipped = None if most is None else sum(norm > most for norm in norms) / len(norms)
        row: Row = {
            "run": self.doc,
            f"loss, last {LAST} steps": statistics.mean(list(self.losses().values())[-LAST:]),
            "gradient norm, median": statistics.median(norms),
            "largest": max(norms),
            "clipped": "–" if clipped is None else f"{clipped:.0%} of steps",
        }
        row |= {f"test loss, step {step}": loss for step, loss in self.losses("validation_loss").items()}
        return row | {f"FD, step {step}": text for step, text in sorted(distances.items())}


def distances_of(table: Path, doc: str) -> dict[int, str]:
    """By step, with half of the 95 % interval."""
    if not table.exists():
        return {}
    found = {}
    for cell in json.loads(table.read_text())["cells"]:
        path = Path(cell["checkpoint"])
        if path.parent.name == doc:
            fid = cell["measured"]["metrics"]["fid"]
            found[cell["step"]] = f"{fid['value']:.1f} ± {fid['half_width']:.1f}"
    return found


def draw(path: Path, runs: list[Run]) -> None:
    """Losses and gradient norms by step, as means over 20 steps."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = drawing.subplots(1, 2)
    colours = {recipe: f"C{k}" for k, recipe in enumerate(dict.fromkeys(run.recipe for run in runs))}
    for run in runs:
        label = run.recipe if run.doc.endswith("_1") else None
        norms = {step: norm / run.values for step, norm in run.scalars("grad_norm").items()}
        for axes, series in ((left, run.losses()), (right, norms)):
            steps, values = list(series), list(series.values())
            means = [statistics.mean(values[k : k + 20]) for k in range(0, len(values), 20)]
            axes.plot(steps[::20], means, color=colours[run.recipe], label=label, lw=1)
    left.set(xlabel="step", ylabel="loss of a dimension", yscale="log")
    right.set(xlabel="step", ylabel="gradient norm of that loss", yscale="log")
    left.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exp", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", required=True, help="names of runs, as recipe_1 recipe_2")
    parser.add_argument("--grid", default="recipes", help="the image folder of that grid")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/recipes"))
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    runs = [Run(arguments.exp, doc) for doc in arguments.runs]
    table = arguments.exp / "image_samples" / arguments.grid / "table.json"
    rows = [run.row(distances_of(table, run.doc)) for run in runs]
    if arguments.plot:
        draw(arguments.plot, runs)
    command = ["python", "-m", "benchmarks.recipes", *sys.argv[1:]]
    title = f"recipes, batches of {runs[0].config.training.batch_size}"
    write(arguments.out, choose_device("cpu"), command, {title: rows})


if __name__ == "__main__":
    main()
