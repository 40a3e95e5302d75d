"""What a training run writes, in which order it sees the images, and when it stops."""

import os
import pty
import re
import resource
import shutil
import signal

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.processes import finished, started, wait_until
from support.program import MAIN, main, refuses, small_config
from support.runs import assert_same, checkpoint
from support.warm import WARM
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from configs import OptimConfig, load_config
from datasets.batches import training_order
from functions.objectives import loss_by_quarter
from runners.training.state import build_optimizer


def test_a_run_leaves_what_upstreams_does_and_more(run):
    log_dir, tensorboard_dir = run.exp / "logs" / "d", run.exp / "tensorboard" / "d"
    snapshots = {"ckpt.pth", "ckpt_1.pth", "ckpt_2.pth", "ckpt_4.pth"}
    assert {p.name for p in log_dir.iterdir()} == snapshots | {"config.yml", "run.yml", "stdout.txt"}
    assert load_config(str(log_dir / "config.yml")) == load_config(str(run.config))
    lines = (log_dir / "stdout.txt").read_text()
    losses = dict(re.findall(r"step: (\d+), loss: ([\d.]+)", lines))
    assert list(losses) == ["1", "2", "3", "4"]
    assert re.search(r"step: 3, validation_loss: [\d.]+", lines)
    assert "comment: a note" in lines
    events = EventAccumulator(str(tensorboard_dir)).Reload()
    assert {"loss", "grad_norm", "learning_rate", "images_per_second", "validation_loss"} <= set(
        events.Tags()["scalars"]
    )
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert events.Scalars("loss")[3].value == pytest.approx(float(losses["4"]))
    assert [e.step for e in events.Images("samples")] == [1, 2, 4]
    assert "1498 images of DIGITS" in run.stderr and "to step 4" in run.stderr


def test_tensorboard_shows_the_loss_by_quarter_of_the_timesteps_and_the_hyperparameters(run):
    events = EventAccumulator(str(run.exp / "tensorboard" / "d")).Reload()
    quarters = [f"loss_by_timestep/{name}" for name in ("000-249", "250-499", "500-749", "750-999")]
    assert [tag for tag in events.Tags()["scalars"] if tag.startswith("loss_by_timestep")] == quarters
    of_quarters = [{e.step: e.value for e in events.Scalars(tag)} for tag in quarters]
    for step in (1, 2):  # a block each, so that the step's loss is a mean of the quarters'
        assert (
            min(q[step] for q in of_quarters)
            < events.Scalars("loss")[step - 1].value
            < max(q[step] for q in of_quarters)
        )
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert yaml.safe_load(text) == yaml.safe_load((run.exp / "logs" / "d" / "config.yml").read_text())
    start = HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    values = start.session_start_info.hparams
    assert values["model.ch"].number_value == 32 and values["optim.optimizer"].string_value == "Adam"
    assert values["data.rescaled"].string_value == "True"
    assert values["seed"].number_value == 1234 and values["model.ch_mult"].string_value == "(1,)"
    experiment = HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    )
    assert {m.name.tag for m in experiment.experiment.metric_infos} <= set(events.Tags()["scalars"])


def test_losses_by_quarter_are_what_a_loop_sums_up():
    rng = np.random.default_rng(0)
    for T in (1000, 10, 7, 3):
        t, losses = rng.integers(0, T, 50), rng.random(50).astype(np.float32)
        expected = np.zeros((2, 4))
        for at, loss in zip(t, losses, strict=True):
            expected[:, int(4 * at / T)] += (loss, 1)
        found = loss_by_quarter(torch.from_numpy(losses), torch.from_numpy(t), T)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_checkpoints_hold_tensors_and_plain_values_of_the_whole_state(run):
    saved = checkpoint(run.exp)
    assert saved["step"] == 4 and saved["seed"] == 1234
    assert (saved["epoch"], saved["images_seen"]) == (1, 600)  # 600, 1200, 1498 | 600
    assert saved["model"].keys() == saved["ema"].keys()
    assert any(not torch.equal(saved["model"][k], saved["ema"][k]) for k in saved["model"])


