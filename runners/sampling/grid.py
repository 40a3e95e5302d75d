"""Several values of a flag make a grid: its cells, their folders, and the table of what they came to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from configs import Config
from configs.options import Options
from configs.refusal import Refusal
from functions.disk import files, images, plots
from functions.weights import pretrained
from runners.evaluation import metrics
from runners.evaluation import published as paper

NOISY = "ddpm_noisy"
SHEET_COLUMNS = 16


@dataclass(frozen=True)
class Result:
    """One cell: its options, its checkpoint and that one's step or 0, how many steps were evaluated, its measurement."""

    options: Options
    checkpoint: str
    step: int
    evaluated: int
    measured: dict[str, Any] | None


@dataclass(frozen=True)
class Entry:
    """A number over the seeds of otherwise equal cells; `spread` is its standard deviation, None for one seed."""

    results: list[Result]
    value: float
    spread: float | None
    published: float | None


def cells(options: Options) -> list[Options]:
    """The options of each cell, those of one checkpoint together; of a single run, itself. η makes no ddpm_noisy cells."""
    if not options.is_grid:
        return [options]
    samplers = [
        (kind, eta)
        for kind in options.sample_types
        for eta in (options.etas if kind != NOISY else options.etas[:1])
    ]
    files_or_own: list[tuple[str, ...]] = [(path,) for path in options.ckpts] or [()]
    return [
        replace(
            options, ckpts=ckpts, sample_types=(kind,), etas=(eta,), step_counts=(S,), seeds=(seed,),
            eta_given=options.eta_given and len(options.sample_types) == 1,
            image_folder=str(Path(options.image_folder, _name(options, ckpts, kind, eta, S, seed))),
        )
        for ckpts, (kind, eta), S, seed in product(files_or_own, samplers, options.step_counts, options.seeds)
    ]  # fmt: skip


def _name(options: Options, ckpts: tuple[str, ...], kind: str, eta: float, S: int, seed: int) -> str:
    """The same for a cell in every grid that has it, but for the checkpoint, which only several make part of the name."""
    name = f"S{S}_{kind if kind == NOISY else f'eta{eta:.12g}'}_seed{seed}"
    return f"{_label(ckpts[0], options.ckpts)}_{name}" if len(options.ckpts) > 1 else name


def _label(path: str, paths: Sequence[str]) -> str:
    """As much of the end of `path` as tells it from the others."""
    ends = {other: (*Path(other).parent.parts, Path(other).stem) for other in paths}
    length = next(
        k for k in range(1, len(ends[path]) + 1) if sum(e[-k:] == ends[path][-k:] for e in ends.values()) == 1
    )
    return "_".join(ends[path][-length:]).replace("/", "")


def check(options: Options) -> None:
    """Raise Refusal where a checkpoint is missing, or a single run's images lie in the folder of the grid."""
    for ckpt in options.ckpts:
        pretrained.locate(ckpt)
    if (options.image_dir / "manifest.json").exists():
        raise Refusal(
            f"{options.image_dir} holds the images of a single run, and a grid needs a folder; name another with -i"
        )


def write_tables(options: Options, config: Config, results: list[Result]) -> None:
    """table.json, table.md and, where there are numbers, table.png into the folder of the grid; print the second."""
    numbers = list(metrics.numbers(results[0].measured)) if results[0].measured else []
    tables = {number: _entries(config, results, number) for number in numbers}
    folder = options.image_dir
    content = {
        "cells": [_cell(config, result) for result in results],
        "over_seeds": {number: [_summary(entry) for entry in entries] for number, entries in tables.items()},
    }
    files.write_text(folder / "table.json", json.dumps(content, indent=1) + "\n")
    text = _markdown(options, results, tables)
    files.write_text(folder / "table.md", text)
    if numbers:
        plots.lines(folder / "table.png", *_curves(options, tables[numbers[0]], numbers[0]))
    print(text)
    print(
        f"{len(results)} cells in {folder}, with table.md, table.json" + (" and table.png" if numbers else "")
    )


def write_sheet(options: Options) -> None:
    """Beside the folder of the grid, a row for each cell: the first images, each column's from the same x_T where seeds agree."""
    shown = range(min(options.num_samples, SHEET_COLUMNS))
    folders = [Path(cell.image_folder).name for cell in cells(options)]
    path = options.image_dir.with_name(f"{options.image_dir.name}.png")
    images.contact_sheet(
        path, options.image_dir, [[f"{folder}/{i}.png" for i in shown] for folder in folders]
    )
    print(f"contact sheet {path}, a row for each cell: {', '.join(folders)}")


def _entries(config: Config, results: list[Result], number: str) -> list[Entry]:
    groups: dict[Options, list[Result]] = {}
    for result in results:
        groups.setdefault(replace(result.options, seeds=(), image_folder=""), []).append(result)
    entries = []
    for group in groups.values():
        values = [metrics.numbers(result.measured)[number] for result in group if result.measured]
        published = paper.published_fid(config, group[0].options) if number == "fid" else None
        entries.append(Entry(group, mean(values), stdev(values) if len(values) > 1 else None, published))
    return entries


