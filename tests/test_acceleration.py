"""What is done for speed changes no image: fused, compiled, bfloat16, threads; and its choices are the ones it states."""

import json
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, main, refuses, small_config
from PIL import Image

from configs import load_config
from functions import noise
from functions.disk import images
from functions.noise import STEPS_AHEAD, step_noise
from functions.runtime import acceleration, distributed
from functions.runtime.acceleration import CompiledForBatches, Network
from functions.runtime.threads import prefetch
from models.fused import fuse, refresh
from models.unet import UNet
from runners.sampling.speed import Pace

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def unet(**changes) -> UNet:
    """A small network with everything in it: attention in a level and in the middle, shortcuts, resampling."""
    arguments = dict(
        image_size=8, in_channels=3, out_ch=3, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.1,
        resamp_with_conv=True,
    )  # fmt: skip
    return UNet(**arguments | changes).eval()


def randomized(network: UNet, seed: int) -> UNet:
    """Biases and norms too, so that a weight that went to the wrong place shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in network.parameters():
            param.add_(0.1 * torch.randn(param.shape, generator=generator))
    return network


@pytest.mark.parametrize(
    "changes", [{}, {"resamp_with_conv": False}, {"ch_mult": (1,), "attn_resolutions": (8,)}]
)
def test_the_fused_network_is_the_network(changes):
    network = randomized(unet(**changes), 0)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    fused = fuse(network, torch.float32)
    with torch.no_grad():
        assert not torch.equal(fused(x, t), x)
        torch.testing.assert_close(fused(x, t), network(x, t), atol=2e-5, rtol=1e-4)
        refresh(fused, randomized(network, 1))  # new weights, the same modules
        torch.testing.assert_close(fused(x, t), network(x, t), atol=2e-5, rtol=1e-4)


def test_the_shipped_networks_can_be_fused():
    for name in ("cifar10.yml", "celeba.yml", "church.yml"):
        config = load_config(name)
        network = unet(
            image_size=config.data.image_size,
            ch_mult=config.model.ch_mult,
            attn_resolutions=config.model.attn_resolutions,
        )
        kinds = {type(module).__name__ for module in fuse(network, torch.bfloat16).modules()}
        assert {"FusedAttnBlock", "Pointwise"} <= kinds and "AttnBlock" not in kinds


def grey_levels(folder, n):
    return np.stack([np.asarray(Image.open(folder / f"{i}.png")).astype(int) for i in range(n)])


def test_bfloat16_is_near_float32_and_has_a_folder_of_its_own(run, tmp_path):
    command = (
        "--config",
        run.config,
        "--ckpt",
        run.ckpt,
        "--exp",
        tmp_path,
        "--sample",
        "--fid",
        "--num_samples",
        8,
    )
    command += ("--timesteps", 10)
    main(*command, "-i", "fp32", "--precision", "fp32")
    said = main(*command, "-i", "bf16", "--precision", "bf16", fresh=True).stderr
    assert "bfloat16 on cpu" in said
    folder = tmp_path / "image_samples"
    difference = np.abs(grey_levels(folder / "fp32", 8) - grey_levels(folder / "bf16", 8))
    assert difference.max() > 0 and difference.mean() < 2
    assert json.loads((folder / "bf16" / "manifest.json").read_text())["decides"]["precision"] == "bfloat16"
    refuses(*command, "-i", "bf16", says=["precision is bfloat16 there and float32 here"], tree=tmp_path)
    main(*command, "-i", "fp32")  # the default is float32 on a CPU: the same images


def test_a_compiled_network_gives_the_same_images(run, tmp_path):
    command = (
        "--config",
        run.config,
        "--ckpt",
        run.ckpt,
        "--exp",
        tmp_path,
        "--sample",
        "--fid",
        "--num_samples",
        6,
    )
    command += ("--timesteps", 5, "--eta", 1)
    main(*command, "-i", "eager", "--compile", "off")
    said = main(*command, "-i", "compiled", "--compile", "on", fresh=True).stderr
    assert "compiling the network" in said
    folder = tmp_path / "image_samples"
    assert np.abs(grey_levels(folder / "eager", 6) - grey_levels(folder / "compiled", 6)).max() <= 1
    made = (folder / "compiled" / "5.png").read_bytes()
    (folder / "compiled" / "5.png").unlink()
    assert (
        "compiling the network" in main(*command, "-i", "compiled", fresh=True).stderr
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


def test_training_compiled_is_training(tmp_path):
    """The epoch's last batch, of 298, runs uncompiled."""
    config = small_config(
        tmp_path / "c.yml",
        model__dropout=0.0,
        model__num_res_blocks=1,
        training__n_iters=3,
        training__validation_freq=9,
    )
    main("--config", config, "--exp", tmp_path, "--doc", "eager")
    main("--config", config, "--exp", tmp_path, "--doc", "compiled", "--compile", "on", fresh=True)
    eager, compiled = losses(tmp_path, "eager"), losses(tmp_path, "compiled")
    assert len(eager) == 3
    np.testing.assert_allclose(compiled, eager, rtol=1e-3)


