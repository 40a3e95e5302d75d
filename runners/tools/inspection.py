"""--inspect: what a checkpoint or a folder is, in a few lines."""

import itertools
from pathlib import Path

import torch
from torch import Tensor

from configs import CONFIG_DIR, Config, load_config, run_record
from configs.options import Options, command
from configs.refusal import Refusal
from datasets.tree import find
from functions.disk import files
from functions.runtime import distributed
from functions.weights import check_fit, diffusers_config, identify, pretrained, weights_hash
from functions.weights.checkpoint import Checkpoint
from runners.diffusion import build_unet
from runners.tools.inspect_images import inspect_images, is_of_images
from runners.tools.new_config import look_at
from runners.training import run_folder


def inspect(options: Options, config: Config | None) -> None:
    """Print what it is; of a checkpoint the network, the weights, the step, and the configs it fits."""
    if is_of_images(Path(options.inspect)):
        if distributed.is_main():
            inspect_images(Path(options.inspect))
        return
    path = pretrained.locate(options.inspect)
    if path.is_dir() and (made := [below.name for below in sorted(path.iterdir()) if is_of_images(below)]):
        if distributed.is_main():
            print(f"{path} holds folders of images: {', '.join(made)}; --inspect takes one of them")
        return
    if path.is_dir() and not diffusers_config.is_folder(path) and find(path).pictures:
        if distributed.is_main():
            print(look_at(path).in_words(path))
            print(f"to train on them: {command('--new-config', str(path))}")
        return
    file_format, checkpoint = identify(path)
    if not distributed.is_main():
        return
    model = checkpoint.model
    lines = {
        "checkpoint": str(path),
        "format": file_format,
        "network": network_of(model, str(path)),
        "parameters": f"{sum(value.numel() for value in model.values()):,} in {len(model)} tensors",
        **_weights(checkpoint),
    }
    if path.is_file():
        lines["md5"] = _md5(path)
    lines["training"] = _training(checkpoint)
    if diffusers_config.is_folder(path):
        lines |= _diffusers(path)
    names = sorted(file.name for file in CONFIG_DIR.glob("*.yml"))
    fitting = [name for name in names if _misfit(path, checkpoint, load_config(name)) is None]
    none = "its own config" if diffusers_config.is_folder(path) else "no shipped config"
    lines["fits"] = ", ".join(fitting) or none
    if config is not None:
        lines[options.config] = _misfit(path, checkpoint, config) or "fits"
    lines |= _run(path.parent, checkpoint.step)
    for name, line in lines.items():
        print(f"{name}: {line}")


def _diffusers(path: Path) -> dict[str, str]:
    """What a diffusers folder says besides its weights, and a command that samples from it."""
    own = diffusers_config.read(path)
    T = own.diffusion.num_diffusion_timesteps
    return {
        "schedule": f"{diffusers_config.in_words(own.diffusion)}, {T} timesteps",
        "prediction": own.model.prediction,
        "to sample": run_folder.to_sample("--ckpt", str(path), T=T, folder=path.resolve().name),
    }


def _run(folder: Path, step: int) -> dict[str, str]:
    """What a run used, and the commands that go on with it after `step`; nothing for what is not a run."""
    config = folder / "config.yml"
    if not config.is_file():
        return {}
    record = run_record.read(folder)
    lines = {"run": f"{folder}, {record.in_words}"} if record else {}
    try:
        of_config = load_config(str(config.absolute()))
    except Refusal:  # upstream's, a pickle of Python objects
        return lines
    lines["prediction"] = of_config.model.prediction
    if folder.parent.name == "logs":
        T = of_config.diffusion.num_diffusion_timesteps
        options = Options(exp=str(folder.parent.parent), doc=folder.name)
        of_run = ("--exp", options.exp, "--doc", options.doc, "--resume_training")
        more = ("--set", f"training.n_iters={2 * step}") if step >= of_config.training.n_iters else ()
        lines["to train on" if more else "to continue"] = command(*of_run, *more)
        lines |= run_folder.what_next(options, T, step)
    return lines


def network_of(weights: dict[str, Tensor], source: str) -> str:
    """The network, told by names and shapes of its weights. Raises Refusal for those of another program."""

    def shape(name: str) -> tuple[int, ...]:
        """Of a convolution's weight."""
        sides = tuple(weights[name].shape) if name in weights else ()
        if len(sides) != 4 or 0 in sides:
            fault = f"a parameter {name} of the shape {sides}" if name in weights else f"no parameter {name}"
            raise Refusal(f"{source} has {fault}: it is not a network of this program")
        return sides

    def count(name: str) -> int:
        return next(n for n in itertools.count() if name.format(n) not in weights)

    ch, in_channels = shape("conv_in.weight")[:2]
    levels = range(max(1, count("down.{}.block.0.conv1.weight")))
    attention = ", ".join(str(i) for i in levels if f"down.{i}.attn.0.q.weight" in weights)
    words = [
        f"{in_channels} channels to {shape('conv_out.weight')[0]}",
        f"ch {ch}",
        f"ch_mult {[shape(f'down.{i}.block.0.conv1.weight')[0] // ch for i in levels]}",
        f"num_res_blocks {count('down.0.block.{}.conv1.weight')}",
        f"attention at level {attention or 'none'} (0 is the image's size, each next one half of it)",
    ]
    if len(levels) > 1 and "down.0.downsample.conv.weight" not in weights:
        words.append("resamp_with_conv false")
    if "logvar" in weights:
        words.append("bayesian")
    return ", ".join(words)


def _weights(checkpoint: Checkpoint) -> dict[str, str]:
    """Raw or EMA, how far they differ, and the hash of each, which is the one in manifests."""
    raw, ema = checkpoint.model, checkpoint.ema
    if ema is None:
        bare = checkpoint.optimizer is None
        kind = "one set, not said whether raw or EMA" if bare else "raw, without an EMA"
        return {"weights": kind, "hash": weights_hash(raw)}
    difference, name = max(
        ((value.float() - ema[name].float()).abs().max().item(), name)
        for name, value in raw.items()
        if name in ema and ema[name].shape == value.shape
    )
    differ = f"they differ by up to {difference:g}, in {name}" if difference else "they are equal"
    hashes = {"hash (raw)": weights_hash(raw), "hash (EMA)": weights_hash(ema)}
    return {"weights": f"raw and EMA; {differ}", **hashes}


def _md5(path: Path) -> str:
    """The file's md5, and the name it was published by."""
    md5 = files.digest(path, "md5")
    names = [weights.name for weights in pretrained.PUBLISHED.values() if weights.md5 == md5]
    return md5 + (f", that of the published {names[0]}" if names else "")


def _training(checkpoint: Checkpoint) -> str:
    if checkpoint.optimizer is None:
        return "no step, epoch or optimizer: training cannot continue from it"
    state = "its state" if checkpoint.optimizer.get("state") else "no state"
    return f"step {checkpoint.step}, epoch {checkpoint.epoch}, an optimizer with {state}"


def _misfit(path: Path, checkpoint: Checkpoint, config: Config) -> str | None:
    """Why the checkpoint does not fit the config, or None."""
    try:
        if diffusers_config.is_folder(path):
            diffusers_config.check(path, config)
        with torch.device("meta"):
            check_fit(build_unet(config), checkpoint.model, str(path))
    except Refusal as error:
        return str(error)
    return None
