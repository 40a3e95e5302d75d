"""What training changes: declared once, to save it, to load it and to resume from it."""

import logging
import math

import torch
from torch import Tensor, nn

from configs import OptimConfig, door
from configs.refusal import Refusal
from functions.weights import check_fit, load_into
from functions.weights.checkpoint import Checkpoint
from runners.diffusion import Diffusion

# What each optimizer keeps for a parameter after its first step.
_KEPT = {
    "Adam": ["exp_avg", "exp_avg_sq", "step"],
    "RMSProp": ["square_avg", "step"],
    "SGD": ["momentum_buffer"],
}
_KEPT["AdamW"] = _KEPT["Adam"]


class TrainingState:
    """The model and its average, which `Diffusion` owns, the optimizer, and the position in the data."""

    def __init__(self, diffusion: Diffusion, seed: int):
        self.diffusion = diffusion
        self.ema = diffusion.ema  # begins at the weights of now
        self.optimizer = build_optimizer(diffusion.model, diffusion.config.optim)
        self.seed = seed
        self.step = 0
        self.epoch = 0
        self.images_seen = 0  # of this epoch

    def set_learning_rate(self, last_step: int) -> float:
        """Give the optimizer the learning rate of this step, and return it."""
        optim = self.diffusion.config.optim
        lr = learning_rate(optim, self.step, last_step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            if optim.warmup or optim.decay != "none":
                group["initial_lr"] = optim.lr
        return lr

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            model=self.diffusion.model.state_dict(), ema=self.ema.shadow if self.ema else None,
            optimizer=self.optimizer.state_dict(), epoch=self.epoch, step=self.step,
            images_seen=self.images_seen, seed=self.seed,
        )  # fmt: skip

    def restore(self, checkpoint: Checkpoint, source: str) -> None:
        """Continue from a checkpoint, this program's or upstream's. The config's hyperparameters win.

        Raises Refusal where it does not fit the config; `source` names the file in it.
        """
        model = self.diffusion.model
        load_into(model, checkpoint.model, source)
        if self.ema:
            if checkpoint.ema is None:
                logging.info(f"{source} has no EMA weights: the average begins anew at its raw weights")
            else:
                check_fit(model, checkpoint.ema, f"the EMA of {source}")
            self.ema.load(checkpoint.ema or checkpoint.model)
        self._restore_optimizer(checkpoint, source)
        self.epoch, self.step, self.images_seen = checkpoint.epoch, checkpoint.step, checkpoint.images_seen

    def _restore_optimizer(self, checkpoint: Checkpoint, source: str) -> None:
        content = checkpoint.optimizer or {}
        saved, groups = content.get("state"), content.get("param_groups")
        if not saved or not groups:
            raise Refusal(
                f"{source} holds weights only, no optimizer state: training cannot continue from it; "
                "--ckpt starts a new run from weights"
            )

        # Take what this optimizer keeps.
        optim, params = self.diffusion.config.optim, list(self.diffusion.model.parameters())
        with door.reading(source, "a checkpoint to train on from"):
            state = self._checked(saved, source)
            before = groups[0].get("initial_lr", groups[0].get("lr"))  # the first, where it was scheduled
        if before != optim.lr:
            logging.info(f"learning rate {optim.lr:g} from the config; {source} had {before}")
        ours = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": state, "param_groups": ours["param_groups"]})
        # Fused optimizers walk memory as it lies: lay the state out as the parameters are.
        for param in params:
            values = self.optimizer.state[param]
            for name, value in values.items():
                if isinstance(value, Tensor) and value.dim():
                    values[name] = torch.empty_like(param, dtype=value.dtype).copy_(value)

    def _checked(self, saved: dict, source: str) -> dict[int, dict[str, Tensor]]:
        """The state of each parameter. Raises Refusal where it does not fit this optimizer and network."""
        optim, state = self.diffusion.config.optim, dict[int, dict[str, Tensor]]()
        kept = ["max_exp_avg_sq"] * (optim.is_adam and optim.amsgrad) + _KEPT[optim.optimizer]
        for i, param in enumerate(self.diffusion.model.parameters()):
            state[i], values = {}, saved.get(i, {})
            for name in kept:
                if name not in values:
                    has_no = f"it has no {name}"
                    raise Refusal(f"the optimizer state in {source} is not {optim.optimizer}'s: {has_no}")
                shape = () if name == "step" else param.shape
                value = torch.as_tensor(values[name], dtype=torch.float32)  # steps were ints once
                if value.shape != shape:
                    raise Refusal(
                        f"the optimizer state in {source} does not fit: entry {i} is not {tuple(shape)}"
                    )
                if not value.isfinite().all():
                    raise Refusal(f"the optimizer state in {source} is not finite: {name} of entry {i}")
                state[i][name] = value
        return state


def learning_rate(optim: OptimConfig, step: int, last_step: int) -> float:
    """That of step 1 … last_step: it rises linearly over the warm-up; a cosine then ends at 0 in the last."""
    if step <= optim.warmup:
        return optim.lr * (step / optim.warmup)
    if optim.decay == "none":
        return optim.lr
    share = (step - optim.warmup) / max(1, last_step - optim.warmup)
    return optim.lr * (1 + math.cos(math.pi * min(1.0, share))) / 2


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Upstream's three, with its fixed momentum of SGD, 0.9; and AdamW."""
    params = list(model.parameters())
    fused = params[0].device.type in ("cuda", "cpu")
    match optim.optimizer:
        case "Adam" | "AdamW":
            adam = torch.optim.Adam if optim.optimizer == "Adam" else torch.optim.AdamW
            return adam(
                params, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps,
                weight_decay=optim.weight_decay, amsgrad=optim.amsgrad, fused=fused,
            )  # fmt: skip
        case "RMSProp":
            return torch.optim.RMSprop(params, lr=optim.lr, weight_decay=optim.weight_decay)
        case "SGD":
            return torch.optim.SGD(params, lr=optim.lr, momentum=0.9, fused=fused)
