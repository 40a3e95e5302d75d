"""The command line: its flags, and which go together. Runs before torch is imported, so that a refusal takes no time."""

import argparse
import glob
import re
from pathlib import Path
from typing import Any, NoReturn

from configs.refusal import Refusal, nearest

DEFAULT_SEED = 1234
DEFAULT_NUM_SAMPLES = 50_000
DEFAULT_TEST_IMAGES = 128  # a bound on the likelihood takes T evaluations an image
DEFAULT_TIMESTEPS = 1000
SAMPLE_MODES = ("fid", "interpolation", "sequence")
OTHER_MODES = ("test", "preview", "export", "inspect")
METRICS = ("fid", "is", "kid", "pr", "nn")
GRID_FLAGS = ("timesteps", "eta", "sample_type", "seed", "ckpt")  # the ones that may repeat

EXAMPLES = """\
examples, one for each task (E: a folder for everything, D: the name of a run):
  shipped weights       main.py --config fashion_mnist.yml --use_pretrained --sample --fid --num_samples 64 --timesteps 20
  train                 main.py --config cifar10.yml --exp E --doc D --ni
  continue the run      main.py --config cifar10.yml --exp E --doc D --resume_training
  images for FID        main.py --config cifar10.yml --exp E --doc D --sample --fid --timesteps 50 --eta 0 -i ddim50
  the same from a file  main.py --config cifar10.yml --exp E --ckpt ckpt.pth --sample --fid --timesteps 50 -i ddim50
  published weights     main.py --config cifar10.yml --exp E --use_pretrained --sample --fid --timesteps 50 -i ddpm50
  FID of such images    main.py --config cifar10.yml --exp E --doc D --sample --fid --timesteps 50 -i ddim50 --metrics fid
  a table of FIDs       main.py --config cifar10.yml --exp E --doc D --sample --fid --timesteps 10 50 --eta 0 1 -i T --metrics fid
  what it would run     main.py --config cifar10.yml --exp E --doc D --sample --fid --timesteps 10 50 --eta 0 1 -i T --plan
  a path between images main.py --config cifar10.yml --exp E --doc D --sample --interpolation --timesteps 50 -i path
  x0 along the chain    main.py --config cifar10.yml --exp E --doc D --sample --sequence --timesteps 50 -i chain
  bits per dimension    main.py --config cifar10.yml --exp E --doc D --test --num_samples 1000
  are the data right?   main.py --config cifar10.yml --exp E --preview
  weights for diffusers main.py --config cifar10.yml --exp E --doc D --export folder
  what a file holds     main.py --inspect ckpt.pth

The exit code is 0, 2 for a mistake in what was asked, 1 for a failure, 130 for Ctrl-C. More: README.md and docs/.
"""


def parse(argv: list[str]) -> argparse.Namespace:
    """The checked arguments, None where one was not given. Raises Refusal with one sentence; --help exits."""
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        raise Refusal(f"unknown argument {unknown[0]}{nearest(unknown[0].split('=')[0], flags())}")
    arguments.ckpt = _checkpoint_files(arguments.ckpt)
    _check_values(arguments)
    _check_combination(arguments)
    return arguments


