"""Training steps per second by the command line on real data, beside upstream's manner of the same step.

    python -m benchmarks.training --config cifar10.yml --data path/to/cifar10 --out training_h100

Each measurement is a process of its own, and the variants take turns. Of the command line the rate is the
median of what it writes to TensorBoard, without its first blocks: validation, snapshots and compiling are
left out.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main as program
from benchmarks.measuring import Row, compared, in_a_process_of_its_own, in_turn, timed, write
from configs import Config, load_config, to_yaml
from datasets import dataset_root, get_dataset
from functions.objectives import antithetic_timesteps, noise_estimation_loss
from functions.runtime.device import choose_device
from functions.schedules import alphas_cumprod, betas
from runners.diffusion import build_unet

WARM_UP_BLOCKS = 2  # of TensorBoard's numbers

VARIANTS = {
    "upstream's manner": None,
    "main.py, default": ["--compile", "off"],
    "main.py, default, compiled": ["--compile", "on"],
    "main.py, bf16": ["--precision", "bf16", "--compile", "off"],
    "main.py, bf16, compiled": ["--precision", "bf16", "--compile", "on"],
}


def in_upstreams_manner(arguments: argparse.Namespace, config: Config, device: torch.device) -> float:
    """Eager float32, NCHW, the loss read at every step, the average moved by parameter. Steps a second."""
    model = build_unet(config).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optim.lr)
    shadow = {name: param.detach().clone() for name, param in model.named_parameters()}
    a = alphas_cumprod(betas(config.diffusion)).to(device)
    dataset = get_dataset(config.data, dataset_root(config.data, arguments.exp, arguments.data), train=True)
    n = min(config.training.batch_size, len(dataset))
    images = torch.stack([dataset[i] for i in range(n)])

    def step() -> None:
        x0 = (2 * images.to(device).float() / 255 - 1).contiguous()
        t = antithetic_timesteps(n, len(a) - 1, torch.Generator()).to(device)
        loss = noise_estimation_loss(model, x0, t, torch.randn_like(x0), a).mean()
        loss.item()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip or 1.0)
        optimizer.step()
        for name, param in model.named_parameters():
            shadow[name].data = (1 - config.model.ema_rate) * param.data + config.model.ema_rate * shadow[
                name
            ].data

    for _ in range(3):
        step()
    steps = max(3, arguments.steps // 10)
    return steps / timed(lambda: [step() for _ in range(steps)], device)


def by_command_line(
    arguments: argparse.Namespace, config: Config, device: torch.device, flags: list[str]
) -> float:
    """Steps a second, of a run of main.py."""
    with tempfile.TemporaryDirectory() as exp:
        quiet = replace(config.training, n_iters=arguments.steps, validation_freq=10**9, snapshot_freq=10**9)
        path = Path(exp, "benchmark.yml")
        path.write_text(to_yaml(replace(config, training=quiet)))
        data = arguments.data or dataset_root(config.data, arguments.exp, None)
        argv = [
            "--config",
            str(path),
            "--exp",
            exp,
            "--doc",
            "d",
            "--device",
            str(device),
            "--data",
            str(data),
        ]
        assert program.main([*argv, "--verbose", "warning", *flags]) == 0
        events = EventAccumulator(str(Path(exp, "tensorboard", "d")))
        events.Reload()
        rates = [event.value for event in events.Scalars("images_per_second")][WARM_UP_BLOCKS:]
    if len(rates) < 3:
        raise ValueError(f"--steps {arguments.steps} are too few to measure {config.data.dataset} here")
    return statistics.median(rates) / config.training.batch_size


def measure_here(arguments: argparse.Namespace) -> None:
    config, device = load_config(arguments.config), choose_device(arguments.device)
    flags = VARIANTS[arguments.variant]
    in_manner = flags is None
    rate = (
        in_upstreams_manner(arguments, config, device)
        if in_manner
        else by_command_line(arguments, config, device, flags or [])
    )
    gpu = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    print(
        json.dumps(
            {
                "steps/s": rate,
                "host GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
                "GPU GB": gpu,
            }
        )
    )


def measure(arguments: argparse.Namespace, variant: str) -> Row:
    values = {flag: getattr(arguments, flag) for flag in ("config", "steps", "exp", "device", "data")}
    return in_a_process_of_its_own("benchmarks.training", variant, values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="cifar10.yml")
    parser.add_argument("--data")
    parser.add_argument("--exp", default="exp", help="where {exp}/datasets lies")
    parser.add_argument("--steps", type=int, help="default: 1500 on CUDA, 300 elsewhere")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="variants whose names hold one of the words"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/out/training"), help="{out}.md and {out}.json"
    )
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    if arguments.variant:
        return measure_here(arguments)
    chosen = [name for name in VARIANTS if not arguments.only or any(word in name for word in arguments.only)]
    device = choose_device(arguments.device)
    arguments.steps = arguments.steps or (1500 if device.type == "cuda" else 300)
    runs = in_turn(chosen, arguments.repeats, lambda name: measure(arguments, name), "steps/s")
    batch = load_config(arguments.config).training.batch_size
    of_all = compared(runs, "steps/s").items()
    rows = [{"variant": name, "batch": batch, **numbers} for name, numbers in of_all]
    return write(
        arguments.out,
        device,
        ["python", "-m", "benchmarks.training", *sys.argv[1:]],
        {arguments.config: rows},
    )


if __name__ == "__main__":
    main()
