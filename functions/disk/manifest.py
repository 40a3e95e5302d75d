"""What made an image folder: `manifest.json` says so, and only the same run continues the folder.

`decides` in the file is everything that decides the pixels. `parts` records what else is worth knowing.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs import door
from configs.refusal import Refusal, short
from functions.disk import files

NAME = "manifest.json"


def check(
    folder: Path, decides: dict[str, Any], num_samples: int, record: dict[str, Any]
) -> dict[str, Any] | None:
    """The manifest of the same run, for at most as many images; None where `folder` is new or empty.

    decides: everything that decides the pixels, as plain JSON. Raises Refusal with the first difference.
    record: as `claim` takes it, or a part of it; it names what differs.
    """
    try:
        manifest = read(folder)
    except Refusal as error:
        raise _refusal(folder, str(error)) from None
    if manifest is None:
        # Another rank may be writing the manifest just now.
        if others := [path for path in _files(folder) if path.name != NAME and path.name[0] != "."]:
            holds = "images" if any(path.suffix == ".png" for path in others) else "other files"
            raise _refusal(folder, f"it holds {holds} and no {NAME} that says how they were made")
        return None
    parts = manifest["parts"]
    difference = first_difference(manifest["decides"], decides, parts[-1] if parts else {}, record)
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
    manifest = check(folder, decides, num_samples, record)
    if manifest is not None and manifest["num_samples"] == num_samples:
        return
    date = datetime.now(UTC).isoformat(timespec="seconds")
    versions = {"torch": str(torch.__version__), "numpy": np.__version__}
    part = {"up_to": num_samples, "date": date, **versions, **record}
    parts = [*(manifest["parts"] if manifest else []), part]
    content = {"decides": decides, "num_samples": num_samples, "parts": parts}
    files.write_text(folder / NAME, json.dumps(content, indent=1) + "\n")


def first_difference(
    theirs: dict[str, Any], ours: dict[str, Any], their_record: dict[str, Any], our_record: dict[str, Any]
) -> str | None:
    """The first key that differs between two descriptions of what decides images, in words.

    The records, as `claim` takes them, tell what a hash or a list of timesteps does not.
    """
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        if theirs.get(key) != ours.get(key):
            there, here = (
                _told(key, _describe(decides.get(key)), record)
                for decides, record in ((theirs, their_record), (ours, our_record))
            )
            return f"{key} is {there} there and {here} here"
    return None


def _told(key: str, value: str, record: dict[str, Any]) -> str:
    """A value in words, with what a record knows of it. Those of earlier versions lack some of this."""
    if key == "timesteps" and "spacing" in record:
        return f"{value} ({record['spacing']})"
    if key == "weights" and "checkpoint" in record:
        step = f", step {record['step']}" if record.get("step") else ""
        return f"{record['checkpoint']} ({record.get('kind')}{step}, hash {value[:8]}…)"
    return value


def read(folder: Path) -> dict[str, Any] | None:
    """`decides`, `num_samples` and `parts`; None where there is none. Raises Refusal for a damaged one."""
    path = folder / NAME
    try:
        manifest = door.read_json(path, "a manifest")
    except FileNotFoundError:
        return None
    kinds = {"decides": dict, "num_samples": int, "parts": list}
    sound = all(isinstance(manifest.get(key), kind) for key, kind in kinds.items())
    if not sound or not all(_is_part(part) for part in manifest["parts"]):
        raise Refusal(f"{path} is damaged")
    return manifest


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def _is_part(part: Any) -> bool:
    """Whether it is a record that `claim` could have written; the batch size is read from it again."""
    return isinstance(part, dict) and isinstance(size := part.get("batch_size", 1), int) and size >= 1


def _describe(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        return short(str(value[0]))
    if isinstance(value, list) and value:
        return f"{len(value)} values from {short(str(value[0]))} to {short(str(value[-1]))}"
    return "not given" if value is None else short(str(value))


def _refusal(folder: Path, why: str) -> Refusal:
    return Refusal(f"{folder} is kept for other images: {why}; name another folder with -i")
