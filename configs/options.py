"""What the user asked of one run, as a frozen `Options`. Its defaults are the program's."""

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from configs import NO_OPTIM, NO_TRAINING, Config
from configs.choices import SAMPLERS, SPACINGS, TASKS
from configs.machine import check_memory
from configs.refusal import Refusal, quoted
from configs.run_record import read as read_run
from configs.timesteps import read_timesteps

DEFAULT_TEST_IMAGES = 128  # a bound on the likelihood takes T evaluations for each image


@dataclass(frozen=True)
class Options:
    """What the user asked. The flags that may repeat are tuples; in a cell of a grid each holds one value."""

    # train, test, images, preview, export, inspect, new_config, or a task of configs/choices.py
    mode: str = "train"
    config: str = ""  # the YAML file; without --config the checkpoint whose own config is used
    changes: tuple[str, ...] = ()  # section.key=value, of --set
    exp: str = "exp"
    doc: str = ""  # "" if no run is named
    data: str | None = None
    seeds: tuple[int, ...] = (1234,)

    resume_training: Literal["auto", "always"] | None = None
    ni: bool = False
    comment: str = ""

    ckpts: tuple[str, ...] = ()  # empty: the run's ckpt.pth, or the published weights
    use_pretrained: bool = False
    weights: Literal["ema", "raw"] | None = None
    export: str = ""
    inspect: str = ""
    new_config: str = ""  # a folder of pictures
    size: int | None = None  # of the images that its config is for; None: the pictures' own, up to 64

    image_folder: str = "images"
    num_samples: int = 50_000
    step_counts: tuple[int, ...] = (1000,)  # S, as asked
    skip_types: tuple[str, ...] = ()  # names or files of timesteps; empty: the sampler's own
    etas: tuple[float, ...] = (0.0,)
    sample_types: tuple[str, ...] = ("generalized",)
    order: int | None = None  # this and the next two: None for the sampler's own
    method: str | None = None
    solver_type: str | None = None
    lower_order_final: bool = True
    denoise: bool = False
    clip_x0: str | None = None  # None: the sampler's own

    encode: str = ""  # train, test or a folder of images
    decode: str = ""  # a file of latents
    between: tuple[str, ...] = ("0", "1")  # ends of --interpolation: x_T of image i, or a picture's file
    points: int = 11

    restoration: str = ""  # of DEGRADATIONS
    input: str = ""  # train, test or a folder of images: to restore or to edit
    mask: str | None = None  # a picture, white where a pixel is known; None for a black square in the middle
    sigma_y: float = 0.0  # the standard deviation of the noise in the input, on pixels in [0, 1]
    add_noise: bool = False  # whether the program adds it
    travel: tuple[int, int] = (1, 1)  # as functions/restoration.py: travel_path has them
    strength: float = 0.5

    inversion: Literal["to", "from"] = "to"

    metrics: tuple[str, ...] = ()
    images: str = ""  # a folder of images to measure
    features: str | None = None
    reference: str = "train"
    keep_images: bool = True

    device: str | None = None
    precision: Literal["default", "fp32", "bf16"] = "default"
    compile: Literal["auto", "on", "off"] = "auto"
    batch_size: int | Literal["auto"] | None = None  # None: auto on CUDA, the config's elsewhere
    plan: bool = False
    verbose: str = "info"

    argv: tuple[str, ...] = ()  # the command line
    given: frozenset[str] = frozenset()  # the flags that were typed, without dashes

    @property
    def seed(self) -> int:
        return self.seeds[0]

    @property
    def ckpt(self) -> str | None:
        return self.ckpts[0] if self.ckpts else None

    @property
    def starts_from_weights(self) -> bool:
        """Whether the command names weights, those of a run apart."""
        return bool(self.ckpts) or self.use_pretrained

    @property
    def S(self) -> int:
        return self.step_counts[0]

    @property
    def skip_type(self) -> str:
        return self.skip_types[0] if self.skip_types else SAMPLERS[self.sample_type].spacing

    @property
    def spacing_label(self) -> str:
        """The spacing as tables and folders name it: a file by its stem."""
        return self.skip_type if self.skip_type in SPACINGS else Path(self.skip_type).stem

    @property
    def sampling(self) -> dict[str, Any]:
        """What `Diffusion.sampling` takes. A solver's settings are not for the other samplers of a grid."""
        names = ["eta", "seed", "skip_type", "sample_type", "lower_order_final", "denoise", "clip_x0"]
        record = SAMPLERS[self.sample_type]
        names += ["order"] * bool(record.orders) + ["method", "solver_type"] * bool(record.methods)
        return {"timesteps": self.S, **{name: getattr(self, name) for name in names}}

    @property
    def eta(self) -> float:
        return self.etas[0]

    @property
    def sample_type(self) -> str:
        return self.sample_types[0]

    @property
    def sampler_label(self) -> str:
        """The sampler as tables name it, the paper's included."""
        sampler = SAMPLERS[self.sample_type]
        return sampler.label.format(**sampler.settings(self.eta, self.order, self.method))

    @property
    def is_grid(self) -> bool:
        """Whether flags repeat; or -i names the folder of such a command, which gets one more cell."""
        repeated = (
            self.seeds, self.ckpts, self.step_counts, self.skip_types, self.etas, self.sample_types
        )  # fmt: skip
        into_one = self.mode in TASKS and TASKS[self.mode].grid and (self.image_dir / "table.json").is_file()
        return into_one or any(len(values) > 1 for values in repeated)

    @property
    def log_dir(self) -> Path:
        return Path(self.exp, "logs", self.doc)

    @property
    def tensorboard_dir(self) -> Path:
        return Path(self.exp, "tensorboard", self.doc)

    @property
    def image_dir(self) -> Path:
        return Path(self.exp, "image_samples", self.image_folder)

    @property
    def run_dir(self) -> Path | None:
        """The folder of the run that is trained, or that the weights are of; None where there is none."""
        if self.mode == "train" or not self.starts_from_weights:
            return self.log_dir
        files = [path for path in map(Path, self.ckpts) if path.is_file()]
        return files[0].parent if len(files) == 1 else None

    @property
    def verb(self) -> str:
        """The method of `Diffusion` that does this."""
        if self.plan:
            return "plan"
        verbs = {"images": "measure"} | dict.fromkeys(TASKS, "write_samples")
        return verbs.get(self.mode, self.mode)


