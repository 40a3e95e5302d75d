"""Which values a flag may take, and which flags go together. Each rule is a sentence that the user reads."""

import re
from pathlib import Path
from typing import Any

from configs import find_config
from configs.choices import DEGRADATIONS, SAMPLERS, TASKS
from configs.options import Options
from configs.refusal import Refusal, nearest, quoted

# Which of the tasks' flags the other modes take.
TAKEN_BY = {
    "test": ("num_samples", "batch_size", "reference"),
    "images": ("num_samples", "batch_size", "metrics"),
}
GRID_FLAGS = ("timesteps", "skip_type", "eta", "sample_type", "seed", "ckpt")  # the flags that may repeat


def check_values(given: dict[str, Any]) -> None:
    """Raise Refusal for a flag whose value is out of its range. given: flags by name, only those typed."""
    counts = [(flag, given[flag]) for flag in ("num_samples", "batch_size") if flag in given]
    for flag, value in [*counts, *(("timesteps", S) for S in given.get("timesteps", []))]:
        if value != "auto" and value < 1:
            raise Refusal(f"--{flag} is {value}; it must be at least 1")
    for eta in given.get("eta", []):
        if not 0 <= eta <= 1:  # NaN is not in the range either
            raise Refusal(f"--eta is {eta}; it must be from 0 (DDIM) to 1 (DDPM)")
    for flag in (*GRID_FLAGS, "metrics"):
        values = given.get(flag, [])
        twice = next((value for k, value in enumerate(values) if value in values[:k]), None)
        if twice is not None:
            raise Refusal(f"--{flag} names {twice} twice; each cell of a grid is made once")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", given.get("device", "cpu")):
        raise Refusal(f"--device is {given['device']!r}; it must be cpu, mps, cuda or cuda:N")
    for flag in ("export", "inspect", "images", "new_config"):
        if given.get(flag) == "":
            raise Refusal(f"--{flag} is ''; it must be a path")
    for flag in ("doc", "image_folder"):
        if flag in given and (Path(given[flag]).name == "" or ".." in Path(given[flag]).parts):
            raise Refusal(f"--{flag} is {quoted(given[flag])}; it must be a folder's name, without ..")
    if Path(given.get("doc", "")).is_absolute():
        raise Refusal(f"--doc is {quoted(given['doc'])}; it must be a name below the logs: --exp says where")


def check_combination(options: Options, *, sample: bool) -> None:
    """Raise Refusal for flags that do not go together. sample: --sample was given."""
    given, mode = options.given, options.mode
    kinds = [f"--{task}" for task in TASKS if task in given]
    loads = sample or mode in ("test", "export", "train")
    if sample and len(kinds) != 1:
        said = " and ".join(kinds) if kinds else "none"
        raise Refusal(f"--sample goes with one of {', '.join(f'--{task}' for task in TASKS)}; {said} given")
    if kinds and not sample:
        raise Refusal(f"{kinds[0]} goes with --sample")
    if {"ckpt", "use_pretrained"} <= given:
        raise Refusal("--ckpt and --use_pretrained both name the weights; give one of them")

    _check_companions(options, loads=loads)
    if mode == "test" and options.reference not in ("test", "train"):
        raise Refusal(f"--reference is {options.reference!r}; --test takes test or train")
    _check_samplers(options)
    _check_given_images(options)
    counts = [
        options.step_counts, options.skip_types, options.etas, options.sample_types, options.seeds,
        options.ckpts,
    ]  # fmt: skip
    several = [flag for flag, values in zip(GRID_FLAGS, counts, strict=True) if len(values) > 1]
    if several and not (mode in TASKS and TASKS[mode].grid):
        grids = ", ".join(f"--sample --{name}" for name, task in TASKS.items() if task.grid)
        raise Refusal(
            f"several values of --{several[0]} make a grid, which goes with one of {grids}; give one value"
        )

    # What is needed.
    if mode == "export":
        _check_export(Path(options.export), options.weights)
    if mode in ("inspect", "new_config"):
        return
    if mode == "train" and options.starts_from_weights:
        _check_fine_tuning(options)
    if not options.config:
        why = (
            "it names the model's YAML file; not needed with --doc of a run, or with --ckpt and a diffusers "
            "folder or a published name, such as fashion_mnist"
        )
        if options.doc and mode != "train":
            runs = [path.name for path in options.log_dir.parent.glob("*")]
            why = f"there is no config.yml in {options.log_dir}{nearest(options.log_dir.name, runs)}"
        raise Refusal(f"--config is missing: {why}")
    if "config" in given:
        find_config(options.config)
    if "doc" not in given and (
        mode == "train" or not {"ckpt", "use_pretrained", "preview", "images"} & given
    ):
        instead = ", or the weights by --ckpt or --use_pretrained" if loads and mode != "train" else ""
        raise Refusal(f"--doc is missing: it names the run's folder under {options.exp}/logs/{instead}")
    for folder in (options.log_dir, options.tensorboard_dir, options.image_dir):
        for path in (folder, *folder.parents):
            if path.is_file():
                raise Refusal(f"{path} is a file, where a folder must be; see --exp, --doc and -i")


