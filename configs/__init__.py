"""The model's YAML file as frozen, checked dataclasses. Imports nothing of the project and no torch."""

import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from configs.refusal import Refusal, nearest

CONFIG_DIR = Path(__file__).parent
FLOAT32_MAX = 3.4e38


@dataclass(frozen=True)
class Range:
    """The numbers a key may take: from `low`, or above it where `open_low`, and below `below`."""

    low: float
    open_low: bool = False
    below: float = float("inf")

    def __contains__(self, x: float) -> bool:
        return (x > self.low if self.open_low else x >= self.low) and x < self.below

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        return low if self.below == float("inf") else f"{low} and below {self.below:g}"


Count = Annotated[int, Range(low=1)]
Rate = Annotated[float, Range(low=0, below=1)]
NonNegative = Annotated[float, Range(low=0)]
Positive = Annotated[float, Range(low=0, open_low=True)]
Variance = Annotated[float, Range(low=0, open_low=True, below=1)]


@dataclass(frozen=True)
class DataConfig:
    dataset: Literal["CIFAR10", "FASHION_MNIST", "DIGITS", "FOLDER", "CELEBA", "LSUN", "FFHQ", "LMDB"]
    image_size: Count
    channels: Literal[1, 3]
    logit_transform: bool
    uniform_dequantization: bool
    gaussian_dequantization: bool
    random_flip: bool
    rescaled: bool
    num_workers: Annotated[int, Range(low=0)]
    category: str | None = None

    @property
    def name(self) -> str:
        """The data set as tables and published weights call it: of LSUN, its category."""
        return self.category if self.dataset == "LSUN" and self.category else self.dataset


@dataclass(frozen=True)
class ModelConfig:
    type: Literal["simple", "bayesian"]
    in_channels: Count
    out_ch: Count
    ch: Count
    ch_mult: tuple[Count, ...]
    num_res_blocks: Count
    attn_resolutions: tuple[Count, ...]
    dropout: Rate
    var_type: Literal["fixedlarge", "fixedsmall"]
    ema_rate: Rate
    ema: bool
    resamp_with_conv: bool


@dataclass(frozen=True)
class DiffusionConfig:
    beta_schedule: Literal["linear", "quad", "const", "jsd", "sigmoid"]
    beta_start: Variance
    beta_end: Variance
    num_diffusion_timesteps: Count


@dataclass(frozen=True)
class TrainingConfig:
    batch_size: Count
    n_epochs: Count
    n_iters: Count
    snapshot_freq: Count
    validation_freq: Count
    accumulate: Count = 1  # the parts that a batch is worked off in, to save memory


@dataclass(frozen=True)
class SamplingConfig:
    batch_size: Count
    last_only: bool
    ckpt_id: Count | None = None


@dataclass(frozen=True)
class OptimConfig:
    optimizer: Literal["Adam", "RMSProp", "SGD"]
    lr: NonNegative
    weight_decay: NonNegative
    beta1: Rate
    amsgrad: bool
    eps: NonNegative
    grad_clip: Positive | None = None


@dataclass(frozen=True)
class Config:
    """One section a field, with upstream's key names; optional keys default to upstream's behaviour."""

    data: DataConfig
    model: ModelConfig
    diffusion: DiffusionConfig
    training: TrainingConfig
    sampling: SamplingConfig
    optim: OptimConfig


