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

COMPILE_SECONDS = 90.0  # assumed compile time
COMPILED_SHARE = 0.5  # assumed compiled/eager time ratio


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
    """Whether to compile, said in one log line. auto: on CUDA, where it saves time.

    seconds_left: measures the time of the work left, uncompiled. Raises Refusal where `on` is not possible.
    """
    # On mps, and with auto on a CPU, nothing is compiled.
    if choice == "on" and device.type == "mps":
        logging.warning("--compile on does nothing on mps: networks are compiled on CUDA and CPU")
    if choice == "off" or device.type == "mps" or (choice == "auto" and device.type == "cpu"):
        return False

    # It needs a compiler.
    names = ("g++", "clang++", "cl") if device.type == "cpu" else ("gcc", "clang", "cc")
    if not (os.environ.get("CXX" if device.type == "cpu" else "CC") or any(map(shutil.which, names))):
        if choice == "on":
            raise Refusal(f"--compile on needs a compiler, such as {names[0]}; there is none on the PATH")
        logging.info(f"not compiled: no compiler, such as {names[0]}, is on the PATH")
        return False

    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        if choice == "on":
            raise Refusal("--compile on needs Python.h, from a package such as python3-dev; it is not there")
        logging.info("not compiled: Python.h, from a package such as python3-dev, is not there")
        return False

    # It must pay.
    if choice == "on":
        logging.info("compiling the network")
        return True
    left = seconds_left()
    pays = left * (1 - COMPILED_SHARE) > COMPILE_SECONDS
    verdict = "compiling, which should halve it" if pays else "not compiled, which would take longer"
    logging.info(f"about {left:.0f} s of work at the speed measured; {verdict}")
    return pays


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
