"""The table of published weights: where each file lies, its hash, and the config and data set it is for."""

from dataclasses import dataclass
from pathlib import Path

from configs.machine import cache

SHIPPED = Path(__file__).resolve().parents[2] / "models" / "pretrained"


@dataclass(frozen=True)
class Published:
    name: str
    url: str | None  # None for a file of this repository
    md5: str | None  # None if no hash was published
    file: str  # below SHIPPED, or below the cache, where earlier tools keep it too
    config: str  # the shipped config of its network and schedule
    data: str  # `DataConfig.name` of its data set

    @property
    def path(self) -> Path:
        if self.url is None:
            return SHIPPED / self.file
        return cache() / "diffusion_models_converted" / self.file


def _ddpm(name: str, data: str, step: str, heibox: str, md5: str) -> Published:
    """One of DDPM's, as converted to PyTorch. `heibox` is its id at heibox.uni-heidelberg.de."""
    raw = name.removeprefix("ema_")
    file = f"{name.replace(raw, f'diffusion_{raw}_model')}/model-{step}.ckpt"
    url = f"https://heibox.uni-heidelberg.de/f/{heibox}/?dl=1"
    return Published(name, url, md5, file, f"{raw.removeprefix('lsun_')}.yml", data)


_DDPM = """
    cifar10           CIFAR10         790000   869980b53bf5416c8a28  82ed3067fd1002f5cf4c339fb80c4669
    ema_cifar10       CIFAR10         790000   2e4f01e2d9ee49bab1d5  1fa350b952534ae442b1d5235cce5cd3
    lsun_bedroom      bedroom         2388000  f179d4f21ebc4d43bbfe  f70280ac0e08b8e696f42cb8e948ff1c
    ema_lsun_bedroom  bedroom         2388000  b95206528f384185889b  1921fa46b66a3665e450e42f36c2720f
    lsun_cat          cat             1761000  fac870bd988348eab88e  bbee0e7c3d7abfb6e2539eaf2fb9987b
    ema_lsun_cat      cat             1761000  0701aac3aa69457bbe34  646f23f4821f2459b8bafc57fd824558
    lsun_church       church_outdoor  4432000  2711a6f712e34b06b9d8  eb619b8a5ab95ef80f94ce8a5488dae3
    ema_lsun_church   church_outdoor  4432000  44ccb50ef3c6436db52e  fdc68a23938c2397caba4a260bc2445f
"""
_DRIVE = "https://drive.google.com/uc?id=1R_H-fJYXSH79wfSKs9D-fuKQVan5L-GR"
# SDEdit's file, whose first address has been closed since 2023; DDNM keeps this copy.
_HQ_DRIVE = "https://drive.google.com/uc?id=1wSoA5fm_d6JBZk4RZ1SzWLMgev4WqH21"
_ALL = [
    *(_ddpm(*line.split()) for line in _DDPM.strip().splitlines()),
    Published("celeba", _DRIVE, None, "diffusion_celeba_model/ckpt.pth", "celeba.yml", "CELEBA"),
    Published("celeba_hq", _HQ_DRIVE, None, "diffusion_celeba_hq_model/celeba_hq.ckpt", "celeba_hq.yml",
              "CELEBA_HQ"),
    Published("fashion_mnist", None, "a8dbb164956dbd5ead7778feddbbb4b2", "fashion_mnist.fp16.safetensors",
              "fashion_mnist.yml", "FASHION_MNIST"),
]  # fmt: skip
PUBLISHED = {weights.name: weights for weights in _ALL}
