"""What made an image folder: `manifest.json` says so, and only the same run continues the folder.

`decides` in the file is everything that decides the pixels. `parts` records what else is worth knowing.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.refusal import Refusal
from functions.disk import files

NAME = "manifest.json"


def check(folder: Path, decides: dict[str, Any], num_samples: int) -> dict[str, Any] | None:
    """The manifest of the same run, for at most as many images; None where `folder` is new or empty.

    decides: everything that decides the pixels, as plain JSON. Raises Refusal with the first difference.
    """
    manifest = _read(folder)
    if manifest is None:
        if any(folder.glob("*.png")):
            raise _refusal(folder, f"it holds images and no {NAME} that says how they were made")
        return None
    difference = first_difference(manifest["decides"], decides)
    if difference:
        raise _refusal(folder, difference)
    if num_samples < manifest["num_samples"]:
        raise _refusal(
            folder, f"it was made for {manifest['num_samples']} images, and {num_samples} are asked"
        )
    return manifest


def claim(folder: Path, decides: dict[str, Any], num_samples: int, record: dict[str, Any]) -> None:
    """Make `folder` this run's, or extend it to more images of the same run. Raises as `check` does.

    record: what else is worth knowing of these images. It is never compared.
    """
    manifest = check(folder, decides, num_samples)
    if manifest is not None and manifest["num_samples"] == num_samples:
        return
    date = datetime.now(UTC).isoformat(timespec="seconds")
    versions = {"torch": str(torch.__version__), "numpy": np.__version__}
    part = {"up_to": num_samples, "date": date, **versions, **record}
    parts = [*(manifest["parts"] if manifest else []), part]
    content = {"decides": decides, "num_samples": num_samples, "parts": parts}
    files.write_text(folder / NAME, json.dumps(content, indent=1) + "\n")


def first_difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """The first key that differs between two descriptions of what decides images, in words."""
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        if theirs.get(key) != ours.get(key):
            return f"{key} is {_describe(theirs.get(key))} there and {_describe(ours.get(key))} here"
    return None


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        manifest = json.loads(text)
    except ValueError:
        manifest = None
    kinds = {"decides": dict, "num_samples": int, "parts": list}
    if not isinstance(manifest, dict) or any(
        not isinstance(manifest.get(k), kind) for k, kind in kinds.items()
    ):
        raise _refusal(folder, f"its {NAME} is damaged")
    return manifest


def _describe(value: Any) -> str:
    if isinstance(value, list) and len(value) > 1:
        return f"{len(value)} values from {value[0]} to {value[-1]}"
    return "not given" if value is None else str(value)


def _refusal(folder: Path, why: str) -> Refusal:
    return Refusal(f"{folder} is kept for other images: {why}; name another folder with -i")
