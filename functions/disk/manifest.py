"""What an image folder holds: `manifest.json` says what decided the pixels, so that only the same run continues it."""

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

    decides: everything that decides the pixels, as plain JSON values. Raises Refusal with the first difference.
    """
    there = _read(folder)
    if there is None:
        if any(folder.glob("*.png")):
            raise _refusal(folder, f"it holds images and no {NAME} that says how they were made")
        return None
    difference = first_difference(there["decides"], decides)
    if difference:
        raise _refusal(folder, difference)
    if num_samples < there["num_samples"]:
        raise _refusal(folder, f"it was made for {there['num_samples']} images, and {num_samples} are asked")
    return there


def claim(folder: Path, decides: dict[str, Any], num_samples: int, records: dict[str, Any]) -> None:
    """Make `folder` this run's, or extend it to more images of the same run. Raises as `check` does.

    records: what else is worth knowing of this part of the images, never compared.
    """
    there = check(folder, decides, num_samples)
    if there is not None and there["num_samples"] == num_samples:
        return
    date = datetime.now(UTC).isoformat(timespec="seconds")
    part = {
        "up_to": num_samples,
        "date": date,
        "torch": torch.__version__,
        "numpy": np.__version__,
        **records,
    }
    parts = [*(there["parts"] if there else []), part]
    manifest = {"decides": decides, "num_samples": num_samples, "parts": parts}
    files.write_text(folder / NAME, json.dumps(manifest, indent=1) + "\n")


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
        not isinstance(manifest.get(key), kind) for key, kind in kinds.items()
    ):
        raise _refusal(folder, f"its {NAME} is damaged")
    return manifest


def first_difference(there: dict[str, Any], here: dict[str, Any]) -> str | None:
    """In words, of two descriptions of what decides images; None for the same."""
    for key in [*here, *(key for key in there if key not in here)]:
        if there.get(key) != here.get(key):
            return f"{key} is {_describe(there.get(key))} there and {_describe(here.get(key))} here"
    return None


def _describe(value: Any) -> str:
    if isinstance(value, list) and len(value) > 1:
        return f"{len(value)} values from {value[0]} to {value[-1]}"
    return "not given" if value is None else str(value)


def _refusal(folder: Path, why: str) -> Refusal:
    return Refusal(f"{folder} is kept for other images: {why}; name another folder with -i")
