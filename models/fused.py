"""The U-Net for inference: the same outputs by fewer kernels.

1x1 convolutions become matrix products. On a CPU that has a C compiler the norms become those of norm.c.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.kernel import FastNorm, library
from models.unet import AttnBlock, Norm, ResnetBlock, UNet


class Pointwise(nn.Linear):
    """A 1x1 convolution as a linear map of the channels. If x is channels_last, nothing is copied."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FusedAttnBlock(nn.Module):
    """AttnBlock with one matrix product for q, k and v."""

    def __init__(self, block: AttnBlock):
        super().__init__()
        c = block.q.in_channels
        self.norm = block.norm
        self.qkv = nn.Linear(c, 3 * c)
        self.proj_out = nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x).permute(0, 2, 3, 1).reshape(b, 1, h * w, c))
        attended = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))  # b 1 hw c
        return x + self.proj_out(attended).reshape(b, h, w, c).permute(0, 3, 1, 2)


def fuse(unet: UNet, dtype: torch.dtype) -> nn.Module:
    """A copy of `unet` in `dtype`, for evaluation only, with fused attention, 1x1 shortcuts and norms."""
    fused = deepcopy(unet)
    fast = dtype == torch.bfloat16 and unet.conv_in.weight.device.type == "cpu" and library() is not None
    for module in list(fused.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, AttnBlock):
                setattr(module, name, FusedAttnBlock(child))
            elif isinstance(module, ResnetBlock) and name == "nin_shortcut" and isinstance(child, nn.Conv2d):
                setattr(module, name, Pointwise(child.in_channels, child.out_channels))
    for module in fused.modules():
        if fast and isinstance(module, Norm):
            module.__class__ = FastNorm  # the parameters stay
    fused = fused.to(unet.conv_in.weight.device, dtype).eval().requires_grad_(False)
    refresh(fused, unet)
    return fused


def refresh(fused: nn.Module, unet: UNet) -> None:
    """Give a fused copy the weights of `unet`. They are written in place, so a compiled copy stays valid."""
    weights = {}
    for name, value in unet.state_dict().items():
        match name.split("."):
            case [*block, "q", kind]:
                q, k, v = (unet.get_parameter(".".join([*block, letter, kind])) for letter in "qkv")
                weights[".".join([*block, "qkv", kind])] = torch.cat([q, k, v]).flatten(
                    1 if kind == "weight" else 0
                )
            case [*_, "k" | "v", _]:
                pass
            case [*_, "proj_out" | "nin_shortcut", "weight"]:
                weights[name] = value.flatten(1)
            case _:
                weights[name] = value
    fused.load_state_dict(weights)
