"""What the last released commit began goes on here: folders to the same bytes, a run to the same tensors.

tests/fixtures/last_commit/README.md says how its files were made. On the same model of processor and the same
torch everything is compared exactly, elsewhere to one grey level. Files that were there stay as they are.
"""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.images import pngs
from support.machine import processor
from support.program import ROOT, files_below, main, sampling
from support.runs import checkpoint, fingerprint

FIXTURE = ROOT / "tests" / "fixtures" / "last_commit"
MADE = json.loads((FIXTURE / "made.json").read_text())
EXACT = (processor(), str(torch.__version__)) == (MADE["processor"], MADE["torch"])


@pytest.fixture(autouse=True)
def one_thread():
    """As it was made: sums over several threads round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sample(exp, folder, *arguments, mode):
    command = sampling(FIXTURE / "four.yml", FIXTURE / "ckpt.pth", exp, "-i", folder, *arguments, mode=mode)
    return main(*command).stderr


def assert_continued(folder, expected, before):
    """The images of `before` to the byte, and the others as the last commit made them."""
    ours, theirs = pngs(folder), pngs(expected)
    assert ours.keys() == theirs.keys() and before.items() <= ours.items()
    if EXACT:
        assert ours == theirs
    for name in theirs:
        a, b = (np.asarray(Image.open(place / name)).astype(int) for place in (folder, expected))
        assert np.abs(a - b).max() <= 1


def test_six_images_are_extended_to_ten(tmp_path):
    folder, made = tmp_path / "image_samples" / "fid", FIXTURE / "made" / "fid"
    shutil.copytree(FIXTURE / "begun" / "fid", folder)
    before = pngs(folder)
    said = sample(tmp_path, "fid", "--timesteps 10 --eta 1 --num_samples 10", mode="--fid")
    assert len(before) == 6 and "4 images to make in batches of 4, 6 already there" in said
    assert_continued(folder, made, before)
    manifest, old = (json.loads((place / "manifest.json").read_text()) for place in (folder, made))
    assert manifest["decides"] == old["decides"] and manifest["parts"][0] == old["parts"][0]


@pytest.mark.parametrize(
    "name, arguments, gone",
    [
        ("sequence", "--timesteps 5", ("0_0.png", "3_2.png", "7_4.png")),
        ("interpolation", "--timesteps 10 --eta 0.5", ("0.png", "4.png", "5.png", "10.png")),
    ],
)
def test_a_sequence_and_an_interpolation_are_completed(tmp_path, name, arguments, gone):
    folder, made = tmp_path / "image_samples" / name, FIXTURE / "made" / name
    shutil.copytree(made, folder)
    for file in gone:
        (folder / file).unlink()
    before = pngs(folder)
    said = sample(tmp_path, name, arguments, mode=f"--{name}")
    assert f"{len(gone)} images to make" in said
    assert_continued(folder, made, before)


def test_a_grid_has_nothing_left_to_make(tmp_path):
    folder = tmp_path / "image_samples" / "grid"
    shutil.copytree(FIXTURE / "made" / "grid", folder)
    before = files_below(folder)
    cells = "--timesteps 3 5 --eta 0 1 --sample_type generalized ddpm_noisy --num_samples 5"
    said = sample(tmp_path, "grid", cells, mode="--fid")
    assert re.findall(r"\d+ images to make", said) == 6 * ["0 images to make"]
    assert before.items() <= files_below(folder).items()


def test_a_run_resumes_to_the_same_tensors(tmp_path):
    folder = tmp_path / "logs" / "run"
    folder.mkdir(parents=True)
    shutil.copy(FIXTURE / "ckpt.pth", folder)
    main("--config", FIXTURE / "four.yml", "--exp", tmp_path, "--doc run --resume_training")
    saved = checkpoint(tmp_path, "run")
    assert (saved["step"], saved["epoch"], saved["images_seen"], saved["seed"]) == (4, 1, 600, 7)
    for name, expected in MADE["resumed"].items():
        found = fingerprint(saved)[name]
        assert found["norm"] == pytest.approx(expected["norm"], rel=1e-6), name
        assert found["sha256"] == expected["sha256"] or not EXACT, name
