"""The command line: flags, help, and the `Options` they make. It imports no torch: it answers at once."""

import argparse
import glob
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from configs import keys
from configs.choices import (
    CLIPS,
    INVERSIONS,
    METHODS,
    METRICS,
    OTHER_NAMES,
    SAMPLERS,
    SPACINGS,
    SPELLINGS,
    TASKS,
)
from configs.combinations import check_combination, check_values
from configs.options import DEFAULT_TEST_IMAGES, Options
from configs.refusal import Refusal, nearest, quoted

OTHER_MODES = ("test", "images", "preview", "export", "inspect", "new_config")

EXAMPLES = """\
examples (E: a folder for everything, D: the name of a run):
  shipped weights        main.py --ckpt fashion_mnist --sample --fid --timesteps 20 --num_samples 64
  train                  main.py --config cifar10.yml --exp E --doc D --ni
  continue the run       main.py --config cifar10.yml --exp E --doc D --resume_training
  images for FID         main.py --config cifar10.yml --exp E --doc D --sample --fid --timesteps 50 -i ddim50
  the same from a file   main.py --config cifar10.yml --exp E --ckpt ckpt.pth --sample --fid --timesteps 50
  published weights      main.py --config cifar10.yml --exp E --use_pretrained --sample --fid --timesteps 50
  FID of such images     main.py --config cifar10.yml --exp E --doc D --sample --fid -i ddim50 --metrics fid
  a table of FIDs        main.py ... --sample --fid --timesteps 10 50 --eta 0 1 -i T --metrics fid
  FID of any images      main.py --config cifar10.yml --exp E --metrics fid --images FOLDER
  what it would run      main.py ... --sample --fid --timesteps 10 50 --eta 0 1 -i T --plan
  a path between images  main.py --config cifar10.yml --exp E --doc D --sample --interpolation --timesteps 50
  x0 along the chain     main.py --config cifar10.yml --exp E --doc D --sample --sequence --timesteps 50
  find a missing part    main.py --config cifar10.yml --exp E --doc D --restoration inpainting --input test
  bits per dimension     main.py --config cifar10.yml --exp E --doc D --test --num_samples 1000
  your own pictures      main.py --new-config FOLDER
  a look at the data     main.py --config cifar10.yml --exp E --preview
  weights for diffusers  main.py --config cifar10.yml --exp E --doc D --export folder
  what a file holds      main.py --inspect ckpt.pth
  how images were made   main.py --inspect E/image_samples/ddim50

The exit code is 0, 2 for a mistake in the command, 1 for a failure, 130 for Ctrl-C, 143 for SIGTERM.
SIGUSR1 stops in the same order with 0. A second signal ends at once.
More: README.md and docs/.
"""


def parse(argv: list[str]) -> Options:
    """The checked options. Raises Refusal with one sentence; --help exits."""
    if not argv:
        raise Refusal(
            f"nothing is asked; usage: {_parser().usage}; --help shows every flag and an example of each task"
        )
    try:
        return _parsed(argv)
    except OSError as error:  # while looking for what a flag names
        raise Refusal(f"{quoted(error.filename)} cannot be the name of a file ({error.strerror})") from None


def _parsed(argv: list[str]) -> Options:
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown:
        raise Refusal(f"unknown argument {unknown[0]}{_meant(unknown[0])}")
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    check_values(given)
    options = replace(_options(given), argv=tuple(argv))
    by_value = options.mode in TASKS and bool(TASKS[options.mode].value)
    check_combination(options, sample=by_value or bool(given.pop("sample", False)))
    return options


def _meant(argument: str) -> str:
    """What an unknown argument may stand for: a count, a key of the config, a flag of a similar name."""
    if argument.isdecimal():
        return f"; --num_samples {argument} asks for so many images"
    name = argument.lstrip("-").split("=")[0]
    of_config = [key for key in keys() if name in (key, key.split(".")[1])]
    if argument.startswith("--") and of_config:
        return f"; it is a key of the config: {' or '.join(f'--set {key}=…' for key in of_config)}"
    return nearest(argument.split("=")[0], flags())


def flags() -> list[str]:
    """Every flag, as it is typed."""
    return [flag for action in _parser()._actions for flag in action.option_strings]


