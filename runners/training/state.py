"""Everything that training changes, declared once: to save, to load and to resume."""

import logging

import torch
from torch import Tensor, nn

from configs import Config, OptimConfig
from configs.refusal import Refusal
from functions.weights import check_fit, load_into
from functions.weights.checkpoint import Checkpoint
from models.ema import EMA

# What each optimizer keeps for a parameter after its first step.
_STATE_KEY = {"Adam": "exp_avg", "RMSProp": "square_avg", "SGD": "momentum_buffer"}


class TrainingState:
    """The model, its optimizer and average, and the position in the data."""

    def __init__(self, model: nn.Module, config: Config, seed: int):
        self.config = config
        self.model = model
        self.optimizer = build_optimizer(model, config.optim)
        self.ema = EMA(model, config.model.ema_rate) if config.model.ema else None
        self.epoch = 0
        self.images_seen = 0  # of this epoch
        self.step = 0
        self.seed = seed

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            model=self.model.state_dict(),
            ema=self.ema.shadow if self.ema else None,
            optimizer=self.optimizer.state_dict(),
            epoch=self.epoch,
            step=self.step,
            images_seen=self.images_seen,
            seed=self.seed,
        )

    def restore(self, checkpoint: Checkpoint, source: str) -> None:
        """Continue from a checkpoint, this program's or upstream's; the config's hyperparameters win.

        Raises Refusal where it does not fit the config; `source` names the file in it.
        """
        load_into(self.model, checkpoint.model, source)
        if self.ema:
            if checkpoint.ema is None:
                logging.info(f"{source} has no EMA weights: the average begins anew at its raw weights")
            else:
                check_fit(self.model, checkpoint.ema, f"the EMA of {source}")
            self.ema.load(checkpoint.ema or checkpoint.model)
        self._restore_optimizer(checkpoint, source)
        self.epoch, self.step, self.images_seen = checkpoint.epoch, checkpoint.step, checkpoint.images_seen

    def _restore_optimizer(self, checkpoint: Checkpoint, source: str) -> None:
        kept, groups = (
            (checkpoint.optimizer or {}).get("state"),
            (checkpoint.optimizer or {}).get("param_groups"),
        )
        if not kept or not groups:
            raise Refusal(
                f"{source} holds weights only, without an optimizer's state: training cannot continue from it"
            )
        optim, params = self.config.optim, list(self.model.parameters())
        key = "max_exp_avg_sq" if optim.optimizer == "Adam" and optim.amsgrad else _STATE_KEY[optim.optimizer]
        for i, param in enumerate(params):
            values = kept.get(i, {})
            if key not in values:
                raise Refusal(
                    f"the optimizer state in {source} is not {optim.optimizer}'s: it has no {key} to continue from"
                )
            shapes = {v.shape for v in values.values() if isinstance(v, Tensor) and v.dim()}
            if shapes - {param.shape}:
                raise Refusal(
                    f"the optimizer state in {source} does not fit: entry {i} is not {tuple(param.shape)}"
                )
        before = groups[0].get("lr")
        if before != optim.lr:
            logging.info(f"learning rate {optim.lr:g} from the config; {source} had {before}")
        self.optimizer.load_state_dict(
            {"state": kept, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        for param in params:
            values = self.optimizer.state[param]
            for name, value in values.items():
                if (
                    isinstance(value, Tensor) and value.dim()
                ):  # fused optimizers take memory as it lies, whatever its strides
                    values[name] = torch.empty_like(param, dtype=value.dtype).copy_(value)


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Upstream's three, with its fixed constants: Adam's beta2 0.999, SGD's momentum 0.9."""
    params = list(model.parameters())
    fused = params[0].device.type in ("cuda", "cpu")
    match optim.optimizer:
        case "Adam":
            return torch.optim.Adam(
                params,
                lr=optim.lr,
                betas=(optim.beta1, 0.999),
                eps=optim.eps,
                weight_decay=optim.weight_decay,
                amsgrad=optim.amsgrad,
                fused=fused,
            )
        case "RMSProp":
            return torch.optim.RMSprop(params, lr=optim.lr, weight_decay=optim.weight_decay)
        case "SGD":
            return torch.optim.SGD(params, lr=optim.lr, momentum=0.9, fused=fused)
