"""U-Net evaluations per second while sampling by the command line, PNGs written, beside the baselines.

    python -m benchmarks.sampling --config cifar10.yml --batch 64 512 --out docs/benchmarks/sampling_h100

Each measurement is a process of its own, and the variants take turns. Weights are random: no time changes.
The baselines: the network in upstream's manner (eager float32, NCHW, the whole trajectory copied to the
host), and the same architecture in diffusers, eager and in bfloat16
compiled. `--figure` draws time against S and N instead.
"""

import argparse
import json
import logging
import re
import resource
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import main as program
from benchmarks.measuring import Row, compared, in_a_process_of_its_own, in_turn, timed, write
from configs import Config, load_config
from functions.runtime.device import choose_device
from functions.runtime.threads import copy_to_host
from functions.samplers import generalized
from functions.schedules import alphas_cumprod, betas, select_timesteps
from functions.weights import diffusers_config
from runners.diffusion import Diffusion, build_unet

FIGURE_STEPS = (5, 10, 20, 50)
LOGGED = re.compile(r"warm-up, (\d+) images in ([\d.]+) s")

# How to run what is measured: a function below, and the flags of main.py that it takes.
VARIANTS = {
    "upstream's manner": ("in_upstreams_manner", []),
    "diffusers, eager fp32": ("by_diffusers", ["eager"]),
    "diffusers, bf16, compiled": ("by_diffusers", ["compiled"]),
    "main.py, default": ("by_command_line", ["--compile", "off"]),
    "main.py, default, compiled": ("by_command_line", ["--compile", "on"]),
    "main.py, bf16": ("by_command_line", ["--precision", "bf16", "--compile", "off"]),
    "main.py, bf16, compiled": ("by_command_line", ["--precision", "bf16", "--compile", "on"]),
    "main.py, default, η = 1": ("by_command_line", ["--compile", "off", "--eta", "1"]),
    "default, nothing written": ("without_writing", []),
}


def in_upstreams_manner(
    arguments: argparse.Namespace, config: Config, device: torch.device, flags: list[str]
) -> float:
    """Eager, float32, NCHW, every state of the chain copied to the host."""
    return _seconds(arguments, config, device, build_unet(config).to(device).eval(), keep=True)


def by_diffusers(
    arguments: argparse.Namespace, config: Config, device: torch.device, flags: list[str]
) -> float:
    from diffusers import UNet2DModel

    content = diffusers_config.to_json(config)[diffusers_config.UNET]
    network = UNet2DModel.from_config(content).to(device).eval()
    if flags == ["eager"]:
        return _seconds(arguments, config, device, lambda x, t: network(x, t).sample)
    network = network.to(torch.bfloat16, memory_format=torch.channels_last)
    compiled = torch.compile(network, mode="max-autotune" if device.type == "cuda" else "default")
    return _seconds(arguments, config, device, lambda x, t: compiled(x.to(torch.bfloat16), t).sample.float())


