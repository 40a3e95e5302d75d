"""What an image folder holds: `manifest.json` says what decided the pixels, so that only the same run continues it."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from functions import files

NAME = "manifest.json"


def check(folder: Path, decides: dict[str, Any], num_samples: int) -> int | None:
    """How many images the same run was asked for before; None where `folder` is new or empty.

    decides: everything that decides the pixels, as plain JSON values. Raises ValueError with the first difference.
    """
    if folder.exists() and not folder.is_dir():
        raise _refusal(folder, "it is a file")
    there = _read(folder)
    if there is None:
        if any(folder.glob("*.png")):
            raise _refusal(folder, f"it holds images and no {NAME} that says how they were made")
        return None
    difference = _difference(there["decides"], decides)
    if difference:
        raise _refusal(folder, difference)
    if num_samples < there["num_samples"]:
        raise _refusal(folder, f"it was made for {there['num_samples']} images, and {num_samples} are asked")
    return there["num_samples"]


def claim(folder: Path, decides: dict[str, Any], num_samples: int, records: dict[str, Any]) -> None:
    """Make `folder` this run's, or extend it to more images of the same run. Raises as `check` does.

    records: what else is worth knowing, never compared.
    """
    if check(folder, decides, num_samples) == num_samples:
        return
    date, versions = datetime.now(UTC).isoformat(timespec="seconds"), {"torch": torch.__version__, "numpy": np.__version__}
    manifest = {"decides": decides, "num_samples": num_samples, "date": date, "versions": versions, **records}
    files.write_text(folder / NAME, json.dumps(manifest, indent=1) + "\n")


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        manifest = json.loads(text)
        manifest["decides"].items(), manifest["num_samples"] + 0
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _refusal(folder, f"its {NAME} is damaged") from None
    return manifest


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str | None:
    for key in [*here, *(key for key in there if key not in here)]:
        if there.get(key) != here.get(key):
            return f"{key} is {_describe(there.get(key))} there and {_describe(here.get(key))} here"
    return None


def _describe(value: Any) -> str:
    if isinstance(value, list) and len(value) > 1:
        return f"{len(value)} values from {value[0]} to {value[-1]}"
    return "not given" if value is None else str(value)


def _refusal(folder: Path, why: str) -> ValueError:
    return ValueError(f"{folder} is kept for other images: {why}; name another folder with -i")
