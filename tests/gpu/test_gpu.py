"""What only a GPU can show: exact resume there, CUDA graphs, memory, precision, two GPUs. `pytest -m gpu`."""

import json

import pytest
import torch
from support.images import grey_levels, pngs, sample
from support.program import main, sampling, small_config, torchrun
from support.runs import assert_same, checkpoint, losses

from configs import load_config
from functions.runtime import memory
from runners.diffusion import Diffusion

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
COMPILED = ("--compile", "on")
BF16 = ("--precision", "bf16")


@pytest.fixture(scope="module")
def diffusion() -> Diffusion:
    """The digits' network, with random weights."""
    torch.manual_seed(0)
    return Diffusion(load_config("digits.yml"), "cuda:0")


@pytest.mark.parametrize(
    "how", [(), COMPILED, (*BF16, *COMPILED)], ids=["eager", "compiled", "bf16 compiled"]
)
def test_resuming_is_exact(tmp_path, how):
    """Four steps against two and two, with dropout, flips and dequantization, to the bit."""
    config = small_config(tmp_path / "c.yml", model__attn_resolutions=[8], training__batch_size=64)
    train = ("--config", config, "--exp", tmp_path, "--device cuda", *how, "--doc")
    main(*train, "whole")
    main(*train, "parts", "--set training.n_iters=2", fresh=True)
    main(*train, "parts", "--resume_training", fresh=True)
    assert_same(checkpoint(tmp_path, "parts"), checkpoint(tmp_path, "whole"))


def test_a_graph_gives_what_the_model_gives(diffusion):
    """Batch after batch, a ragged one too: no result is overwritten by the next replay."""
    diffusion.accelerate("fp32")
    batches = [torch.randn(n, *diffusion.image_shape, device="cuda") for n in (8, 8, 3, 8)]
    t = torch.arange(8, device="cuda") * 100
    expected = [diffusion.model(x, t[: len(x)]) for x in batches]
    diffusion.network.compile(8)
    with torch.no_grad():
        found = [diffusion.network(x, t[: len(x)]).clone() for x in batches]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_the_batch_is_halved_until_it_fits(diffusion):
    device = diffusion.device
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(2**28 / total, device)
    try:
        found = memory.largest_batch(diffusion.evaluate, 512, device)
        assert 1 <= found <= 512
        diffusion.evaluate(found)
        with pytest.raises(torch.OutOfMemoryError):
            diffusion.evaluate(2**15)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def test_memory_does_not_grow_with_the_steps(diffusion):
    peaks = []
    for S in (10, 100, 1000):
        torch.cuda.reset_peak_memory_stats()
        list(diffusion.sample(16, batch_size=8, timesteps=S, eta=1.0))
        peaks.append(torch.cuda.max_memory_allocated())
    assert max(peaks) < 1.02 * min(peaks)


def test_a_grid_over_two_checkpoints_is_its_cells(run, tmp_path):
    """One captured graph serves both: its weights are written in place."""
    other = run.exp / "logs" / "d" / "ckpt_2.pth"
    how = ("--device cuda --compile on --batch_size 4 --num_samples 8 --timesteps 5", "-i")
    both = ("--config", run.config, "--exp", tmp_path, "--sample --fid", "--ckpt", run.ckpt, other)
    main(*both, *how, "grid")
    cells = json.loads((tmp_path / "image_samples" / "grid" / "table.json").read_text())["cells"]
    assert len(cells) == 2
    for cell, ckpt in zip(cells, (run.ckpt, other), strict=True):
        name = cell["folder"].split("/")[-1]
        main(*sampling(run.config, ckpt, tmp_path), *how, name)
        assert pngs(tmp_path / "image_samples" / "grid" / name) == pngs(tmp_path / "image_samples" / name)


@pytest.mark.parametrize("precision, most", [("default", 1.0), ("bf16", 8.0)])
def test_lower_precision_makes_nearly_the_same_images(run, tmp_path, precision, most):
    """Mean difference to float32 in grey levels; and float32 is the CPU's but for rounding."""
    how = ("--num_samples 8 --timesteps 20",)
    levels = {}
    for name, more in (
        ("cpu", ("--device cpu",)),
        ("fp32", ("--device cuda --precision fp32",)),
        (precision, ("--device cuda --precision", precision)),
    ):
        sample(run, tmp_path, name, *how, *more)
        levels[name] = grey_levels(tmp_path / "image_samples" / name, 8)
    assert abs(levels["fp32"] - levels["cpu"]).mean() < 0.1
    assert abs(levels[precision] - levels["fp32"]).mean() < most


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_two_gpus_train_as_one(tmp_path):
    config = small_config(tmp_path / "c.yml", model__dropout=0.0, training__batch_size=64)
    train = ("--config", config, "--exp", tmp_path, "--device cuda --precision fp32 --doc")
    main(*train, "one", fresh=True)
    torchrun(*train, "two")
    for one, two in zip(losses(tmp_path, "one"), losses(tmp_path, "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-4)