def by_command_line(
    arguments: argparse.Namespace, config: Config, device: torch.device, flags: list[str]
) -> float:
    """As a user runs it; the time is the one that it logs, from its warm-up to its last image."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "random.pth")
        torch.save(build_unet(config).state_dict(), weights)
        named = ["--config", arguments.config, "--ckpt", str(weights), "--exp", folder]
        how = f"--device {device} --timesteps {arguments.steps} --batch_size {arguments.one_batch}"
        how += f" --num_samples {_images(arguments)} --verbose info"
        log = Path(folder, "log")
        with open(log, "w") as file, redirect_stdout(file), redirect_stderr(file):
            code = program.main([*named, "--sample", "--fid", *how.split(), *flags])
        found = LOGGED.search(log.read_text())
        assert code == 0 and found, log.read_text()
        return float(found[2]) / int(found[1]) * arguments.one_batch * arguments.batches


def without_writing(
    arguments: argparse.Namespace, config: Config, device: torch.device, flags: list[str]
) -> float:
    diffusion = Diffusion(config, device)
    diffusion.accelerate("default")
    sampling, size = diffusion.sampling(arguments.steps, seed=0), arguments.one_batch

    def batches(n: int) -> None:
        for _ in diffusion.sample_batches(range(n * size), sampling, size):
            pass

    batches(1)
    return timed(lambda: batches(arguments.batches), device)


def _images(arguments: argparse.Namespace) -> int:
    return arguments.one_batch * (arguments.batches + 2)  # the first one or two warm up


def _seconds(
    arguments: argparse.Namespace,
    config: Config,
    device: torch.device,
    network: Callable[[Tensor, Tensor], Tensor],
    keep: bool = False,
) -> float:
    """Of sampling the batches, after one to warm up; keep: the whole chain goes to the host."""
    data = config.data
    shape = (arguments.one_batch, data.channels, data.image_size, data.image_size)
    a = alphas_cumprod(betas(config.diffusion))
    timesteps = select_timesteps("uniform", arguments.steps, len(a) - 1)

    def batch() -> list[Tensor]:
        x = torch.randn(shape, device=device)
        steps = generalized(network, x, timesteps, a, eta=0.0, randn_like=torch.randn_like)
        return (
            [step.x.to("cpu") for step in steps]
            if keep
            else [copy_to_host(step.x)() for step in steps if step.t == 0]
        )

    batch()
    return timed(lambda: [batch() for _ in range(arguments.batches)], device)


def measure_here(arguments: argparse.Namespace) -> None:
    """One variant in this process: print its rate and its peak memory."""
    config, device = load_config(arguments.config), choose_device(arguments.device)
    function, flags = VARIANTS[arguments.variant]
    seconds = globals()[function](arguments, config, device, flags)
    steps = len(select_timesteps("uniform", arguments.steps, config.diffusion.num_diffusion_timesteps))
    gpu = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    rate = arguments.one_batch * arguments.batches * steps / seconds
    print(json.dumps({"evaluations/s": rate, "host GB": host, "GPU GB": gpu, "seconds": seconds}))


def measure(arguments: argparse.Namespace, variant: str, batch: int, **changes: int) -> Row:
    values = {
        "config": arguments.config,
        "steps": arguments.steps,
        "batches": arguments.batches,
        "one_batch": batch,
    } | changes
    return in_a_process_of_its_own("benchmarks.sampling", variant, values | {"device": arguments.device})


def table(arguments: argparse.Namespace, batch: int, device: torch.device) -> list[Row]:
    """Medians over the repeats, in which the variants take turns, with the share of the arithmetic limit."""
    chosen = [name for name in VARIANTS if not arguments.only or any(word in name for word in arguments.only)]
    rate = "evaluations/s"
    runs = in_turn(chosen, arguments.repeats, lambda name: measure(arguments, name, batch), rate)
    flops, limits = (
        flops_per_evaluation(arguments.config),
        {dtype: matmul_rate(dtype, device) for dtype in ("float32", "bfloat16")},
    )
    rows = []
    for name, numbers in compared(runs, rate).items():
        dtype = "bfloat16" if "bf16" in name else "float32"
        share = f"{numbers[rate] * flops / limits[dtype]:.0%} of {dtype}"
        rows.append({"variant": name, "batch": batch, **numbers, "of the matmul limit": share})
    return rows


def flops_per_evaluation(config_name: str) -> float:
    config = load_config(config_name)
    x = torch.zeros(1, config.data.channels, config.data.image_size, config.data.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build_unet(config).to("meta")(x, torch.zeros(1, dtype=torch.long, device="meta"))
    return float(counter.get_total_flops())


def matmul_rate(dtype: str, device: torch.device) -> float:
    """FLOP/s of a large product of matrices, the best of five; float32 with TF32 as convolutions have it."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
    torch.backends.cuda.matmul.allow_tf32 = True
    best = min(timed(lambda: a @ a, device) for _ in range(5))
    torch.backends.cuda.matmul.allow_tf32 = False
    return 2 * n**3 / best


def figure(arguments: argparse.Namespace, path: Path) -> dict[str, list[Row]]:
    """The paper's Figure 4: time is linear in S, and in the number of images."""
    from matplotlib.figure import Figure

    batch, variant = arguments.batch[0], "main.py, default"
    by_S = [
        {"S": S, "seconds": measure(arguments, variant, batch, steps=S)["seconds"]}
        for S in arguments.figure or FIGURE_STEPS
    ]
    by_N = [
        {"N": batch * k, "seconds": measure(arguments, variant, batch, batches=k)["seconds"]}
        for k in (1, 2, 4, 8)[: arguments.batches.bit_length() + 1]  # to twice --batches
    ]
    drawing = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, rows, key in zip(drawing.subplots(1, 2), (by_S, by_N), "SN", strict=True):
        axes.plot([row[key] for row in rows], [row["seconds"] for row in rows], "o-")
        axes.set(
            xlabel={"S": "steps S", "N": "images N"}[key], ylabel="seconds", xlim=(0, None), ylim=(0, None)
        )
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path.with_suffix(".png"), dpi=110)
    return {"time against S": by_S, "time against N": by_N}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="cifar10.yml")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batches", type=int, default=4, help="timed, after one to warm up")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="variants whose names hold one of the words"
    )
    parser.add_argument(
        "--figure", type=int, nargs="*", metavar="S", help="plot time against S (default: 5 10 20 50) and N"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/out/sampling"), help="{out}.md and {out}.json"
    )
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--one_batch", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        return measure_here(arguments)
    logging.basicConfig(level=logging.WARNING)
    device = choose_device(arguments.device)
    if arguments.figure is not None:
        tables = figure(arguments, arguments.out)
    else:
        tables = {
            f"{arguments.config}, batch {batch}": table(arguments, batch, device) for batch in arguments.batch
        }
    return write(arguments.out, device, ["python", "-m", "benchmarks.sampling", *sys.argv[1:]], tables)


if __name__ == "__main__":
    main()
