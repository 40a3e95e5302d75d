"""The samplers. Each walks τ backwards and yields a `Step` for every timestep, keeping nothing.

x: (b, c, h, w), x_T at first, the image in the model's range at last. model(x, t) gives ε for t (b,), int64
where it is whole and float32 between. timesteps: τ, ascending. alphas_cumprod: ᾱ after a leading 1, on the
CPU: the same roots for every device. end: where the last step goes, CLEAN or a timestep below τ.
Every sampler takes `randn_like`, and what its record in configs/choices.py says. randn_like(x) is standard
normal noise; a sampler that draws any calls it once a step, and its record says so.
"""

from collections.abc import Callable, Iterator

from functions.samplers import ddim, deis, dpm_solver, pndm, runge_kutta, unipc
from functions.samplers.clipping import CLIPS, clipped
from functions.samplers.ddim import ddpm_noisy, generalized
from functions.samplers.steps import CLEAN, Model, RandnLike, Step, last

__all__ = [
    "CLEAN", "CLIPS", "SAMPLERS", "Model", "RandnLike", "Step", "clipped", "ddpm_noisy", "generalized",
    "last",
]  # fmt: skip

# The names of configs/choices.py: the table at the end of each module.
SAMPLERS: dict[str, Callable[..., Iterator[Step]]] = {
    name: sampler
    for module in (ddim, dpm_solver, unipc, deis, pndm, runge_kutta)
    for name, sampler in module.SAMPLERS.items()
}
