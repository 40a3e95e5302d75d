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
    spacings: list[tuple[str, ...]] = [(name,) for name in options.skip_types] or [()]
    found = []
    for ckpts, (name, eta), spacing, S, seed in product(
        checkpoints, samplers, spacings, options.step_counts, options.seeds
    ):
        values = {
            "ckpts": ckpts, "sample_types": (name,), "etas": (eta,), "skip_types": spacing,
            "step_counts": (S,), "seeds": (seed,),
        }  # fmt: skip
        cell = replace(options, **values)  # type: ignore[arg-type]
        # A cell has the same name in every grid; of several checkpoints and spacings, each is named.
        sampler = SAMPLERS[name]
        of = sampler.folder.format(**sampler.settings(eta, options.order, options.method))
        parts = [f"S{S}", of, f"seed{seed}"]
        if len(spacings) > 1:
            parts.insert(0, cell.spacing_label)
        if len(options.ckpts) > 1:
            parts.insert(0, checkpoint_label(ckpts[0], options.ckpts))
        found.append(replace(cell, image_folder=str(Path(options.image_folder, "_".join(parts)))))
    stems = [Path(name).stem for name in options.skip_types]
    if len(set(stems)) < len(stems):
        raise Refusal(f"--skip_type names two files called {max(stems, key=stems.count)}; rename one of them")
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
