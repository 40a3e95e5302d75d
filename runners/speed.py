"""How a command that evaluates a network many times is made fast: by the batch, and by compiling."""

import logging

from configs.options import Options
from functions import acceleration, distributed
from runners.diffusion import Diffusion


def batch_size(options: Options, diffusion: Diffusion, n: int) -> int:
    """The images at a time, of n: those asked; else on CUDA as many as fit on every rank, and the config's elsewhere."""
    if isinstance(options.batch_size, int):
        return options.batch_size
    config, device = diffusion.config, diffusion.device
    if device.type != "cuda":
        if options.batch_size == "auto":
            logging.info(f"--batch_size auto is for CUDA: the config's {config.sampling.batch_size} here")
        return config.sampling.batch_size
    return distributed.least(acceleration.largest_batch(diffusion.evaluate, n, device), device)


def compile_where_it_repays(options: Options, diffusion: Diffusion, batch_size: int, evaluations: int) -> None:
    """Compile the network for so many evaluations of a batch, where --compile asks for it or they repay it."""
    device = diffusion.device

    def seconds_left() -> float:
        return evaluations * acceleration.seconds_of(lambda: diffusion.evaluate(batch_size), device)

    if evaluations and acceleration.should_compile(options.compile, device, seconds_left):
        diffusion.compile(batch_size)
