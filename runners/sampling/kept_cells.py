"""The cells that earlier commands left in a grid's folder, as its table.json has them."""

import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs import door
from configs.options import Options
from configs.refusal import Refusal
from functions.metrics.metrics import Number
from runners.evaluation import measurements
from runners.sampling.result import Result


def earlier(options: Options, made: Collection[str]) -> list[Result]:
    """Those whose images or numbers are there, but for the cells named `made`, in the table's order."""
    path = options.image_dir / "table.json"
    try:
        content = door.read_json(path, "a table")
        with door.reading(path, "a table"):
            found = [_result(options, cell) for cell in content["cells"]]
            _ = [result.numbers for result in found]
    except FileNotFoundError:
        return []
    except Refusal as error:
        logging.warning(f"{error}; it is written anew")
        return []
    return [
        result
        for result in found
        if result.options.image_folder not in made
        and (result.folder.is_dir() or measurements.path_of(result.folder).is_file())
    ]


def _result(options: Options, cell: dict[str, Any]) -> Result:
    """What was made. `options` are those of the command at hand."""
    folder = Path(options.image_folder, Path(cell["folder"]).name)  # the grid's folder may have been renamed
    of_cell = replace(
        options, image_folder=str(folder), sample_types=(cell["sample_type"],), etas=(cell["eta"] or 0.0,),
        skip_types=(cell["skip_type"],), step_counts=(cell["timesteps"],), seeds=(cell["seed"],),
        ckpts=(cell["checkpoint"],), use_pretrained=False, order=cell.get("order"), method=cell.get("method"),
    )  # fmt: skip
    measured = cell["measured"]
    n = cell.get("images") or (measured or {}).get("num_samples") or _count(of_cell.image_dir)
    own = {name: Number(value) for name, value in cell.get("own", {}).items()}
    cost = (cell["evaluated"], cell["evaluations"], n)
    return Result(of_cell, cell["checkpoint"], cell["step"], *cost, measured, own, cell.get("note", ""))


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*.png"))
