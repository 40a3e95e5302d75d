"""What `--ckpt` and `--use_pretrained` name: the file or folder, and the config that comes with it."""

from pathlib import Path

from configs import Config, DataConfig, load_config
from configs.refusal import Refusal, nearest
from functions.disk import files
from functions.runtime import distributed
from functions.weights import diffusers_config, fetch
from functions.weights.published import PUBLISHED, Published


def for_data(data: DataConfig) -> Published:
    """The weights published for a data set, the EMA if there are two. Raises Refusal if there are none."""
    rows = {weights.data: weights for weights in PUBLISHED.values()}  # the EMA comes last
    name, weights = data.name, rows.get(data.name)
    if weights is None:
        raise Refusal(f"no weights are published for {name}, but for {', '.join(rows)}; --ckpt takes yours")
    size = load_config(weights.config).data.image_size
    if data.image_size != size:
        raise Refusal(f"data.image_size is {data.image_size}; the published weights of {name} are for {size}")
    return weights


def locate(ckpt: str, only_config: bool = False) -> Path:
    """Where a path, a run's folder, a published name or hf://owner/name lies. One process downloads for all.

    only_config: leave the weights on the Hub. Raises Refusal if the name is unknown or the download fails.
    """
    path = Path(ckpt)
    if path.exists():
        return path / "ckpt.pth" if (path / "ckpt.pth").is_file() else path  # the first: of a run's folder
    if ckpt in PUBLISHED:
        return get(PUBLISHED[ckpt])
    if ckpt.startswith("hf://"):
        with distributed.main_first():
            return fetch.hub(ckpt.removeprefix("hf://"), only_config)
    raise Refusal(f"there is no checkpoint at {ckpt}{nearest(ckpt, list(PUBLISHED))}")


def get(weights: Published) -> Path:
    """The verified file, downloaded by one process for all. Raises Refusal if it cannot be had."""
    path = weights.path
    if weights.url is not None:
        with distributed.main_first():
            return fetch.published(weights)
    if not path.is_file() or files.digest(path, "md5") != weights.md5:
        fault = f"does not have its md5 {weights.md5}" if path.is_file() else "is missing"
        raise Refusal(f"{path} {fault}; `git checkout {path.name}` in its folder restores it")
    return path


def own_config(ckpt: str) -> Config:
    """The config of a published name, in a diffusers folder, or beside a file. Raises Refusal without one."""
    if ckpt in PUBLISHED and not Path(ckpt).exists():
        return load_config(PUBLISHED[ckpt].config)
    path = locate(ckpt, only_config=True)
    if diffusers_config.is_folder(path):
        return diffusers_config.read(path)
    beside = path.with_name("config.yml")
    if path.is_file() and beside.is_file():
        return load_config(str(beside))
    raise Refusal(f"--config is missing: {ckpt} does not say which network and schedule it is for")