def _options(given: dict[str, Any]) -> Options:
    """From the flags that were given, by name. Two tasks at once are refused."""
    tasks = [name for name in ("sample", *OTHER_MODES, "resume_training") if name in given]
    if len(tasks) > 1:
        raise Refusal(f"--{tasks[0]} and --{tasks[1]} are two tasks; give one of them")
    values = {name: given[name] for name in given.keys() & Options.__dataclass_fields__.keys()}
    values["mode"] = next((mode for mode in (*OTHER_MODES, *TASKS) if mode in given), "train")
    # The flags that may repeat.
    fields = {
        "seed": "seeds", "timesteps": "step_counts", "eta": "etas", "sample_type": "sample_types",
        "skip_type": "skip_types",
    }  # fmt: skip
    values |= {field: tuple(given[flag]) for flag, field in fields.items() if flag in given}
    if "between" in given:
        values["between"] = tuple(given["between"])
    if "travel" in given:
        values["travel"] = tuple(given["travel"])
    values["changes"] = tuple(change for several in given.get("set", []) for change in several)
    values["ckpts"] = tuple(_checkpoint_files(given.get("ckpt", [])))
    values["metrics"] = tuple(metric for metric in METRICS if metric in given.get("metrics", []))
    # Defaults that depend on other flags.
    of_run = Path(given.get("exp", Options.exp), "logs", given.get("doc", ""), "config.yml")
    if not {"config", "ckpt", "use_pretrained"} & given.keys() and "doc" in given and of_run.is_file():
        given["config"] = str(of_run)
    values["config"] = given.get("config") or next(iter(values["ckpts"]), "")
    if values["mode"] == "test":
        values = {"num_samples": DEFAULT_TEST_IMAGES} | values
    if values["mode"] in TASKS and (images := TASKS[values["mode"]].images):
        values = {"num_samples": images} | values
    if values["mode"] in ("test", "reconstruction"):
        values = {"reference": "test"} | values
    return Options(**values, given=frozenset(given))


def _checkpoint_files(given: list[str]) -> list[str]:
    """The files that --ckpt names; a pattern's in the order of the numbers in their names."""
    found: list[str] = []
    for name in given:
        if Path(name).exists() or not glob.has_magic(name):
            of_run = Path(name, "ckpt.pth")
            found.append(str(of_run) if of_run.is_file() else name)
            continue
        matches = sorted(glob.glob(name), key=lambda path: [int(part) for part in re.findall(r"\d+", path)])
        if not matches:
            raise Refusal(f"--ckpt {name}: no file has a name of this pattern")
        found += matches
    return found


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refusal(message)


