"""What `--test` found, as a table, a JSON file, a picture of the curves over t, and in TensorBoard."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.options import Options
from datasets import Images
from functions.disk import files
from functions.likelihood import Bound
from functions.runtime import acceleration
from functions.weights import weights_hash
from runners.diffusion import Diffusion


@dataclass(frozen=True)
class Evaluation:
    """A bound, and what it was computed with."""

    options: Options
    diffusion: Diffusion
    dataset: Images
    chosen: np.ndarray  # of the data set, int64 (n,)
    batch_size: int
    validation_loss: float
    bound: Bound
    weights: str
    seconds: float


def write(evaluation: Evaluation) -> None:
    """Print the table and write the files; a name is that of all that decides the numbers, so none replaces another's."""
    options, bound = evaluation.options, evaluation.bound
    decides = _decides(evaluation)
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
    name = f"test_{len(evaluation.chosen)}_{options.reference}_seed{options.seed}_{digest}"
    path = options.log_dir / f"{name}.json"
    result = _result(evaluation)
    per_timestep = {
        "t": list(range(len(bound.bits))),
        "bits_per_dim": bound.bits.tolist(),
        "eps_mse": bound.eps_mse.tolist(),
        "rate": bound.rate.tolist(),
        "rmse": bound.rmse.tolist(),
    }
    content = {**result, "decides": decides, "records": _records(evaluation), "per_timestep": per_timestep}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    files.write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
    _write_curves(path.with_suffix(".png"), evaluation)
    if options.doc:
        _write_tensorboard(options.tensorboard_dir / name, bound)
    print("\n".join(_table(evaluation, result)))
    print(f"all of it, and by timestep, in {path} and {path.with_suffix('.png')}")


def _decides(evaluation: Evaluation) -> dict[str, Any]:
    """Everything that decides the numbers, as plain JSON values."""
    diffusion, options = evaluation.diffusion, evaluation.options
    data = diffusion.config.data
    images = hashlib.sha256()
    for i in evaluation.chosen.tolist():
        images.update(evaluation.dataset[i].numpy().tobytes())
    return {
        "weights": weights_hash(diffusion.model.state_dict()),
        "data": {
            "dataset": data.dataset,
            "split": options.reference,
            "images": images.hexdigest(),
            "rescaled": data.rescaled,
        },
        "diffusion": asdict(diffusion.config.diffusion),
        "var_type": diffusion.config.model.var_type,
        "num_samples": len(evaluation.chosen),
        "seed": options.seed,
        "precision": acceleration.precision_in_words(options.precision, diffusion.device),
    }


def _records(evaluation: Evaluation) -> dict[str, Any]:
    """What else is worth knowing."""
    options = evaluation.options
    return {
        "config": options.config,
        "weights": evaluation.weights,
        "batch_size": evaluation.batch_size,
        "device": str(evaluation.diffusion.device),
        "seconds": round(evaluation.seconds, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _result(evaluation: Evaluation) -> dict[str, Any]:
    """The numbers, each over images as {"mean", "standard_error"} where it is a mean over them."""
    bound = evaluation.bound
    prior, steps, decoder = bound.image_terms.T
    return {
        "images": len(evaluation.chosen),
        "bits_per_dim": _over_images(prior + steps + decoder),
        "L_T": _over_images(prior),
        "sum_L_t": _over_images(steps),
        "L_0": _over_images(decoder),
        "rate": _over_images(prior + steps),
        "distortion": {"bits_per_dim": _over_images(decoder), "rmse": float(bound.rmse[0])},
        "eps_mse": float(bound.eps_mse.mean()),
        "validation_loss": {"loss": evaluation.validation_loss, "images": len(evaluation.dataset)},
    }


def _over_images(values: np.ndarray) -> dict[str, float | None]:
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "standard_error": error}


def _table(evaluation: Evaluation, result: dict[str, Any]) -> Iterator[str]:
    n, options = len(evaluation.chosen), evaluation.options
    yield f"{n} of {len(evaluation.dataset)} {options.reference} images, seed {options.seed}, {evaluation.weights}"
    yield f"{'':28}{'mean':>10}{'± error':>10}{'images':>8}"
    rows = [
        ("bits/dim (an upper bound)", result["bits_per_dim"]),
        ("  L_T", result["L_T"]),
        ("  sum of L_t over t ≥ 1", result["sum_L_t"]),
        ("  L_0", result["L_0"]),
        ("rate, L_T + sum, bits/dim", result["rate"]),
        ("distortion, L_0, bits/dim", result["L_0"]),
        ("distortion, RMSE of 255", {"mean": result["distortion"]["rmse"], "standard_error": None}),
        ("MSE of ε, mean over t", {"mean": result["eps_mse"], "standard_error": None}),
    ]
    for name, value in rows:
        error = "" if value["standard_error"] is None else f"{value['standard_error']:.4f}"
        yield f"{name:28}{value['mean']:10.4f}{error:>10}{n:8}"


def _write_curves(path: Path, evaluation: Evaluation) -> None:
    from matplotlib.figure import Figure  # takes a second to import

    bound, n = evaluation.bound, len(evaluation.chosen)
    t = np.arange(len(bound.bits))
    figure = Figure(figsize=(13, 4), layout="constrained")
    figure.suptitle(f"{n} {evaluation.options.reference} images, {evaluation.weights}", fontsize=9)
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


def _write_tensorboard(folder: Path, bound: Bound) -> None:
    """The curves as a TensorBoard run of their own, with t as the step: in the training's, resuming would purge them."""
    from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

    curves = {"bits_per_dim": bound.bits, "eps_mse": bound.eps_mse, "rate": bound.rate, "rmse": bound.rmse}
    with SummaryWriter(folder, purge_step=0) as writer:  # the same evaluation made again replaces its curves
        for name, values in curves.items():
            for t, value in enumerate(values):
                writer.add_scalar(f"test/{name}", value, t)
