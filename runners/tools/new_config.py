"""--new-config: a config for one's own pictures, from a look at them."""

from collections import Counter
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from configs.options import Options, command
from configs.refusal import Refusal
from datasets.depths import EXTENSIONS
from datasets.pictures import decode
from datasets.tree import split_files
from functions.disk import files
from functions.runtime.progress import start_logging

LOOKED_AT = 200  # pictures, evenly spread
SIZES = (8, 16, 32, 64)  # a larger one has to be asked for: it takes a good GPU
FEW, MANY = 1_000, 20_000  # pictures


class Look(NamedTuple):
    """What was seen of the pictures."""

    n: int  # for training
    sizes: Counter[tuple[int, int]]  # width, height
    grey: bool

    def in_words(self, data: Path) -> str:
        (width, height), same = self.sizes.most_common(1)[0]
        colours = "grey" if self.grey else "in colour"
        most = "all" if same == self.sizes.total() else f"{same} of the {self.sizes.total()} looked at"
        return f"{self.n:,} pictures for training in {data}, {colours}, {most} of {width} x {height}"


def new_config(options: Options) -> None:
    """Look at the pictures, write a config for them, print what was seen and the next three commands."""
    start_logging(options.verbose)
    data = Path(options.new_config)
    stem = data.stem if data.is_file() else data.resolve().name
    path = Path(options.config or stem)
    if path.suffix not in (".yml", ".yaml"):
        path = path.with_name(f"{path.name}.yml")
    if path.exists():
        raise Refusal(f"{path} exists already, and nothing is overwritten; give another name by --config")
    look = look_at(data)
    size = options.size or size_for(look)
    commands = next_commands(options, data, path)
    files.write_text(path, text_for(look, size, commands))

    print(look.in_words(data))
    small = sum(count for sides, count in look.sizes.items() if min(sides) < size)
    enlarged = (
        f" ({small} of {look.sizes.total()} pictures are smaller and will be enlarged)" if small else ""
    )
    print(f"{path} is for images of {size} x {size}{enlarged}; its comments say what to change")
    for what, line in commands.items():
        print(f"{what}: {line}")


def look_at(data: Path) -> Look:
    """Raises Refusal where there are no pictures, or one of those looked at is broken."""
    if not data.exists():
        raise Refusal(f"--new-config {data}: this folder does not exist; name the one with your pictures")
    if data.is_file() and data.suffix.lower() in EXTENSIONS:
        raise Refusal(f"--new-config {data} is one picture; name the folder with your pictures")
    source = split_files(data, train=True)
    if source is None or not source.keys:
        raise Refusal(f"{data} holds no images that are read; docs/data.md lists the formats")
    n = len(source.keys)
    pictures = [decode(source, int(i)) for i in np.linspace(0, n - 1, min(n, LOOKED_AT)).astype(int)]
    grey = all(picture.mode == "L" or _is_grey(np.asarray(picture)) for picture in pictures)
    return Look(n, Counter(picture.size for picture in pictures), grey)


def _is_grey(pixels: np.ndarray) -> bool:
    return bool((pixels == pixels[..., :1]).all())


def size_for(look: Look) -> int:
    """The largest of SIZES that half of the pictures have without being enlarged."""
    shorter = median(min(size) for size in look.sizes.elements())
    return max((size for size in SIZES if size <= shorter), default=SIZES[0])


def next_commands(options: Options, data: Path, path: Path) -> dict[str, str]:
    """Preview, training and samples, as they are typed."""
    main, name = ["--config", str(path)], options.doc or path.stem
    main += ["--exp", options.exp] if "exp" in options.given else []
    words = {
        "look": [*main, "--data", str(data), "--preview", "-i", name],
        "train": [*main, "--data", str(data), "--doc", name],
        "sample": [*main, "--doc", name, "--sample", "--fid", "--num_samples", "64",
                   "--timesteps", "50", "-i", name],
    }  # fmt: skip
    return {what: command(*line) for what, line in words.items()}


