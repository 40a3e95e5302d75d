"""What this machine gives the program. Imports no torch."""

import os


def cores(at_most: int = 1_000_000) -> int:
    """The cores this process may use, shared among torchrun's processes here, or `at_most`; may be 0."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(at_most, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
