"""How fast and how precisely a network computes: precision, memory format, compilation, the batch that fits.

Everything that is about speed alone is here and in models/fused.py; samplers, networks and tasks know none of it.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from configs.refusal import Refusal

# What compiling is reckoned to take and to leave of the time of what it compiles, when deciding whether it repays.
COMPILE_SECONDS, COMPILED_SHARE = 90.0, 0.5
LARGEST_INDEX = 2**31  # kernels for larger tensors than this are other, slower ones
LARGEST_AUTO_BATCH, PROBE_BATCH, SHARE_OF_FREE_MEMORY = 512, 8, 0.7
SHARE_FOR_DATA = 0.1


def precision_in_words(precision: str, device: torch.device) -> str:
    """What a --precision means on `device`: the same words, the same images up to rounding."""
    if precision == "bf16":
        return "bfloat16"
    tf32 = precision == "default" and device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return "float32 with TF32 convolutions" if tf32 else "float32"


@contextmanager
def numerics(precision: str, device: torch.device, *, training: bool) -> Iterator[None]:
    """Torch's global switches for the block. default: torch's own flags, upstream's numerics; fp32: no TF32.

    Training on CUDA asks for deterministic kernels, for resuming to be exact there too.
    """
    if device.type != "cuda":
        yield
        return
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    if precision == "fp32":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with _deterministic() if training else nullcontext():
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


@contextmanager
def _deterministic() -> Iterator[None]:
    """The same sums in the same order. Attention by its formula: the backward passes of the faster kernels keep no order."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.set_deterministic_debug_mode(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def memory_format(device: torch.device) -> torch.memory_format:
    """How images lie fastest: channels last, except where Metal's kernels would copy them back."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Training's mixed precision: weights stay float32, convolutions and products run in bfloat16 where asked."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


class Network:
    """A model as a function of float32 x (b, c, h, w) and t (b,) that gives ε in float32, whatever it computes in.

    Once compiled it pads a smaller batch to the size it was compiled for, so that a ragged batch compiles nothing.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.forward: Callable[..., Tensor] = model
        self.dtype = next(model.parameters()).dtype
        self.format = memory_format(next(model.parameters()).device)
        self.rows = 0

    def compile(self, rows: int) -> None:
        """Compile for batches of up to `rows`, at the next call."""
        self.forward, self.rows = compiled(self.model), rows

    def uncompile(self) -> None:
        self.forward, self.rows = self.model, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        n, missing = len(x), max(0, self.rows - len(x))
        if missing:
            x, t = torch.cat([x, x.new_zeros(missing, *x.shape[1:])]), torch.cat([t, t.new_zeros(missing)])
        if self.rows:
            torch.compiler.cudagraph_mark_step_begin()
        return self.forward(x.to(self.dtype, memory_format=self.format), t)[:n].float()


class CompiledForBatches:
    """A model in training, compiled for batches of `rows`; others, such as an epoch's last, run uncompiled.

    graphs: as CUDA graphs, whose gradients are overwritten by the next pass: not where passes accumulate.
    """

    def __init__(self, model: nn.Module, rows: int, *, graphs: bool):
        self.model, self.rows = model, rows
        self.compiled = compiled(model, graphs=graphs)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if len(x) != self.rows:
            return self.model(x, t)
        torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(x, t)


def compiled(model: nn.Module, *, graphs: bool = True) -> Callable[..., Tensor]:
    """`model` compiled for one shape, as a CUDA graph where there is CUDA."""
    if next(model.parameters()).is_cuda:
        return torch.compile(
            model, dynamic=False, options={"triton.cudagraphs": graphs, "coordinate_descent_tuning": True}
        )
    return torch.compile(model, dynamic=False)


def on_device(images: Tensor, device: torch.device) -> Tensor:
    """A data set in memory where the network is, if it takes no more than a small part of the CUDA memory that is free."""
    if device.type != "cuda" or images.nbytes > torch.cuda.mem_get_info(device)[0] * SHARE_FOR_DATA:
        return images
    return images.to(device)


def should_compile(choice: str, device: torch.device, seconds_left: Callable[[], float]) -> bool:
    """Whether to compile, said in one line. auto: on CUDA, where the work left repays it.

    seconds_left: measures what the work would take as it is. Raises Refusal where `on` can't be had.
    """
    if choice == "off":
        return False
    if device.type == "mps":
        if choice == "on":
            logging.warning("--compile on does nothing on mps: networks are compiled on CUDA and CPU")
        return False
    if choice == "auto" and device.type == "cpu":
        return False
    compilers = ("g++", "clang++", "cl") if device.type == "cpu" else ("gcc", "clang", "cc")
    if not (os.environ.get("CXX" if device.type == "cpu" else "CC") or any(map(shutil.which, compilers))):
        if choice == "on":
            raise Refusal(f"--compile on needs a compiler, such as {compilers[0]}; there is none on the PATH")
        logging.info(
            f"not compiled: that needs a compiler, such as {compilers[0]}, and there is none on the PATH"
        )
        return False
    if choice == "on":
        logging.info("compiling the network")
        return True
    left = seconds_left()
    repays = left * (1 - COMPILED_SHARE) > COMPILE_SECONDS
    verdict = (
        "compiling, which is reckoned to halve it" if repays else "not compiled: that would not repay itself"
    )
    logging.info(f"about {left:.0f} s of work at the speed measured; {verdict}")
    return repays


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """The time of `work` once warm."""
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


def largest_batch(evaluate: Callable[[int], object], most: int, device: torch.device) -> int:
    """The largest power of two of images, up to 512 and to what `most` fill, that `evaluate` takes in the free CUDA memory.

    What one image needs is measured on a small batch; the batch chosen is tried, and halved while it does not fit.
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