def flags() -> list[str]:
    """Every flag there is, as it is typed."""
    return [flag for action in _parser()._actions for flag in action.option_strings]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refusal(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py",
        usage="main.py --config FILE [--exp DIR] [--doc NAME] [a task, or none to train] [its flags]",
        description="Denoising diffusion implicit models (arXiv 2010.02502): train, sample in few steps, interpolate.",
        epilog=EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28),
        allow_abbrev=False,
    )
    add = parser.add_argument_group("tasks", "Without one: training.").add_argument
    add("--sample", action="store_true", help="make images, with one of the next three")
    add("--fid", action="store_true", help="{i}.png for i from 0 to --num_samples - 1")
    add("--interpolation", action="store_true", help="11 images on a path between two latents: {i}.png")
    add(
        "--sequence",
        action="store_true",
        help="the predicted x0 of 8 chains at each step: {chain}_{step}.png",
    )
    add("--test", action="store_true", help="bits per dimension and the training loss on real images")
    add(
        "--preview",
        action="store_true",
        help="64 training images as the model sees them: {image_folder}.preview.png",
    )
    add("--export", metavar="PATH",
        help="write the weights: FILE.pth is upstream's, FILE.safetensors bare, FILE.fp16.safetensors in half precision, any "
        "other name a folder of diffusers")  # fmt: skip
    add("--inspect", metavar="PATH", help="say what a checkpoint is: anything that --ckpt takes")

    add = parser.add_argument_group("what and where").add_argument
    add(
        "--config",
        metavar="FILE",
        help="a name under configs/ or a path (default: the one that comes with --ckpt)",
    )
    add("--exp", default="exp", metavar="DIR", help="where logs, images and data sets lie (default: exp)")
    add("--doc", metavar="NAME", help="the run: its folder is {exp}/logs/NAME")
    add("--data", metavar="PATH", help="the data set's own folder (default: {exp}/datasets/{its name})")
    add(
        "--seed",
        type=_seed,
        nargs="+",
        metavar="N",
        help=f"0 to 2^32-1 (default: {DEFAULT_SEED}; when resuming, the run's)",
    )

    add = parser.add_argument_group("training").add_argument
    add("--resume_training", nargs="?", const="always", choices=["always", "auto"], metavar="auto",
        help="continue the run; with auto, start one where there is none")  # fmt: skip
    add("--ni", action="store_true", help="no interaction: never ask, move an existing run aside")
    add("--comment", default="", metavar="TEXT", help="a note, kept in the run's log")

    add = parser.add_argument_group("weights, for --sample, --test and --export").add_argument
    add("--ckpt", nargs="+", metavar="PATH",
        help="a checkpoint file or a pattern of such, a diffusers folder, hf://owner/name, or a published name such as "
        "ema_cifar10 (default: the run's ckpt.pth, or sampling.ckpt_id)")  # fmt: skip
    add(
        "--use_pretrained",
        action="store_true",
        help="the published, or shipped, EMA weights of the config's data set",
    )
    add(
        "--weights",
        choices=["ema", "raw"],
        metavar="W",
        help="ema or raw, of a checkpoint's weights (default: ema where it has them)",
    )

    repeats = "--timesteps, --eta, --sample_type, --seed and --ckpt take several values with --fid: a grid, a folder each."
    add = parser.add_argument_group("sampling", repeats).add_argument
    add(
        "-i",
        "--image_folder",
        default="images",
        metavar="NAME",
        help="{exp}/image_samples/NAME (default: images)",
    )
    add("--num_samples", type=int, metavar="N",
        help=f"images of --fid (default: {DEFAULT_NUM_SAMPLES}) or --test ({DEFAULT_TEST_IMAGES})")  # fmt: skip
    add("--timesteps", type=int, nargs="+", metavar="S",
        help=f"steps (default: {DEFAULT_TIMESTEPS}, or all where there are fewer)")  # fmt: skip
    add("--skip_type", default="uniform", type=_skip_type, choices=["uniform", "quad"], metavar="TYPE",
        help="how the steps are spaced: uniform, or quad (also quadratic) (default: uniform)")  # fmt: skip
    add(
        "--eta",
        type=float,
        nargs="+",
        metavar="E",
        help="noise of generalized: 0 is DDIM, 1 is DDPM (default: 0)",
    )
    add("--sample_type", nargs="+", choices=["generalized", "ddpm_noisy"], metavar="TYPE",
        help="the update: generalized (DDIM), or ddpm_noisy, DDPM with the larger variance (default: generalized)")  # fmt: skip

    add = parser.add_argument_group("evaluation, with --sample --fid").add_argument
    add("--metrics", nargs="+", choices=METRICS, metavar="M",
        help="fid, is (Inception score), kid, pr (precision and recall), nn (nearest training images) (default: none)",
    )  # fmt: skip
    add("--reference", metavar="WHAT",
        help="train, test, a folder of images, or an .npz of mu and sigma (default: train; test with --test)")  # fmt: skip
    add("--features", metavar="PATH",
        help="Inception's weights, or another extractor: an exported program (default: Inception, downloaded)")  # fmt: skip
    add(
        "--keep_images",
        choices=["yes", "no"],
        metavar="yes|no",
        help="no keeps the numbers of --metrics only (default: yes)",
    )

    add = parser.add_argument_group("how it runs").add_argument
    add(
        "--device",
        metavar="NAME",
        help="cpu, mps, cuda or cuda:N (default: cuda if there, else mps, else cpu)",
    )
    add("--precision", default="default", choices=["default", "fp32", "bf16"], metavar="P",
        help="default: torch's, with TF32 convolutions on CUDA; fp32: without; bf16: in bfloat16 (default: default)")  # fmt: skip
    add("--compile", default="auto", choices=["auto", "on", "off"], metavar="C",
        help="compile the network: on, off, or auto, on CUDA where the work left repays it (default: auto)")  # fmt: skip
    add("--batch_size", type=_batch_size, metavar="B",
        help="images at a time with --fid or --test; auto: what fits (default: auto on CUDA, else the config's)")  # fmt: skip
    add(
        "--plan",
        action="store_true",
        help="print what the command would run, its size and time; make nothing",
    )
    add("--verbose", default="info", type=str.lower, choices=["debug", "info", "warning", "error", "critical"], metavar="LEVEL",
        help="debug (shows tracebacks), info, warning, error or critical (default: info)")  # fmt: skip
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(
            f"{text} is no seed; it must be a whole number from 0 to {2**32 - 1}"
        )
    return int(text)


def _batch_size(text: str) -> int | str:
    if text != "auto" and not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no batch size; it must be a whole number or auto")
    return text if text == "auto" else int(text)


def _skip_type(text: str) -> str:
    return "quad" if text == "quadratic" else text


