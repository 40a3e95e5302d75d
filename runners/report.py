"""What training says while it runs: stdout.txt, TensorBoard and a progress bar."""

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from functions import distributed
from functions.progress import log_file, progress_bar

Item = TypeVar("Item")

SECONDS_BETWEEN_READS = 2.0


class Report:
    """Collects each step's numbers on the device and reads them in blocks, so that no step waits for the last.

    Rank 0 writes; the other ranks hold a silent one. Opens its files on entering a `with` block.
    """

    def __init__(self, log_dir: Path, tensorboard_dir: Path, step: int, total: int, learning_rate: float):
        self.log_dir, self.tensorboard_dir = log_dir, tensorboard_dir
        self.start, self.total, self.learning_rate = step, total, learning_rate
        self.pending: list[tuple[int, Tensor, Tensor, int]] = []
        self.read_at = time.monotonic()
        self.waited = 0.0  # for data, since then

    def __enter__(self) -> Self:
        if distributed.is_main():
            self.handler = log_file(self.log_dir / "stdout.txt")
            logging.getLogger().addHandler(self.handler)
            self.steps = logging.Logger("steps")  # to the file only: the bar tells the console
            self.steps.addHandler(self.handler)
            self.writer = SummaryWriter(self.tensorboard_dir, purge_step=self.start + 1)
        self.bar = progress_bar(self.total, initial=self.start, unit="step", desc="training")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.bar.close()
        if distributed.is_main():
            if error is not None:
                self.steps.error(f"stopped: {str(error) or type(error).__name__}")
            self.writer.close()
            logging.getLogger().removeHandler(self.handler)
            self.handler.close()

    def awaiting(self, batches: Iterator[Item]) -> Iterator[Item]:
        """The batches, with the time that the loop waits for them counted."""
        while True:
            begin = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - begin
            if batch is None:
                return
            yield batch

    def step(self, step: int, loss: Tensor, grad_norm: Tensor, images: int) -> None:
        """Take a step's numbers, still on the device; images: how many it trained on."""
        if distributed.is_main():
            self.pending.append((step, loss, grad_norm, images))
            if time.monotonic() - self.read_at > SECONDS_BETWEEN_READS:
                self.read()

    def read(self) -> None:
        """Write what is pending. Raises FloatingPointError at the first step whose loss or gradient is not finite."""
        if not self.pending:
            return
        steps, losses, grad_norms, images = zip(*self.pending, strict=True)
        values = torch.stack([*losses, *grad_norms]).tolist()  # waits for the device
        now = time.monotonic()
        rate, waiting = sum(images) / (now - self.read_at), self.waited / (now - self.read_at)
        self.pending = []
        self._begin_block(now)
        for step, loss, grad_norm in zip(steps, values[: len(steps)], values[len(steps) :], strict=True):
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                raise FloatingPointError(
                    f"step {step}: the loss is {loss} and the gradient norm {grad_norm}; "
                    "stopped before a snapshot, the last one is kept: try a smaller optim.lr"
                )
            self.steps.info(f"step: {step}, loss: {loss}")
            self.writer.add_scalar("loss", loss, step)
            self.writer.add_scalar("grad_norm", grad_norm, step)
        self.writer.add_scalar("learning_rate", self.learning_rate, step)
        self.writer.add_scalar("images_per_second", rate, step)
        self.writer.add_scalar("share_of_time_waiting_for_data", waiting, step)
        self.bar.set_postfix(loss=f"{loss:.4g}", images_per_s=f"{rate:.4g}", data_wait=f"{waiting:.0%}", refresh=False)
        self.bar.update(len(steps))

    def validation(self, step: int, loss: float) -> None:
        if distributed.is_main():
            logging.info(f"step: {step}, validation_loss: {loss}")
            self.writer.add_scalar("validation_loss", loss, step)
            self._begin_block(time.monotonic())  # the time it took is not training's

    def samples(self, step: int, images: Tensor) -> None:
        """images: uint8 (n, c, h, w)."""
        if distributed.is_main():
            self.writer.add_images("samples", images, step)
            self.writer.flush()
            self._begin_block(time.monotonic())

    def _begin_block(self, now: float) -> None:
        self.read_at, self.waited = now, 0.0
