"""A network as the program calls it, compiled or not, and when compiling pays."""

import logging
import os
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from configs.refusal import Refusal
from functions.runtime.precision import memory_format

# Assumed: the seconds that compiling takes, and the time of compiled work over that of the same uncompiled.
ASSUMED = {"cuda": (90.0, 0.5), "cpu": (60.0, 0.9)}


class Network:
    """A model as a function of float32 x (b, c, h, w) and t (b,); the result is float32 in any precision.

    Once compiled it pads a smaller batch to the size it was compiled for, so a ragged batch compiles nothing;
    nor do whole timesteps after others, for t is float32 there as it is in the embedding.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.forward: Callable[..., Tensor] = model
        self.dtype = next(model.parameters()).dtype
        self.format = memory_format(next(model.parameters()).device)
        self.rows = 0  # of the batches it is compiled for

    def compile(self, rows: int) -> None:
        """Compile for batches of up to `rows`, at the next call."""
        self.forward, self.rows = compiled(self.model), rows

    def uncompile(self) -> None:
        self.forward, self.rows = self.model, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        n, padding = len(x), max(0, self.rows - len(x))
        if padding:
            x, t = torch.cat([x, x.new_zeros(padding, *x.shape[1:])]), torch.cat([t, t.new_zeros(padding)])
        if self.rows:
            torch.compiler.cudagraph_mark_step_begin()
        return self.forward(x.to(self.dtype, memory_format=self.format), t.float())[:n].float()


class CompiledForBatches:
    """A model in training, compiled for the sizes of its batches. Others, as an epoch's last, are not.

    graphs: as CUDA graphs, whose gradients the next pass overwrites: not where passes accumulate.
    """

    def __init__(self, model: nn.Module, sizes: Iterable[int], *, graphs: bool):
        self.model, self.sizes = model, set(sizes)
        self.compiled = compiled(model, graphs=graphs)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if len(x) not in self.sizes:
            return self.model(x, t)
        torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(x, t)


def compiled(model: nn.Module, *, graphs: bool = True) -> Callable[..., Tensor]:
    """`model` compiled for one shape, on CUDA as a CUDA graph."""
    on_cuda = next(model.parameters()).is_cuda
    options = {"triton.cudagraphs": graphs} if on_cuda else None
    return torch.compile(model, dynamic=False, options=options)  # type: ignore[arg-type]


def should_compile(choice: str, device: torch.device, seconds_left: Callable[[], float]) -> bool:
    """Whether to compile, said in one log line. auto: where it saves time.

    seconds_left: measures the time of the work left, uncompiled. Raises Refusal where `on` is not possible.
    """
    if choice == "on" and device.type == "mps":
        logging.warning("--compile on does nothing on mps: networks are compiled on CUDA and CPU")
    if choice == "off" or device.type == "mps":
        return False

    # It must pay.
    left, (seconds, share) = 0.0, ASSUMED[device.type]
    if choice == "auto" and not _pays(left := seconds_left(), device):
        if left > seconds:
            logging.info(f"about {left:.0f} s of work at the speed measured; compiling would take longer")
        return False

    # It must be possible.
    if missing := _missing(device):
        if choice == "on":
            raise Refusal(f"--compile on needs {missing}; it is not there")
        logging.info(f"about {left:.0f} s of work; not compiled: {missing} is not there")
        return False
    about = f"about {left:.0f} s of work, of which that should save {1 - share:.0%}: " if left else ""
    logging.info(f"{about}compiling the network")
    return True


def _pays(left: float, device: torch.device) -> bool:
    seconds, share = ASSUMED[device.type]
    return left * (1 - share) > seconds


def _missing(device: torch.device) -> str:
    """What compiling needs and this machine does not have."""
    names = ("g++", "clang++", "cl") if device.type == "cpu" else ("gcc", "clang", "cc")
    if not (os.environ.get("CXX" if device.type == "cpu" else "CC") or any(map(shutil.which, names))):
        return f"a compiler, such as {names[0]}, on the PATH"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Python.h, from a package such as python3-dev"
    return ""


def seconds_of_batches(work: Callable[[int], object], n: int, batches: int, device: torch.device) -> float:
    """The time of `batches` calls of `work(n)`, for n images each. It may be too large where it is not much.

    On a CPU two batches would be a good part of a short command: one image, which takes more than its share
    of a batch, tells first whether they are worth it.
    """
    if device.type == "cpu":
        bound = batches * n * seconds_of(lambda: work(1), device)
        if not _pays(bound, device):
            return bound
    return batches * seconds_of(lambda: work(n), device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """The time of `work`, after one call to warm up."""
    work()
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
