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
    label: str  # its row in tables, the paper's included; may hold {eta}
    folder: str  # its part of a cell's folder name; may hold {eta}
    takes_eta: bool = False
    noise: Literal["none", "by eta", "always"] = "none"  # does it draw noise at each step?
    evaluations: Callable[[int], int] = lambda steps: steps  # how many network calls so many steps cost

    def draws_noise(self, eta: float) -> bool:
        return self.noise == "always" or (self.noise == "by eta" and eta > 0)


# functions/samplers.py
SAMPLERS = {
    "generalized": Sampler(
        "DDIM, with --eta from DDIM (0) to DDPM (1)",
        "η = {eta:g}",
        "eta{eta:.12g}",
        takes_eta=True,
        noise="by eta",
    ),
    "ddpm_noisy": Sampler("DDPM with the larger variance σ̂", "σ̂ (ddpm_noisy)", "ddpm_noisy", noise="always"),
}

# functions/schedules.py: how the steps are spaced, and other spellings of a name
SPACINGS = {"uniform": "every T/S-th timestep", "quad": "dense near 0; the largest is 0.8 T"}
SPELLINGS = {"quadratic": "quad"}

# runners/sampling/tasks.py: what --sample makes
TASKS = {
    "fid": "{i}.png for i from 0 to --num_samples - 1",
    "interpolation": "11 images on a path between two latents: {i}.png",
    "sequence": "the predicted x0 of 8 chains at each step: {chain}_{step}.png",
}

# functions/metrics/metrics.py
METRICS = {
    "fid": "Fréchet distance",
    "is": "Inception score",
    "kid": "kernel distance",
    "pr": "precision and recall",
    "nn": "nearest training images",
}
