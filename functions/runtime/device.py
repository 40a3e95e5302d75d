"""Which device runs the network."""

import logging
import shlex
import sys

import torch

from configs.refusal import Refusal
from functions.runtime import distributed


def choose_device(name: str | None) -> torch.device:
    """The device called `name`, or the best of this machine. Raises Refusal for one that it does not have."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise Refusal("--device mps: this machine has no Metal device; cpu always works")
    if device.type != "cuda":
        return device
    if device.index is not None and distributed.local_world_size() > 1:
        raise Refusal(f"--device {name} puts all processes on one GPU; --device cuda gives each its own")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = distributed.local_rank() if device.index is None else device.index
    if index >= count:
        have = f"{count} CUDA device{'s' * (count != 1)}" if count else "no CUDA device"
        raise Refusal(f"--device {torch.device('cuda', index)}: this machine has {have}; cpu always works")
    return torch.device("cuda", index)


def mention_idle_gpus(device: torch.device) -> None:
    """Say how to use all GPUs, where a single process leaves some idle."""
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if count > 1 and not distributed.under_torchrun():
        command = f"torchrun --nproc_per_node {count} {shlex.join(sys.argv)}"
        logging.info(f"{count} GPUs are visible and this process uses one; all of them: {command}")
