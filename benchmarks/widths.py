"""How many images a second a network trains on, and what it weighs: to choose one for the time that there is.

    python -m benchmarks.widths --config fashion_mnist.yml --networks 32:1,2,4,4:1:8 --out out/widths

A network is ch:ch_mult:num_res_blocks:attn_resolutions; all else is the config's. The step is training's, in
bfloat16 and compiled, without data and EMA.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.measuring import Row, write
from configs import Config, load_config
from functions.objectives import noise_estimation_loss
from functions.runtime.compilation import CompiledForBatches, synchronize
from functions.runtime.device import choose_device
from functions.runtime.precision import autocast, memory_format, numerics
from functions.schedules import alphas_cumprod, betas
from runners.diffusion import build_unet
from runners.training.state import build_optimizer


def of_network(config: Config, text: str) -> Config:
    ch, ch_mult, blocks, attention = (
        tuple(int(word) for word in part.split(",") if word) for part in text.split(":")
    )
    model = replace(
        config.model, ch=ch[0], ch_mult=ch_mult, num_res_blocks=blocks[0], attn_resolutions=attention
    )
    return replace(config, model=model)


def images_per_second(config: Config, device: torch.device, seconds: float) -> float:
    """Of training steps, after two to warm up and compile."""
    model = build_unet(config).to(device).to(memory_format=memory_format(device)).train()
    optimizer, a = build_optimizer(model, config.optim), alphas_cumprod(betas(config.diffusion)).to(device)
    n, data = config.training.batch_size, config.data
    x0 = torch.randn(n, data.channels, data.image_size, data.image_size, device=device)
    t = torch.arange(n, device=device) * (len(a) - 1) // n
    network = CompiledForBatches(model, [n], graphs=True)

    def step() -> None:
        optimizer.zero_grad()
        with autocast("bf16", device):
            losses = noise_estimation_loss(network, x0, t, torch.randn_like(x0), a)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip or 1.0)
        optimizer.step()
        synchronize(device)

    step()
    step()
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        step()
        steps += 1
    return steps * n / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="fashion_mnist.yml")
    parser.add_argument("--networks", nargs="+", required=True, metavar="CH:MULT:BLOCKS:ATTN")
    parser.add_argument("--seconds", type=float, default=15, help="of measuring a network")
    parser.add_argument("--device")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/out/widths"), help="{out}.md and {out}.json"
    )
    arguments = parser.parse_args()
    device, rows = choose_device(arguments.device), list[Row]()
    for text in arguments.networks:
        torch._dynamo.reset()
        config = of_network(load_config(arguments.config), text)
        parameters = sum(p.numel() for p in build_unet(config).parameters())
        with numerics("bf16", device, training=True):
            rate = images_per_second(config, device, arguments.seconds)
        rows.append(
            {
                "network": text,
                "parameters": parameters,
                "MB in half precision": 2 * parameters / 1e6,
                "images/s": rate,
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    command = ["python", "-m", "benchmarks.widths", *sys.argv[1:]]
    write(arguments.out, device, command, {f"training on batches of {config.training.batch_size}": rows})


if __name__ == "__main__":
    main()
