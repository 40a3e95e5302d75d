"""What a grid came to: table.md, table.json and table.png in its folder, and a sheet with a row a cell."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from configs import Config
from configs.choices import METRICS, SAMPLERS
from configs.options import Options
from functions.disk import files, images, plots
from functions.disk.tables import columns, markdown
from functions.metrics import metrics
from runners.evaluation import measurements
from runners.evaluation.published import Published, find
from runners.sampling import kept_cells
from runners.sampling.cells import checkpoint_label
from runners.sampling.result import Result

SHEET_COLUMNS = 16


@dataclass(frozen=True)
class Entry:
    """A number over the seeds of otherwise equal cells.

    spread: its standard deviation over them, or for one seed what its metric gives as ±; None without one.
    """

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


def write(options: Options, config: Config, made: list[Result]) -> None:
    """Write the tables and the sheet, and print table.md. Cells of earlier commands stay in them."""
    before = kept_cells.earlier(options, {result.options.image_folder for result in made})
    results = [*before, *made]
    names = list(dict.fromkeys(name for result in [*made, *before] for name in result.numbers))
    entries = {name: _entries(config, [r for r in results if name in r.numbers], name) for name in names}
    folder = options.image_dir

    content = {
        "cells": [_cell(config, result) for result in results],
        "over_seeds": {name: [_summary(entry) for entry in column] for name, column in entries.items()},
    }
    files.write_text(folder / "table.json", json.dumps(content, indent=1) + "\n")
    text = _text(results, entries)
    files.write_text(folder / "table.md", text)
    if names:
        _plot(folder / "table.png", names[0], entries[names[0]])
    print(text)
    of_before = f" ({len(before)} of earlier commands)" if before else ""
    pictures = " and table.png" if names else ""
    print(f"{len(results)} cells{of_before} in {folder}, with table.md, table.json{pictures}")
    if options.keep_images:
        _write_sheet(options, results)


def single(config: Config, result: Result) -> str:
    """A task's own numbers of one folder."""
    rows = [["number", "value", "N", "S", "NFE"]]
    for name in result.own:
        (entry,) = _entries(config, [result], name)
        rows.append([name, entry.text, str(result.n), str(result.options.S), str(result.evaluations)])
    return "\n".join(filter(None, [columns(rows), result.note]))


def _write_sheet(options: Options, results: list[Result]) -> None:
    """A row for each cell that has images: its first ones. Where seeds agree, a column is one x_T."""
    rows: dict[str, list[str]] = {}
    for result in results:
        names = [f"{i}.png" for i in range(min(result.n, SHEET_COLUMNS))]
        if all((result.folder / name).is_file() for name in names):
            rows[result.folder.name] = [f"{result.folder.name}/{name}" for name in names]
    path = options.image_dir.with_name(f"{options.image_dir.name}.png")
    columns = [str(i) for i in range(max(map(len, rows.values())))]
    images.sheet_of_files(path, options.image_dir, list(rows.values()), list(rows), columns)
    print(f"contact sheet {path}, a row for each cell, a column for each image")


def _entries(config: Config, results: list[Result], name: str) -> list[Entry]:
    by_cell: dict[tuple[object, ...], list[Result]] = {}
    for result in results:
        of = result.options
        key = (result.checkpoint, result.step, of.sampler_label, of.skip_type, of.S)
        by_cell.setdefault(key, []).append(result)
    entries = []
    for group in by_cell.values():
        numbers = [result.numbers[name] for result in group]
        values = [number.value for number in numbers]
        spread = stdev(values) if len(values) > 1 else numbers[0].spread
        entries.append(Entry(group, mean(values), spread, find(name, config, group[0].options)))
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
        "order": options.order,
        "method": options.method,
        "images": result.n,
        "own": {name: number.value for name, number in result.own.items()},
        "note": result.note,
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


def _row(results: list[Result], result: Result, *, checkpoint: bool = True) -> str:
    """The name of a row: its sampler, after its checkpoint and before its spacing where there are several."""
    parts = [result.options.sampler_label]
    steps = _checkpoints(results)
    if checkpoint and (len(steps) > 1 or len(steps[result.checkpoint]) > 1):
        step = f" step {result.step}" if len(steps[result.checkpoint]) > 1 else ""
        parts.insert(0, checkpoint_label(result.checkpoint, list(steps)) + step)
    if len(_spacings(results)) > 1:
        parts.append(result.options.spacing_label)
    return ", ".join(parts)


def _checkpoints(results: list[Result]) -> dict[str, set[int]]:
    """Their names, with the steps that they had when images were made."""
    found: dict[str, set[int]] = {}
    for result in results:
        found.setdefault(result.checkpoint, set()).add(result.step)
    return found


def _spacings(results: list[Result]) -> list[str]:
    return list(dict.fromkeys(result.options.spacing_label for result in results))