# fmt: off
def _parser() -> argparse.ArgumentParser:
    """The list of flags. A flag that was not typed is None: `Options` holds the defaults."""
    default = Options()
    parser = _Parser(
        prog="main.py",
        usage="main.py --config FILE [--exp DIR] [--doc NAME] [a task, or none to train] [its flags]",
        description="Denoising diffusion implicit models (arXiv 2010.02502): train, sample in few steps.",
        epilog=EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28),
        allow_abbrev=False,
    )
    switch: dict[str, Any] = {"action": "store_true", "default": None}
    with_eta = [name for name, sampler in SAMPLERS.items() if sampler.takes_eta]
    spellings = ", ".join(f"{name} is {of}" for name, of in SPELLINGS.items())

    add = parser.add_argument_group("tasks", "Without one: training.").add_argument
    add("--sample", **switch, help="make images, in one of these ways:")
    for name, task in TASKS.items():
        takes: dict[str, Any] = {"metavar": task.value} if task.value else switch
        add(f"--{name}", **takes, help=task.summary)
    add("--images", metavar="FOLDER",
        help="with --metrics: measure a folder of images, whoever made them; needs no --sample")
    add("--test", **switch, help="bits per dimension and the training loss on real images")
    add("--preview", **switch, help="64 training images as the model sees them: {image_folder}.preview.png")
    add("--export", metavar="PATH",
        help="write the weights: FILE.pth is upstream's, FILE.safetensors bare, FILE.fp16.safetensors in "
             "half precision, any other name a diffusers folder")
    add("--inspect", metavar="PATH",
        help="say what it is and how to go on: what --ckpt takes, a run's folder, a folder of images")
    add("--new-config", "--new_config", metavar="FOLDER",
        help="look at the pictures in a folder, write a config for them, print the next three commands")

    add = parser.add_argument_group("what and where").add_argument
    add("--config", metavar="FILE",
        help="a name under configs/, or a path (default: the one beside --ckpt, or the run's)")
    add("--size", type=int, metavar="N",
        help="with --new-config: pixels on a side (default: the pictures', up to 64)")
    add("--set", nargs="+", action="append", metavar="KEY=VALUE",
        help="change keys of the config for this command: optim.lr=0.0001 training.n_iters=1000")
    add("--exp", metavar="DIR", help=f"the folder of logs, images and data sets (default: {default.exp})")
    add("--doc", metavar="NAME", help="the run: its folder is {exp}/logs/NAME")
    add("--data", metavar="PATH",
        help="the data set's own folder (default: the run's, else {exp}/datasets/{its name})")
    add("--seed", type=_seed, nargs="+", metavar="N",
        help=f"0 to 2^32-1 (default: {default.seed}; when resuming, the run's)")

    add = parser.add_argument_group("training").add_argument
    add("--resume_training", nargs="?", const="always", choices=["always", "auto"], metavar="auto",
        help="continue the run; with auto, start one where there is none")
    add("--ni", **switch, help="no interaction: never ask, move an existing run aside")
    add("--comment", metavar="TEXT", help="a note, kept in the run's log")

    add = parser.add_argument_group("weights, for --sample, --test, --export and training").add_argument
    add("--ckpt", nargs="+", metavar="PATH",
        help="a checkpoint, a pattern of files, a run's folder, a diffusers folder, hf://owner/name, or a "
             "published name, as ema_cifar10 (default: the run's ckpt.pth, or sampling.ckpt_id). Training "
             "starts from it")
    add("--use_pretrained", **switch, help="the published, or shipped, EMA weights of the config's data set")
    add("--weights", choices=["ema", "raw"], metavar="W",
        help="ema or raw (default: ema where the file has them)")

    repeats = (
        "With --fid, --timesteps, --skip_type, --eta, --sample_type, --seed and --ckpt "
        "take several values: a grid."
    )
    add = parser.add_argument_group("sampling", repeats).add_argument
    add("-i", "--image_folder", metavar="NAME",
        help=f"{{exp}}/image_samples/NAME (default: {default.image_folder})")
    add("--num_samples", type=int, metavar="N",
        help=f"images of --fid (default: {default.num_samples}), of --test ({DEFAULT_TEST_IMAGES}), or of "
             "those that are read (all)")
    add("--timesteps", type=int, nargs="+", metavar="S",
        help=f"steps (default: {default.S}, or all where there are fewer)")
    add("--skip_type", type=_spacing, nargs="+", metavar="TYPE",
        help=f"spacing of the steps: {_listed(SPACINGS)}, or a file of timesteps ({spellings}; "
             f"default: {default.skip_type}, a solver's own)")
    add("--eta", type=float, nargs="+", metavar="E",
        help=f"noise of {', '.join(with_eta)}: 0 is DDIM, 1 is DDPM (default: 0)")
    samplers = _listed({name: sampler.summary for name, sampler in SAMPLERS.items()})
    add("--sample_type", type=_sampler, nargs="+", metavar="TYPE",
        help=f"the update: {samplers} (default: {default.sample_type})")
    add("--order", "--dpm_solver_order", type=int, metavar="N",
        help=f"of {_with('orders')} (default: the first)")
    add("--dpm_solver_method", dest="method", choices=list(METHODS), metavar="M",
        help=f"of {_with('methods')} (default: the first)")
    add("--dpm_solver_type", dest="solver_type", choices=_all("solver_types"), metavar="TYPE",
        help=f"which formula of an order, of {_with('solver_types')} (default: the first)")
    add("--lower_order_final", type=_yes_no, nargs="?", const=True, metavar="yes|no",
        help="lower the order of a multistep solver at its last steps (default: yes)")
    add("--denoise", **switch,
        help="of a spacing that leaves a little noise: spend the last evaluation on a clean image")
    add("--clip_x0", choices=list(CLIPS), metavar="C",
        help=f"the predicted x0: {_listed(CLIPS)} (default: off, with ddpm_noisy on)")

    add("--between", nargs="+", metavar="END",
        help="two or four ends of --interpolation, pictures or the numbers of latents (default: 0 1)")
    add("--points", type=int, metavar="N", help=f"images on its path, or a side (default: {default.points})")
    add("--input", metavar="WHAT", help="train, test or a folder: the images to restore or to edit")
    add("--mask", metavar="PNG",
        help="of inpainting: white is known, black is to be found (default: a black square in the middle)")
    add("--sigma_y", type=float, metavar="N",
        help="of --restoration: the noise in the input, a standard deviation on [0, 1] (default: 0)")
    add("--add_noise", **switch, help="add this noise to the input first")
    add("--travel", type=int, nargs=2, metavar=("LENGTH", "REPEATS"),
        help="of --restoration: do each LENGTH steps REPEATS times, which hides seams (default: 1 1)")
    add("--strength", type=float, metavar="N",
        help=f"of --edit: the share of T that is noised and denoised (default: {default.strength})")
    add("--inversion", choices=list(INVERSIONS), metavar="LEVEL",
        help=f"the noise level that an encoding step tells the network: {_listed(INVERSIONS)} "
             f"(default: {default.inversion})")

    add = parser.add_argument_group("evaluation, with --sample --fid or --images").add_argument
    add("--metrics", nargs="+", choices=list(METRICS), metavar="M",
        help=f"{_listed(METRICS)} (default: none)")
    add("--reference", metavar="WHAT",
        help="train, test, a folder of images, or an .npz of mu and sigma (default: train; test with --test)")
    add("--features", metavar="PATH",
        help="Inception's weights, or an exported program, .pt2, which runs code (default: Inception)")
    add("--keep_images", type=_yes_no, metavar="yes|no", help="no: keep the metrics only (default: yes)")

    add = parser.add_argument_group("how it runs").add_argument
    add("--device", metavar="NAME", help="cpu, mps, cuda or cuda:N (default: cuda, else mps, else cpu)")
    add("--precision", choices=["default", "fp32", "bf16"], metavar="P",
        help="default: torch's, with TF32 convolutions on CUDA; fp32: without; bf16 (default: default)")
    add("--compile", choices=["auto", "on", "off"], metavar="C",
        help="compile the network: on, off, or auto: where it saves time (default: auto)")
    add("--batch_size", type=_batch_size, metavar="B",
        help="images at a time with --fid or --test (default: auto, what fits, on CUDA; else the config's)")
    add("--plan", **switch, help="print what the command would run, its size and time; make nothing")
    levels = ["debug", "info", "warning", "error", "critical"]
    add("--verbose", type=str.lower, choices=levels, metavar="LEVEL",
        help=f"{', '.join(levels)}; debug shows tracebacks (default: info)")
    return parser
