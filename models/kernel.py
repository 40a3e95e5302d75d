"""norm.c, the U-Net's norms in bfloat16 on a CPU: compiled into the cache at first use, and called here."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from configs import machine
from models.unet import Norm

SOURCE = Path(__file__).with_name("norm.c")
BLOCK = 32  # channels; norm.c takes multiples of it
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC",
         f"-DBLOCK={BLOCK}")  # fmt: skip


@cache
def library() -> ctypes.CDLL | None:
    """The compiled norm.c; None without a C compiler that takes the flags, and a cache that is only ours."""
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("gcc", "clang", "cc"))), None)
    if compiler is None:
        return None
    cpu = Path("/proc/cpuinfo")
    kind = cpu.read_text().split("\n\n")[0] if cpu.is_file() else platform.processor()
    kind = "\n".join(line for line in kind.splitlines() if "MHz" not in line)
    key = hashlib.sha256(SOURCE.read_bytes() + f"{compiler} {FLAGS} {kind}".encode()).hexdigest()[:16]
    path = machine.cache() / "ddim" / "kernels" / f"norm-{key}.so"
    with suppress(OSError, subprocess.CalledProcessError):  # no room in the cache, flags of another compiler
        if not path.is_file():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = path.with_suffix(f".{os.getpid()}.tmp")
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(new), "-lm"]
            subprocess.run(command, check=True, capture_output=True)
            new.chmod(0o700)
            new.replace(path)
        if all(map(_only_ours, (path.parent, path))):
            return ctypes.CDLL(str(path))
    return None


def _only_ours(path: Path) -> bool:
    """Whether nobody else may have written it: without a home the cache lies where others may write."""
    status = path.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


@torch.library.custom_op("ddim::norm", mutates_args=())
def norm(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> Tensor:
    """Norm.forward: bfloat16 x (b, c, h, w) in channels_last order and shift (b, c)."""
    found, (b, c, h, w) = library(), x.shape
    assert found is not None and x.dtype == torch.bfloat16 and c % BLOCK == 0
    x = x.contiguous(memory_format=torch.channels_last)
    shift = None if shift is None else shift.contiguous()
    y = torch.empty_like(x)
    addresses = [value if value is None else value.data_ptr() for value in (x, shift, weight, bias, y)]
    found.norm(
        *map(ctypes.c_void_p, addresses), *map(ctypes.c_int64, (b, h * w, c, groups)),
        ctypes.c_double(eps), ctypes.c_int64(silu),
    )  # fmt: skip
    return y


@norm.register_fake
def _(x: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


class FastNorm(Norm):
    """Norm by norm.c."""

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        return norm(x, shift, self.weight, self.bias, self.num_groups, self.eps, self.silu)
