"""A file of timesteps, for --skip_type: numbers between spaces, commas or lines; # begins a comment."""

import math
from pathlib import Path

from configs.door import read_text, reading
from configs.refusal import Refusal, quoted


def read_timesteps(path: str) -> list[float]:
    """Its timesteps, ascending, whole ones as int. Raises Refusal for anything else."""
    with reading(path, "a file of timesteps"):
        text = read_text(Path(path), "a file of timesteps")
    words = " ".join(line.split("#")[0].replace(",", " ") for line in text.splitlines()).split()
    found = []
    for word in words:
        try:
            t = float(word)
        except ValueError:
            t = math.nan
        if not 0 <= t < math.inf:
            raise Refusal(
                f"--skip_type {path}: {quoted(word)} is not a timestep: it must be a number from 0 on"
            )
        found.append(int(t) if t.is_integer() else t)
    if not found:
        raise Refusal(f"--skip_type {path}: the file holds no timesteps")
    twice = next((t for k, t in enumerate(found) if t in found[:k]), None)
    if twice is not None:
        raise Refusal(f"--skip_type {path}: it names the timestep {twice} twice")
    return sorted(found)
