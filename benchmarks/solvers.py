"""How far a solver's pictures are from the ODE's solution, by network evaluations (NFE), from the same x_T.

    python -m benchmarks.solvers --config fashion_mnist.yml --ckpt fashion_mnist --out docs/benchmarks/solvers

The solution is UniPC-3's in 150 steps of equal λ (--reference). Where a spacing ends at t = 0 with a little
noise, the solution at t = 0 is compared. What {out}.json has of the same latents is not measured again. Some
solvers are drawn as --plot.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.measuring import Row, markdown, write
from configs import load_config
from configs.options import Options
from functions.disk import plots
from functions.samplers import CLEAN
from runners.diffusion import Diffusion, Sampling

EVALUATIONS = (5, 8, 10, 15, 20, 50)
REFERENCE: dict[str, Any] = {"sample_type": "unipc", "order": 3, "skip_type": "logSNR"}

# sample_type, what else, spacings
SOLVERS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("generalized", {}, ("uniform", "trailing", "quad")),
    ("gradient", {}, ("uniform", "trailing")),
    ("dpmsolver++", {"order": 2}, ("time_uniform", "logSNR", "time_quadratic")),
    ("dpmsolver++", {"order": 3}, ("time_uniform", "logSNR", "time_quadratic")),
    ("unipc", {"order": 3}, ("time_uniform", "logSNR", "time_quadratic")),
    ("deis", {"order": 3}, ("time_uniform", "logSNR", "time_quadratic")),
    ("pndm", {}, ("uniform",)),
    ("plms", {}, ("uniform", "trailing", "time_quadratic")),
    ("heun", {}, ("uniform", "logSNR", "time_quadratic")),
    ("euler", {}, ("uniform", "trailing")),
    ("dpmsolver", {"order": 3, "method": "singlestep"}, ("logSNR",)),
    ("dpmsolver++", {"order": 3, "method": "singlestep"}, ("logSNR",)),
    ("dpmsolver", {"order": 3}, ("logSNR",)),
    ("unipc_bh2", {"order": 3}, ("logSNR",)),
    ("unipc", {"order": 2}, ("time_quadratic",)),
    ("deis", {"order": 4}, ("time_quadratic",)),
]

# In the plot: by label and spacing.
DRAWN = (
    ("η = 0", "uniform"), ("gradient", "uniform"), ("dpmsolver++ 2M", "time_uniform"),
    ("dpmsolver++ 3M", "logSNR"), ("deis 3", "logSNR"), ("unipc 3", "logSNR"),
)  # fmt: skip


def solution(diffusion: Diffusion, x_T: Tensor, steps: int) -> dict[int, Tensor]:
    """x at the end of the ODE, a clean image, and at t = 0."""
    sampling = diffusion.sampling(steps + 1, **REFERENCE, denoise=True)
    found: dict[int, Tensor] = {}
    for step in diffusion.denoise(x_T, sampling):
        found = {0: found.get(CLEAN, step.x), CLEAN: step.x.clone()}
    return found


def within(diffusion: Diffusion, budget: int, how: dict[str, Any]) -> tuple[int, Sampling]:
    """The most steps that cost at most so many evaluations."""
    tried = ((S, diffusion.sampling(S, **how)) for S in range(budget, 0, -1))
    return next((S, sampling) for S, sampling in tried if sampling.evaluations <= budget)


def error(diffusion: Diffusion, x_T: Tensor, solutions: dict[int, Tensor], sampling: Sampling) -> list[float]:
    """Of each picture: the root mean square over its pixels, in grey levels of 255."""
    for step in diffusion.denoise(x_T, sampling):
        x = step.x
    difference = x.clamp(-1, 1) - solutions[sampling.end].clamp(-1, 1)
    return (127.5 * difference.square().mean(dim=(1, 2, 3)).sqrt()).tolist()


def measure(diffusion: Diffusion, arguments: argparse.Namespace, known: list[Row]) -> list[Row]:
    """A row for each solver, spacing and number of evaluations, written as it is found."""
    rows, x_T = list(known), diffusion.latents(range(arguments.images))
    solutions: dict[int, Tensor] = {}
    for budget in arguments.evaluations:
        for name, settings, spacings in SOLVERS:
            for spacing in spacings:
                named = Options(sample_types=(name,), **settings).sampler_label
                key = {"sampler": named, "spacing": spacing, "NFE": budget}
                if any(key.items() <= row.items() for row in rows):
                    continue
                solutions = solutions or solution(diffusion, x_T, arguments.reference)
                how = {"sample_type": name, "skip_type": spacing, **settings}
                S, sampling = within(diffusion, budget, how)
                errors = error(diffusion, x_T, solutions, sampling)
                found = {"median": statistics.median(errors), "worst": max(errors)}
                rows.append({**key, "S": S, "evaluations": sampling.evaluations, **found})
                print(rows[-1], file=sys.stderr, flush=True)
                write_down(arguments, diffusion, rows)
    return rows


def write_down(arguments: argparse.Namespace, diffusion: Diffusion, rows: list[Row]) -> None:
    command = ["python", "-m", "benchmarks.solvers", *sys.argv[1:]]
    title = f"{arguments.images} latents, grey levels of 255 to the ODE's solution, median over the images"
    content = {"images": arguments.images, "rows": rows}
    write(arguments.out, diffusion.device, command, {title: table(rows)}, also=content)


def table(rows: list[Row]) -> list[Row]:
    """A row for each solver and spacing, a column for each budget; – where none was measured or spent."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        names = {"sampler": row["sampler"], "spacing": row["spacing"]}
        line = found.setdefault(tuple(names.values()), names | {f"NFE {n}": "–" for n in EVALUATIONS})
        if row["evaluations"] >= row["NFE"] - 1:
            line[f"NFE {row['NFE']}"] = f"{row['median']:.3g}"
    return list(found.values())


def plot(path: Path, rows: list[Row]) -> None:
    curves: dict[str, list[plots.Point]] = {}
    for name, spacing in DRAWN:
        found = [row for row in rows if (row["sampler"], row["spacing"]) == (name, spacing)]
        points = [plots.Point(row["evaluations"], row["median"], None, None) for row in found]
        if points:
            curves[f"{'DDIM' if name == 'η = 0' else name}, {spacing}"] = points
    label = "distance to the ODE's solution, grey levels of 255"
    plots.lines(path, curves, "evaluations of the network (NFE)", label, log_x=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="fashion_mnist.yml")
    parser.add_argument("--ckpt", default="fashion_mnist")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument(
        "--evaluations", type=int, nargs="*", default=EVALUATIONS, help="none: draw what is measured"
    )
    parser.add_argument("--reference", type=int, default=150, help="steps of the solution")
    parser.add_argument("--device")
    parser.add_argument("--plot", type=Path, help="a PNG")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/out/solvers"), help="{out}.md and {out}.json"
    )
    arguments = parser.parse_args()
    path = arguments.out.with_suffix(".json")
    before = json.loads(path.read_text()) if path.exists() else {}
    known = before["rows"] if before.get("images") == arguments.images else []
    diffusion = Diffusion.from_pretrained(
        arguments.ckpt, load_config(arguments.config), device=arguments.device
    )
    diffusion.accelerate("default")
    rows = measure(diffusion, arguments, known)
    write_down(arguments, diffusion, rows)
    print(markdown(table(rows)))
    if arguments.plot:
        plot(arguments.plot, rows)


if __name__ == "__main__":
    main()
