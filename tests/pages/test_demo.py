"""`make demo`, as a newcomer runs it, and whether its digits are digits and its clothes clothes."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from support.digit_quality import quality
from support.processes import finished
from support.program import ROOT


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """With 350 of the 850 steps, which are enough for the claims below where the learning rate falls."""
    exp = tmp_path_factory.mktemp("demo")
    tree = yaml.safe_load((ROOT / "configs" / "digits.yml").read_text())
    tree["training"] |= {"n_iters": 350, "snapshot_freq": 175, "validation_freq": 350}
    tree["optim"] |= {"lr": 0.003, "warmup": 25, "decay": "cosine"}
    tree["model"]["ema_rate"] = 0.95
    (exp / "digits.yml").write_text(yaml.safe_dump(tree))
    process = finished(["make", "demo", f"EXP={exp}", f"DIGITS={exp / 'digits.yml'}"], cwd=ROOT, timeout=900)
    assert process.returncode == 0, process.stderr
    return exp / "image_samples", process.stdout


def test_the_demo_names_its_contact_sheets_and_they_are_there(demo):
    folder, said = demo
    for name in ("steps", "clothes", "path", "samples", "sequence", "interpolation"):
        assert f"{folder}/{name}.png" in said
        sheet = np.asarray(Image.open(folder / f"{name}.png"))
        assert sheet.std() > 30  # neither empty nor one colour


def test_the_demos_digits_are_near_real_ones_and_of_all_classes(demo):
    ratio, classes = quality(demo[0] / "samples")
    assert ratio <= 2.5
    assert classes >= 9


def test_the_shipped_networks_clothes_have_the_frame_and_the_greys_of_fashion_mnist(demo):
    """28x28 pixels padded with black (0) to 32x32; the mean grey of the padded training images is 55.8."""
    folder = demo[0] / "steps" / "S50_eta0_seed1234"
    images = np.stack([np.asarray(Image.open(folder / f"{i}.png"), np.float64) for i in range(16)])
    frame = np.ones((32, 32), bool)
    frame[2:-2, 2:-2] = False
    assert images[:, frame].mean() < 3
    assert 35 < images.mean() < 80
    assert (
        min(np.abs(a - b).mean() for i, a in enumerate(images) for b in images[:i]) > 5
    )  # sixteen different ones
