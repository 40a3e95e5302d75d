"""Resuming is exact, from this program's checkpoints and from upstream's. What cannot resume is refused."""

import re
from copy import deepcopy

import pytest
import torch
from support.processes import started, wait_until
from support.program import MAIN, files_below, main, refuses, small_config
from support.runs import assert_same, checkpoint
from support.warm import WARM
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import load_config
from runners.diffusion import Diffusion
from runners.training.state import TrainingState


@pytest.mark.parametrize("optimizer", ["Adam", "RMSProp", "SGD"])
def test_resuming_is_exact(tmp_path, optimizer):
    """Four steps, over the end of an epoch, against two and two: with dropout, flips and dequantization."""
    changes = dict(data__image_size=4, optim__optimizer=optimizer, optim__lr=1e-4)
    two = small_config(tmp_path / "two.yml", training__n_iters=2, **changes)
    four = small_config(tmp_path / "four.yml", training__n_iters=4, **changes)
    main("--config", four, "--exp", tmp_path, "--doc", "whole", "--seed", 7)
    main("--config", two, "--exp", tmp_path, "--doc", "parts", "--seed", 7)
    main(
        "--config", four, "--exp", tmp_path, "--doc", "parts", "--resume_training", fresh=optimizer == "Adam"
    )  # the run's own seed
    assert_same(checkpoint(tmp_path, "parts"), checkpoint(tmp_path, "whole"))
    logs = ((tmp_path / "logs" / doc / "stdout.txt").read_text() for doc in ("parts", "whole"))
    parts, whole = (re.findall(r"step: \d+, loss: [\d.]+", log) for log in logs)
    assert parts == whole and len(whole) == 4
    events = EventAccumulator(str(tmp_path / "tensorboard" / "parts")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]


def test_a_killed_run_resumes_to_what_it_would_have_been(tmp_path):
    config = small_config(
        tmp_path / "c.yml", training__n_iters=20, training__snapshot_freq=3, training__batch_size=64
    )
    arguments = ("--config", config, "--exp", tmp_path, "--doc")
    with started([WARM, MAIN, *arguments, "killed"]) as process:
        wait_until((tmp_path / "logs" / "killed" / "ckpt_6.pth").exists, process)
    assert 3 <= checkpoint(tmp_path, "killed")["step"] < 20
    main(*arguments, "killed", "--resume_training")
    main(*arguments, "whole")
    assert_same(checkpoint(tmp_path, "killed"), checkpoint(tmp_path, "whole"))
    assert not list((tmp_path / "logs" / "killed").glob(".*"))


def test_a_finished_run_says_so(run):
    before = files_below(run.exp)
    process = main("--config", run.config, "--exp", run.exp, "--doc", "d", "--resume_training")
    assert "finished at step 4" in process.stderr
    assert files_below(run.exp) == before


def test_upstreams_run_resumes(tmp_path, run):
    """A list [model, optimizer, epoch, step, ema], DataParallel's names. The config's learning rate wins."""
    own = checkpoint(run.exp)
    model = {
        f"module.{name}": value.contiguous() for name, value in own["model"].items()
    }  # as upstream's lie in memory
    for state in own["optimizer"]["state"].values():
        state |= {name: value.contiguous() for name, value in state.items()}
    (tmp_path / "logs" / "d").mkdir(parents=True)
    torch.save([model, own["optimizer"], 1, 4, own["ema"]], tmp_path / "logs" / "d" / "ckpt.pth")
    config = small_config(tmp_path / "c.yml", training__n_iters=5, optim__lr=0.0005)
    process = main("--config", config, "--exp", tmp_path, "--doc", "d", "--resume_training")
    assert "learning rate 0.0005 from the config" in process.stderr and "had 0.002" in process.stderr
    after = checkpoint(tmp_path)
    assert after["step"] == 5 and after["epoch"] == 1
    assert {int(state["step"]) for state in after["optimizer"]["state"].values()} == {5}
    assert after["optimizer"]["param_groups"][0]["lr"] == 0.0005
    for name, value in after["ema"].items():  # one update of rate 0.9 after the average that was in the list
        torch.testing.assert_close(value, 0.9 * own["ema"][name] + 0.1 * after["model"][name])


