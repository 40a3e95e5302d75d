"""Measurements of a folder: kept in {folder}.metrics.json beside it, and printed as a table.

A measurement is plain JSON: its `metrics` by name, in the order of tables, and what decides them besides the
images: N, reference and extractor.
"""

import json
import logging
from pathlib import Path
from typing import Any

from configs import door
from configs.refusal import Refusal
from functions.disk import files, manifest, tables
from functions.metrics.metrics import METRICS, Number
from runners.evaluation.published import Published

Measurement = dict[str, Any]


def path_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.metrics.json")


def find(
    folder: Path, identity: dict[str, Any], deciding: dict[str, Any], names: list[str]
) -> Measurement | None:
    """The measurement of the images that `identity` decides, by these metrics, if any. Raises as `_read`."""
    for measured in _read(folder, identity):
        if deciding.items() <= measured.items() and set(names) <= set(measured["metrics"]):
            return measured | {"metrics": {name: measured["metrics"][name] for name in names}}
    return None


def store(folder: Path, identity: dict[str, Any], deciding: dict[str, Any], measured: Measurement) -> None:
    """Add a measurement. One with the same `deciding` is replaced, but for its other metrics."""
    others = _read(folder, identity)
    for old in [old for old in others if deciding.items() <= old.items()]:
        measured = measured | {"metrics": old["metrics"] | measured["metrics"]}
        others.remove(old)
    content = {"decides": identity, "measurements": [*others, measured]}
    files.write_text(path_of(folder), json.dumps(content, indent=1) + "\n")


def _read(folder: Path, identity: dict[str, Any]) -> list[Measurement]:
    """Those of the images that `identity` decides. Raises Refusal where the folder's name has others'."""
    path = path_of(folder)
    try:
        content = door.read_json(path, "a file of metrics")
        with door.reading(path, "a file of metrics"):
            decides, measurements = dict(content["decides"]), list(content["measurements"])
            for measured in measurements:
                numbers(measured), notes(measured)
    except FileNotFoundError:
        return []
    except Refusal as error:
        logging.warning(f"{error}; it is written anew")
        return []
    if decides != identity:
        difference = f"{manifest.first_difference(decides, identity, {}, {})}; name another folder with -i"
        raise Refusal(f"{path} holds the numbers of other images: {difference}")
    return measurements


def numbers(measured: Measurement) -> dict[str, Number]:
    """All numbers of a measurement, by name."""
    found: dict[str, Number] = {}
    for metric in measured["metrics"]:
        found |= numbers_of(measured, metric)
    return found


def numbers_of(measured: Measurement, metric: str) -> dict[str, Number]:
    """Those of one metric."""
    return METRICS[metric].numbers(measured["metrics"][metric])


def notes(measured: Measurement) -> dict[str, str]:
    """What to keep in mind beside each metric, by its name."""
    n, dim, results = measured["num_samples"], measured["extractor"]["dim"], measured["metrics"]
    return {metric: "; ".join(METRICS[metric].notes(results[metric], n, dim)) for metric in results}


def table(measured: Measurement, published: Published | None) -> str:
    """A row for each number: value and spread, N, reference, extractor, and what to keep in mind."""
    rows = [["metric", "value", "N", "reference", "extractor", ""]]
    of = [str(measured["num_samples"]), measured["reference"]["name"], measured["extractor"]["name"]]
    for metric, note in notes(measured).items():
        for name, number in METRICS[metric].numbers(measured["metrics"][metric]).items():
            value = f"{number.value:.4g}" + (f" ± {number.spread:.2g}" if number.spread is not None else "")
            if name == "fid" and published:
                ratio = f"×{number.value / published.value:.3g}"
                note = f"{published.source} {published.value:g}, {ratio}; {note}".removesuffix("; ")
            rows.append([name, value, *of, note])
    return tables.columns(rows)