def command(*words: str) -> str:
    """A command of main.py as it is typed here."""
    called = sys.argv[0] if Path(sys.argv[0]).name == "main.py" else "main.py"
    return shlex.join(["python", called, *words])


def fit(options: Options, config: Config) -> Options:
    """The options for this config; the default S is at most its T. Raises Refusal where they do not fit."""
    options = _as_the_run(options, config)
    T, most = config.diffusion.num_diffusion_timesteps, max(options.step_counts)
    listed = [name for name in options.skip_types if name not in SPACINGS]
    if "timesteps" not in options.given:
        counts = [len(read_timesteps(path)) for path in listed[:1]] or [min(options.S, T)]
        options = replace(options, step_counts=tuple(counts))
    elif most > T:
        raise Refusal(f"--timesteps is {most}; {options.config} has {T} timesteps, so at most {T}")
    for path in listed:
        timesteps = read_timesteps(path)
        if timesteps[-1] > T - 1:
            raise Refusal(
                f"--skip_type {path}: {timesteps[-1]} is too large; {options.config} has 0 to {T - 1}"
            )
        if options.step_counts != (len(timesteps),):
            raise Refusal(f"--skip_type {path} holds {len(timesteps)} timesteps; leave --timesteps out")
    for what, count in (("images", options.num_samples), ("steps", most)):
        check_memory(f"a list of {quoted(count)} {what}", 256 * count)  # bytes for a name and its place
    absent = {"training": config.training is NO_TRAINING, "optim": config.optim is NO_OPTIM}
    if options.mode == "train" and any(absent.values()):
        missing = next(section for section in absent if absent[section])
        raise Refusal(f"{options.config}: the key {missing} is missing; training needs it")
    if options.mode == "train" and config.model.type == "bayesian":
        raise Refusal("model.type bayesian can be sampled but not trained: no loss was published; use simple")
    if options.mode == "test" and config.data.logit_transform:
        raise Refusal(
            "data.logit_transform is on, so the 8-bit levels are not evenly spaced: --test has no bits/dim"
        )
    return options


def _as_the_run(options: Options, config: Config) -> Options:
    """With the data path of the run that is continued or sampled, and a continued run's precision.

    The command line wins. Another data set than the run's is looked for where --exp says.
    """
    if options.run_dir is None or (options.mode == "train" and options.resume_training is None):
        return options
    run = read_run(options.run_dir)
    if run is None:
        return options
    if options.data is None and run.dataset == config.data.name and Path(run.data).exists():
        options = replace(options, data=run.data)
    if options.mode == "train" and "precision" not in options.given:
        options = replace(options, precision=run.precision)
    return options
