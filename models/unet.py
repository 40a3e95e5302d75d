"""The U-Net that predicts ε. Checkpoints hold its parameters by name and order: never change those."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, sines first: t (b,) -> (b, dim), float32."""
    half = dim // 2
    freqs = torch.exp(
        torch.arange(half, device=t.device, dtype=torch.float32) * -(math.log(10000) / (half - 1))
    )
    args = t.float()[:, None] * freqs
    return torch.cat([args.sin(), args.cos()], dim=1)


class Norm(nn.GroupNorm):
    """Of x (b, c, h, w), to which a shift (b, c) is added first; then SiLU, or not."""

    def __init__(self, channels: int, silu: bool = True):
        super().__init__(32, channels, eps=1e-6)
        self.silu = silu

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        y = super().forward(x if shift is None else x + shift[:, :, None, None])
        return F.silu(y) if self.silu else y


class TimestepMLP(nn.Module):
    def __init__(self, ch: int):
        super().__init__()
        self.ch = ch
        self.dense = nn.ModuleList([nn.Linear(ch, 4 * ch), nn.Linear(4 * ch, 4 * ch)])

    def forward(self, t: Tensor) -> Tensor:
        h = self.dense[0](timestep_embedding(t, self.ch).to(self.dense[0].weight.dtype))
        return self.dense[1](F.silu(h))  # b 4ch


class ResnetBlock(nn.Module):
    def __init__(self, in_ch: int, out_ch: int, temb_ch: int, dropout: float):
        super().__init__()
        self.norm1 = Norm(in_ch)
        self.conv1 = nn.Conv2d(in_ch, out_ch, 3, padding=1)
        self.temb_proj = nn.Linear(temb_ch, out_ch)
        self.norm2 = Norm(out_ch)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_ch, out_ch, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_ch, out_ch, 1) if in_ch != out_ch else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.norm2(h, self.temb_proj(F.silu(temb)))
        h = self.conv2(self.dropout(h))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """One-head self-attention over the h·w positions."""

    def __init__(self, ch: int):
        super().__init__()
        self.norm = Norm(ch, silu=False)
        self.q = nn.Conv2d(ch, ch, 1)
        self.k = nn.Conv2d(ch, ch, 1)
        self.v = nn.Conv2d(ch, ch, 1)
        self.proj_out = nn.Conv2d(ch, ch, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).mT.unsqueeze(1) for conv in (self.q, self.k, self.v))  # b 1 hw c
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).mT.reshape(x.shape))


class Downsample(nn.Module):
    def __init__(self, ch: int, with_conv: bool):
        super().__init__()
        self.conv = nn.Conv2d(ch, ch, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only, as DDPM's TensorFlow "SAME"


class Upsample(nn.Module):
    def __init__(self, ch: int, with_conv: bool):
        super().__init__()
        self.conv = nn.Conv2d(ch, ch, 3, padding=1) if with_conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(_doubled(x) if torch.compiler.is_compiling() else F.interpolate(x, scale_factor=2))


def _doubled(x: Tensor) -> Tensor:
    """As F.interpolate, to the bit. Its compiled backward pass is a sum, the other's a scatter that sorts."""
    b, c, h, w = x.shape
    by_row = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(b, h, 2, w, 2, c)
    return by_row.reshape(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


class Level(nn.Module):
    """The blocks of one resolution. `attn` has one for each of `block`, or none."""

    def __init__(self, block: list[ResnetBlock], attn: list[AttnBlock]):
        super().__init__()
        self.block = nn.ModuleList(block)
        self.attn = nn.ModuleList(attn)

    def run(self, i: int, h: Tensor, temb: Tensor) -> Tensor:
        h = self.block[i](h, temb)
        return self.attn[i](h) if len(self.attn) else h


class Middle(nn.Module):
    def __init__(self, ch: int, temb_ch: int, dropout: float):
        super().__init__()
        self.block_1 = ResnetBlock(ch, ch, temb_ch, dropout)
        self.attn_1 = AttnBlock(ch)
        self.block_2 = ResnetBlock(ch, ch, temb_ch, dropout)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h, temb)), temb)


class UNet(nn.Module):
    """ε_θ(x, t), DDPM's network (arXiv 2006.11239, appendix B).

    image_size decides where attention is: at the levels whose resolution is in attn_resolutions.
    logvar_timesteps is the length of `logvar`, a vector in upstream's `bayesian` checkpoints; 0 for none.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int,
        out_ch: int,
        ch: int,
        ch_mult: tuple[int, ...],
        num_res_blocks: int,
        attn_resolutions: tuple[int, ...],
        dropout: float,
        resamp_with_conv: bool,
        logvar_timesteps: int = 0,
    ):
        super().__init__()
        if logvar_timesteps:
            self.logvar = nn.Parameter(torch.zeros(logvar_timesteps))
        temb_ch = 4 * ch
        self.temb = TimestepMLP(ch)
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)

        widths = [ch * mult for mult in ch_mult]
        attends = [image_size // 2**i in attn_resolutions for i in range(len(widths))]
        skips = [ch]  # the channels of what forward() puts on its stack
        h_ch = ch

        def level(in_chs: list[int], i: int) -> Level:
            blocks = [ResnetBlock(c, widths[i], temb_ch, dropout) for c in in_chs]
            return Level(blocks, [AttnBlock(widths[i]) for _ in blocks] if attends[i] else [])

        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            self.down.append(level([h_ch] + [width] * (num_res_blocks - 1), i))
            h_ch = width
            skips += [width] * num_res_blocks
            if i < len(widths) - 1:
                self.down[i].downsample = Downsample(width, resamp_with_conv)
                skips.append(width)

        self.mid = Middle(h_ch, temb_ch, dropout)

        ups = []
        for i, width in reversed(list(enumerate(widths))):
            in_chs = [(h_ch if j == 0 else width) + skips.pop() for j in range(num_res_blocks + 1)]
            ups.append(level(in_chs, i))
            h_ch = width
            if i > 0:
                ups[-1].upsample = Upsample(width, resamp_with_conv)
        self.up = nn.ModuleList(reversed(ups))  # indexed by level, not by order of use

        self.norm_out = Norm(h_ch)
        self.conv_out = nn.Conv2d(h_ch, out_ch, 3, padding=1)

    @torch.no_grad()
    def initialize_as_ddpm(self) -> None:
        """Random weights as DDPM's code draws them. Each block begins as the identity, and ε_θ is 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        blocks = [m for m in self.modules() if isinstance(m, ResnetBlock | AttnBlock)]
        last = [b.conv2 if isinstance(b, ResnetBlock) else b.proj_out for b in blocks]
        for module in (*last, self.conv_out):
            nn.init.zeros_(module.weight)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (b, in_channels, image_size, image_size), t (b,) int -> ε (b, out_ch, image_size, image_size)."""
        temb = self.temb(t)
        h = self.conv_in(x)
        stack = [h]
        for i, level in enumerate(self.down):
            for j in range(len(level.block)):
                h = level.run(j, h, temb)
                stack.append(h)
            if i < len(self.down) - 1:
                h = level.downsample(h)
                stack.append(h)

        h = self.mid(h, temb)

        for i, level in reversed(list(enumerate(self.up))):
            for j in range(len(level.block)):
                h = level.run(j, torch.cat([h, stack.pop()], dim=1), temb)
            if i > 0:
                h = level.upsample(h)
        return self.conv_out(self.norm_out(h))
