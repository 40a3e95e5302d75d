"""`make demo`, as a newcomer runs it, and whether its digits are digits."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from digit_quality import quality
from PIL import Image


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    exp = tmp_path_factory.mktemp("demo")
    process = subprocess.run(["make", "demo", f"EXP={exp}"], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert process.returncode == 0, process.stderr
    return exp / "image_samples", process.stdout


def test_the_demo_names_three_contact_sheets_that_are_there(demo):
    folder, said = demo
    for name in ("samples", "sequence", "interpolation"):
        assert f"{folder}/{name}.png" in said
        sheet = np.asarray(Image.open(folder / f"{name}.png"))
        assert sheet.std() > 30  # neither empty nor one colour


def test_the_demos_digits_are_near_real_ones_and_of_all_classes(demo):
    ratio, classes = quality(demo[0] / "samples")
    assert ratio <= 2.5
    assert classes >= 9
