"""What a grid came to: table.md, table.json and table.png in its folder, and a sheet with a row a cell."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from configs import Config
from configs.choices import SAMPLERS
from configs.options import Options
from functions.disk import files, images, plots
from functions.disk.tables import columns, markdown
from functions.metrics.metrics import Number
from runners.evaluation import measurements
from runners.evaluation.published import Published, find
from runners.sampling.cells import checkpoint_label

SHEET_COLUMNS = 16


@dataclass(frozen=True)
class Result:
    """A cell: options, the checkpoint's name and step (0 if unknown), cost, size, the measurement."""

    options: Options
    checkpoint: str
    step: int
    evaluated: int  # timesteps of τ
    evaluations: int  # of the network for an image (NFE)
    n: int  # chains
    measured: dict[str, Any] | None
    own: dict[str, Number] = field(default_factory=dict)  # the task's, and what they are
    note: str = ""

    @property
    def numbers(self) -> dict[str, Number]:
        """All that was measured, by name."""
        return (measurements.numbers(self.measured) if self.measured else {}) | self.own


@dataclass(frozen=True)
class Entry:
    """A number over the seeds of otherwise equal cells. spread: its standard deviation, None for one seed."""

    results: list[Result]
    value: float
    spread: float | None
    published: Published | None

    @property
    def text(self) -> str:
        value = f"{self.value:.4g}" + (f" ± {self.spread:.2g}" if self.spread is not None else "")
        if not self.published:
            return value
        theirs, source = self.published
        return f"{value} ({source} {theirs:g}, ×{self.value / theirs:.3g})"


def write(options: Options, config: Config, results: list[Result]) -> None:
    """Write the tables and the sheet, and print table.md."""
    names = list(results[0].numbers)
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
        _write_sheet(options, [Path(result.options.image_folder).name for result in results], results[0].n)


def single(config: Config, result: Result) -> str:
    """A task's own numbers of one folder."""
    rows = [["number", "value", "N", "S", "NFE"]]
    for name in result.own:
        (entry,) = _entries(config, [result], name)
        rows.append([name, entry.text, str(result.n), str(result.options.S), str(result.evaluations)])
    return "\n".join(filter(None, [columns(rows), result.note]))


def _write_sheet(options: Options, folders: Sequence[str], n: int) -> None:
    """A row for each cell: its first images. Where seeds agree, a column is one x_T."""
    shown = range(min(n, SHEET_COLUMNS))
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
        values = [result.numbers[name].value for result in group]
        published = find(name, config, group[0].options)
        entries.append(Entry(group, mean(values), stdev(values) if len(values) > 1 else None, published))
    return entries


def _cell(config: Config, result: Result) -> dict[str, Any]:
    options, published, found = result.options, find("fid", config, result.options), result.numbers
    return {
        "folder": options.image_folder,
        "checkpoint": result.checkpoint,
        "step": result.step,
        "sample_type": options.sample_type,
        "eta": options.eta if SAMPLERS[options.sample_type].takes_eta else None,
        "skip_type": options.skip_type,
        "timesteps": options.S,
        "evaluated": result.evaluated,
        "evaluations": result.evaluations,
        "seed": options.seed,
        "numbers": {name: number.value for name, number in found.items()},
        "paper_fid": published.value if published else None,
        "published_by": published.source if published else None,
        "ratio": found["fid"].value / published.value if published and "fid" in found else None,
        "measured": result.measured,
    }


def _summary(entry: Entry) -> dict[str, Any]:
    first = entry.results[0]
    return {
        "checkpoint": first.checkpoint,
        "step": first.step,
        "sampler": first.options.sampler_label,
        "skip_type": first.options.skip_type,
        "timesteps": first.options.S,
        "evaluations": first.evaluations,
        "seeds": [result.options.seed for result in entry.results],
        "mean": entry.value,
        "spread": entry.spread,
        "paper": entry.published.value if entry.published else None,
        "published_by": entry.published.source if entry.published else None,
        "ratio": entry.value / entry.published.value if entry.published else None,
    }