def load_config(name: str) -> Config:
    """Read and check a config: a name under configs/, else a path.

    Raises Refusal, naming the file and the dotted key, for anything that is not a whole and sound config.
    """
    path = find_config(name)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.constructor.ConstructorError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise Refusal(
            f"{path}{where}: a config is plain YAML, without Python tags ({error.problem})"
        ) from None
    except yaml.YAMLError as error:
        raise Refusal(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except (OSError, ValueError) as error:  # not text, or a date that is none
        raise Refusal(f"{path} cannot be read: {error}") from None
    return config_from(tree, str(path))


def config_from(tree: Any, source: str) -> Config:
    """Check a config that is plain values already. Raises Refusal, naming `source` and the dotted key, as `load_config`."""
    if not isinstance(tree, Mapping):
        what = "empty" if tree is None else f"a {type(tree).__name__}"
        raise Refusal(
            f"{source} is {what}; a config is a mapping with the sections {', '.join(_names(Config))}"
        )
    try:
        config = _build(Config, tree, "")
        _check_together(config)
    except Refusal as error:
        raise Refusal(f"{source}: {error}") from None
    return config


def find_config(name: str) -> Path:
    """The file that `--config name` means."""
    candidates = [CONFIG_DIR / name, Path(name)]
    for path in candidates:
        with suppress(OSError):  # a name too long for a file
            if path.is_file():
                return path
    shipped = sorted(p.name for p in CONFIG_DIR.glob("*.yml"))
    raise Refusal(
        f"no config {name!r} under configs/ or as a path{nearest(name, shipped)}; configs/ has {', '.join(shipped)}"
    )


def to_yaml(config: Config) -> str:
    """Plain YAML that `load_config` reads back to an equal Config."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if v is not None}
        return list(value) if isinstance(value, tuple) else value

    return yaml.safe_dump(plain(asdict(config)), sort_keys=False)


def _names(cls: type) -> list[str]:
    return [field.name for field in fields(cls)]


def _build(cls: type, tree: Mapping, prefix: str) -> Any:
    hints = get_type_hints(cls, include_extras=True)
    for key in tree:
        if key not in hints:
            raise Refusal(f"unknown key {prefix}{key}{nearest(key, list(hints))}")
    values = {}
    for field in fields(cls):
        if field.name in tree:
            values[field.name] = _value(hints[field.name], tree[field.name], prefix + field.name)
        elif field.default is MISSING:
            raise Refusal(f"the key {prefix}{field.name} is missing")
    return cls(**values)


def _value(hint: Any, value: Any, key: str) -> Any:
    """`value` as the type `hint` says, or a Refusal that names the key, the value and what would be right."""
    if isinstance(hint, type) and is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise Refusal(f"{key} must be a mapping with the keys {', '.join(_names(hint))}, not {value!r}")
        return _build(hint, value, f"{key}.")
    if get_origin(hint) in (Union, types.UnionType):  # an optional key
        return None if value is None else _value(get_args(hint)[0], value, key)
    if get_origin(hint) is Annotated:
        kind, bounds = get_args(hint)
        number = _value(kind, value, key)
        if number not in bounds:
            raise Refusal(f"{key} is {value!r}; it must be {bounds}")
        return number
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        if value not in choices or type(value) not in map(type, choices):
            words = [str(choice) for choice in choices]
            raise Refusal(f"{key} is {value!r}; it must be one of {', '.join(words)}{nearest(value, words)}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise Refusal(f"{key} is {value!r}; it must be a list")
        return tuple(_value(get_args(hint)[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= FLOAT32_MAX:
            raise Refusal(f"{key} is {value!r}; it must be a number that float32 can hold")
        return float(value)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise Refusal(
        f"{key} is {value!r}, a {type(value).__name__}; it must be a {hint.__name__}{_yaml_hint(hint, value)}"
    )


def _yaml_hint(hint: type, value: Any) -> str:
    """YAML 1.1 reads 1e-4 as a string: say how to write it."""
    if hint in (int, float) and isinstance(value, str):
        with suppress(InvalidOperation):
            number = Decimal(value)
            return f" (YAML reads {value} as text: write {number:f})" if number.is_finite() else ""
    return ""


def _check_together(config: Config) -> None:
    data, model = config.data, config.model
    if data.rescaled and data.logit_transform:
        raise Refusal("data.rescaled and data.logit_transform are both on; choose one")
    if data.channels != model.in_channels:
        raise Refusal(
            f"data.channels is {data.channels} but model.in_channels is {model.in_channels}; they must be equal"
        )
    if model.out_ch != model.in_channels:
        raise Refusal(
            f"model.out_ch is {model.out_ch} but model.in_channels is {model.in_channels}; the noise has the image's shape"
        )
    if model.ch % 32:
        raise Refusal(f"model.ch is {model.ch}; it must be a multiple of 32, for GroupNorm has 32 groups")
    if not model.ch_mult:
        raise Refusal("model.ch_mult is empty; it needs one multiplier a level")
    factor = 2 ** (len(model.ch_mult) - 1)
    if data.image_size % factor:
        raise Refusal(
            f"data.image_size is {data.image_size}; the {len(model.ch_mult)} levels of model.ch_mult halve it "
            f"{len(model.ch_mult) - 1} times, so it must be a multiple of {factor}"
        )
    if config.diffusion.beta_schedule == "jsd" and config.diffusion.num_diffusion_timesteps < 2:
        raise Refusal(
            "diffusion.num_diffusion_timesteps is 1; jsd needs at least 2, for nothing of the image is left at its last"
        )
    if data.dataset == "LSUN" and data.category is None:
        raise Refusal("the key data.category is missing; LSUN needs one, such as bedroom or church_outdoor")
