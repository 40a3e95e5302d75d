"""What the user asked, as a frozen, checked `Options` with every default filled in."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from configs import Config
from configs.arguments import (
    DEFAULT_NUM_SAMPLES,
    DEFAULT_SEED,
    DEFAULT_TEST_IMAGES,
    DEFAULT_TIMESTEPS,
    METRICS,
    OTHER_MODES,
    SAMPLE_MODES,
)
from configs.refusal import Refusal

Mode = Literal["train", "test", "preview", "export", "inspect", "fid", "interpolation", "sequence"]


@dataclass(frozen=True)
class Options:
    """What the user asked of one run, with every default filled in.

    The flags that may repeat are tuples; where each holds one value, as in every cell of a grid, the properties give it.
    """

    config: str  # the checkpoint's name where its own config serves
    exp: str
    doc: str  # "" where the run's folder is not used
    comment: str
    verbose: str
    ni: bool
    device: str | None
    precision: Literal["default", "fp32", "bf16"]
    compile: Literal["auto", "on", "off"]
    seeds: tuple[int, ...]
    seed_given: bool
    data: str | None
    resume_training: Literal["auto", "always"] | None
    mode: Mode
    export: str | None
    inspect: str | None
    ckpts: tuple[str, ...]  # empty for the run's own and for the published weights
    use_pretrained: bool
    weights: Literal["ema", "raw"] | None
    image_folder: str
    num_samples: int
    num_samples_given: bool
    batch_size: int | Literal["auto"] | None  # None: auto on CUDA, the config's elsewhere
    step_counts: tuple[int, ...]
    skip_type: Literal["uniform", "quad"]
    etas: tuple[float, ...]
    eta_given: bool
    sample_types: tuple[str, ...]
    metrics: tuple[str, ...]
    features: str | None
    reference: str
    keep_images: bool
    plan: bool

    @property
    def seed(self) -> int:
        return self.seeds[0]

    @property
    def ckpt(self) -> str | None:
        return self.ckpts[0] if self.ckpts else None

    @property
    def timesteps(self) -> int:
        return self.step_counts[0]

    @property
    def eta(self) -> float:
        return self.etas[0]

    @property
    def sample_type(self) -> str:
        return self.sample_types[0]

    @property
    def is_grid(self) -> bool:
        return any(
            len(v) > 1 for v in (self.seeds, self.ckpts, self.step_counts, self.etas, self.sample_types)
        )

    @property
    def log_dir(self) -> Path:
        return Path(self.exp, "logs", self.doc)

    @property
    def tensorboard_dir(self) -> Path:
        return Path(self.exp, "tensorboard", self.doc)

    @property
    def image_dir(self) -> Path:
        return Path(self.exp, "image_samples", self.image_folder)


def complete(arguments: argparse.Namespace, config: Config | None) -> Options:
    """The arguments with their defaults; only --inspect does without a config.

    Raises Refusal where they and the config do not fit.
    """
    total = config.diffusion.num_diffusion_timesteps if config else DEFAULT_TIMESTEPS
    values = vars(arguments) | {
        "config": arguments.config or (arguments.ckpt[0] if arguments.ckpt else ""),
        "mode": next((mode for mode in (*OTHER_MODES, *SAMPLE_MODES) if getattr(arguments, mode)), "train"),
        "doc": arguments.doc or "",
        "seeds": tuple(arguments.seed or [DEFAULT_SEED]),
        "seed_given": arguments.seed is not None,
        "ckpts": tuple(arguments.ckpt or ()),
        "etas": tuple(arguments.eta or [0.0]),
        "eta_given": arguments.eta is not None,
        "num_samples": arguments.num_samples
        or (DEFAULT_TEST_IMAGES if arguments.test else DEFAULT_NUM_SAMPLES),
        "num_samples_given": arguments.num_samples is not None,
        "step_counts": tuple(arguments.timesteps or [min(DEFAULT_TIMESTEPS, total)]),
        "sample_types": tuple(arguments.sample_type or ["generalized"]),
        "metrics": tuple(metric for metric in METRICS if metric in (arguments.metrics or ())),
        "reference": arguments.reference or ("test" if arguments.test else "train"),
        "keep_images": arguments.keep_images != "no",
    }
    options = Options(**{field.name: values[field.name] for field in fields(Options)})
    most = max(options.step_counts)
    if most > total:
        raise Refusal(f"--timesteps is {most}; {options.config} has {total} timesteps, so at most {total}")
    if config is not None:
        _check_task(options.mode, config)
    for folder in (options.log_dir, options.tensorboard_dir, options.image_dir):
        for path in (folder, *folder.parents):
            if path.is_file():
                raise Refusal(f"{path} is a file, where a folder must be; see --exp, --doc and -i")
    return options


def _check_task(mode: Mode, config: Config) -> None:
    if mode == "train" and config.model.type == "bayesian":
        raise Refusal(
            "model.type bayesian can be loaded and sampled but not trained: it has no published loss; use simple"
        )
    if mode == "test" and config.data.logit_transform:
        raise Refusal(
            "data.logit_transform is on, so 8-bit levels are unevenly spaced for the model: --test has no bits/dim"
        )
