"""What `--test` found: a table, a JSON file, a picture of the curves over t, and TensorBoard."""

import hashlib
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.options import Options
from functions.disk import files
from functions.likelihood import Bound


def write(
    options: Options,
    identity: dict[str, Any],
    record: dict[str, Any],
    bound: Bound,
    loss: dict[str, Any],
    in_split: int,
) -> None:
    """Print the table and write the files. Their name holds a hash of `identity`, which decides the numbers.

    record: what else is worth knowing. loss: the validation loss and the number of its images.
    in_split: images that the split has.
    """
    # The numbers: their key in the file, name in the table, and value of each image.
    prior, steps, decoder = bound.image_terms.T
    n, numbers = len(prior), {}
    rows: list[tuple[str, float, float | None]] = []
    for key, name, values in (
        ("bits_per_dim", "bits/dim (an upper bound)", prior + steps + decoder),
        ("L_T", "  L_T", prior),
        ("sum_L_t", "  sum of L_t over t ≥ 1", steps),
        ("L_0", "  L_0", decoder),
        ("rate", "rate, L_T + sum, bits/dim", prior + steps),
    ):
        mean, error = float(values.mean()), float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
        numbers[key] = {"mean": mean, "standard_error": error}
        rows.append((name, mean, error))
    rmse, eps_mse = float(bound.rmse[0]), float(bound.eps_mse.mean())
    rows += [("distortion, L_0, bits/dim", *rows[3][1:]), ("distortion, RMSE of 255", rmse, None)]
    rows += [("MSE of ε, mean over t", eps_mse, None)]

    # Write the JSON file, a line for each key.
    curves = {"bits_per_dim": bound.bits, "eps_mse": bound.eps_mse, "rate": bound.rate, "rmse": bound.rmse}
    by_timestep = {name: values.tolist() for name, values in curves.items()}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    content = {
        "images": n, **numbers, "distortion": {"bits_per_dim": numbers["L_0"], "rmse": rmse},
        "eps_mse": eps_mse, "validation_loss": loss, "decides": identity,
        "records": {**record, "date": date, "torch": torch.__version__, "numpy": np.__version__},
        "per_timestep": {"t": list(range(len(bound.bits))), **by_timestep},
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    path = options.log_dir / f"test_{n}_{options.reference}_seed{options.seed}_{digest}.json"
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    files.write_text(path, "{\n" + lines + "\n}\n")

    _write_picture(path.with_suffix(".png"), bound, f"{n} {options.reference} images, {record['weights']}")
    if options.doc:
        _write_tensorboard(options.tensorboard_dir / path.stem, curves)
    of = f"{n} of {in_split} {options.reference} images, seed {options.seed}, {record['weights']}"
    print(f"{of}\n{'':28}{'mean':>10}{'± error':>10}{'images':>8}")
    for name, mean, error in rows:
        print(f"{name:28}{mean:10.4f}{'' if error is None else f'{error:.4f}':>10}{n:8}")
    print(f"all of it, and by timestep, in {path} and {path.with_suffix('.png')}")


def _write_picture(path: Path, bound: Bound, title: str) -> None:
    from matplotlib.figure import Figure  # takes a second to import

    t, figure = np.arange(len(bound.bits)), Figure(figsize=(13, 4), layout="constrained")
    figure.suptitle(title, fontsize=9)
    mse, bits, rate = figure.subplots(1, 3)
    mse.semilogy(t, bound.eps_mse)
    mse.set(xlabel="t", ylabel="mean squared error of ε")
    bits.semilogy(t[1:], bound.bits[1:], label="$L_t$")
    bits.semilogy(t[:1], bound.bits[:1], "o", label="$L_0$")
    bits.set(xlabel="t", ylabel="bits/dim")
    bits.legend()
    rate.plot(bound.rate, bound.rmse)
    rate.set(xlabel="rate, bits/dim", ylabel="distortion: RMSE of x0, levels of 255", ylim=(0, None))
    for axes in (mse, bits, rate):
        axes.grid(alpha=0.3)
    with files.atomic(path, durable=False) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _write_tensorboard(folder: Path, curves: dict[str, np.ndarray]) -> None:
    """A run of its own, with t as the step: in training's run, resuming would purge the curves."""
    from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

    with SummaryWriter(folder, purge_step=0) as writer:  # the same evaluation made again replaces its curves
        for name, values in curves.items():
            for t, value in enumerate(values):
                writer.add_scalar(f"test/{name}", value, t)
