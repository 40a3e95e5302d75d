"""The command line as a frozen, checked `Options`. Runs before torch is imported, so that a refusal takes no time."""

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NoReturn

from configs import Config, nearest

DEFAULT_SEED = 1234
DEFAULT_NUM_SAMPLES = 50_000
DEFAULT_TIMESTEPS = 1000

EXAMPLES = """\
examples:
  train                 main.py --config cifar10.yml --exp E --doc D --ni
  continue the run      main.py --config cifar10.yml --exp E --doc D --resume_training
  images for FID        main.py --config cifar10.yml --exp E --doc D --sample --fid --timesteps 50 --eta 0 -i ddim50
  the same from a file  main.py --config cifar10.yml --exp E --ckpt ckpt.pth --sample --fid --timesteps 50 -i ddim50
  published weights     main.py --config cifar10.yml --exp E --use_pretrained --sample --fid --timesteps 50 -i ddpm50
  paths between images  main.py --config cifar10.yml --exp E --doc D --sample --interpolation --timesteps 50 -i paths
  x0 along the chain    main.py --config cifar10.yml --exp E --doc D --sample --sequence --timesteps 50 -i chain
  loss on test images   main.py --config cifar10.yml --exp E --doc D --test
"""

Mode = Literal["train", "test", "fid", "interpolation", "sequence"]


@dataclass(frozen=True)
class Options:
    """What the user asked of one run; `None` where a default depends on the config or on the run."""

    config: str
    exp: str
    doc: str | None
    comment: str
    verbose: str
    ni: bool
    device: str | None
    seed: int | None
    data: str | None
    resume_training: Literal["auto", "always"] | None
    test: bool
    sample: bool
    fid: bool
    interpolation: bool
    sequence: bool
    ckpt: str | None
    use_pretrained: bool
    weights: Literal["ema", "raw"] | None
    image_folder: str
    num_samples: int | None
    batch_size: int | None
    timesteps: int | None
    skip_type: Literal["uniform", "quad"]
    eta: float | None
    sample_type: Literal["generalized", "ddpm_noisy"]

    @property
    def mode(self) -> Mode:
        chosen = [mode for mode in ("test", "fid", "interpolation", "sequence") if getattr(self, mode)]
        return chosen[0] if chosen else "train"

    @property
    def log_dir(self) -> Path:
        return Path(self.exp, "logs", self.doc)

    @property
    def tensorboard_dir(self) -> Path:
        return Path(self.exp, "tensorboard", self.doc)

    @property
    def image_dir(self) -> Path:
        return Path(self.exp, "image_samples", self.image_folder)


def parse(argv: list[str]) -> Options:
    """Options from the arguments. Raises ValueError with one sentence; `--help` exits as argparse does."""
    parser = _parser()
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        raise ValueError(f"unknown argument {unknown[0]}{nearest(unknown[0].split('=')[0], flags)}")
    options = Options(**vars(namespace))
    _check_values(options)
    _check_combination(options)
    return options


