"""A signal ends a run after the step in flight, and nothing is lost: what goes on ends as if undisturbed."""

import os
import re
import signal
import threading
import time

import pytest
from support.processes import wait_until
from support.program import main, small_config, two_ranks, two_started
from support.runs import assert_same, checkpoint

CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 0, signal.SIGINT: 130}


@pytest.fixture(autouse=True)
def heeds_interrupts():
    """Parallel tests' processes are started to ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number, ready):
    """Send this process a signal once `ready()`; the thread to join."""

    def wait():
        deadline = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_run_stopped_by_six_signals_ends_as_if_undisturbed(tmp_path):
    common = dict(training__batch_size=32, training__snapshot_freq=10**6, training__validation_freq=10**6)
    config = small_config(tmp_path / "c.yml", training__n_iters=10_000, **common)
    command = ("--config", config, "--exp", tmp_path, "--doc", "d", "--resume_training auto")
    log, steps = tmp_path / "logs" / "d" / "stdout.txt", []
    for k in range(6):
        number = list(CODES)[k % 3]

        def ready(begun=k + 1):  # the handler is there before the log's first line
            return log.exists() and log.read_text().count("training on") == begun

        thread = send(number, ready)
        said = main(*command, code=CODES[number]).stderr
        thread.join()
        steps.append(checkpoint(tmp_path)["step"])
        assert f"{signal.Signals(number).name} came: step {steps[-1]} is saved and nothing is lost" in said
        assert f"--exp {tmp_path} --doc d --resume_training auto" in said
    assert steps == sorted(set(steps))  # six different moments
    assert re.search(rf"stopped: SIG\w+ came: step {steps[-1]} is saved", log.read_text())
    last = small_config(tmp_path / "c.yml", training__n_iters=steps[-1] + 2, **common)
    main(*command)
    main("--config", last, "--exp", tmp_path, "--doc", "whole")
    assert_same(checkpoint(tmp_path), checkpoint(tmp_path, "whole"))


def test_two_processes_agree_on_the_step_where_one_got_the_signal(tmp_path):
    common = dict(training__batch_size=33, training__snapshot_freq=10**6, training__validation_freq=10**6)
    config = small_config(tmp_path / "c.yml", training__n_iters=10_000, **common)
    command = ["--config", config, "--exp", tmp_path, "--doc", "d"]
    with two_started(*command) as processes:
        wait_until((tmp_path / "logs" / "d" / "ckpt.pth").exists, processes[0])
        processes[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], said
    step = checkpoint(tmp_path)["step"]
    assert all(f"SIGTERM came: step {step} is saved" in words for words in said)
    small_config(config, training__n_iters=step + 2, **common)
    two_ranks(*command, "--resume_training")
    two_ranks("--config", config, "--exp", tmp_path, "--doc", "whole")
    assert_same(checkpoint(tmp_path), checkpoint(tmp_path, "whole"))


def test_a_snapshot_is_due_after_minutes(tmp_path):
    config = small_config(
        tmp_path / "c.yml",
        training__batch_size=32,
        training__n_iters=4,
        training__snapshot_freq=100,
        training__snapshot_minutes=1e-6,
    )
    main("--config", config, "--exp", tmp_path, "--doc", "d")
    assert {p.name for p in (tmp_path / "logs" / "d").glob("ckpt_*")} == {
        f"ckpt_{k}.pth" for k in (1, 2, 3, 4)
    }


def test_sampling_stops_after_a_batch_and_goes_on(run, tmp_path):
    command = (
        "--config", run.config, "--ckpt", run.ckpt, "--exp", tmp_path, "--sample --fid --timesteps 20",
        "--num_samples", 200, "-i", "a",
    )  # fmt: skip
    folder = tmp_path / "image_samples" / "a"
    thread = send(signal.SIGTERM, lambda: (folder / "0.png").exists())
    assert "SIGTERM came" in main(*command, code=143).stderr
    thread.join()
    made = len(list(folder.glob("*.png")))
    assert 0 < made < 200 and made % 4 == 0
    main(*command)
    assert len(list(folder.glob("*.png"))) == 200
