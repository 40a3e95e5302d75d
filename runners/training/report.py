"""What training says while it runs: stdout.txt, TensorBoard and a progress bar."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from configs import Config, to_yaml
from configs.options import Options
from functions.objectives import QUARTERS
from functions.runtime import distributed
from functions.runtime.progress import log_file, progress_bar

Item = TypeVar("Item")

SECONDS_BETWEEN_READS = 2.0


class Report:
    """Collects the steps' numbers on the device and reads them in blocks: no step waits for the last one.

    Rank 0 writes; on other ranks it is silent. Its files are open within a `with` block.
    """

    def __init__(self, options: Options, config: Config, step: int, total: int, seed: int):
        self.options, self.config, self.seed = options, config, seed
        self.start, self.total = step, total
        self.pending: list[tuple[int, Tensor, Tensor, float]] = []
        self.read_at = time.monotonic()
        self.waited = 0.0  # for data, since then

    def __enter__(self) -> Self:
        if distributed.is_main():
            self.handler = log_file(self.options.log_dir / "stdout.txt")
            logging.getLogger().addHandler(self.handler)
            self.steps = logging.Logger("steps")  # to the file only: the bar tells the console
            self.steps.addHandler(self.handler)
            self.writer: SummaryWriter | None = None
            with self._curves():
                self.writer = SummaryWriter(self.options.tensorboard_dir, purge_step=self.start + 1)
                self._hyperparameters(self.writer)
        self.bar = progress_bar(self.total, initial=self.start, unit="step", desc="training")
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.bar.close()
        if distributed.is_main():
            if error is not None:
                self.steps.error(f"stopped: {str(error) or type(error).__name__}")
            with self._curves():
                if self.writer:
                    self.writer.close()
            logging.getLogger().removeHandler(self.handler)
            self.handler.close()

    def awaiting(self, batches: Iterator[Item]) -> Iterator[Item]:
        """The batches; the time that the loop waits for them is counted."""
        while True:
            begin = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - begin
            if batch is None:
                return
            yield batch

    def step(self, step: int, by_quarter: Tensor, grad_norm: Tensor, lr: float) -> None:
        """Take a step's numbers, still on the device: the batch's `loss_by_quarter`, the gradient norm."""
        if distributed.is_main():
            self.pending.append((step, by_quarter, grad_norm, lr))
            if time.monotonic() - self.read_at > SECONDS_BETWEEN_READS:
                self.read()

    def read(self) -> None:
        """Write what is pending. Raises FloatingPointError at the first loss or gradient not finite."""
        if not self.pending:
            return
        # Fetch the numbers, which waits for the device.
        steps, by_quarter, grad_norms, lrs = zip(*self.pending, strict=True)
        sums, counts = torch.stack(by_quarter).cpu().double().unbind(1)  # steps 4
        losses, norms = (sums.sum(1) / counts.sum(1)).tolist(), torch.stack(grad_norms).tolist()
        seconds, waited = time.monotonic() - self.read_at, self.waited
        self.pending = []
        self._begin_block()

        # Each step's.
        for step, loss, grad_norm in zip(steps, losses, norms, strict=True):
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                raise FloatingPointError(
                    f"step {step}: the loss is {loss} and the gradient norm {grad_norm}; "
                    "stopped before a snapshot, the last one is kept: try a smaller optim.lr"
                )
            self.steps.info(f"step: {step}, loss: {loss}")
            self._scalars(step, {"loss": loss, "grad_norm": grad_norm})

        # The block's.
        rate, waiting = counts.sum().item() / seconds, waited / seconds
        totals = zip(self._quarters(), sums.sum(0).tolist(), counts.sum(0).tolist(), strict=True)
        self._scalars(step, {f"loss_by_timestep/{name}": total / n for name, total, n in totals if n})
        of_block = {"images_per_second": rate, "share_of_time_waiting_for_data": waiting}
        self._scalars(step, {"learning_rate": lrs[-1]} | of_block)
        shown = {"loss": f"{loss:.4g}", "images_per_s": f"{rate:.4g}", "data_wait": f"{waiting:.0%}"}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(len(steps))

    def validation(self, step: int, loss: float) -> None:
        if distributed.is_main():
            logging.info(f"step: {step}, validation_loss: {loss}")
            self._scalars(step, {"validation_loss": loss})
            self._begin_block()  # the time it took is not training's

    def samples(self, step: int, images: Tensor) -> None:
        """images: uint8 (n, c, h, w)."""
        if distributed.is_main():
            with self._curves():
                if self.writer:
                    self.writer.add_images("samples", images, step)
                    self.writer.flush()
            self._begin_block()

    def _begin_block(self) -> None:
        self.read_at, self.waited = time.monotonic(), 0.0

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        with self._curves():
            for name, value in values.items():
                if self.writer:
                    self.writer.add_scalar(name, value, step)

    @contextmanager
    def _curves(self) -> Iterator[None]:
        """Write to TensorBoard inside. A failure there, as of a full disk, ends the curves, not training."""
        try:
            yield
        except OSError as error:
            self.writer = None
            logging.warning(
                f"{self.options.tensorboard_dir} takes no more curves ({error}); training goes on"
            )

    def _quarters(self) -> list[str]:
        """The first and the last timestep of each quarter, as TensorBoard sorts them."""
        T = self.config.diffusion.num_diffusion_timesteps
        edges = [-(-k * T // QUARTERS) for k in range(QUARTERS + 1)]
        width = len(str(T - 1))
        return [f"{low:0{width}}-{max(low, high - 1):0{width}}" for low, high in pairwise(edges)]

    def _hyperparameters(self, writer: SummaryWriter) -> None:
        """The config as text, and as a row of TensorBoard's HPARAMS table with the run's last losses."""
        text = "".join(f"    {line}\n" for line in to_yaml(self.config).splitlines())
        writer.add_text("config", text, self.start)
        values: dict[str, Any] = {"seed": self.seed, "precision": self.options.precision}
        values["processes"] = distributed.world_size()
        for section, keys in asdict(self.config).items():
            for key, value in keys.items():
                if value is not None:
                    values[f"{section}.{key}"] = str(value) if isinstance(value, bool | tuple) else value
        events = writer.file_writer
        assert events is not None  # SummaryWriter.add_hparams would write to a folder of its own
        for summary in hparams(values, {"loss": None, "validation_loss": None}):
            events.add_summary(summary)