def _row(options: Options, result: Result, *, checkpoint: bool = True) -> str:
    """The name of a row: its sampler, after its checkpoint and before its spacing where there are several."""
    parts = [result.options.sampler_label]
    if checkpoint and len(options.ckpts) > 1:
        parts.insert(0, checkpoint_label(result.options.ckpts[0], options.ckpts))
    if len(_spacings(options)) > 1:
        parts.append(result.options.spacing_label)
    return ", ".join(parts)


def _spacings(options: Options) -> tuple[str, ...]:
    """Those that were asked, or else each sampler's own."""
    own = (SAMPLERS[name].spacing for name in options.sample_types)
    return options.skip_types or tuple(dict.fromkeys(own))


def _text(options: Options, results: list[Result], entries: dict[str, list[Entry]]) -> str:
    """A table for each number, evaluations in columns, and what all of them have in common."""
    parts = []
    costs = sorted({result.evaluations for result in results})
    for name, column in entries.items():
        rows: dict[str, dict[int, str]] = {}
        for entry in column:
            first = entry.results[0]
            row = rows.setdefault(_row(options, first), {})
            # Two S can cost the same, as 400 and 500 uniform steps of 1000 do.
            row[first.evaluations] = "; ".join(filter(None, [row.get(first.evaluations), entry.text]))
        lines = [[name, *(cells.get(cost, "") for cost in costs)] for name, cells in rows.items()]
        parts.append(f"## {name}\n\n" + markdown(["", *(f"NFE {cost}" for cost in costs)], lines))
        if name == "fid" and len(column) > 1:
            best = min(column, key=lambda entry: entry.value).results[0]
            parts.append(f"Lowest: {_row(options, best)}, S = {best.options.S}, {best.checkpoint}\n")
    if not entries:
        lines = [[r.options.image_folder, str(r.options.S), str(r.evaluations)] for r in results]
        parts.append(markdown(["folder", "steps asked", "evaluations (NFE)"], lines))

    parts.append(f"- NFE: evaluations of the network for an image; {', '.join(_spacings(options))} steps")
    parts += [f"- {line}" for line in _differing(results)]
    over = ": mean ± standard deviation" if len(options.seeds) > 1 else ""
    parts.append(f"- seed {', '.join(map(str, options.seeds))}{over}")
    parts += [f"- {results[0].note}"] * bool(results[0].note)
    measured = results[0].measured
    if measured:
        names = f"reference {measured['reference']['name']}, {measured['extractor']['name']}"
        parts.append(f"- N = {measured['num_samples']}, {names}")
        parts += [f"- {metric}: {note}" for metric, note in measurements.notes(measured).items() if note]
    return "\n".join(parts) + "\n"


def _differing(results: list[Result]) -> list[str]:
    """Where evaluations are not the steps that were asked."""
    found = {
        f"{r.options.sampler_label}: S = {r.options.S} evaluates {r.evaluated} timesteps, NFE {r.evaluations}"
        for r in results
        if r.evaluations != r.options.S
    }
    return sorted(found)


def _plot(path: Path, options: Options, name: str, entries: list[Entry]) -> None:
    """A number against evaluations; against the training step where there are several checkpoints."""
    by_step = len(options.ckpts) > 1
    curves: dict[str, list[plots.Point]] = {}
    for entry in entries:
        first = entry.results[0]
        curve, x = _row(options, first, checkpoint=False), float(first.evaluations)
        if by_step:
            x = first.step or options.ckpts.index(first.options.ckpts[0])
            curve += f", S = {first.options.S}" if len(options.step_counts) > 1 else ""
        published = entry.published.value if entry.published else None
        curves.setdefault(curve, []).append(plots.Point(x, entry.value, entry.spread, published))
    x_label = "training step" if by_step else "evaluations (NFE)"
    plots.lines(path, curves, x_label, name.upper() if name in ("fid", "is") else name, log_x=not by_step)