def _check_fine_tuning(options: Options) -> None:
    """Raise Refusal where training that starts from given weights lacks a config, or has weights already."""
    if "config" not in options.given:
        raise Refusal("--config is missing: it says how the weights of --ckpt are trained further")
    if options.resume_training == "always":
        raise Refusal(
            "--resume_training continues from the run's own checkpoint, so it takes no --ckpt or "
            "--use_pretrained; --resume_training auto takes them for a run that is not there yet"
        )


def _check_companions(options: Options, *, loads: bool) -> None:
    """Raise Refusal for a flag beside which another is missing. loads: weights are loaded."""
    given, mode = options.given, options.mode
    measures = bool(options.metrics)
    taken = TASKS[mode].takes if mode in TASKS else TAKEN_BY.get(mode, ())
    of_tasks = dict.fromkeys(flag for task in TASKS.values() for flag in task.takes)
    rules = [
        (("ckpt", "use_pretrained", "weights"), loads, "--sample, --test, --export or training"),
        (("weights",), mode != "train" or options.starts_from_weights, "--ckpt or --use_pretrained"),
        (
            ("reference",),
            measures or "reference" in taken,
            f"--metrics or --test, or {_tasks_of('reference')}",
        ),
        *(((flag,), flag in taken, _tasks_of(flag)) for flag in of_tasks if flag != "reference"),
        (("features",), measures, "--metrics"),
        (("keep_images",), measures and mode in TASKS, "--metrics and --sample"),
        (("images",), measures, "--metrics"),
        (("size",), mode == "new_config", "--new-config"),
        (("set",), mode != "inspect" or "config" in given, "--config"),
        (("plan",), mode in (*TASKS, "train", "test"), "training, --sample or --test"),
    ]
    for flags, fits, needed in rules:
        for flag in flags:
            if flag in given and not fits:
                raise Refusal(f"--{flag} goes with {needed}")


def _tasks_of(flag: str) -> str:
    """The tasks that take this flag, in words."""
    names = [f"--sample --{name}" for name, task in TASKS.items() if flag in task.takes]
    return " or ".join(names + [f"--{mode}" for mode, takes in TAKEN_BY.items() if flag in takes])


def _check_given_images(options: Options) -> None:
    """Raise Refusal for what --interpolation, --restoration and --edit cannot do."""
    mode, how = options.mode, options.restoration
    if len(options.between) not in (2, 4):
        raise Refusal(f"--between names {len(options.between)} ends; two make a path, four a grid")
    if options.points < 2:
        raise Refusal(f"--points is {options.points}; it must be at least 2")
    if mode not in ("restoration", "edit"):
        return
    known, least = list(DEGRADATIONS), min(options.travel)
    noisy = options.sigma_y > 0
    problems = {
        f"--restoration is {how!r}; it must be one of {', '.join(known)}{nearest(how, known)}":
            mode == "restoration" and how not in known,
        "--input is missing: it names the images, train, test or a folder": not options.input,
        "--mask goes with --restoration inpainting": options.mask is not None and how != "inpainting",
        f"--sigma_y is {options.sigma_y}; it must be from 0 to 1": not 0 <= options.sigma_y <= 1,
        "--restoration denoising needs --sigma_y above 0": how == "denoising" and not noisy,
        "--add_noise needs --sigma_y above 0": options.add_noise and not noisy,
        f"--travel is {least}; both numbers must be at least 1": least < 1,
        f"--strength is {options.strength}; it must be above 0 and at most 1": not 0 < options.strength <= 1,
    }  # fmt: skip
    for problem, found in problems.items():
        if found:
            raise Refusal(problem)


def _check_samplers(options: Options) -> None:
    """Raise Refusal for a setting that no chosen sampler takes, or that one of them does not."""
    of = {name: SAMPLERS[name] for name in options.sample_types}
    names = ", ".join(of)
    allowed = TASKS[options.mode].samplers if options.mode in TASKS else ()
    if allowed and not set(of) <= set(allowed):
        raise Refusal(f"--{options.mode} takes --sample_type {', '.join(allowed)}; {names} given")
    if any(options.etas) and all(sampler.noise == "none" for sampler in of.values()):
        raise Refusal(f"--eta is {max(options.etas):g}; {names} draws no noise, so leave it out")
    chosen = [("order", options.order, "orders"), ("dpm_solver_method", options.method, "methods"),
              ("dpm_solver_type", options.solver_type, "solver_types")]  # fmt: skip
    for flag, value, field in chosen:
        takes = {name: getattr(sampler, field) for name, sampler in of.items() if getattr(sampler, field)}
        if value is not None and not takes:
            raise Refusal(f"--{flag} has no meaning with --sample_type {names}")
        for name, values in takes.items():
            if value is not None and value not in values:
                raise Refusal(f"--{flag} is {value}; {name} takes {', '.join(map(str, sorted(values)))}")
    if "lower_order_final" in options.given and (
        options.method == "singlestep" or not any(sampler.orders for sampler in of.values())
    ):
        raise Refusal("--lower_order_final goes with a multistep solver that takes --order")


def _check_export(path: Path, weights: str | None) -> None:
    if path.suffix in (".ckpt", ".pt", ".bin"):
        raise Refusal(
            f"--export {path}: a file is .pth or .safetensors; any other name is a diffusers folder"
        )
    if path.suffix == ".pth" and weights is not None:
        raise Refusal(f"--export {path} takes no --weights: upstream's format holds both")
    if path.exists() or not path.name:
        raise Refusal(f"--export {path} exists already, and nothing is overwritten; give another name")
