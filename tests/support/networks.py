"""A small network with every kind of layer."""

import torch

from models.unet import UNet


def unet(**changes) -> UNet:
    """A small network with all there is: attention in a level and in the middle, shortcuts, resampling."""
    arguments = dict(
        image_size=8, in_channels=3, out_ch=3, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,),
        dropout=0.1, resamp_with_conv=True,
    )  # fmt: skip
    return UNet(**arguments | changes).eval()


def randomized(network: UNet, seed: int) -> UNet:
    """Biases and norms too, so that a weight that went to the wrong place shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in network.parameters():
            param.add_(0.1 * torch.randn(param.shape, generator=generator))
    return network
