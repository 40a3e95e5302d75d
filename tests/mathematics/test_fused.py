"""The fused network is the network."""

import pytest
import torch
from support.networks import randomized, unet

from configs import load_config
from models.fused import fuse, refresh


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
