"""The network that a state dict is for, told by its names and shapes."""

from dataclasses import dataclass

from torch import Tensor

from configs.refusal import Refusal


@dataclass(frozen=True)
class Architecture:
    """What of a config's model section the parameters show; attention is known by level, not by resolution."""

    in_channels: int
    out_ch: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    resamp_with_conv: bool
    bayesian: bool

    def __str__(self) -> str:
        attention = ", ".join(map(str, self.attention_levels)) or "none"
        words = [
            f"{self.in_channels} channels to {self.out_ch}",
            f"ch {self.ch}",
            f"ch_mult {list(self.ch_mult)}",
            f"num_res_blocks {self.num_res_blocks}",
            f"attention at level {attention} (0 is the image's size, each next one half of it)",
        ]
        words += [] if self.resamp_with_conv else ["resamp_with_conv false"]
        return ", ".join(words + (["bayesian"] if self.bayesian else []))


def infer(weights: dict[str, Tensor], source: str) -> Architecture:
    """Raises Refusal, naming the parameter, where one is missing that every such network has; `source` names the file."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights:
            raise Refusal(f"{source} has no parameter {name}: it is no network of this program's")
        return tuple(weights[name].shape)

    ch, in_channels = shape("conv_in.weight")[:2]
    levels = _count(weights, "down.{}.block.0.conv1.weight")
    return Architecture(
        in_channels=in_channels,
        out_ch=shape("conv_out.weight")[0],
        ch=ch,
        ch_mult=tuple(shape(f"down.{i}.block.0.conv1.weight")[0] // ch for i in range(max(levels, 1))),
        num_res_blocks=_count(weights, "down.0.block.{}.conv1.weight"),
        attention_levels=tuple(i for i in range(levels) if f"down.{i}.attn.0.q.weight" in weights),
        resamp_with_conv=levels == 1 or "down.0.downsample.conv.weight" in weights,
        bayesian="logvar" in weights,
    )


def _count(weights: dict[str, Tensor], name: str) -> int:
    """How many of the names, numbered from 0, are there."""
    n = 0
    while name.format(n) in weights:
        n += 1
    return n
