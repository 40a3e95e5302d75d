"""Signals that ask a command to stop. It ends in order; a second signal ends it at once."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from functions.runtime import distributed

# Exit codes by the signal's name. Slurm's notice before preemption is not a failure.
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 0}


class Stopped(Exception):
    """A command that a signal stopped, in a sentence that says what to do next."""

    def __init__(self, message: str, name: str):
        super().__init__(message)
        self.code = EXIT_CODES[name]


class Stopping:
    """Whether a signal came, and whether some minutes have passed: `agreed` says so to all ranks alike."""

    def __init__(self, minutes: float | None = None):
        self.number = 0
        self.seconds = None if minutes is None else 60 * minutes
        self.since = time.monotonic()
        self.last: torch.Tensor | None = None

    @property
    def name(self) -> str:
        """The signal's, or nothing."""
        return signal.Signals(self.number).name if self.number else ""

    def agreed(self, device: torch.device) -> tuple[str, bool]:
        """The signal's name or nothing, and whether the minutes are over. Every rank calls this at each step.

        Of several ranks the answer is about the step before, so that none waits for the device.
        """
        due = self.seconds is not None and time.monotonic() - self.since >= self.seconds
        number = self.number
        if distributed.world_size() > 1:
            now = torch.tensor([number, int(due and distributed.is_main())], device=device)
            last, self.last = self.last, distributed.all_reduce_max(now)
            number, due = last.tolist() if last is not None else (0, False)
        if due:
            self.since = time.monotonic()
        return signal.Signals(number).name if number else "", bool(due)


@contextmanager
def heeded(minutes: float | None = None) -> Iterator[Stopping]:
    """In the block the first signal is noted, and the second does what it did before.

    A signal that the process was started to ignore stays ignored.
    """
    stopping = Stopping(minutes)
    numbers = [getattr(signal, name) for name in EXIT_CODES if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    if threading.current_thread() is not threading.main_thread():
        before = {}  # Python gives signals to the main thread alone

    def note(number: int, frame: FrameType | None) -> None:
        stopping.number = number
        for n, handler in before.items():
            signal.signal(n, handler)

    for n in before:
        signal.signal(n, note)
    try:
        yield stopping
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