def test_training_in_bfloat16_learns_the_same(tmp_path):
    config = small_config(tmp_path / "c.yml", model__dropout=0.0, training__validation_freq=9)
    main("--config", config, "--exp", tmp_path, "--doc", "fp32")
    said = main("--config", config, "--exp", tmp_path, "--doc", "bf16", "--precision", "bf16").stderr
    assert "bfloat16 on cpu" in said
    fp32, bf16 = losses(tmp_path, "fp32"), losses(tmp_path, "bf16")
    assert fp32 != bf16
    np.testing.assert_allclose(bf16, fp32, rtol=0.02)
    saved = torch.load(tmp_path / "logs" / "bf16" / "ckpt.pth", weights_only=True)
    assert {value.dtype for value in saved["model"].values()} == {torch.float32}


def losses(exp, doc) -> list[float]:
    lines = (exp / "logs" / doc / "stdout.txt").read_text().splitlines()
    return [float(line.split(", loss: ")[1]) for line in lines if ", loss: " in line]


def test_a_batch_worked_off_in_parts_is_the_batch(tmp_path):
    parts = 7
    changes = dict(model__dropout=0.0, optim__optimizer="SGD", optim__lr=1e-5, training__validation_freq=9)
    main("--config", small_config(tmp_path / "one.yml", **changes), "--exp", tmp_path, "--doc", "one")
    config = small_config(tmp_path / "parts.yml", **changes, training__accumulate=parts)
    assert f"in {parts} parts" in main("--config", config, "--exp", tmp_path, "--doc", "parts").stderr
    one, many = (
        torch.load(tmp_path / "logs" / doc / "ckpt.pth", weights_only=True)["model"]
        for doc in ("one", "parts")
    )
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(losses(tmp_path, "parts"), losses(tmp_path, "one"), rtol=1e-5)


def test_other_sizes_than_the_compiled_run_uncompiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: lambda x, t: "compiled")
    network = CompiledForBatches(unet(), 4, graphs=True)
    t = torch.zeros(4, dtype=torch.long)
    assert network(torch.zeros(4, 3, 8, 8), t) == "compiled"
    assert network(torch.zeros(2, 3, 8, 8), t[:2]).shape == (2, 3, 8, 8)


def test_auto_compiles_where_the_work_left_repays_it(monkeypatch, caplog):
    caplog.set_level("INFO")
    assert not acceleration.should_compile("auto", CUDA, lambda: 100.0)
    assert acceleration.should_compile("auto", CUDA, lambda: 1000.0)
    assert not acceleration.should_compile("off", CUDA, lambda: 1000.0)
    assert not acceleration.should_compile("auto", CPU, lambda: pytest.fail("nothing to measure"))
    assert not acceleration.should_compile("on", torch.device("mps"), lambda: 1000.0)
    said = [record.message for record in caplog.records]
    assert "about 100 s" in said[0] and "not compiled" in said[0]
    assert "about 1000 s" in said[1] and "halve" in said[1]
    assert "does nothing on mps" in said[2] and len(said) == 3
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    assert not acceleration.should_compile("auto", CUDA, lambda: 1000.0)
    with pytest.raises(ValueError, match="needs a compiler, such as g\\+\\+"):
        acceleration.should_compile("on", CPU, lambda: 1000.0)


def test_the_batch_that_fits_is_found(monkeypatch):
    """A made-up device of 1000 MB free: an image takes 5 MB, and above 60 images memory runs out all the same."""
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
    assert acceleration.largest_batch(evaluate, 50_000, CUDA) == 32
    assert tried == [8, 128, 64, 32]  # 0.7 of the free memory holds 140 images
    assert acceleration.largest_batch(evaluate, 5, CUDA) == 8


