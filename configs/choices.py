"""Samplers, spacings, tasks and metrics: their names, and what flags, manifests and tables say of them.

Beta schedules and data sets are named in configs/__init__.py: they are config keys.

To add one, add its record here and its code under the same name in the module that the comment names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sampler:
    """What the program knows of a sampler besides its update."""

    summary: str
    label: str  # its row in tables, the paper's included; may hold {eta}, {order} and {method}
    folder: str  # its part of a cell's folder name; may hold the same
    takes_eta: bool = False
    noise: Literal["none", "by eta", "always"] = "none"  # does it draw noise at each step?
    evaluations: Callable[[int], int] = lambda steps: steps  # how many network calls so many timesteps cost
    orders: tuple[int, ...] = ()  # that --order may ask for, the default first
    methods: tuple[str, ...] = ()  # of METHODS, the default first
    solver_types: tuple[str, ...] = ()  # of --dpm_solver_type, the default first
    spacing: str = "uniform"  # the default of --skip_type
    clip_x0: str = "off"  # the default of --clip_x0; one that is not off is done by the sampler itself

    def draws_noise(self, eta: float) -> bool:
        return self.noise == "always" or (self.noise == "by eta" and eta > 0)

    def settings(self, eta: float, order: int | None, method: str | None) -> dict[str, object]:
        """For `label` and `folder`: the values that hold where those of an option are None."""
        method = method or next(iter(self.methods), "")
        return {"eta": eta, "order": order or next(iter(self.orders), 0), "method": METHODS.get(method, "")}


METHODS = {"multistep": "M", "singlestep": "S"}  # of --dpm_solver_method, and its letter in a label


def _solver(name: str, summary: str, **how: object) -> Sampler:
    """A solver of the ODE, whose label and folder are its name, with order and letter where it has them."""
    parts = "{order}" * ("orders" in how) + "{method}" * ("methods" in how)
    label, folder = f"{name} {parts}".strip(), f"{name}_{parts}".strip("_")
    return Sampler(summary, label, folder, **how)  # type: ignore[arg-type]


# functions/samplers/
_DPM = {
    "orders": (3, 2, 1),
    "methods": tuple(METHODS),
    "solver_types": ("dpmsolver", "taylor"),
    "spacing": "logSNR",
}
SAMPLERS = {
    "generalized": Sampler(
        "DDIM, with --eta from DDIM (0) to DDPM (1)",
        "η = {eta:g}",
        "eta{eta:.12g}",
        takes_eta=True,
        noise="by eta",
    ),
    "ddpm_noisy": Sampler(
        "DDPM with the larger variance σ̂", "σ̂ (ddpm_noisy)", "ddpm_noisy", noise="always", clip_x0="on"
    ),
    "dpmsolver++": _solver("dpmsolver++", "DPM-Solver++, orders 1 to 3", **_DPM),
    "dpmsolver": _solver("dpmsolver", "DPM-Solver, orders 1 to 3", **_DPM),
    "unipc": _solver("unipc", "UniPC with B(h) = h, orders 1 to 3", orders=(3, 2, 1), spacing="logSNR"),
    "unipc_bh2": _solver("unipc_bh2", "UniPC with B(h) = e^h - 1", orders=(3, 2, 1), spacing="logSNR"),
    "deis": _solver("deis", "tAB-DEIS, orders 1 to 4", orders=(3, 2, 1, 4), spacing="logSNR"),
    "pndm": _solver(
        "pndm", "F-PNDM, S + 9 evaluations", evaluations=lambda steps: steps + 3 * min(3, steps - 1)
    ),
    "plms": _solver("plms", "PLMS, S + 1 evaluations", evaluations=lambda steps: steps + min(1, steps - 1)),
    "gradient": _solver("gradient", "gradient estimation, γ = 2"),
    "euler": _solver("euler", "Euler's steps of equation 15"),
    "heun": _solver("heun", "Heun's steps, 2 S - 1 evaluations", evaluations=lambda steps: 2 * steps - 1),
}

# What people call samplers elsewhere.
OTHER_NAMES = {"ddim": "generalized with --eta 0", "ddpm": "generalized with --eta 1"}

# functions/schedules.py: how the steps are spaced, and other spellings of a name
SPACINGS = {
    "uniform": "every T/S-th timestep",
    "quad": "dense near 0; the largest is 0.8 T",
    "trailing": "every T/S-th, the largest is T-1",
    "linspace": "from T-1 to 0",
    "time_uniform": "equal in t, from T-1 to where a little noise is left",
    "time_quadratic": "the same, equal in √t",
    "logSNR": "the same, equal in the log of the signal-to-noise ratio",
}
SPELLINGS = {"quadratic": "quad"}

# functions/samplers/clipping.py: what is done to the predicted x0
CLIPS = {
    "off": "nothing",
    "on": "clipped to the data's range",
    "dynamic": "scaled into it by the 0.995 quantile of each image",
}

# functions/restoration.py: what was done to the images
DEGRADATIONS = {
    "inpainting": "a part is missing: --mask",
    "sr2": "2 x 2 pixels were averaged",
    "sr4": "4 x 4 pixels were averaged",
    "colorization": "colours were averaged",
    "denoising": "noise was added: --sigma_y",
}


@dataclass(frozen=True)
class Task:
    """What flags say of a task of --sample."""

    summary: str
    takes: tuple[str, ...] = ()  # the flags that not every task takes
    grid: bool = False  # flags that repeat make a grid
    images: int | None = None  # the default of --num_samples, where it is not the program's
    value: str = ""  # what its own flag takes, if it takes a value; it needs no --sample
    samplers: tuple[str, ...] = ()  # those it is defined for; empty: all


# runners/sampling/tasks.py: what --sample makes
_MANY = ("num_samples", "batch_size")
TASKS = {
    "fid": Task("{i}.png for i from 0 to --num_samples - 1", (*_MANY, "metrics"), grid=True),
    "interpolation": Task(
        "images on a path between two latents, or a grid between four: {i}.png", ("between", "points")
    ),
    "sequence": Task("the predicted x0 of 8 chains at each step: {chain}_{step}.png"),
    "reconstruction": Task(
        "real images to x_T and back, and the error: {i}.png", (*_MANY, "reference", "inversion"), grid=True
    ),
    "consistency": Task(
        "the same x_T at every S, and the distance to the largest: {i}.png", _MANY, grid=True, images=8
    ),
    "restoration": Task(
        f"whole images from what is left of them, {', '.join(DEGRADATIONS)}: {{i}}.png, "
        "and of the first 16 {i}_input.png and {i}_original.png",
        (*_MANY, "input", "mask", "sigma_y", "add_noise", "travel"),
        grid=True,
        value="HOW",
        samplers=("generalized",),
    ),
    "edit": Task(
        "images noised to a level and denoised again: {i}.png, {i}_input.png",
        (*_MANY, "input", "strength"),
        grid=True,
    ),
    "encode": Task("x_T of images: {image_folder}.npz", (*_MANY, "inversion"), value="WHAT"),
    "decode": Task("images from such a file: {i}.png", _MANY, grid=True, value="FILE"),
}

# functions/inversion.py: which of its two noise levels an encoding step tells the network
INVERSIONS = {"to": "the one it goes to", "from": "the one it leaves"}

# functions/metrics/metrics.py
METRICS = {
    "fid": "Fréchet distance",
    "is": "Inception score",
    "kid": "kernel distance",
    "pr": "precision and recall",
    "nn": "nearest training images",
}
