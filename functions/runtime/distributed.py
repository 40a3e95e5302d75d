"""The only place that knows torch.distributed. Everything here works in a single process too."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs.refusal import Refusal

# Ranks may wait long: while one downloads, or samples a batch more. Where one dies, torchrun ends the others.
TIMEOUT = timedelta(days=1)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join torchrun's group for the block; nothing without torchrun."""
    if not under_torchrun():
        yield
        return
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", timeout=TIMEOUT, device_id=device if on_gpu else None
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def under_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_rank() -> int:
    return int(os.environ["LOCAL_RANK"]) if under_torchrun() else 0


def local_world_size() -> int:
    return int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 runs the block first: to download once, to prepare a folder once.

    If it raises a Refusal, the others raise the same and do not run the block.
    """
    if is_main():
        try:
            yield
        except Refusal as error:
            _from_main(str(error))
            raise
        _from_main(None)
    else:
        message = _from_main(None)
        if message is not None:
            raise Refusal(message)
        yield


def _from_main(message: str | None) -> str | None:
    """Rank 0's message, on every rank."""
    messages = [message]
    if dist.is_initialized():
        dist.broadcast_object_list(messages)
    return messages[0]


def share_of(n: int) -> slice:
    """This rank's rows of a batch of n, at least one: every rank must take part in a step."""
    share = slice(n * rank() // world_size(), n * (rank() + 1) // world_size())
    return share if share.stop > share.start else slice(0, 1)


def weight_of_share(n: int) -> int:
    """1, or 0 where the one row of `share_of` belongs to another rank."""
    return int(n * rank() // world_size() < n * (rank() + 1) // world_size())


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over the ranks, in place, without a wait for the device."""
    if dist.is_initialized():
        dist.all_reduce(x)
    return x


def all_reduce_max(x: Tensor) -> Tensor:
    """The largest over the ranks, in place, without a wait for the device."""
    if dist.is_initialized():
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


def min_over_ranks(n: int, device: torch.device) -> int:
    """The smallest of the ranks' numbers."""
    if not dist.is_initialized():
        return n
    numbers = torch.tensor(n, device=device)
    dist.all_reduce(numbers, dist.ReduceOp.MIN)
    return int(numbers)


def sum_over_ranks(x: Tensor, device: torch.device) -> None:
    """The sum over the ranks of a tensor in host memory, in place, some rows at a time by `device`."""
    if dist.is_initialized():
        for rows in x.split(4096):
            rows.copy_(all_reduce_sum(rows.to(device)))


def parallel(model: nn.Module) -> nn.Module:
    """The model with its gradients averaged over the ranks."""
    return DistributedDataParallel(model, gradient_as_bucket_view=True) if dist.is_initialized() else model


def without_averaging(model: nn.Module) -> AbstractContextManager:
    """Inside the block a backward pass changes this rank's gradients alone."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