def test_pace_gives_ranks_their_share_and_a_folder_its_own_batch(monkeypatch):
    """On a made-up GPU: what fits is asked for a rank's share of the images, and what was begun is not asked about."""
    asked = []
    monkeypatch.setattr(
        acceleration, "largest_batch", lambda evaluate, most, device: asked.append(most) or 64
    )
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    diffusion = SimpleNamespace(config=load_config("cifar10.yml"), device=CUDA, evaluate=None)
    options = SimpleNamespace(batch_size=None, compile="auto")
    pace = Pace(options, diffusion, 1000)
    assert pace.batch_size() == 64 and pace.batch_size({"batch_size": 48}) == 48 and asked == [250]
    assert Pace(SimpleNamespace(batch_size=7), diffusion, 1000).batch_size({"batch_size": 48}) == 7
    large = SimpleNamespace(config=load_config("church.yml"), device=CUDA, evaluate=None)
    Pace(options, large, 10**6).batch_size()
    assert asked[1] * 4 * 128 * 256**2 <= 2**31


def test_batch_auto_is_the_configs_on_a_cpu(run, tmp_path):
    command = (
        "--config",
        run.config,
        "--ckpt",
        run.ckpt,
        "--exp",
        tmp_path,
        "--sample",
        "--fid",
        "--num_samples",
        5,
    )
    said = main(*command, "--timesteps", 2, "--batch_size", "auto").stderr
    assert "--batch_size auto is for CUDA: the config's 4 here" in said and "in batches of 4" in said
    refuses(*command, "--batch_size", "many", says=["many is no batch size", "or auto"], tree=tmp_path)
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
    with pytest.raises(KeyError), acceleration.numerics("fp32", CUDA, training=True):
        assert switches() == (False, False, True)
        raise KeyError
    assert switches() == before
    with acceleration.numerics("default", CUDA, training=False):
        assert switches() == before
    assert acceleration.precision_in_words("default", CUDA) == "float32 with TF32 convolutions"
    assert (
        acceleration.precision_in_words("fp32", CUDA)
        == acceleration.precision_in_words("default", CPU)
        == "float32"
    )


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("steps", [1, STEPS_AHEAD, 2 * STEPS_AHEAD + 3])
def test_noise_drawn_ahead_is_each_images_own_stream(steps, beside, monkeypatch):
    monkeypatch.setattr(noise, "works_beside", lambda device: beside)
    shape, indices = (3, 4, 5), [7, 0, 10**6]
    randn_like = step_noise(2**32 - 1, indices, shape, steps, CPU)
    x = torch.zeros(3, *shape)
    drawn = torch.stack([randn_like(x).clone() for _ in range(steps)])
    for row, i in enumerate(indices):
        generator = np.random.default_rng([2**32 - 1, i, 1])
        for k in range(steps):
            np.testing.assert_array_equal(drawn[k, row], generator.standard_normal(shape, dtype=np.float32))


def test_prefetch_keeps_the_order_and_raises():
    assert list(prefetch(lambda i: i * i, range(5))) == [0, 1, 4, 9, 16]
    assert list(prefetch(lambda i: i, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda i: 1 // i, [1, 0]))


def test_writing_keeps_behind_by_a_batch_at_most_and_names_each_image(tmp_path, monkeypatch):
    gate, written = threading.Semaphore(0), []
    monkeypatch.setattr(
        images,
        "write_png",
        lambda path, image: (gate.acquire(), written.append((path.name, int(image[0, 0, 0])))),
    )
    with images.png_writer(tmp_path, beside=True) as write:
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
    command = (
        "--config",
        run.config,
        "--ckpt",
        run.ckpt,
        "--exp",
        tmp_path,
        "--sample",
        "--fid",
        "--num_samples",
        9,
    )
    assert "No space left" in main(*command, "--timesteps", 2, code=1).stderr


PEAK = """
import resource, sys, torch
from configs import load_config
from runners.diffusion import Diffusion, Sampling

diffusion = Diffusion(load_config(sys.argv[1]), torch.device("cpu"))
diffusion.network = lambda x, t: 0.1 * x  # images are large and the network costs nothing
sampling = Sampling(diffusion.timesteps("uniform", int(sys.argv[2])), "generalized", 1.0, 0)
assert [indices for indices, _ in diffusion.sample_batches(range(2), sampling, 2)] == [[0, 1]]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_number_of_steps(tmp_path):
    """Two images of 256x256: a trajectory kept would take 1.6 MB a step, so 280 MB more; with noise, which is drawn ahead."""
    changes = dict(data__image_size=256, data__channels=3, model__in_channels=3, model__out_ch=3)
    config = small_config(tmp_path / "c.yml", **changes)
    peaks = []
    for steps in (20, 200):
        command = [sys.executable, "-c", PEAK, str(config), str(steps)]
        process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
        assert process.returncode == 0, process.stderr
        peaks.append(int(process.stdout))
    assert peaks[1] < peaks[0] * 1.05
