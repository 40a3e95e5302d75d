"""How a command that evaluates a network many times is made fast: by the batch, and by compiling."""

import logging
from functools import cached_property
from typing import Any

from configs.options import Options
from functions.runtime import acceleration, distributed
from runners.diffusion import Diffusion


class Pace:
    """The batch for n images and the compilation of a network, for all that one command makes with it."""

    def __init__(self, options: Options, diffusion: Diffusion, n: int):
        self.options, self.diffusion = options, diffusion
        self.share = -(-n // distributed.world_size())

    def batch_size(self, recorded: dict[str, Any] | None = None) -> int:
        """The images at a time: those asked; else on CUDA the folder's own or as many as fit, and the config's elsewhere.

        recorded: what the folder's manifest says of its last part, so that what was begun goes on exactly.
        """
        if isinstance(self.options.batch_size, int):
            return self.options.batch_size
        if self.diffusion.device.type != "cuda":
            return self._of_config
        return (recorded or {}).get("batch_size") or self._that_fits

    def compile_where_it_repays(
        self, batch_size: int, evaluations: int, recorded: dict[str, Any] | None = None
    ) -> bool:
        """Whether the network is now compiled for the batch: where --compile asks for it, the folder was, or it repays.

        evaluations: of a batch, by this rank.
        """
        choice, diffusion = self.options.compile, self.diffusion
        if choice == "auto" and "compiled" in (recorded or {}):
            choice = "on" if (recorded or {})["compiled"] else "off"

        def seconds_left() -> float:
            return evaluations * acceleration.seconds_of(
                lambda: diffusion.evaluate(batch_size), diffusion.device
            )

        if evaluations:
            network = diffusion.network
            assert isinstance(network, acceleration.Network)
            if network.rows == batch_size and choice != "off":
                return True
            network.uncompile()
            if acceleration.should_compile(choice, diffusion.device, seconds_left):
                network.compile(batch_size)
                return True
        return False

    @cached_property
    def _of_config(self) -> int:
        size = self.diffusion.config.sampling.batch_size
        if self.options.batch_size == "auto":
            logging.info(f"--batch_size auto is for CUDA: the config's {size} here")
        return size

    @cached_property
    def _that_fits(self) -> int:
        config, device = self.diffusion.config, self.diffusion.device
        widest = (
            4 * config.model.ch * max(config.model.ch_mult[:2]) * config.data.image_size**2
        )  # values of an image, at most
        most = min(self.share, acceleration.LARGEST_INDEX // widest)
        return distributed.least(acceleration.largest_batch(self.diffusion.evaluate, most, device), device)