def _cell(config: Config, result: Result) -> dict[str, Any]:
    options = result.options
    published = paper.published_fid(config, options)
    numbers = metrics.numbers(result.measured) if result.measured else {}
    return {
        "folder": options.image_folder,
        "checkpoint": result.checkpoint,
        "step": result.step,
        "sample_type": options.sample_type,
        "eta": None if options.sample_type == NOISY else options.eta,
        "timesteps": options.timesteps,
        "evaluated": result.evaluated,
        "seed": options.seed,
        "numbers": numbers,
        "paper_fid": published,
        "ratio": numbers["fid"] / published if published and "fid" in numbers else None,
        "measured": result.measured,
    }


def _summary(entry: Entry) -> dict[str, Any]:
    options = entry.results[0].options
    return {
        "checkpoint": entry.results[0].checkpoint,
        "step": entry.results[0].step,
        "sampler": _sampler(options),
        "timesteps": options.timesteps,
        "seeds": [result.options.seed for result in entry.results],
        "mean": entry.value,
        "spread": entry.spread,
        "paper": entry.published,
        "ratio": entry.value / entry.published if entry.published else None,
    }


def _sampler(options: Options) -> str:
    return "σ̂ (ddpm_noisy)" if options.sample_type == NOISY else f"η = {options.eta:g}"


def _row(options: Options, entry_or_result: Result) -> str:
    """The name of a row: its sampler, and its checkpoint where there are several."""
    which = f"{_label(entry_or_result.options.ckpts[0], options.ckpts)}, " if len(options.ckpts) > 1 else ""
    return which + _sampler(entry_or_result.options)


def _markdown(options: Options, results: list[Result], tables: dict[str, list[Entry]]) -> str:
    head = ["", *(f"S = {S}" for S in options.step_counts)]
    parts = []
    for number, entries in tables.items():
        rows: dict[str, dict[int, str]] = {}
        for entry in entries:
            first = entry.results[0]
            rows.setdefault(_row(options, first), {})[first.options.timesteps] = _text(entry)
        parts.append(f"## {number}\n\n" + _table(head, [[name, *row.values()] for name, row in rows.items()]))
        if number == "fid" and len(entries) > 1:
            best = min(entries, key=lambda entry: entry.value).results[0]
            parts.append(f"Lowest: {_row(options, best)}, S = {best.options.timesteps}, {best.checkpoint}\n")
    if not tables:
        columns = ["folder", "steps asked", "evaluated"]
        rows_of_cells = [
            [r.options.image_folder, str(r.options.timesteps), str(r.evaluated)] for r in results
        ]
        parts.append(_table(columns, rows_of_cells))
    return "\n".join([*parts, *_footer(options, results)]) + "\n"


def _footer(options: Options, results: list[Result]) -> list[str]:
    evaluated = {result.options.timesteps: result.evaluated for result in results}
    lines = [
        f"- {options.skip_type} steps; evaluated: "
        + ", ".join(f"{n} of S = {S}" for S, n in evaluated.items())
    ]
    seeds = ", ".join(map(str, options.seeds))
    lines.append(f"- seed {seeds}" + (": mean ± standard deviation" if len(options.seeds) > 1 else ""))
    measured = results[0].measured
    if measured:
        lines.append(
            f"- N = {measured['num_samples']}, reference {measured['reference']['name']}, {measured['extractor']['name']}"
        )
        lines += [
            f"- {metric}: {note}"
            for metric in measured["metrics"]
            if (note := metrics.notes(measured, metric))
        ]
    return lines


def _text(entry: Entry) -> str:
    value = f"{entry.value:.4g}" + (f" ± {entry.spread:.2g}" if entry.spread is not None else "")
    return (
        f"{value} (paper {entry.published:g}, ×{entry.value / entry.published:.3g})"
        if entry.published
        else value
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def _curves(
    options: Options, entries: list[Entry], number: str
) -> tuple[dict[str, plots.Curve], str, str, bool]:
    """The lines of table.png: over the training step for several checkpoints, else over S."""
    by_step = len(options.ckpts) > 1
    curves: dict[str, plots.Curve] = {}
    for entry in entries:
        first = entry.results[0]
        name = _sampler(first.options)
        if by_step and len(options.step_counts) > 1:
            name += f", S = {first.options.timesteps}"
        x = first.step or options.ckpts.index(first.options.ckpts[0]) if by_step else first.options.timesteps
        curves.setdefault(name, []).append(plots.Point(x, entry.value, entry.spread, entry.published))
    return (
        curves,
        "training step" if by_step else "S (steps)",
        number.upper() if number in ("fid", "is") else number,
        not by_step,
    )