def complete(options: Options, config: Config) -> Options:
    """The options with the defaults that the config decides. Raises ValueError where the two do not fit."""
    total = config.diffusion.num_diffusion_timesteps
    timesteps = min(DEFAULT_TIMESTEPS, total) if options.timesteps is None else options.timesteps
    if timesteps > total:
        raise ValueError(f"--timesteps is {timesteps}; {options.config} has {total} timesteps, so at most {total}")
    if options.mode == "train" and config.model.type == "bayesian":
        raise ValueError("model.type bayesian can be loaded and sampled but not trained: it has no published loss; use simple")
    return replace(options, timesteps=timesteps)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py",
        description="Denoising diffusion implicit models (arXiv 2010.02502): train, sample in few steps, interpolate.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("every task").add_argument
    add("--config", required=True, metavar="FILE", help="a name under configs/ or a path")
    add("--exp", default="exp", metavar="DIR", help="where logs, images and data sets lie (default: exp)")
    add("--doc", metavar="NAME", help="the run: its folder is {exp}/logs/NAME")
    add("--seed", type=_seed, metavar="N", help=f"0 to 2^32-1 (default: {DEFAULT_SEED}; when resuming, the run's)")
    add("--device", metavar="NAME", help="cpu, mps, cuda or cuda:N (default: cuda if there, else mps, else cpu)")
    add("--data", metavar="PATH", help="the data set's own folder (default: {exp}/datasets/{its name})")
    add("--comment", default="", metavar="TEXT", help="a note, kept in the run's log")
    add("--verbose", default="info", type=str.lower, choices=["debug", "info", "warning", "error", "critical"],
        help="how much is logged; debug shows tracebacks (default: info)")  # fmt: skip
    add("--ni", action="store_true", help="no interaction: never ask, move an existing run aside")

    add = parser.add_argument_group("training (the task when no other is named)").add_argument
    add("--resume_training", nargs="?", const="always", choices=["always", "auto"],
        help="continue the run; with auto, start one where there is none")  # fmt: skip

    add = parser.add_argument_group("other tasks").add_argument
    add("--sample", action="store_true", help="make images, with one of the next three")
    add("--fid", action="store_true", help="{i}.png for i from 0 to --num_samples - 1")
    add("--interpolation", action="store_true", help="11 images between two latents: {i}.png")
    add("--sequence", action="store_true", help="the predicted x0 of 8 chains at each step: {chain}_{step}.png")
    add("--test", action="store_true", help="the training loss on the test split")

    add = parser.add_argument_group("weights, for --sample and --test").add_argument
    add("--ckpt", metavar="PATH", help="a checkpoint file (default: the run's ckpt.pth, or sampling.ckpt_id)")
    add("--use_pretrained", action="store_true", help="the published DDPM weights of the config's data set")
    add("--weights", choices=["ema", "raw"], help="which of a checkpoint's weights (default: ema where it has them)")

    add = parser.add_argument_group("sampling").add_argument
    add("-i", "--image_folder", default="images", metavar="NAME", help="{exp}/image_samples/NAME (default: images)")
    add("--num_samples", type=int, metavar="N", help=f"images of --fid (default: {DEFAULT_NUM_SAMPLES})")
    add("--batch_size", type=int, metavar="B", help="images at a time with --fid (default: sampling.batch_size)")
    add("--timesteps", type=int, metavar="S", help=f"steps (default: {DEFAULT_TIMESTEPS}, or all where there are fewer)")
    add("--skip_type", default="uniform", type=_skip_type, choices=["uniform", "quad"], metavar="TYPE",
        help="how the steps are spaced: uniform, or quad (also quadratic) (default: uniform)")  # fmt: skip
    add("--eta", type=float, metavar="E", help="noise of generalized: 0 is DDIM, 1 is DDPM (default: 0)")
    add("--sample_type", default="generalized", choices=["generalized", "ddpm_noisy"],
        help="the update: generalized (DDIM), or ddpm_noisy, DDPM with the larger variance (default: generalized)")  # fmt: skip
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is no seed; it must be a whole number from 0 to {2**32 - 1}")
    return int(text)


def _skip_type(text: str) -> str:
    return "quad" if text == "quadratic" else text


def _check_values(options: Options) -> None:
    for flag in ("num_samples", "batch_size", "timesteps"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise ValueError(f"--{flag} is {value}; it must be at least 1")
    if options.eta is not None and not 0 <= options.eta <= 1:  # NaN is not in the range either
        raise ValueError(f"--eta is {options.eta}; it must be from 0 (DDIM) to 1 (DDPM)")
    if options.device is not None and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", options.device):
        raise ValueError(f"--device is {options.device!r}; it must be cpu, mps, cuda or cuda:N")
    for flag in ("doc", "image_folder"):
        name = getattr(options, flag)
        if name is not None and Path(name).name in ("", ".."):
            raise ValueError(f"--{flag} is {name!r}; it must be a folder's name")
    if Path(options.exp).exists() and not Path(options.exp).is_dir():
        raise ValueError(f"--exp is {options.exp!r}, which is a file; it must be a folder")


def _check_combination(options: Options) -> None:
    modes = [f"--{mode}" for mode in ("fid", "interpolation", "sequence") if getattr(options, mode)]
    if options.sample and len(modes) != 1:
        given = " and ".join(modes) if modes else "none"
        raise ValueError(f"--sample goes with one of --fid, --interpolation and --sequence; {given} given")
    if modes and not options.sample:
        raise ValueError(f"{modes[0]} goes with --sample")
    tasks = [flag for flag, given in (("--sample", options.sample), ("--test", options.test),
                                      ("--resume_training", options.resume_training)) if given]  # fmt: skip
    if len(tasks) > 1:
        raise ValueError(f"{tasks[0]} and {tasks[1]} are two tasks; give one of them")
    if options.ckpt is not None and options.use_pretrained:
        raise ValueError("--ckpt and --use_pretrained both name the weights; give one of them")
    needs = {
        "ckpt": ("--sample or --test", options.sample or options.test),
        "use_pretrained": ("--sample or --test", options.sample or options.test),
        "weights": ("--sample or --test", options.sample or options.test),
        "num_samples": ("--sample --fid", options.fid),
        "batch_size": ("--sample --fid", options.fid),
    }
    for flag, (needed, there) in needs.items():
        if getattr(options, flag) and not there:
            raise ValueError(f"--{flag} goes with {needed}")
    if options.doc is None and options.ckpt is None and not options.use_pretrained:
        instead = ", or the weights by --ckpt or --use_pretrained" if options.sample or options.test else ""
        raise ValueError(f"--doc is missing: it names the run's folder under {options.exp}/logs/{instead}")
