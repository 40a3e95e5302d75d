"""To add a sampler, a spacing, a schedule, a task, a metric or a data set is two entries; the rest follows.

Each is added from outside, as its two files would, and used through main.py.
"""

import json
import sys
from dataclasses import replace
from itertools import pairwise
from types import ModuleType
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from support.images import grey_levels
from support.program import main, sampling, small_config

import main as program
from configs import DataConfig, DiffusionConfig, choices
from functions import samplers, schedules
from functions.metrics import metrics
from functions.metrics.metrics import Metric, Number
from functions.samplers import Step
from runners.sampling import tasks


@torch.no_grad()
def mine(model, x, timesteps, alphas_cumprod, *, end, randn_like):
    """The probability-flow ODE by Euler's steps in √((1-ᾱ)/ᾱ), which is DDIM at η = 0."""
    for t, t_next in pairwise([*reversed(timesteps), end]):
        a, b = alphas_cumprod[t + 1], alphas_cumprod[t_next + 1]
        eps = model(x, x.new_full((len(x),), t, dtype=torch.long))
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x = b.sqrt() * (x / a.sqrt() + (((1 - b) / b).sqrt() - ((1 - a) / a).sqrt()) * eps)
        yield Step(t, x, x0)


MINE = choices.Sampler("Euler's steps", "Euler", "mine")


@pytest.fixture
def added_sampler(monkeypatch):
    monkeypatch.setitem(choices.SAMPLERS, "mine", MINE)
    monkeypatch.setitem(samplers.SAMPLERS, "mine", mine)


def test_a_sampler(run, tmp_path, added_sampler, capsys):
    """It has a flag, help, a manifest, cells and rows of its own, and no η."""
    with pytest.raises(SystemExit, match="0"):
        program.main(["--help"])
    assert "mine (Euler's steps)" in " ".join(capsys.readouterr().out.split())
    command = sampling(run.config, run.ckpt, tmp_path, "--num_samples", 3)
    main(*command, "--timesteps", 10, "-i", "ddim")
    main(*command, "--timesteps", 10, "-i", "e", "--sample_type", "mine")
    ddim, ours = (grey_levels(tmp_path / "image_samples" / name, 3) for name in ("ddim", "e"))
    assert np.abs(ddim - ours).max() <= 1
    decides = json.loads((tmp_path / "image_samples" / "e" / "manifest.json").read_text())["decides"]
    assert decides["sample_type"] == "mine" and decides["eta"] is None
    said = main(
        *command, "--timesteps", 3, 4, "--eta", 0, 1, "--sample_type", "generalized", "mine", "-i", "g"
    )
    cells = {path.name for path in (tmp_path / "image_samples" / "g").glob("S*") if path.is_dir()}
    assert {"S3_eta0_seed1234", "S3_eta1_seed1234", "S3_mine_seed1234"} < cells and len(cells) == 6
    assert "6 cells" in said.stdout
    said = main(*command, "--timesteps", 3, "-i", "x", "--sample_type", "mine", "--eta", 1, code=2).stderr
    assert "--eta is 1; mine draws no noise" in said


def test_what_steps_of_a_sampler_cost(run, tmp_path, added_sampler, monkeypatch):
    """A plan counts the evaluations that the sampler's record says."""
    monkeypatch.setitem(choices.SAMPLERS, "mine", replace(MINE, evaluations=lambda steps: 2 * steps - 1))
    command = sampling(run.config, run.ckpt, tmp_path, "--num_samples", 4, "--batch_size", 4, "--plan")
    said = main(*command, "--timesteps", 10, "-i", "p", "--sample_type", "mine").stdout
    assert f"4 images to make, 0 already there; {4 * 19} evaluations of the network" in said


