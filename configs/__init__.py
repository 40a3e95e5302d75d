"""The model's YAML file as frozen, checked dataclasses. Imports nothing of the project and no torch."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import yaml

from configs.door import read_text, reading
from configs.family import without_foreign_keys
from configs.machine import check_memory
from configs.refusal import Refusal, nearest, quoted, short
from configs.typed import Range, build, names

CONFIG_DIR = Path(__file__).parent
CONFIG_BYTES = 2**20
MOST_LEVELS = 16  # the smallest of more would not be a pixel wide
MOST_NESTED = 10
MOST_ALIASES = 20  # merged into one another, more could make a tree that no memory holds

Count = Annotated[int, Range(low=1)]
Byte = Annotated[int, Range(low=0, below=256)]
Rate = Annotated[float, Range(low=0, below=1)]
NonNegative = Annotated[float, Range(low=0)]
Positive = Annotated[float, Range(low=0, open_low=True)]
Variance = Annotated[float, Range(low=0, open_low=True, below=1)]


@dataclass(frozen=True)
class DataConfig:
    dataset: Literal[
        "CIFAR10", "FASHION_MNIST", "DIGITS", "FOLDER", "CELEBA", "CELEBA_HQ", "LSUN", "FFHQ", "LMDB"
    ]  # fmt: skip
    image_size: Count
    channels: Literal[1, 3]
    logit_transform: bool
    uniform_dequantization: bool
    gaussian_dequantization: bool
    random_flip: bool
    rescaled: bool
    num_workers: Annotated[int, Range(low=0)]
    category: str | None = None
    background: tuple[Byte, ...] = (255, 255, 255)  # under transparent pictures: red, green, blue
    on_error: Literal["stop", "skip"] = "stop"  # at a picture that cannot be read

    @property
    def name(self) -> str:
        """The data set as tables and published weights call it: of LSUN, its category."""
        return self.category if self.dataset == "LSUN" and self.category else self.dataset

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        return self.channels, self.image_size, self.image_size


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
    prediction: Literal["eps", "x0", "v"] = "eps"
    zero_init: bool = False
    ema_warmup: bool = False


@dataclass(frozen=True)
class DiffusionConfig:
    beta_schedule: Literal["linear", "quad", "const", "jsd", "sigmoid", "cosine", "warmup10", "warmup50"]
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
    accumulate: Count = 1  # parts of a batch, one after the other, to save memory
    loss: Literal["sum", "mean"] = "sum"
    min_snr_gamma: Positive | None = None
    antithetic: bool = True
    snapshot_minutes: Positive | None = None
    keep_snapshots: Count | None = None  # None: all
    keep_every: Count | None = None


@dataclass(frozen=True)
class SamplingConfig:
    batch_size: Count
    last_only: bool
    ckpt_id: Count | None = None


@dataclass(frozen=True)
class OptimConfig:
    optimizer: Literal["Adam", "AdamW", "RMSProp", "SGD"]
    lr: NonNegative
    weight_decay: NonNegative
    beta1: Rate
    amsgrad: bool
    eps: NonNegative
    grad_clip: Positive | None = None
    beta2: Rate = 0.999
    warmup: Annotated[int, Range(low=0)] = 0
    decay: Literal["none", "cosine"] = "none"

    @property
    def is_adam(self) -> bool:
        """Whether beta1, beta2, eps and amsgrad count."""
        return self.optimizer in ("Adam", "AdamW")


# Stand for sections that a config for sampling alone may lack; with them nothing is trained.
NO_TRAINING = TrainingConfig(128, 10_000, 5_000_000, 5_000, 2_000)
NO_OPTIM = OptimConfig("Adam", 2e-4, 0.0, 0.9, False, 1e-8)


@dataclass(frozen=True)
class Config:
    """A field for each section, with upstream's key names. Optional keys default to upstream's behaviour."""

    data: DataConfig
    model: ModelConfig
    diffusion: DiffusionConfig
    training: TrainingConfig = field(default=NO_TRAINING, kw_only=True)
    sampling: SamplingConfig
    optim: OptimConfig = field(default=NO_OPTIM, kw_only=True)


def load_config(name: str, changes: Sequence[str] = ()) -> Config:
    """Read and check a config: a name under configs/, or a path. changes: `section.key=value`, as --set.

    Raises Refusal, naming the file and the dotted key, for anything that is not a whole and valid config.
    """
    path = find_config(name)
    with reading(path, "valid YAML"):
        text = read_text(path, "a config", most=CONFIG_BYTES)
        _check_shape(text, path)
        try:
            tree = yaml.safe_load(text)
        except yaml.constructor.ConstructorError as error:
            where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            problem = short(str(error.problem))
            raise Refusal(f"{path}{where}: a config is plain YAML, without Python tags ({problem})") from None
    return config_from(changed(tree, changes), str(path))


def changed(tree: Any, changes: Sequence[str]) -> Any:
    """A config of plain values with some set: each `section.key=value`, the value written as in YAML.

    Raises Refusal for a change that does not name a key of a config.
    """
    if not changes or not isinstance(tree, Mapping):
        return tree
    tree = {section: dict(of) if isinstance(of, Mapping) else of for section, of in tree.items()}
    for change in changes:
        key, equals, text = change.partition("=")
        section, _, name = key.partition(".")
        if not equals:
            raise Refusal(f"--set {quoted(change)}: write section.key=value, such as optim.lr=0.0001")
        if key not in keys():
            raise Refusal(f"--set {quoted(key)}: there is no such key{nearest(key, keys())}")
        with reading(f"--set {key}", "a value as YAML has it"):
            value = yaml.safe_load(text)
        if isinstance(tree.get(section), dict):
            tree[section][name] = value
    return tree


def keys() -> list[str]:
    """Every key of a config, as section.key."""
    sections = get_type_hints(Config).items()
    return [f"{section}.{name}" for section, cls in sections for name in names(cls)]


def _check_shape(text: str, path: Path) -> None:
    """Raise Refusal for YAML that no time or memory could hold. It reads no further than the fault."""
    depth = aliases = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        if depth > MOST_NESTED:
            raise Refusal(f"{path} has more than {MOST_NESTED} levels; a config has two, and lists")
        if aliases > MOST_ALIASES:
            raise Refusal(f"{path} has more than {MOST_ALIASES} aliases (*name): write the values out")


def config_from(tree: Any, source: str) -> Config:
    """Check a config of plain values. Raises Refusal, naming `source` and the dotted key."""
    if not isinstance(tree, Mapping):
        what = "empty" if tree is None else f"a {type(tree).__name__}"
        raise Refusal(
            f"{source} is {what}; a config is a mapping with the sections {', '.join(names(Config))}"
        )
    try:
        known, ignored = without_foreign_keys(tree)
        config = build(Config, known)
        _check_together(config)
        _check_sizes(config)
    except Refusal as error:
        raise Refusal(f"{source}: {error}") from None
    if ignored:
        logging.warning(f"{source}: ignored, as they decide nothing here: {', '.join(ignored)}")
    return config


def find_config(name: str) -> Path:
    """The file that `--config name` means. Raises Refusal where there is none."""
    for path in (CONFIG_DIR / name, Path(name)):
        with suppress(OSError):  # a name too long for a file
            if path.is_file():
                return path
    shipped = sorted(path.name for path in CONFIG_DIR.glob("*.yml"))
    hint = f"{nearest(name, shipped)}; configs/ has {', '.join(shipped)}"
    raise Refusal(f"no config {quoted(name)} under configs/ or as a path{hint}")


def to_yaml(config: Config) -> str:
    """Plain YAML that `load_config` reads back to an equal Config."""
    return yaml.safe_dump(plain(config), sort_keys=False)


def plain(config: Config) -> dict[str, Any]:
    """A config of plain values, as `config_from` takes it."""

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: of(item) for key, item in value.items() if item is not None}
        return list(value) if isinstance(value, tuple) else value

    return of(asdict(config))


def _check_together(config: Config) -> None:
    """Raise Refusal for keys that are each valid but do not fit one another."""
    data, model, diffusion = config.data, config.model, config.diffusion
    halvings = min(len(model.ch_mult), MOST_LEVELS) - 1
    last_is_noise = diffusion.beta_schedule == "jsd" and diffusion.num_diffusion_timesteps < 2
    # fmt: off
    problems = {
        f"data.background is {list(data.background)}; it must have 3 numbers, red, green and blue":
            len(data.background) != 3,
        "training.keep_every says which older snapshots stay, so it needs training.keep_snapshots":
            config.training.keep_every is not None and config.training.keep_snapshots is None,
        "data.rescaled and data.logit_transform are both on; choose one":
            data.rescaled and data.logit_transform,
        f"data.channels is {data.channels} but model.in_channels is {model.in_channels}; they must be equal":
            data.channels != model.in_channels,
        f"model.out_ch is {model.out_ch} but model.in_channels is {model.in_channels}; they must be equal":
            model.out_ch != model.in_channels,
        f"model.ch is {model.ch}; it must be a multiple of 32, because GroupNorm has 32 groups":
            model.ch % 32,
        f"model.ch_mult has more than {MOST_LEVELS} levels": len(model.ch_mult) > MOST_LEVELS,
        "model.ch_mult is empty; it needs one multiplier for each level": not model.ch_mult,
        f"data.image_size is {data.image_size}; the {halvings + 1} levels of model.ch_mult halve it "
        f"{halvings} times, so it must be a multiple of {2 ** max(halvings, 0)}":
            data.image_size % 2 ** max(halvings, 0),
        "diffusion.num_diffusion_timesteps is 1; jsd needs at least 2, because its last is pure noise":
            last_is_noise,
        "the key data.category is missing; LSUN needs one, such as bedroom or church_outdoor":
            data.dataset == "LSUN" and data.category is None,
    }
    # fmt: on
    for problem, found in problems.items():
        if found:
            raise Refusal(problem)


def _check_sizes(config: Config) -> None:
    """Raise Refusal for what this machine's memory cannot hold. Each number is a lower bound."""
    data, model, training = config.data, config.model, config.training
    blocks = sum((model.ch * multiplier) ** 2 for multiplier in model.ch_mult) * model.num_res_blocks
    image = data.channels * data.image_size**2
    check_memory("a network of model.ch, ch_mult and num_res_blocks", 4 * 18 * blocks)  # two 3x3 convolutions
    check_memory(f"a batch of {quoted(training.batch_size)} images", 4 * image * training.batch_size)
    check_memory(
        f"a batch of {quoted(config.sampling.batch_size)} samples", 4 * image * config.sampling.batch_size
    )
    T = config.diffusion.num_diffusion_timesteps
    check_memory(f"a schedule of {quoted(T)} timesteps", 64 * T)
