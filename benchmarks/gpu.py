"""This card in under nine minutes: the GPU tests, and the sampling and training tables of CIFAR10 and 256².

    python -m benchmarks.gpu --out gpu

Each variant is a process of its own. Its row is in {out}/rows.jsonl as soon as it is measured, and
{out}/page.md is written anew, so a run that is cut keeps what it has. A job that would not end in the time
left is left out by name. Inductor keeps what it compiled in TORCHINDUCTOR_CACHE_DIR, so a second run starts
faster; the first use of each variant is warm-up and not in the rates.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks.measuring import ROOT, Row, in_a_process_of_its_own, machine, markdown
from configs import load_config, to_yaml
from functions.runtime.device import choose_device

SECONDS = 520.0  # of all
IMAGES = 2048  # of noise, to train on


class Job(NamedTuple):
    """A row: a variant of a benchmark, and the seconds that it may take."""

    table: str
    module: str
    variant: str
    values: dict[str, object]
    seconds: float


def jobs(out: Path, device: torch.device, small: bool) -> Iterator[Job]:
    """The most telling first. small: the digits' network and few steps, to try the command itself."""
    cifar, large = ("digits.yml", "digits.yml") if small else ("cifar10.yml", "bedroom.yml")
    of_cifar = {"config": cifar, "one_batch": 8 if small else 512, "steps": 5 if small else 20, "batches": 2}
    of_large = of_cifar | {"config": large, "one_batch": 8 if small else 32, "steps": 5}
    of_training = {"config": noise(out, cifar), "data": out / "noise", "steps": 40 if small else 600}
    for variant in ("main.py, bf16, compiled", "main.py, default", "diffusers, bf16, compiled",
                    "main.py, default, compiled", "upstream's manner"):  # fmt: skip
        yield Job(f"sampling, {cifar}", "benchmarks.sampling", variant, of_cifar | {"device": device}, 90)
    for variant in ("main.py, bf16, compiled", "main.py, default", "upstream's manner"):
        yield Job(f"training, {cifar}", "benchmarks.training", variant, of_training | {"device": device}, 90)
    for variant in ("main.py, bf16, compiled", "main.py, default"):
        yield Job(f"sampling, {large}", "benchmarks.sampling", variant, of_large | {"device": device}, 90)


def noise(out: Path, config_name: str) -> Path:
    """A config for pictures of noise in {out}/noise: training's speed does not depend on what it sees."""
    config = load_config(config_name)
    size, channels = config.data.image_size, config.data.channels
    (out / "noise").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(IMAGES):
        pixels = random.integers(0, 256, (size, size, channels), np.uint8)
        Image.fromarray(pixels.squeeze()).save(out / "noise" / f"{i}.png")
    path = out / "noise.yml"
    path.write_text(to_yaml(config).replace(f"dataset: {config.data.dataset}", "dataset: FOLDER"))
    return path


def run_tests(out: Path, seconds: float) -> str:
    """The last line of the GPU tests; what they said is in {out}/tests.txt."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "tests/gpu"]
    with open(out / "tests.txt", "w") as log:
        try:
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"cut after {seconds:.0f} s"
    return (out / "tests.txt").read_text().strip().splitlines()[-1]


def write_page(out: Path, device: torch.device, tests: str, rows: list[Row]) -> None:
    """{out}/page.md of what there is so far."""
    where = ", ".join(f"{key} {value}" for key, value in machine(device).items())
    parts = [where, f"Tests of tests/gpu: {tests}"]
    for table in dict.fromkeys(row["table"] for row in rows):
        of_table = [row for row in rows if row["table"] == table]
        columns = list(dict.fromkeys(key for row in of_table for key in row if key != "table"))
        parts += [f"**{table}**", markdown([{key: row.get(key) for key in columns} for row in of_table])]
    (out / "page.md").write_text("\n\n".join(parts) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true", help="the digits' network, to try the command")
    arguments = parser.parse_args()
    out, device, began = arguments.out.absolute(), choose_device(arguments.device), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    tests = "not run yet"
    for job in jobs(out, device, arguments.small):
        left = SECONDS - (time.monotonic() - began)
        row: Row = {"table": job.table, "variant": job.variant}
        if left < job.seconds:
            row["why not"] = f"{left:.0f} s were left"
        else:
            try:
                row |= in_a_process_of_its_own(job.module, job.variant, job.values, timeout=left)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                row["why not"] = str(error).strip().splitlines()[-1][:200]
        rows.append(row)
        with open(out / "rows.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        write_page(out, device, tests, rows)
    tests = run_tests(out, max(30.0, SECONDS - (time.monotonic() - began)))
    write_page(out, device, tests, rows)
    print((out / "page.md").read_text())


if __name__ == "__main__":
    main()
