"""What this machine gives the program. Imports no torch."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from configs.refusal import Refusal


def cores(at_most: int = 1_000_000) -> int:
    """The cores this process may use, shared among torchrun's processes here, or `at_most`; may be 0."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(at_most, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def cache() -> Path:
    """The folder of downloads: $XDG_CACHE_HOME, ~/.cache, or where there is no home a temporary one."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # no HOME, and the user is not in the system's list, as in some containers
        return Path(tempfile.gettempdir(), f"ddim-{os.getuid()}")


def memory() -> int:
    """The bytes of this machine's memory that the process may use, by its control group too."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no control group, or no limit in it
        most = min(most, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return most


def check_memory(what: str, needed: int) -> None:
    """Raise Refusal where `what` would need more bytes of memory than this machine has."""
    if needed > (most := memory()):
        gib = (needed + 2**29) // 2**30  # not a float: a config may ask for more than one can hold
        amount = f"at least {gib:,}" if gib < 10**9 else "over a billion"
        raise Refusal(f"{what} would need {amount} GiB of memory; this machine has {most / 2**30:.1f} GiB")
