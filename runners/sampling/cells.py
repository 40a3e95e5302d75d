"""The cells of a grid: flags that repeat make one for each combination, with a folder of its own."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from configs.choices import SAMPLERS
from configs.options import Options
from configs.refusal import Refusal
from functions.weights import pretrained


def cells(options: Options) -> list[Options]:
    """The options of each cell, those of one checkpoint together. A single run is its own only cell."""
    if not options.is_grid:
        return [options]
    samplers = [
        (name, eta)
        for name in options.sample_types
        for eta in (options.etas if SAMPLERS[name].takes_eta else options.etas[:1])
    ]
    checkpoints: list[tuple[str, ...]] = [(path,) for path in options.ckpts] or [()]
    found = []
    for ckpts, (name, eta), S, seed in product(checkpoints, samplers, options.step_counts, options.seeds):
        # A cell has the same name in every grid; the checkpoint is named only where there are several.
        parts = [f"S{S}", SAMPLERS[name].folder.format(eta=eta), f"seed{seed}"]
        if len(options.ckpts) > 1:
            parts.insert(0, checkpoint_label(ckpts[0], options.ckpts))
        folder = str(Path(options.image_folder, "_".join(parts)))
        values = {
            "ckpts": ckpts,
            "sample_types": (name,),
            "etas": (eta,),
            "step_counts": (S,),
            "seeds": (seed,),
        }
        found.append(replace(options, **values, image_folder=folder))  # type: ignore[arg-type]
    folders = {cell.image_folder for cell in found}
    assert len(folders) == len(found), "two samplers have the same folder in configs/choices.py"
    return found


def check(options: Options) -> None:
    """Raise Refusal where a checkpoint is missing, or the folder of a grid holds a single run's images."""
    if not options.is_grid:
        return
    for ckpt in options.ckpts:
        pretrained.locate(ckpt)
    if (options.image_dir / "manifest.json").exists():
        raise Refusal(
            f"{options.image_dir} holds the images of a single run; give the grid another folder with -i"
        )


def checkpoint_label(path: str, paths: Sequence[str]) -> str:
    """As much of the end of `path` as tells it from the others."""
    ends = {other: (*Path(other).parent.parts, Path(other).stem) for other in paths}
    for k in range(1, len(ends[path]) + 1):
        if sum(end[-k:] == ends[path][-k:] for end in ends.values()) == 1:
            break
    return "_".join(ends[path][-k:]).replace("/", "")
