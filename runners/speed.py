"""How a command that evaluates a network many times is made fast: by its batch, and by compiling."""

import logging
import time
from functools import cached_property, partial
from typing import Any

import torch

from configs.options import Options
from functions.runtime import distributed, memory
from functions.runtime.compilation import Network, seconds_of_batches, should_compile, synchronize
from functions.runtime.threads import cores_are_idle
from models.kernel import FastNorm
from runners.diffusion import Diffusion


class Speed:
    """The batch size and the compilation of a network, for all n images that one command makes with it."""

    def __init__(self, options: Options, diffusion: Diffusion, n: int):
        self.options, self.diffusion = options, diffusion
        self.share = -(-n // distributed.world_size())  # of this rank

    def batch_size(self, previous: dict[str, Any] | None = None) -> int:
        """Images at a time: as asked; else on CUDA the folder's own or what fits, elsewhere the config's.

        previous: what the folder's manifest says of its last part, which is continued in the same way.
        """
        if isinstance(self.options.batch_size, int):
            return self.options.batch_size
        if self.diffusion.device.type != "cuda":
            return self._of_config
        return (previous or {}).get("batch_size") or self._fitting

    def compile_if_it_pays(
        self, batch_size: int, evaluations: int, previous: dict[str, Any] | None = None
    ) -> bool:
        """Whether the network is now compiled: because --compile says so, the folder was made so, or it pays.

        evaluations: of a batch, by this rank.
        """
        choice, network = self.options.compile, self.diffusion.network
        if choice == "auto" and "compiled" in (previous or {}):
            choice = "on" if (previous or {})["compiled"] else "off"
        if not evaluations:
            return False
        assert isinstance(network, Network)
        if choice == "auto" and any(isinstance(module, FastNorm) for module in network.model.modules()):
            choice = "off"  # these norms leave compiling too little
        if network.rows == batch_size and choice != "off":
            return True
        network.uncompile()

        device = self.diffusion.device
        evaluate = self.diffusion.evaluate
        seconds_left = partial(seconds_of_batches, evaluate, batch_size, evaluations, device)
        if should_compile(choice, device, seconds_left):
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
    def _fitting(self) -> int:
        config, device = self.diffusion.config, self.diffusion.device
        widest = (
            4 * config.model.ch * max(config.model.ch_mult[:2]) * config.data.image_size**2
        )  # values an image
        most = min(self.share, memory.LARGEST_INDEX // widest)
        return distributed.min_over_ranks(memory.largest_batch(self.diffusion.evaluate, most, device), device)


class Rate:
    """Images a second, after a warm-up: the first batch, which may compile, and one that is sent by then."""

    def __init__(self, device: torch.device):
        self.device = device
        self.warming = 1 + cores_are_idle(device)  # batches: a GPU gives one when the next has been sent
        self.began, self.images = 0.0, 0

    def count(self, n: int) -> None:
        """A batch of n was made."""
        if self.warming == 0:
            self.images += n
            return
        if not self.began:
            synchronize(self.device)
            self.began = time.monotonic()
        self.warming -= 1

    def log(self, evaluations: int) -> None:
        """evaluations: of an image. All that was counted must be on the host."""
        if self.images:
            seconds = time.monotonic() - self.began
            rate = f"{self.images * evaluations / seconds:.4g} evaluations/s a process"
            logging.info(f"after the warm-up, {self.images} images in {seconds:.3f} s: {rate}")
