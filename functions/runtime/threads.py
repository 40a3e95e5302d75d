"""Work beside the network's: a thread ahead of the caller, and copies that nothing waits for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from configs.machine import cores

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 8


def cores_are_idle(device: torch.device) -> bool:
    """Whether the network leaves the CPU's cores to other threads; one that runs on the CPU uses them all."""
    return device.type != "cpu"


def worker_threads() -> int:
    """Threads for numpy or zlib in this process: its share of the cores, at most 8."""
    return max(1, cores(MOST_THREADS))


def pool_for(device: torch.device, threads: int) -> ThreadPoolExecutor:
    """Threads that use this process's GPU where they touch one, not the first of the machine."""
    if device.index is None:  # a CPU, or the GPU that is the current one
        return ThreadPoolExecutor(threads)
    return ThreadPoolExecutor(threads, initializer=torch.cuda.set_device, initargs=(device,))


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], device: torch.device
) -> Iterator[Result]:
    """function(item) for each item, in order. Where cores are idle, a thread computes the next one ahead."""
    if not cores_are_idle(device):
        yield from map(function, items)
        return
    with pool_for(device, 1) as pool:
        ahead: deque[Future[Result]] = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 1:
                yield ahead.popleft().result()
        yield from (future.result() for future in ahead)


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """`x` in memory that `device` can fetch it from without a wait."""
    return x.pin_memory() if device.type == "cuda" else x


def copy_to_host(x: Tensor) -> Callable[[], Tensor]:
    """Begin to copy `x` to the CPU. The function returned waits for that copy alone, not for later work."""
    if x.device.type != "cuda":
        copy = x.cpu()
        return lambda: copy
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)  # a thread that waits for it leaves its core to others
    copied.record(torch.cuda.current_stream(x.device))

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait
