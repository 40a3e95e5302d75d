"""The fused network is the network."""

import pytest
import torch
from support.networks import randomized, unet

from configs import load_config
from models import kernel
from models.fused import fuse, refresh
from models.unet import Norm


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
        half = fuse(network, torch.bfloat16).to(memory_format=torch.channels_last)
        refresh(fused, randomized(network, 1))  # new weights, the same modules
        refresh(half, network)
        torch.testing.assert_close(fused(x, t), network(x, t), atol=2e-5, rtol=1e-4)
        scale = network(x, t).abs().max()
        assert (half(x.bfloat16(), t.float()).float() - network(x, t)).abs().max() < 0.03 * scale


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


@pytest.mark.skipif(kernel.library() is None, reason="no C compiler")
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("channels", [32, 96, 512])
def test_the_norms_of_c_round_correctly(channels, silu):
    """To the nearest bfloat16 of what float64 gives, at a mean that is far from 0; a shift or none."""
    exact, fast = Norm(channels, silu).double(), kernel.FastNorm(channels, silu).bfloat16()
    for parameter in exact.parameters():
        torch.nn.init.normal_(parameter)
        parameter.data = parameter.bfloat16().double()
    fast.load_state_dict(exact.state_dict())
    x, shift = (3 * torch.randn(3, channels, 5, 7) + 20).bfloat16(), torch.randn(3, channels).bfloat16()
    for given in (None, shift):
        wanted = exact(x.double(), given if given is None else given.double())
        error = (fast(x, given).double() - wanted).abs()
        assert (error <= 1.02 * 2**-8 * wanted.abs() + 1e-5).all()


@pytest.mark.skipif(kernel.library() is None, reason="no C compiler")
def test_what_is_not_a_number_stays_so_in_the_norms_of_c():
    x = torch.randn(2, 64, 3, 3).bfloat16()
    x[1, 5, 0, 0] = torch.nan
    y = kernel.FastNorm(64).bfloat16()(x)
    assert y[0].isfinite().all() and y[1, 5, 0, 0].isnan()


@pytest.mark.skipif(kernel.library() is None, reason="no C compiler")
@pytest.mark.parametrize("which", ["*", ""])
def test_a_library_that_others_may_write_is_not_loaded(monkeypatch, tmp_path, which):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernel.library.__wrapped__() is not None
    folder = tmp_path / "ddim" / "kernels"
    for path in folder.glob(which) if which else [folder]:
        path.chmod(0o777)
    assert kernel.library.__wrapped__() is None


def test_without_a_c_compiler_the_norms_are_pytorchs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert kernel.library.__wrapped__() is None
    monkeypatch.setenv("CC", "/bin/false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernel.library.__wrapped__() is None
