"""How precisely a network computes, and how its tensors lie in memory. Samplers and tasks know none of it."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def precision_in_words(precision: str, device: torch.device) -> str:
    """What a --precision means on `device`: the same words, the same images up to rounding."""
    if precision == "bf16":
        return "bfloat16"
    tf32 = precision == "default" and device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return "float32 with TF32 convolutions" if tf32 else "float32"


@contextmanager
def numerics(precision: str, device: torch.device, *, training: bool) -> Iterator[None]:
    """Torch's global switches for the block. default: torch's own flags, upstream's numerics; fp32: no TF32.

    Training on CUDA asks for deterministic kernels, so that resuming is exact there too.
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
    """The same sums in the same order. Attention by its formula: other kernels sum gradients in any order.

    Its products then run in bfloat16 under autocast, as the convolutions do; torch alone would widen them.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_deterministic_debug_mode()
    narrow = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(narrow)
        torch.use_deterministic_algorithms(before > 0, warn_only=before == 1)  # Inductor's flag too
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def memory_format(device: torch.device) -> torch.memory_format:
    """The fastest layout of images: channels last, except where Metal's kernels would copy them back."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Training's mixed precision: float32 weights, and with bf16 convolutions and products in bfloat16."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
