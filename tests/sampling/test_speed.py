"""What is done for speed changes no image: compiling, bfloat16, larger batches, threads."""

import json
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.images import grey_levels
from support.networks import randomized, unet
from support.processes import finished
from support.program import ROOT, main, refuses, sampling, small_config

from configs import load_config
from configs.options import Options
from functions.disk import images
from functions.runtime import distributed, memory
from functions.runtime.compilation import CompiledForBatches, Network, seconds_of_batches, should_compile
from functions.runtime.precision import numerics, precision_in_words
from functions.runtime.threads import map_ahead
from models import kernel
from runners.diffusion import Diffusion
from runners.speed import Speed

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_bfloat16_is_near_float32_and_has_a_folder_of_its_own(run, tmp_path):
    command = sampling(run.config, run.ckpt, tmp_path, "--num_samples", 8)
    command += ("--timesteps", 10)
    main(*command, "-i", "fp32", "--precision", "fp32")
    said = main(*command, "-i", "bf16", "--precision", "bf16").stderr
    assert "bfloat16 on cpu" in said
    folder = tmp_path / "image_samples"
    difference = np.abs(grey_levels(folder / "fp32", 8) - grey_levels(folder / "bf16", 8))
    assert difference.max() > 0 and difference.mean() < 2
    assert json.loads((folder / "bf16" / "manifest.json").read_text())["decides"]["precision"] == "bfloat16"
    refuses(*command, "-i", "bf16", says=["precision is bfloat16 there and float32 here"], tree=tmp_path)
    main(*command, "-i", "fp32")  # the default is float32 on a CPU: the same images


def test_a_compiled_network_gives_the_same_images(run, tmp_path):
    command = sampling(run.config, run.ckpt, tmp_path, "--num_samples", 6)
    command += ("--timesteps", 5, "--eta", 1)
    main(*command, "-i", "eager", "--compile", "off")
    said = main(*command, "-i", "compiled", "--compile", "on", fresh=True).stderr
    assert "compiling the network" in said
    folder = tmp_path / "image_samples"
    assert np.abs(grey_levels(folder / "eager", 6) - grey_levels(folder / "compiled", 6)).max() <= 1
    made = (folder / "compiled" / "5.png").read_bytes()
    (folder / "compiled" / "5.png").unlink()
    assert (
        "compiling the network" in main(*command, "-i", "compiled").stderr
    )  # a folder goes on as it was begun
    assert (folder / "compiled" / "5.png").read_bytes() == made


def test_smaller_batches_compile_nothing_new(monkeypatch):
    shapes = []
    monkeypatch.setattr(
        torch, "compile", lambda model, **_: lambda x, t: shapes.append(tuple(x.shape)) or model(x, t)
    )
    network = Network(randomized(unet(), 0))
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([1, 2, 3])
    with torch.no_grad():
        uncompiled = network(x, t)
        network.compile(4)
        torch.testing.assert_close(network(x, t), uncompiled)
        assert network(x[:1], t[:1]).shape == (1, 3, 8, 8)
    assert set(shapes) == {(4, 3, 8, 8)}


def test_other_sizes_than_the_compiled_run_uncompiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: lambda x, t: "compiled")
    network = CompiledForBatches(unet(), [4], graphs=True)
    t = torch.zeros(4, dtype=torch.long)
    assert network(torch.zeros(4, 3, 8, 8), t) == "compiled"
    assert network(torch.zeros(2, 3, 8, 8), t[:2]).shape == (2, 3, 8, 8)


def test_auto_compiles_where_the_work_left_repays_it(monkeypatch, caplog):
    caplog.set_level("INFO")
    assert not should_compile("auto", CUDA, lambda: 100.0)
    assert should_compile("auto", CUDA, lambda: 1000.0)
    assert not should_compile("off", CUDA, lambda: 1000.0)
    assert not should_compile("off", CPU, lambda: pytest.fail("nothing to measure"))
    assert not should_compile("auto", CPU, lambda: 500.0)
    assert should_compile("auto", CPU, lambda: 1000.0)
    assert not should_compile("on", torch.device("mps"), lambda: 1000.0)
    said = [record.message for record in caplog.records]
    assert "about 100 s" in said[0] and "would take longer" in said[0]
    assert "about 1000 s" in said[1] and "should save 50%: compiling" in said[1]
    assert "about 500 s" in said[2] and "would take longer" in said[2]
    assert "about 1000 s" in said[3] and "should save 10%: compiling" in said[3]
    assert "does nothing on mps" in said[4] and len(said) == 5
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    assert not should_compile("auto", CUDA, lambda: 1000.0)
    with pytest.raises(ValueError, match="needs a compiler, such as g\\+\\+"):
        should_compile("on", CPU, lambda: 1000.0)


def test_a_short_command_on_a_cpu_is_told_by_one_image():
    tried = []

    def work(images):
        tried.append(images)
        time.sleep(0.001)

    seconds_of_batches(work, 4, 10, CPU)
    assert set(tried) == {1}
    seconds_of_batches(work, 4, 10**6, CPU)
    assert set(tried) == {1, 4}


def test_auto_does_not_compile_what_has_the_norms_of_c(run):
    diffusion = Diffusion.from_pretrained(str(run.ckpt), load_config(run.config), device="cpu")
    for precision, compiles in (("default", True), ("bf16", kernel.library() is None)):
        diffusion.accelerate(precision)
        assert Speed(Options(), diffusion, 10**9).compile_if_it_pays(4, 10**8) == compiles


