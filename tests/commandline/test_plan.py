"""--plan says what a command would run and makes nothing."""

import re

import pytest
from support.pipelines import pipeline
from support.program import files_below, main, refuses, small_config

from runners.tools.plan import _duration


@pytest.fixture
def plan(run, tmp_path):
    """Plan a command on the small run, and see that nothing was made."""

    def plan(*arguments, exp=tmp_path, **options) -> str:
        before = files_below(exp)
        process = main("--config", run.config, "--exp", exp, *arguments, "--plan", **options)
        assert files_below(exp) == before
        return process.stdout

    return plan


def test_a_grid_is_planned_cell_by_cell(run, plan):
    """Whole batches of 4: 10 images are 12 evaluations a step. 100 quadratic steps are 96 different ones."""
    grid = ("--sample --fid --ckpt", run.ckpt, "--num_samples 10 --timesteps 10 100 --skip_type quad")
    said = plan(*grid, "--eta", 0, 1, "-i", "g", fresh=True)
    assert said.count("g/S10_eta") == 2 and said.count("g/S100_eta") == 2
    assert "10 steps asked, 10 evaluated: 0, 9, 39, 88, 158, 246, 355, 483, 632, 800" in said
    assert "100 steps asked, 96 evaluated, 4 repeats dropped: 0, 1, 2, 3, 5, 6, 8, 9, …, 690" in said
    assert f"10 images to make, 0 already there; {12 * 96:,} evaluations" in said
    evaluations = f"{2 * 12 * (10 + 96):,} evaluations"
    assert f"in all: 4 folders, 40 images, {evaluations}, at most about 164 kB of PNGs" in said
    assert re.search(r"time: about [\d.]+ (ms|s|min|h), by one batch of \d timed just now", said)


def test_the_plan_counts_what_is_there_and_refuses_what_the_command_would(run, plan, tmp_path):
    sample = ("--sample", "--fid", "--ckpt", run.ckpt, "--timesteps", 5)
    main("--config", run.config, "--exp", tmp_path, *sample, "--num_samples", 6)
    said = plan(*sample, "--num_samples", 10)
    # The batches {4..7} and {8..11}, 5 steps.
    assert "4 images to make, 6 already there; 40 evaluations" in said
    command = ("--config", run.config, "--exp", tmp_path, *sample, "--num_samples", 10, "--eta", 1, "--plan")
    refuses(*command, says=["eta is 0.0 there and 1.0 here"], tree=tmp_path)
    assert "not there" in plan("--sample", "--fid", "--doc", "nobody", "--timesteps", 5, "--num_samples", 1)


def test_the_other_ways_to_sample(run, plan):
    said = plan("--sample", "--interpolation", "--ckpt", run.ckpt, "--timesteps", 7)
    assert "11 images to make" in said and f"{11 * 8} evaluations" in said  # 7 does not divide 1000: 8 steps
    said = plan("--sample", "--sequence", "--ckpt", run.ckpt, "--timesteps", 30, "--skip_type", "quad")
    assert "240 images to make" in said and "240 evaluations" in said and "dropped" not in said
    said = plan(
        "--sample --fid --ckpt", run.ckpt, "--timesteps 5 --num_samples 8 --metrics fid --keep_images no"
    )
    assert "0 bytes of PNGs" in said and "metrics: fid against train" in said


def test_training_is_planned_from_where_it_is(run, plan, tmp_path):
    """Steps 1, 2 and 4 leave snapshots; raw, average and Adam's two are four times the parameters."""
    said = plan("--doc", "new")
    assert "steps: 0 to 4, batches of 600 of 1,498 images" in said
    size = (run.exp / "logs" / "d" / "ckpt_4.pth").stat().st_size
    told = float(re.search(r"snapshots: 3 of ([\d.]+) MB", said)[1]) * 1e6
    assert told == pytest.approx(size, rel=0.1)
    few = small_config(run.exp / "few.yml", training__keep_snapshots=1, training__keep_every=2)
    assert re.search(r"snapshots: 3 of .* of which 2 stay, in all", plan("--doc new --config", few))
    few.unlink()
    assert "steps: 4 to 4" in plan("--doc", "d", "--resume_training", exp=run.exp)
    assert "would be moved aside" in plan("--doc", "d", "--ni", exp=run.exp)
    assert "the loss on 299 of 299 test images, bits/dim on 128" in plan("--doc", "d", "--test", exp=run.exp)
    said = plan("--doc", "d", "--test", "--num_samples", 3, exp=run.exp)
    assert "3,003 evaluations of the network: the loss on 3 of 299 test images, bits/dim on 3" in said
    command = ("--config", run.config, "--exp", tmp_path, "--doc no --resume_training --plan")
    refuses(*command, says=["no run"], tree=tmp_path)


def test_times_are_written_as_a_person_would():
    seconds = [0.00083, 0.25, 1.67, 119, 600, 100_000, 27 * 86_400, 9667.3 * 86_400]
    told = ["0.83 ms", "250 ms", "1.7 s", "119 s", "10 min", "28 h", "27 days", "26 years"]
    assert [_duration(of) for of in seconds] == told


def test_data_that_would_have_to_be_fetched_are_not(plan, run, tmp_path):
    config = small_config(tmp_path / "c.yml", data__dataset="FASHION_MNIST")
    before = files_below(tmp_path)
    said = main("--config", config, "--exp", tmp_path, "--doc", "d", "--plan").stdout
    assert "of 60,000 images" in said and files_below(tmp_path) == before


def test_the_plan_of_a_folder_that_clips_is_of_what_was_made(tmp_path):
    folder = pipeline(tmp_path / "pipe", clip_sample=True)
    command = ("--ckpt", folder, "--exp", tmp_path, "--sample --fid --num_samples 2 --timesteps 2")
    main(*command)
    assert "0 images to make, 2 already there" in main(*command, "--plan").stdout
