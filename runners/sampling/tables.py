"""What a grid came to: table.md, table.json and table.png in its folder, and a sheet with a row a cell."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from configs import Config
from configs.choices import SAMPLERS
from configs.options import Options
from functions.disk import files, images, plots
from functions.disk.tables import markdown
from runners.evaluation import measurements
from runners.evaluation.published import published_fid
from runners.sampling.cells import checkpoint_label

SHEET_COLUMNS = 16


@dataclass(frozen=True)
class Result:
    """A cell: options, the checkpoint's name and step (0 if unknown), steps evaluated, the measurement."""

    options: Options
    checkpoint: str
    step: int
    evaluated: int
    measured: dict[str, Any] | None


@dataclass(frozen=True)
class Entry:
    """A number over the seeds of otherwise equal cells. spread: its standard deviation, None for one seed."""

    results: list[Result]
    value: float
    spread: float | None
    published: float | None

    @property
    def text(self) -> str:
        value = f"{self.value:.4g}" + (f" ± {self.spread:.2g}" if self.spread is not None else "")
        if not self.published:
            return value
        return f"{value} (paper {self.published:g}, ×{self.value / self.published:.3g})"


def write(options: Options, config: Config, results: list[Result]) -> None:
    """Write the tables and the sheet, and print table.md."""
    first = results[0].measured
    names = list(measurements.numbers(first)) if first else []
    entries = {name: _entries(config, results, name) for name in names}
    folder = options.image_dir

    content = {
        "cells": [_cell(config, result) for result in results],
        "over_seeds": {name: [_summary(entry) for entry in column] for name, column in entries.items()},
    }
    files.write_text(folder / "table.json", json.dumps(content, indent=1) + "\n")
    text = _text(options, results, entries)
    files.write_text(folder / "table.md", text)
    if names:
        _plot(folder / "table.png", options, names[0], entries[names[0]])
    print(text)
    print(
        f"{len(results)} cells in {folder}, with table.md, table.json" + (" and table.png" if names else "")
    )
    if options.keep_images:
        _write_sheet(options, [Path(result.options.image_folder).name for result in results])


def _write_sheet(options: Options, folders: Sequence[str]) -> None:
    """A row for each cell: its first images. Where seeds agree, a column is one x_T."""
    shown = range(min(options.num_samples, SHEET_COLUMNS))
    path = options.image_dir.with_name(f"{options.image_dir.name}.png")
    images.sheet_of_files(
        path, options.image_dir, [[f"{folder}/{i}.png" for i in shown] for folder in folders]
    )
    print(f"contact sheet {path}, a row for each cell: {', '.join(folders)}")


def _entries(config: Config, results: list[Result], name: str) -> list[Entry]:
    by_cell: dict[Options, list[Result]] = {}
    for result in results:
        by_cell.setdefault(replace(result.options, seeds=(), image_folder=""), []).append(result)
    entries = []
    for group in by_cell.values():
        values = [measurements.numbers(result.measured)[name].value for result in group if result.measured]
        published = published_fid(config, group[0].options) if name == "fid" else None
        entries.append(Entry(group, mean(values), stdev(values) if len(values) > 1 else None, published))
    return entries


def _cell(config: Config, result: Result) -> dict[str, Any]:
    options, published = result.options, published_fid(config, result.options)
    found = measurements.numbers(result.measured) if result.measured else {}
    return {
        "folder": options.image_folder,
        "checkpoint": result.checkpoint,
        "step": result.step,
        "sample_type": options.sample_type,
        "eta": options.eta if SAMPLERS[options.sample_type].takes_eta else None,
        "timesteps": options.S,
        "evaluated": result.evaluated,
        "seed": options.seed,
        "numbers": {name: number.value for name, number in found.items()},
        "paper_fid": published,
        "ratio": found["fid"].value / published if published and "fid" in found else None,
        "measured": result.measured,
    }


def _summary(entry: Entry) -> dict[str, Any]:
    first = entry.results[0]
    return {
        "checkpoint": first.checkpoint,
        "step": first.step,
        "sampler": first.options.sampler_label,
        "timesteps": first.options.S,
        "seeds": [result.options.seed for result in entry.results],
        "mean": entry.value,
        "spread": entry.spread,
        "paper": entry.published,
        "ratio": entry.value / entry.published if entry.published else None,
    }


def _row(options: Options, result: Result) -> str:
    """The name of a row: its sampler, after its checkpoint where there are several."""
    several = len(options.ckpts) > 1
    of = f"{checkpoint_label(result.options.ckpts[0], options.ckpts)}, " if several else ""
    return of + result.options.sampler_label


def _text(options: Options, results: list[Result], entries: dict[str, list[Entry]]) -> str:
    """A table for each number, S in columns, and what all of them have in common."""
    parts = []
    for name, column in entries.items():
        rows: dict[str, dict[int, str]] = {}
        for entry in column:
            first = entry.results[0]
            rows.setdefault(_row(options, first), {})[first.options.S] = entry.text
        head = ["", *(f"S = {S}" for S in options.step_counts)]
        parts.append(
            f"## {name}\n\n" + markdown(head, [[row, *cells.values()] for row, cells in rows.items()])
        )
        if name == "fid" and len(column) > 1:
            best = min(column, key=lambda entry: entry.value).results[0]
            parts.append(f"Lowest: {_row(options, best)}, S = {best.options.S}, {best.checkpoint}\n")
    if not entries:
        lines = [[r.options.image_folder, str(r.options.S), str(r.evaluated)] for r in results]
        parts.append(markdown(["folder", "steps asked", "evaluated"], lines))

    evaluated = {result.options.S: result.evaluated for result in results}
    steps = ", ".join(f"{n} of S = {S}" for S, n in evaluated.items())
    parts.append(f"- {options.skip_type} steps; evaluated: {steps}")
    over = ": mean ± standard deviation" if len(options.seeds) > 1 else ""
    parts.append(f"- seed {', '.join(map(str, options.seeds))}{over}")
    measured = results[0].measured
    if measured:
        names = f"reference {measured['reference']['name']}, {measured['extractor']['name']}"
        parts.append(f"- N = {measured['num_samples']}, {names}")
        parts += [f"- {metric}: {note}" for metric, note in measurements.notes(measured).items() if note]
    return "\n".join(parts) + "\n"


def _plot(path: Path, options: Options, name: str, entries: list[Entry]) -> None:
    """A number against S; against the training step where there are several checkpoints."""
    by_step = len(options.ckpts) > 1
    curves: dict[str, list[plots.Point]] = {}
    for entry in entries:
        first = entry.results[0]
        curve, x = first.options.sampler_label, float(first.options.S)
        if by_step:
            x = first.step or options.ckpts.index(first.options.ckpts[0])
            curve += f", S = {first.options.S}" if len(options.step_counts) > 1 else ""
        curves.setdefault(curve, []).append(plots.Point(x, entry.value, entry.spread, entry.published))
    x_label = "training step" if by_step else "S (steps)"
    plots.lines(path, curves, x_label, name.upper() if name in ("fid", "is") else name, log_x=not by_step)