def test_a_spacing(run, tmp_path, monkeypatch):
    monkeypatch.setitem(choices.SPACINGS, "ending", "ends at T - 1")
    monkeypatch.setitem(schedules.SPACINGS, "ending", lambda S, T: [T * (i + 1) // S - 1 for i in range(S)])
    command = sampling(run.config, run.ckpt, tmp_path, "--num_samples", 1)
    assert "t from 999 to 199" in main(*command, "--timesteps", 5, "--skip_type", "ending").stderr


def test_a_beta_schedule(run, tmp_path, monkeypatch):
    names = Literal[(*get_args(DiffusionConfig.__annotations__["beta_schedule"]), "half")]
    monkeypatch.setitem(DiffusionConfig.__annotations__, "beta_schedule", names)
    monkeypatch.setitem(schedules.SCHEDULES, "half", lambda start, end, T: np.full(T, (start + end) / 2))
    config = small_config(tmp_path / "c.yml", diffusion__beta_schedule="half")
    command = sampling(config, run.ckpt, tmp_path, "--num_samples", 1)
    main(*command, "--timesteps", 5)
    decides = json.loads((tmp_path / "image_samples" / "images" / "manifest.json").read_text())["decides"]
    assert decides["diffusion"]["beta_schedule"] == "half"


class First(tasks.Task):
    """{i}_first.png, the x0 predicted at the first step of four chains."""

    def chains(self):
        return 4

    def files(self, chain):
        return [f"{chain}_first.png"]

    def pictures(self, steps, chains):
        yield next(steps).x0

    def sheet(self):
        return [[f"{i}_first.png" for i in range(self.chains())]]


def test_a_task(run, tmp_path, monkeypatch):
    """It continues, refuses another run's folder, and has a sheet, as the others do."""
    monkeypatch.setitem(choices.TASKS, "first", choices.Task("the x0 of the first step: {i}_first.png"))
    monkeypatch.setitem(tasks.TASKS, "first", First)
    command = ("--config", run.config, "--exp", tmp_path, "--ckpt", run.ckpt, "--timesteps", 5)
    assert "4 images to make" in main(*command, "--sample", "--first").stderr
    main(*command, "--sample", "--sequence", "-i", "s")
    folder = tmp_path / "image_samples"
    for i in range(4):
        assert (folder / "images" / f"{i}_first.png").read_bytes() == (
            folder / "s" / f"{i}_0.png"
        ).read_bytes()
    (folder / "images" / "2_first.png").unlink()
    assert "1 images to make" in main(*command, "--sample", "--first").stderr
    assert (folder / "images.png").exists()
    assert "seed is 1234" in main(*command, "--sample", "--first", "--seed", 1, code=2).stderr
    assert "--first goes with --sample" in main(*command, "--first", code=2).stderr


class Brightness(Metric):
    """The mean grey of the first 64 samples."""

    fewest, samples = 1, "pixels"

    def compute(self, evidence):
        return {"mean": evidence.pixels.float().mean().item()}

    def numbers(self, result):
        return {"brightness": Number(result["mean"])}

    def notes(self, result, n, dim):
        return ["of 255"]


def test_a_metric(run, tmp_path, extractor, monkeypatch):
    monkeypatch.setitem(choices.METRICS, "bright", "mean grey")
    monkeypatch.setitem(metrics.METRICS, "bright", Brightness())
    command = sampling(run.config, run.ckpt, tmp_path, "--num_samples", 4)
    said = main(*command, "--timesteps", 5, "--metrics", "bright", "--features", extractor).stdout
    row = next(line for line in said.splitlines() if line.startswith("brightness"))
    assert "of 255" in row and " 4 " in row
    grid = main(
        *command, "--timesteps", 2, 3, "-i", "g", "--metrics", "bright", "--features", extractor
    ).stdout
    assert "## brightness" in grid and "- bright: of 255" in grid


def test_a_data_set(tmp_path, monkeypatch):
    """A module and a name: it trains, is previewed, and says what its test split would be."""
    module = ModuleType("datasets.stripes")
    pictures = torch.arange(8, dtype=torch.uint8).repeat(600, 1, 8, 1) * 30
    module.read = lambda data, root, train: pictures if train else None
    module.SIZES, module.TEST_SPLIT = {"STRIPES": (600, 0)}, "stripes never have one"
    monkeypatch.setitem(sys.modules, "datasets.stripes", module)
    names = Literal[(*get_args(DataConfig.__annotations__["dataset"]), "STRIPES")]
    monkeypatch.setitem(DataConfig.__annotations__, "dataset", names)
    config = small_config(tmp_path / "c.yml", data__dataset="STRIPES", training__n_iters=1)
    said = main("--config", config, "--exp", tmp_path, "--doc", "d").stderr
    assert "600 images of STRIPES" in said and "stripes never have one" in said
    assert "600 images of STRIPES" in main("--config", config, "--exp", tmp_path, "--preview").stdout
