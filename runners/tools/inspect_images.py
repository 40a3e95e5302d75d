"""--inspect of a folder of images: what they are, how they were made, and how to go on."""

from pathlib import Path
from typing import Any

from configs import door
from configs.refusal import Refusal
from functions.disk import manifest

TABLE = "table.md"  # of a grid, with its cells' folders beside it


def is_of_images(path: Path) -> bool:
    """Whether --sample filled this folder: with images, or with the cells of a grid."""
    return any((path / name).is_file() for name in (manifest.NAME, TABLE))


def inspect_images(path: Path) -> None:
    """Print it. Raises Refusal where the manifest is damaged."""
    found = manifest.read(path)
    if found is None:
        cells = [below for below in sorted(path.iterdir()) if (below / manifest.NAME).is_file()]
        print(f"a grid: {path}, {len(cells)} cells with images\n")
        print(door.read_text(path / TABLE, "a table"))
        of_cells, lines = [manifest.read(cell) for cell in cells], {}
    else:
        of_cells, lines = [found], _lines(path, found)
    for name, line in lines.items():
        print(f"{name}: {line}")
    commands = [_last(of_cell).get("command", "") for of_cell in of_cells if of_cell]
    for command in filter(None, dict.fromkeys(commands)):
        print(f"made by: {command}")
    print("the same command, or one with a larger --num_samples, goes on with it")


def _lines(path: Path, found: dict[str, Any]) -> dict[str, str]:
    decides, last = found["decides"], _last(found)
    there, files = sum(1 for _ in path.glob("*.png")), found["num_samples"]
    timesteps = decides.get("timesteps")
    if not isinstance(timesteps, list) or not timesteps:
        raise Refusal(f"{path / manifest.NAME} is damaged: it has no timesteps")
    eta = "" if decides.get("eta") is None else f", η = {decides['eta']:g}"
    spacing = f" ({last['spacing']})" if "spacing" in last else ""
    step = f", step {last['step']}" if last.get("step") else ""
    known = {"mode", "images", "weights", "image", "sample_type", "eta", "seed", "precision", "timesteps",
             "diffusion"}  # fmt: skip
    return {
        "images": f"{path}, {there:,} PNGs; its command makes {files:,} files",
        "task": f"--{decides.get('mode')}",
        "sampler": f"{decides.get('sample_type')}{eta}, {len(timesteps)} timesteps from {timesteps[-1]:g} to "
        f"{timesteps[0]:g}{spacing}",
        "seed": str(decides.get("seed")),
        "weights": f"{last.get('checkpoint')} ({last.get('kind')}{step}), hash {decides.get('weights')}",
        "config": str(last.get("config")),
        "numerics": f"{decides.get('precision')} on {last.get('device')}",
        "made": f"{last.get('date')}, torch {last.get('torch')}",
        **({"images that were read": f"hash {decides['images']}"} if "images" in decides else {}),
    } | {name: str(value) for name, value in decides.items() if name not in known}


def _last(found: dict[str, Any]) -> dict[str, Any]:
    return found["parts"][-1] if found["parts"] else {}