def _check_values(arguments: argparse.Namespace) -> None:
    counts = [("num_samples", arguments.num_samples), ("batch_size", arguments.batch_size)]
    for flag, value in [*counts, *(("timesteps", S) for S in arguments.timesteps or [])]:
        if isinstance(value, int) and value < 1:
            raise Refusal(f"--{flag} is {value}; it must be at least 1")
    for eta in arguments.eta or []:
        if not 0 <= eta <= 1:  # NaN is not in the range either
            raise Refusal(f"--eta is {eta}; it must be from 0 (DDIM) to 1 (DDPM)")
    for flag in (*GRID_FLAGS, "metrics"):
        _refuse_repeats(flag, getattr(arguments, flag) or [])
    if arguments.device is not None and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", arguments.device):
        raise Refusal(f"--device is {arguments.device!r}; it must be cpu, mps, cuda or cuda:N")
    for flag in ("export", "inspect"):
        if getattr(arguments, flag) == "":
            raise Refusal(f"--{flag} is ''; it must be a path")
    for flag in ("doc", "image_folder"):
        name = getattr(arguments, flag)
        if name is not None and Path(name).name in ("", ".."):
            raise Refusal(f"--{flag} is {name!r}; it must be a folder's name")


def _check_combination(arguments: argparse.Namespace) -> None:
    modes = [f"--{mode}" for mode in SAMPLE_MODES if getattr(arguments, mode)]
    if arguments.sample and len(modes) != 1:
        given = " and ".join(modes) if modes else "none"
        raise Refusal(f"--sample goes with one of --fid, --interpolation and --sequence; {given} given")
    if modes and not arguments.sample:
        raise Refusal(f"{modes[0]} goes with --sample")
    tasks = [f"--{task}" for task in ("sample", *OTHER_MODES, "resume_training") if getattr(arguments, task)]
    if len(tasks) > 1:
        raise Refusal(f"{tasks[0]} and {tasks[1]} are two tasks; give one of them")
    if arguments.ckpt is not None and arguments.use_pretrained:
        raise Refusal("--ckpt and --use_pretrained both name the weights; give one of them")
    loads = arguments.sample or arguments.test or arguments.export is not None
    needs = {
        "ckpt": ("--sample, --test or --export", loads),
        "use_pretrained": ("--sample, --test or --export", loads),
        "weights": ("--sample, --test or --export", loads),
        "num_samples": ("--sample --fid or --test", arguments.fid or arguments.test),
        "batch_size": ("--sample --fid or --test", arguments.fid or arguments.test),
        "metrics": ("--sample --fid", arguments.fid),
        "reference": ("--metrics or --test", arguments.metrics or arguments.test),
        "features": ("--metrics", arguments.metrics),
        "keep_images": ("--metrics", arguments.metrics),
    }
    for flag, (needed, there) in needs.items():
        if getattr(arguments, flag) and not there:
            raise Refusal(f"--{flag} goes with {needed}")
    if arguments.test and arguments.reference not in (None, "test", "train"):
        raise Refusal(f"--reference is {arguments.reference!r}; --test takes test or train")
    if arguments.plan and (
        arguments.preview or arguments.export is not None or arguments.inspect is not None
    ):
        raise Refusal("--plan goes with training, --sample or --test")
    several = [flag for flag in GRID_FLAGS if len(getattr(arguments, flag) or []) > 1]
    if several and not arguments.fid:
        raise Refusal(
            f"several values of --{several[0]} make a grid, which goes with --sample --fid; give one value"
        )
    if arguments.export is not None:
        _check_export(Path(arguments.export), arguments.weights)
    if arguments.inspect is not None:
        return
    if arguments.config is None and arguments.ckpt is None:
        raise Refusal(
            "--config is missing: it names the model's YAML file; a diffusers folder as --ckpt brings its own"
        )
    if (
        arguments.doc is None
        and arguments.ckpt is None
        and not arguments.use_pretrained
        and not arguments.preview
    ):
        instead = ", or the weights by --ckpt or --use_pretrained" if loads else ""
        raise Refusal(f"--doc is missing: it names the run's folder under {arguments.exp}/logs/{instead}")


def _check_export(path: Path, weights: str | None) -> None:
    if path.suffix in (".ckpt", ".pt", ".bin"):
        raise Refusal(
            f"--export {path}: a file is .pth, upstream's, or .safetensors; any other name is a diffusers folder's"
        )
    if path.suffix == ".pth" and weights is not None:
        raise Refusal(f"--export {path} takes no --weights: upstream's format holds both")
    if path.exists() or not path.name:
        raise Refusal(f"--export {path} is there already, and nothing is overwritten; name another")


def _checkpoint_files(given: list[str] | None) -> list[str] | None:
    """The files that --ckpt names, a pattern's in the order of the numbers in their names. Raises Refusal for none."""
    if given is None:
        return None
    found: list[str] = []
    for name in given:
        if Path(name).exists() or not glob.has_magic(name):
            found.append(name)
            continue
        matches = sorted(glob.glob(name), key=lambda path: [int(part) for part in re.findall(r"\d+", path)])
        if not matches:
            raise Refusal(f"--ckpt {name}: no file has a name of this pattern")
        found += matches
    return found


def _refuse_repeats(flag: str, values: list[Any]) -> None:
    twice = next((value for k, value in enumerate(values) if value in values[:k]), None)
    if twice is not None:
        raise Refusal(f"--{flag} names {twice} twice; each cell of a grid is made once")
