"""Weights by name, published by others or part of this repository: where they lie, their hashes, and whose config they fit."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from configs import Config, DataConfig, load_config
from configs.refusal import Refusal, nearest
from functions.disk import files
from functions.runtime import distributed
from functions.weights import diffusers_config

HUB = "hf://"
SHIPPED = Path(__file__).resolve().parents[2] / "models" / "pretrained"


@dataclass(frozen=True)
class Published:
    """One checkpoint with a name. `url` is None for one that is part of this repository, `md5` where none was published."""

    name: str
    url: str | None
    md5: str | None
    file: str  # within SHIPPED, or within the cache, where earlier tools keep it too
    config: str  # the shipped config of its network and schedule
    category: str | None = None  # LSUN's

    @property
    def path(self) -> Path:
        if self.url is None:
            return SHIPPED / self.file
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "diffusion_models_converted" / self.file

    @property
    def expected(self) -> str:
        return f"its md5 must be {self.md5}" if self.md5 else "no hash was published for it"


def _ddpm(name: str, step: int, heibox: str, md5: str, config: str, category: str | None = None) -> Published:
    """One of DDPM's checkpoints as converted to PyTorch; `heibox` is its id at heibox.uni-heidelberg.de."""
    folder = (
        f"ema_diffusion_{name.removeprefix('ema_')}_model"
        if name.startswith("ema_")
        else f"diffusion_{name}_model"
    )
    url = f"https://heibox.uni-heidelberg.de/f/{heibox}/?dl=1"
    return Published(name, url, md5, f"{folder}/model-{step}.ckpt", config, category)


_ALL = (
    _ddpm("cifar10", 790000, "869980b53bf5416c8a28", "82ed3067fd1002f5cf4c339fb80c4669", "cifar10.yml"),
    _ddpm("ema_cifar10", 790000, "2e4f01e2d9ee49bab1d5", "1fa350b952534ae442b1d5235cce5cd3", "cifar10.yml"),
    _ddpm("lsun_bedroom", 2388000, "f179d4f21ebc4d43bbfe", "f70280ac0e08b8e696f42cb8e948ff1c", "bedroom.yml", "bedroom"),
    _ddpm("ema_lsun_bedroom", 2388000, "b95206528f384185889b", "1921fa46b66a3665e450e42f36c2720f", "bedroom.yml", "bedroom"),
    _ddpm("lsun_cat", 1761000, "fac870bd988348eab88e", "bbee0e7c3d7abfb6e2539eaf2fb9987b", "cat.yml", "cat"),
    _ddpm("ema_lsun_cat", 1761000, "0701aac3aa69457bbe34", "646f23f4821f2459b8bafc57fd824558", "cat.yml", "cat"),
    _ddpm("lsun_church", 4432000, "2711a6f712e34b06b9d8", "eb619b8a5ab95ef80f94ce8a5488dae3", "church.yml", "church_outdoor"),
    _ddpm("ema_lsun_church", 4432000, "44ccb50ef3c6436db52e", "fdc68a23938c2397caba4a260bc2445f", "church.yml", "church_outdoor"),
    Published(
        "celeba", "https://drive.google.com/uc?id=1R_H-fJYXSH79wfSKs9D-fuKQVan5L-GR", None,
        "diffusion_celeba_model/ckpt.pth", "celeba.yml",
    ),
    Published("fashion_mnist", None, "a8dbb164956dbd5ead7778feddbbb4b2", "fashion_mnist.fp16.safetensors", "fashion_mnist.yml"),
)  # fmt: skip
PUBLISHED = {weights.name: weights for weights in _ALL}
_FOR_DATA = {
    "CIFAR10": "ema_cifar10",
    "bedroom": "ema_lsun_bedroom",
    "cat": "ema_lsun_cat",
    "church_outdoor": "ema_lsun_church",
    "CELEBA": "celeba",
    "FASHION_MNIST": "fashion_mnist",
}


def for_data(data: DataConfig) -> Published:
    """The EMA weights that were trained on the config's data set. Raises Refusal where none were published."""
    key = data.name
    if key not in _FOR_DATA:
        there = "CIFAR10, LSUN's bedroom, cat and church_outdoor, CELEBA and FASHION_MNIST"
        raise Refusal(
            f"no weights were published for {key}; there are some for {there}; name your own with --ckpt"
        )
    weights = PUBLISHED[_FOR_DATA[key]]
    size = load_config(weights.config).data.image_size
    if data.image_size != size:
        raise Refusal(f"data.image_size is {data.image_size}; the weights published for {key} are for {size}")
    return weights


def locate(ckpt: str) -> Path:
    """The file or folder that `ckpt` means: a path, the name of published weights, or hf://owner/name.

    What has to be downloaded is, by one process for all. Raises Refusal where it can't be had, or for a name that is none.
    """
    if Path(ckpt).exists():
        return Path(ckpt)
    if ckpt.startswith(HUB):
        from functions.weights import fetch  # its libraries take a second to import

        with distributed.main_first():
            return fetch.hub(ckpt.removeprefix(HUB))
    if ckpt in PUBLISHED:
        return get(PUBLISHED[ckpt])
    raise Refusal(f"there is no checkpoint at {ckpt}{nearest(ckpt, list(PUBLISHED))}")


def local(ckpt: str) -> Path:
    """The file or folder that `locate` would give, whether it is there yet or not; a name of the Hub as it is."""
    return PUBLISHED[ckpt].path if ckpt in PUBLISHED and not Path(ckpt).exists() else Path(ckpt)


def get(weights: Published) -> Path:
    """The verified file: this repository's, or the cache's, downloaded into it by one process for all. Raises as `locate`."""
    if weights.url is None:
        return _shipped(weights)
    from functions.weights import fetch

    with distributed.main_first():
        return fetch.published(weights)


def _shipped(weights: Published) -> Path:
    """The repository's own file. Raises Refusal where it is not what was committed."""
    path = weights.path
    if not path.is_file() or files.digest(path, "md5") != weights.md5:
        what = "does not have its md5" if path.is_file() else "is missing"
        raise Refusal(
            f"{path} {what} {weights.md5}; it is part of this repository: `git checkout {path.name}` there restores it"
        )
    return path


def own_config(ckpt: str) -> Config:
    """The config that comes with a checkpoint: a published one's, a diffusers folder's, or the config.yml beside a file.

    Raises Refusal where there is none.
    """
    path = Path(ckpt)
    if not path.exists() and ckpt in PUBLISHED:
        config = load_config(PUBLISHED[ckpt].config)
        return replace(config, data=replace(config.data, category=PUBLISHED[ckpt].category))
    if not path.exists() and ckpt.startswith(HUB):
        from functions.weights import fetch

        return diffusers_config.read(fetch.hub(ckpt.removeprefix(HUB), only_config=True))
    if diffusers_config.is_folder(path):
        return diffusers_config.read(path)
    beside = path.with_name("config.yml")
    if path.is_file() and beside.is_file():
        return load_config(str(beside))
    if not path.exists():
        raise Refusal(f"there is no checkpoint at {ckpt}{nearest(ckpt, list(PUBLISHED))}")
    raise Refusal(f"--config is missing: {ckpt} does not say which network and schedule it is for")