def test_the_batch_that_fits_is_found(monkeypatch):
    """A made-up device with 1000 MB free. An image takes 5 MB, and above 60 images memory runs out."""
    tried = []

    def evaluate(batch):
        tried.append(batch)
        if batch > 60:
            raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10**6)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 41 * 10**6)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 * 10**6, 2000 * 10**6))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert memory.largest_batch(evaluate, 50_000, CUDA) == 32
    assert tried == [8, 128, 64, 32]  # 0.7 of the free memory holds 140 images
    assert memory.largest_batch(evaluate, 5, CUDA) == 8


def test_ranks_get_ranks_their_share_and_a_folder_its_own_batch(monkeypatch):
    """On a made-up GPU: what fits is asked for a rank's share, but not for a folder that was begun."""
    asked = []
    monkeypatch.setattr(memory, "largest_batch", lambda evaluate, most, device: asked.append(most) or 64)
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    diffusion = SimpleNamespace(config=load_config("cifar10.yml"), device=CUDA, evaluate=None)
    options = SimpleNamespace(batch_size=None, compile="auto")
    speed = Speed(options, diffusion, 1000)
    assert speed.batch_size() == 64 and speed.batch_size({"batch_size": 48}) == 48 and asked == [250]
    assert Speed(SimpleNamespace(batch_size=7), diffusion, 1000).batch_size({"batch_size": 48}) == 7
    large = SimpleNamespace(config=load_config("church.yml"), device=CUDA, evaluate=None)
    Speed(options, large, 10**6).batch_size()
    assert asked[1] * 4 * 128 * 256**2 <= 2**31


def test_batch_auto_is_the_configs_on_a_cpu(run, tmp_path):
    command = sampling(run.config, run.ckpt, tmp_path, "--num_samples", 5)
    said = main(*command, "--timesteps", 2, "--batch_size", "auto").stderr
    assert "--batch_size auto is for CUDA: the config's 4 here" in said and "in batches of 4" in said
    refuses(*command, "--batch_size", "many", says=["many is not a batch size", "or auto"], tree=tmp_path)
    refuses(*command, "--batch_size", "-3", says=["--batch_size is -3"], tree=tmp_path)


def test_numerics_restores_torchs_switches(monkeypatch):
    def switches():
        return (
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
            torch.are_deterministic_algorithms_enabled(),
        )

    before = switches()
    assert before[0] and not before[1]  # torch's defaults, upstream's numerics
    with pytest.raises(KeyError), numerics("fp32", CUDA, training=True):
        assert switches() == (False, False, True)
        raise KeyError
    assert switches() == before
    with numerics("default", CUDA, training=False):
        assert switches() == before
    assert precision_in_words("default", CUDA) == "float32 with TF32 convolutions"
    assert precision_in_words("fp32", CUDA) == precision_in_words("default", CPU) == "float32"


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_work_ahead_keeps_the_order_and_raises(device):
    """On a CPU in turn, beside a GPU in a thread."""
    assert list(map_ahead(lambda i: i * i, range(5), device)) == [0, 1, 4, 9, 16]
    assert list(map_ahead(lambda i: i, [], device)) == []
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda i: 1 // i, [1, 0], device))


def test_writing_keeps_behind_by_a_batch_at_most_and_names_each_image(tmp_path, monkeypatch):
    gate, written = threading.Semaphore(0), []
    monkeypatch.setattr(
        images,
        "write_png",
        lambda path, image: (gate.acquire(), written.append((path.name, int(image[0, 0, 0])))),
    )
    with images.writer(tmp_path, CUDA) as write:
        write(["0", "1"], torch.tensor([0, 1], dtype=torch.uint8).view(2, 1, 1, 1))
        write(
            ["2", "3"], torch.tensor([2, 3], dtype=torch.uint8).view(2, 1, 1, 1)
        )  # does not wait for the first
        assert written == []
        third = threading.Thread(
            target=write, args=(["4", "5"], torch.tensor([4, 5], dtype=torch.uint8).view(2, 1, 1, 1))
        )
        third.start()
        third.join(0.2)
        assert third.is_alive()  # it does: a batch is waiting
        gate.release(6)
        third.join(10)
    assert sorted(written) == [(str(i), i) for i in range(6)]


def test_a_full_disk_ends_the_run_in_a_sentence(run, tmp_path, monkeypatch):
    def full(path, image):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(images, "write_png", full)
    command = sampling(run.config, run.ckpt, tmp_path, "--num_samples", 9)
    assert "No space left" in main(*command, "--timesteps", 2, code=1).stderr


PEAK = """
import resource, sys, torch
from configs import load_config
from runners.diffusion import Diffusion

diffusion = Diffusion(load_config(sys.argv[1]), torch.device("cpu"))
diffusion.network = lambda x, t: 0.1 * x  # images are large and the network costs nothing
sampling = diffusion.sampling(int(sys.argv[2]), eta=1.0, seed=0)
assert [batch.chains for batch in diffusion.sample_batches(range(2), sampling, 2)] == [[0, 1]]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_number_of_steps(tmp_path):
    """Two images of 256x256, with noise, which is drawn ahead. A trajectory kept would take 280 MB more."""
    changes = dict(data__image_size=256, data__channels=3, model__in_channels=3, model__out_ch=3)
    config = small_config(tmp_path / "c.yml", **changes)
    peaks = []
    for steps in (20, 200):
        process = finished([sys.executable, "-c", PEAK, config, steps], cwd=ROOT)
        assert process.returncode == 0, process.stderr
        peaks.append(int(process.stdout))
    assert peaks[1] < peaks[0] * 1.05
