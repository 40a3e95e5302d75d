"""What the benchmarks share: the machine in words, tables as Markdown and JSON, timing side by side."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from functions.runtime.compilation import synchronize

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


def machine(device: torch.device) -> dict[str, str]:
    """The device, the versions and the date, for beside every number."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {"device": name, **versions, "date": date.today().isoformat()}


def in_a_process_of_its_own(
    module: str, variant: str, values: Mapping[str, object], timeout: float | None = None
) -> Row:
    """What `python -m module --variant ...` prints last, as JSON; flags whose value is None are left out."""
    words = [
        word for flag, value in values.items() if value is not None for word in (f"--{flag}", str(value))
    ]
    command = [sys.executable, "-m", module, "--variant", variant, *words]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path}  # not cwd, so that paths mean the user's folder
    process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    if process.returncode:
        raise RuntimeError(f"{variant}: {process.stderr[-2000:]}")
    row = json.loads(process.stdout.splitlines()[-1])
    print(f"{variant}: {row}", file=sys.stderr, flush=True)
    return row


def in_turn(
    variants: Sequence[str], repeats: int, measure: Callable[[str], Row], rate: str
) -> dict[str, list[Row]]:
    """The runs of each variant, which take turns, as rows. One that fails says why and has no more runs.

    rate: the key by which they are compared.
    """
    runs: dict[str, list[Row]] = {name: [] for name in variants}
    failed = set()
    for _ in range(repeats):
        for name in variants:
            try:
                if name not in failed:
                    runs[name].append(measure(name))
            except RuntimeError as error:
                failed.add(name)
                print(f"left out: {error}", file=sys.stderr, flush=True)
    if not runs[variants[0]]:
        raise SystemExit(f"{variants[0]} failed, and the others are compared with it")
    return {name: sorted(of_name, key=lambda run: run[rate]) for name, of_name in runs.items() if of_name}


def compared(runs: Mapping[str, Sequence[Row]], rate: str) -> dict[str, Row]:
    """Of each variant the median of its rate, the ratio to the first variant's, and the memory it took."""
    medians = {name: statistics.median(run[rate] for run in of_name) for name, of_name in runs.items()}
    first = next(iter(medians.values()))
    return {
        name: {
            rate: medians[name], "ratio": medians[name] / first, "least": of_name[0][rate],
            "most": of_name[-1][rate], "host GB": max(run["host GB"] for run in of_name),
            "GPU GB": of_name[0]["GPU GB"],
        }
        for name, of_name in runs.items()
    }  # fmt: skip


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, to its end on the device."""
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


def markdown(rows: Sequence[Row]) -> str:
    """A table with the keys of the first row as its head; floats to four digits, `not measured` for None."""
    columns = list(rows[0])
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join(
        [*lines, *(f"| {' | '.join(_cell(row[column]) for column in columns)} |" for row in rows)]
    )


def write(
    path: Path,
    device: torch.device,
    command: Sequence[str],
    tables: Mapping[str, Sequence[Row]],
    also: Mapping[str, Any] | None = None,
) -> None:
    """Print the tables, and write them as {path}.md and {path}.json with the machine and the command.

    also: what else the JSON holds.
    """
    where = machine(device)
    head = f"{', '.join(f'{key} {value}' for key, value in where.items())}; `{' '.join(command)}`"
    text = "\n\n".join([head, *(f"**{title}**\n\n{markdown(rows)}" for title, rows in tables.items())]) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(text)
    path.with_suffix(".json").write_text(
        json.dumps({"machine": where, "command": list(command), "tables": tables, **(also or {})}, indent=1)
        + "\n"
    )
    print(text)


def _cell(value: Any) -> str:
    if value is None:
        return "not measured"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _processor() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {cores} cores"