def _text(results: list[Result], entries: dict[str, list[Entry]]) -> str:
    """A table for each number, evaluations in columns, and what all of them have in common."""
    parts = []
    costs = sorted({result.evaluations for result in results})
    for name, column in entries.items():
        rows: dict[str, dict[int, str]] = {}
        for entry in column:
            first = entry.results[0]
            row = rows.setdefault(_row(results, first), {})
            # Two S can cost the same, as 400 and 500 uniform steps of 1000 do.
            row[first.evaluations] = "; ".join(filter(None, [row.get(first.evaluations), entry.text]))
        lines = [[name, *(cells.get(cost, "") for cost in costs)] for name, cells in rows.items()]
        parts.append(f"## {name}\n\n" + markdown(["", *(f"NFE {cost}" for cost in costs)], lines))
        if name == "fid" and len(column) > 1:
            best = min(column, key=lambda entry: entry.value).results[0]
            parts.append(f"Lowest: {_row(results, best)}, S = {best.options.S}, {best.checkpoint}\n")
    if without := [result for result in results if not result.numbers]:
        parts.append(_plain_table(without))

    parts.append(f"- NFE: evaluations of the network for an image; {', '.join(_spacings(results))} steps")
    parts += [f"- {line}" for line in _differing(results)]
    seeds = list(dict.fromkeys(result.options.seed for result in results))
    several = any(len(entry.results) > 1 for column in entries.values() for entry in column)
    parts.append(f"- seed {', '.join(map(str, seeds))}" + several * ": mean ± standard deviation")
    parts += [f"- {note}" for note in dict.fromkeys(result.note for result in results) if note]
    parts += [f"- {line}" for line in _how_measured(results, one_seed=not several)]
    return "\n".join(parts) + "\n"


def _plain_table(results: list[Result]) -> str:
    """Of cells without numbers: how each was made."""
    lines = []
    for result in results:
        of = result.options
        eta = f"{of.eta:g}" if SAMPLERS[of.sample_type].takes_eta else ""
        how = [of.image_folder, of.sample_type, eta, of.spacing_label]
        lines.append([*how, str(of.S), str(result.evaluations), str(of.seed)])
    return markdown(["folder", "sampler", "η", "spacing", "steps asked", "NFE", "seed"], lines)


def _how_measured(results: list[Result], *, one_seed: bool) -> list[str]:
    """N, reference and extractor, with their cells where these differ; what ± is; notes of the metrics."""
    ways: dict[str, list[str]] = {}
    said: list[str] = []
    for result in results:
        if measured := result.measured:
            names = f"reference {measured['reference']['name']}, {measured['extractor']['name']}"
            ways.setdefault(f"N = {measured['num_samples']}, {names}", []).append(result.folder.name)
            spreads = {metric: metrics.METRICS[metric].spread for metric in measured["metrics"]}
            said += [f"± of {metric}: {spread}" for metric, spread in spreads.items() if spread and one_seed]
            said += [f"{metric}: {note}" for metric, note in measurements.notes(measured).items() if note]
    lines = [way + (f": {', '.join(of)}" if len(ways) > 1 else "") for way, of in ways.items()]
    return lines + list(dict.fromkeys(said))


def _differing(results: list[Result]) -> list[str]:
    """Where evaluations are not the steps that were asked."""
    found = {
        f"{r.options.sampler_label}: S = {r.options.S} evaluates {r.evaluated} timesteps, NFE {r.evaluations}"
        for r in results
        if r.evaluations != r.options.S
    }
    return sorted(found)


def _plot(path: Path, name: str, entries: list[Entry]) -> None:
    """A number against evaluations; against the training step where there are several checkpoints."""
    results = [entry.results[0] for entry in entries]
    checkpoints = list(_checkpoints(results))
    by_step, several = len(checkpoints) > 1, len({result.options.S for result in results}) > 1
    curves: dict[str, list[plots.Point]] = {}
    for entry, first in zip(entries, results, strict=True):
        curve, x = _row(results, first, checkpoint=False), float(first.evaluations)
        if by_step:
            x = first.step or checkpoints.index(first.checkpoint)
            curve += f", S = {first.options.S}" if several else ""
        published = entry.published.value if entry.published else None
        curves.setdefault(curve, []).append(plots.Point(x, entry.value, entry.spread, published))
    x_label = "training step" if by_step else "evaluations (NFE)"
    plots.lines(path, curves, x_label, _axis(name, results[0]), log_x=not by_step)


def _axis(name: str, result: Result) -> str:
    """What is measured, and by which features."""
    measured = result.measured
    for metric in measured["metrics"] if measured else ():
        if measured and name in measurements.numbers_of(measured, metric):
            of = METRICS[metric] if name == metric else f"{name} ({METRICS[metric]})"
            return f"{of}, {measured['extractor']['name']}"
    return name