@pytest.mark.parametrize("optimizer", ["Adam", "SGD", "RMSProp"])
def test_the_optimizers_state_is_the_same_however_it_lies_in_memory(tmp_path, optimizer):
    """Upstream's is contiguous, ours channels last as the weights are, and fused optimizers walk memory."""
    config = load_config(str(small_config(tmp_path / "c.yml", optim__optimizer=optimizer)))
    states = []
    for lay in (lambda x: x, lambda x: x.contiguous()):
        torch.manual_seed(0)
        state = TrainingState(Diffusion(config, "cpu"), 0)
        for k in range(2):
            for i, param in enumerate(state.diffusion.model.parameters()):
                noise = torch.randn(param.shape, generator=torch.Generator().manual_seed(100 * k + i))
                param.grad = torch.empty_like(param).copy_(noise)
            state.optimizer.step()
            saved = deepcopy(state.checkpoint())
            for values in saved.optimizer["state"].values():
                values |= {name: lay(value) for name, value in values.items()}
            state.restore(saved, "saved")
        states.append(saved.model)
    assert any(not value.is_contiguous() for value in states[0].values())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


def test_upstreams_run_without_an_average_resumes(tmp_path, run):
    own = checkpoint(run.exp)
    (tmp_path / "logs" / "d").mkdir(parents=True)
    torch.save([own["model"], own["optimizer"], 1, 4], tmp_path / "logs" / "d" / "ckpt.pth")
    process = main(
        "--config",
        small_config(tmp_path / "c.yml", training__n_iters=5),
        "--exp",
        tmp_path,
        "--doc d --resume_training",
    )
    assert "no EMA" in process.stderr
    after = checkpoint(tmp_path)
    for name, value in after["ema"].items():
        torch.testing.assert_close(value, 0.9 * own["model"][name] + 0.1 * after["model"][name])


def test_resuming_with_another_optimizer_or_weights_only_is_refused(tmp_path, run):
    command = ("--exp", tmp_path, "--doc d --resume_training")
    own = checkpoint(run.exp)
    (tmp_path / "logs" / "d").mkdir(parents=True)
    torch.save([own["model"], own["optimizer"], 1, 4, own["ema"]], tmp_path / "logs" / "d" / "ckpt.pth")
    sgd = small_config(tmp_path / "sgd.yml", optim__optimizer="SGD", training__n_iters=9)
    refuses("--config", sgd, *command, says=("momentum_buffer", "SGD"), tree=tmp_path)
    torch.save([own["model"], {}, 1, 4, own["ema"]], tmp_path / "logs" / "d" / "ckpt.pth")
    refuses("--config", sgd, *command, says=("weights only",), tree=tmp_path)
    own["optimizer"]["state"][3]["exp_avg"] = torch.zeros(7)
    torch.save([own["model"], own["optimizer"], 1, 4, own["ema"]], tmp_path / "logs" / "d" / "ckpt.pth")
    adam = small_config(tmp_path / "adam.yml", training__n_iters=9)
    refuses("--config", adam, *command, says=("entry 3 is not",), tree=tmp_path)
    torch.save(own["model"], tmp_path / "logs" / "d" / "ckpt.pth")
    adam = small_config(tmp_path / "adam.yml", training__n_iters=9)
    refuses("--config", adam, *command, says=("weights only",), tree=tmp_path)


def test_auto_starts_a_run_and_then_continues_it(tmp_path):
    for n_iters in (1, 2):
        config = small_config(tmp_path / "c.yml", training__n_iters=n_iters)
        main("--config", config, "--exp", tmp_path, "--doc", "d", "--resume_training", "auto")
        assert checkpoint(tmp_path)["step"] == n_iters
    assert not (tmp_path / "logs" / "d.1").exists()