# fmt: on


def _listed(summaries: dict[str, str]) -> str:
    return ", ".join(f"{name} ({summary})" for name, summary in summaries.items())


def _all(field: str) -> list[str]:
    """Every value that some sampler's record lists there, as text."""
    return list(
        dict.fromkeys(str(value) for sampler in SAMPLERS.values() for value in getattr(sampler, field))
    )


def _with(field: str) -> str:
    """The samplers whose record lists values there, with the values."""
    of: dict[str, list[str]] = {}
    for name, sampler in SAMPLERS.items():
        if values := getattr(sampler, field):
            of.setdefault(" ".join(map(str, values)), []).append(name)
    return "; ".join(f"{', '.join(names)}: {values}" for values, names in of.items())


def _spacing(text: str) -> str:
    """The name of a spacing, or the path of a file of timesteps."""
    name = SPELLINGS.get(text, text)
    if name not in SPACINGS and not Path(name).is_file():
        names = ", ".join(SPACINGS)
        raise argparse.ArgumentTypeError(
            f"{text} is neither a spacing ({names}) nor a file of timesteps{nearest(text, list(SPACINGS))}"
        )
    return name


def _sampler(text: str) -> str:
    if text not in SAMPLERS:
        known = ", ".join(SAMPLERS)
        other = f": that is {OTHER_NAMES[text]}" if text in OTHER_NAMES else nearest(text, list(SAMPLERS))
        raise argparse.ArgumentTypeError(f"{text} is not a sampler's name here{other} (known: {known})")
    return text


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(
            f"{text} is not a seed: it must be a whole number from 0 to {2**32 - 1}"
        )
    return int(text)


def _batch_size(text: str) -> int | str:
    if text != "auto" and not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a batch size: it must be a whole number or auto")
    return text if text == "auto" else int(text)


def _yes_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text} is neither yes nor no")
    return text == "yes"