def test_an_old_run_is_moved_aside_with_ni_and_refused_without(tmp_path):
    config = small_config(tmp_path / "c.yml", training__n_iters=1)
    for doc in ("logs/d", "tensorboard/d", "logs/d.1"):
        (tmp_path / doc).mkdir(parents=True)
        (tmp_path / doc / "stdout.txt").write_text(doc)
    command = ("--config", config, "--exp", tmp_path, "--doc", "d")
    refuses(*command, says=("logs/d already", "--resume_training", "--ni"), tree=tmp_path)
    process = main(*command, "--ni")
    assert f"{tmp_path}/logs/d is now in {tmp_path}/logs/d.2" in process.stderr
    assert (tmp_path / "logs" / "d.2" / "stdout.txt").read_text() == "logs/d"
    assert (tmp_path / "tensorboard" / "d.2" / "stdout.txt").read_text() == "tensorboard/d"
    assert (tmp_path / "logs" / "d.1" / "stdout.txt").read_text() == "logs/d.1"
    assert checkpoint(tmp_path)["step"] == 1


@pytest.mark.parametrize("answer, moved", [("n\n", False), ("y\n", True), ("\x04", False)])
def test_a_person_at_a_terminal_is_asked(tmp_path, answer, moved):
    config = small_config(tmp_path / "c.yml", training__n_iters=1)
    (tmp_path / "logs" / "d").mkdir(parents=True)
    (tmp_path / "logs" / "d" / "stdout.txt").touch()
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    process = finished([WARM, MAIN, "--config", config, "--exp", tmp_path, "--doc", "d"], stdin=theirs)
    os.close(ours), os.close(theirs)
    assert process.returncode == 0
    assert "Move it aside" in process.stdout
    assert (tmp_path / "logs" / "d.1" / "stdout.txt").exists() == moved
    assert (tmp_path / "logs" / "d" / "ckpt.pth").exists() == moved


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_snapshot(tmp_path):
    config = small_config(tmp_path / "c.yml", optim__lr=1e30, training__snapshot_freq=3, training__n_iters=9)
    process = main("--config", config, "--exp", tmp_path, "--doc", "d", code=1, fresh=True)
    assert re.search(r"main.py: error: step 2: the loss is (nan|inf)", process.stderr)
    assert "Traceback" not in process.stderr
    assert checkpoint(tmp_path)["step"] == 1
    assert {p.name for p in (tmp_path / "logs" / "d").glob("ckpt*")} == {"ckpt.pth", "ckpt_1.pth"}


def test_a_full_disk_at_a_snapshot_is_a_sentence_and_keeps_the_last_one(run, tmp_path):
    """A limit on the size of files stands in for a full disk; it admits the log and not the checkpoint."""
    shutil.copytree(run.exp / "logs", tmp_path / "logs")
    before = checkpoint(tmp_path)
    config = small_config(tmp_path / "c.yml", training__n_iters=5)
    command = [WARM, MAIN, "--config", config, "--exp", tmp_path, "--doc", "d", "--resume_training"]
    process = finished(command, limits={resource.RLIMIT_FSIZE: 200 * 1024})
    assert process.returncode == 1, process.stderr
    assert "main.py: error: [Errno 27] File too large" in process.stderr and "Traceback" not in process.stderr
    assert_same(checkpoint(tmp_path), before)
    assert not list((tmp_path / "logs" / "d").glob("*5*"))