def text_for(look: Look, size: int, commands: dict[str, str]) -> str:
    """The YAML, with comments. Raises Refusal for a size that no network here has."""
    halvings = (size >= 8) + (size >= 16) + (size >= 32) + (size >= 128)
    if size < 8 or size % 2**halvings:
        raise Refusal(f"--size is {size}; it must be at least 8, and a multiple of {2 ** max(halvings, 1)}")
    few, many, steps = look.n < FEW, look.n >= MANY, steps_for(look.n, size)
    resolutions = [size // 2**k for k in range(1, halvings + 1)]
    values = {
        "n": f"{look.n:,}", "size": size, "channels": 1 if look.grey else 3, "steps": steps,
        "ema_rate": round(min(0.9999, 1 - 12 / steps), 5),  # over about the last twelfth of the steps
        "ch": 128 if many and size > 16 else 64 if many or size > 32 else 32,
        "ch_mult": [1, *[2] * halvings], "blocks": 2 if many else 1,
        "attention": [next((at for at in resolutions if at <= 16), resolutions[-1])],
        "dropout": 0.1 if few else 0.0, "batch": 32 if few else 128 if many else 64,
        "snapshots": max(steps // 10, 100), "lr": 0.0002 if many else 0.001,
        "workers": 0 if size <= 16 and few else 2,
        "commands": "\n".join(f"#   {line}" for line in commands.values()),
    }  # fmt: skip
    return TEMPLATE.format(**values)


def steps_for(n: int, size: int) -> int:
    """Steps of training after which the pictures can be recognised: 1,200 for 300 shapes of 16 x 16.

    A rule of thumb: they grow with the side, and with the square root of the number.
    """
    steps = 1200 * max(1, size / 16) * max(1, (n / 300) ** 0.5)
    unit = 10 ** (len(str(int(steps))) - 2)
    return min(200_000, int(steps // unit * unit))


TEMPLATE = """\
# For {n} pictures, images of {size} x {size}. What to do with it:
{commands}
# The second command with --plan says how long it takes. docs/config.md has every key.
data:
    dataset: FOLDER
    image_size: {size} # other sizes: a multiple of 2 for each entry of ch_mult after the first
    channels: {channels} # 1 is grey, 3 is RGB; in_channels and out_ch are the same
    random_flip: false # true doubles the data, where a mirror image is as good: not for letters
    rescaled: true
    logit_transform: false
    uniform_dequantization: false
    gaussian_dequantization: false
    num_workers: {workers} # processes that read pictures ahead

model:
    type: simple
    in_channels: {channels}
    out_ch: {channels}
    ch: {ch} # the width: 64 or 128 draw better and take 3 or 10 times as long
    ch_mult: {ch_mult}
    num_res_blocks: {blocks}
    attn_resolutions: {attention}
    dropout: {dropout} # against learning a few pictures by heart
    var_type: fixedlarge
    ema: true
    ema_rate: {ema_rate} # the average of the last twelfth of the steps, which is what is sampled
    ema_warmup: true
    zero_init: true
    resamp_with_conv: true
    prediction: v # after a short training eps gives flat, saturated squares

diffusion:
    beta_schedule: linear
    beta_start: 0.0001
    beta_end: 0.02
    num_diffusion_timesteps: 1000

training:
    batch_size: {batch}
    n_iters: {steps} # more steps make better images: raise it and add --resume_training
    n_epochs: 1000000
    snapshot_freq: {snapshots}
    keep_snapshots: 2
    validation_freq: {snapshots}

sampling:
    batch_size: 64
    last_only: true

optim:
    optimizer: Adam
    lr: {lr}
    warmup: 100
    decay: cosine
    weight_decay: 0.0
    beta1: 0.9
    amsgrad: false
    eps: 0.00000001
    grad_clip: 1.0
"""
