"""What a command runs in: its log, its device, its process group, its numerics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from configs.options import Options
from functions.runtime import distributed
from functions.runtime.device import choose_device, mention_idle_gpus
from functions.runtime.precision import numerics
from functions.runtime.progress import quiet_ranks, start_logging


@contextmanager
def session(options: Options) -> Iterator[torch.device]:
    """The device, with everything around a command set up. Too little memory becomes a MemoryError."""
    start_logging(options.verbose)
    device = choose_device(options.device)
    mention_idle_gpus(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with distributed.process_group(device):
        quiet_ranks()
        try:
            with numerics(options.precision, device, training=options.mode == "train"):
                yield device
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"{device} has too little memory; a smaller batch needs less ({error})"
            ) from error
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # torch's word for a CPU without enough of it
                raise
            raise MemoryError("there is too little memory here; a smaller batch needs less") from error