def test_two_trainings_of_one_run_are_refused(tmp_path):
    endless = dict(training__batch_size=32, training__n_iters=10_000, training__snapshot_freq=100_000)
    config = small_config(tmp_path / "c.yml", **endless)
    command = ("--config", config, "--exp", tmp_path, "--doc", "d")
    with started([WARM, MAIN, *command]) as process:
        wait_until((tmp_path / "logs" / "d" / "ckpt.pth").exists, process)
        process.send_signal(signal.SIGSTOP)
        refuses(*command, "--ni", says=("logs/d is in use by another process",), tree=tmp_path)


def test_an_interrupt_is_a_sentence_and_130(tmp_path):
    endless = dict(training__batch_size=32, training__n_iters=10_000, training__snapshot_freq=100_000)
    config = small_config(tmp_path / "c.yml", **endless)
    command = [WARM, MAIN, "--config", config, "--exp", tmp_path, "--doc", "d"]
    with started(command) as process:
        wait_until((tmp_path / "logs" / "d" / "ckpt.pth").exists, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "nothing is lost" in said and "--resume_training" in said and "Traceback" not in said


def test_the_run_ends_with_epochs_or_steps_whichever_is_first(tmp_path):
    config = small_config(tmp_path / "c.yml", data__image_size=4, training__n_epochs=1, training__n_iters=100)
    main("--config", config, "--exp", tmp_path, "--doc", "d")
    saved = checkpoint(tmp_path)
    assert (saved["step"], saved["epoch"], saved["images_seen"]) == (3, 0, 1498)


def test_each_image_is_used_once_an_epoch_in_an_order_of_its_own():
    batches = list(training_order(103, 10, seed=3, epoch=0, images_seen=0, n_epochs=3))
    assert [b.size for b in batches] == 3 * ([10] * 10 + [3])
    orders = [np.concatenate([b.indices for b in batches if b.epoch == e]) for e in range(3)]
    assert all(sorted(order) == list(range(103)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])


@given(
    length=st.integers(1, 40), batch_size=st.integers(1, 45), seed=st.integers(0, 2**32 - 1), data=st.data()
)
def test_from_any_position_the_data_go_on_as_they_would_have(length, batch_size, seed, data):
    whole = list(training_order(length, batch_size, seed, epoch=0, images_seen=0, n_epochs=3))
    k = data.draw(st.integers(0, len(whole) - 1))
    rest = training_order(length, batch_size, seed, whole[k].epoch, whole[k].images_seen, n_epochs=3)
    assert [list(batch.indices) for batch in rest] == [list(batch.indices) for batch in whole[k + 1 :]]


def test_optimizers_have_upstreams_constants():
    model = torch.nn.Linear(2, 2)
    optim = dict(lr=0.1, weight_decay=0.01, beta1=0.8, amsgrad=True, eps=1e-7)
    adam = build_optimizer(model, OptimConfig("Adam", **optim)).defaults
    assert (adam["betas"], adam["amsgrad"], adam["eps"], adam["weight_decay"]) == (
        (0.8, 0.999),
        True,
        1e-7,
        0.01,
    )
    assert build_optimizer(model, OptimConfig("RMSProp", **optim)).defaults["weight_decay"] == 0.01
    assert build_optimizer(model, OptimConfig("SGD", **optim)).defaults["momentum"] == 0.9


def test_test_reports_the_validation_loss(run, tmp_path):
    """--test computes what training logged at that step, to the last digit that both print."""
    changes = dict(data__image_size=4, diffusion__num_diffusion_timesteps=20)
    config = small_config(tmp_path / "c.yml", training__n_iters=3, **changes)
    main("--config", config, "--exp", tmp_path, "--doc", "d")
    logged = re.search(
        r"step: 3, validation_loss: ([\d.]+)", (tmp_path / "logs" / "d" / "stdout.txt").read_text()
    )[1]
    said = main("--config", config, "--exp", tmp_path, "--doc", "d", "--test", fresh=True).stdout
    assert float(
        re.search(r"validation_loss: ([\d.]+) on 299 test images, ema weights", said)[1]
    ) == pytest.approx(float(logged), abs=1e-5)
