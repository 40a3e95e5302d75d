"""Work beside the network's: the next of a series in a thread, and copies that nothing waits for."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from functions.runtime import distributed

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 8


def works_beside(device: torch.device) -> bool:
    """Whether threads on the cores are in nobody's way: a network on a CPU takes them all, and waits for the slowest."""
    return device.type != "cpu"


def thread_count() -> int:
    """Threads for numpy or zlib in this process: its share of the cores it may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_THREADS, cores // distributed.local_world_size()))


def prefetch(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """function(item) for each of `items`, in order; the next is computed while the caller works on this one."""
    with ThreadPoolExecutor(1) as pool:
        ahead: deque[Future[Result]] = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 1:
                yield ahead.popleft().result()
        yield from (future.result() for future in ahead)


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """`x` in memory that `device` can fetch it from without being waited for."""
    return x.pin_memory() if device.type == "cuda" else x


def to_host(x: Tensor) -> Callable[[], Tensor]:
    """Begin to copy `x` to the CPU; the function returned waits for that copy alone, and not for later work."""
    if x.device.type != "cuda":
        there = x.cpu()
        return lambda: there
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)  # who waits for it leaves its core to others
    copied.record(torch.cuda.current_stream(x.device))

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait
