"""What fits into a GPU's memory."""

from collections.abc import Callable

import torch
from torch import Tensor

LARGEST_INDEX = 2**31  # larger tensors than this take other, slower kernels
LARGEST_AUTO_BATCH, PROBE_BATCH, SHARE_OF_FREE_MEMORY = 512, 8, 0.7
SHARE_FOR_DATA = 0.1


def on_device(images: Tensor, device: torch.device) -> Tensor:
    """A data set in memory, moved to the GPU if it takes only a small part of the free memory there."""
    if device.type != "cuda" or images.nbytes > torch.cuda.mem_get_info(device)[0] * SHARE_FOR_DATA:
        return images
    return images.to(device)


def largest_batch(evaluate: Callable[[int], object], most: int, device: torch.device) -> int:
    """The largest power of two of images that `evaluate` takes in the free CUDA memory, at most 512.

    The memory of one image is measured on a small batch. The batch chosen is tried, and halved until it fits.
    """
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    evaluate(PROBE_BATCH)
    an_image = max(1, torch.cuda.max_memory_allocated(device) - before) / PROBE_BATCH
    free, _ = torch.cuda.mem_get_info(device)
    batch = min(LARGEST_AUTO_BATCH, 2 ** (most - 1).bit_length())
    while batch > 1 and batch * an_image > free * SHARE_OF_FREE_MEMORY:
        batch //= 2
    while not _fits(evaluate, batch):
        batch //= 2
        torch.cuda.empty_cache()
    return batch


def _fits(evaluate: Callable[[int], object], batch: int) -> bool:
    try:
        evaluate(batch)
    except torch.OutOfMemoryError:
        if batch == 1:
            raise
        return False
    return True
