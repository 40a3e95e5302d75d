"""Training and sampling under random signals, against the same undisturbed, for as long as --minutes says.

    python -m benchmarks.soak --minutes 60

A round trains the digits' network once undisturbed and once with SIGKILL, SIGTERM and SIGUSR1 at random
moments, each time by the same command again; and samples from it both ways. The tensors of the last
checkpoint and the bytes of all PNGs must be the same, no traceback may be printed, and the memory and the
descriptors of an undisturbed process may not grow. The exit code is 0 only then.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
import yaml

from benchmarks.measuring import ROOT, machine

IMAGES = 64
# And the exit codes that they may give. Before the first step a signal ends the process as it always does.
SIGNALS = {"SIGKILL": {-9}, "SIGTERM": {143, -15}, "SIGUSR1": {0, -10}}
LONGEST = 15.0  # seconds of a process's own time before its signal; importing torch takes some of them
GROWTH = 1.1  # of memory, from the middle of a process to its end


class Fault(Exception):
    """The promise that was broken."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    end, chance = time.monotonic() + 60 * arguments.minutes, random.Random(arguments.seed)
    counts: Counter[str] = Counter()
    while time.monotonic() < end or not counts["rounds"]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                _round(Path(folder), arguments.steps, chance, counts)
            except Fault as fault:
                print(f"FAULT in round {counts['rounds'] + 1}: {fault}", file=sys.stderr)
                return 1
        counts["rounds"] += 1
        print(json.dumps(counts), flush=True)
    print(json.dumps({**counts, "minutes": arguments.minutes, **machine(torch.device("cpu"))}, indent=1))
    return 0


def _round(folder: Path, steps: int, chance: random.Random, counts: Counter[str]) -> None:
    tree = yaml.safe_load((ROOT / "configs" / "digits.yml").read_text())
    tree["training"] |= {"n_iters": steps, "snapshot_freq": 20, "keep_snapshots": 3}
    tree["sampling"] |= {"batch_size": 8}
    config = folder / "c.yml"
    config.write_text(yaml.safe_dump(tree))
    seed = chance.randrange(2**32)
    common = [sys.executable, ROOT / "main.py", "--config", config, "--doc", "d", "--seed", seed]
    train = [*common, "--resume_training", "auto"]
    sample = [*common, "--sample", "--fid", "--num_samples", IMAGES, "--timesteps", 50]
    for command in (train, sample):
        for exp in ("calm", "stormy"):
            words = [*map(str, [*command, "--exp", folder / exp])]
            _undisturbed(words) if exp == "calm" else _disturbed(words, chance, counts)
        if command is train:
            _compare_weights(steps, *(folder / exp / "logs" / "d" / "ckpt.pth" for exp in ("calm", "stormy")))
    _compare_images(*(folder / exp / "image_samples" / "images" for exp in ("calm", "stormy")))
    shutil.rmtree(folder / "calm")


def _undisturbed(words: list[str]) -> None:
    """To the end. From its middle on its memory and descriptors stay the same."""
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    seen: list[tuple[int, int]] = []
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            memory = int(status.split("VmRSS:")[1].split()[0])
            seen.append((memory, len(list(Path(f"/proc/{process.pid}/fd").iterdir()))))
        except (OSError, IndexError):  # it has just ended
            break
        time.sleep(0.5)
    _check(process, {0})
    early, late = seen[len(seen) // 2], seen[-2:][0]
    if late[0] > GROWTH * early[0] or late[1] > early[1] + 2:
        raise Fault(f"memory in kB and descriptors went from {early} to {late}")


def _disturbed(words: list[str], chance: random.Random, counts: Counter[str]) -> None:
    """The same command again and again, until it ends before its signal comes."""
    while True:
        process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        name, moment = chance.choice([*SIGNALS]), chance.uniform(0, LONGEST)
        while process.poll() is None and _seconds_of(process.pid) < moment:
            time.sleep(0.05)
        if process.poll() is not None:
            return _check(process, {0})
        process.send_signal(getattr(signal, name))
        counts[name] += 1
        _check(process, SIGNALS[name] | {0})


def _seconds_of(pid: int) -> float:
    """That a process has computed; it may just have ended."""
    try:
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


def _check(process: subprocess.Popen[str], codes: set[int]) -> None:
    _, said = process.communicate(timeout=3600)
    if process.returncode not in codes or "Traceback" in said:
        raise Fault(f"exit code {process.returncode}: {said[-2000:]}")


def _compare_weights(steps: int, *paths: Path) -> None:
    calm, stormy = (torch.load(path, weights_only=True) for path in paths)
    if calm["step"] != steps or stormy["step"] != steps:
        raise Fault(f"the runs ended at steps {calm['step']} and {stormy['step']}")
    state = [content["optimizer"]["state"] for content in (calm, stormy)]
    parts = [
        *((calm[part], stormy[part]) for part in ("model", "ema")),
        *((state[0][i], state[1][i]) for i in state[0]),
    ]
    for ours, theirs in parts:
        for name, value in ours.items():
            if not torch.equal(value, theirs[name]):
                raise Fault(f"{name} differs in {paths[1]}")


def _compare_images(*folders: Path) -> None:
    calm, stormy = ({path.name: path.read_bytes() for path in folder.glob("*.png")} for folder in folders)
    if len(calm) != IMAGES or calm != stormy:
        raise Fault(f"the images in {folders[1]} are others")


if __name__ == "__main__":
    sys.exit(main())
