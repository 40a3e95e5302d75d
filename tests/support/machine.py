"""On which machine do numbers come out the same to the last bit?"""

import platform
from pathlib import Path

import torch


def processor() -> str:
    """The model of the processor, and the instructions that torch uses of it."""
    info = Path("/proc/cpuinfo")
    lines = (
        dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        if info.exists()
        else {}
    )
    named = {key.strip(): text.strip() for key, text in lines.items()}
    known = [
        named[key] for key in ("vendor_id", "model name", "cpu family", "model", "stepping") if key in named
    ]
    return ", ".join([*(known or [platform.processor()]), torch.backends.cpu.get_cpu_capability()])
