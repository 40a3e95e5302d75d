"""What a person sees while the program runs: log lines, and progress bars that log lines do not tear."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from functions.runtime import distributed


def start_logging(level: str) -> None:
    """Log lines of at least `level` go to stderr."""
    logging.basicConfig(level=level.upper(), format="%(message)s", handlers=[_ConsoleHandler()], force=True)
    logging.captureWarnings(True)


def quiet_ranks() -> None:
    """Only rank 0 logs below warnings: every rank would say the same."""
    if not distributed.is_main():
        logging.getLogger().setLevel(max(logging.WARNING, logging.getLogger().level))


def log_file(path: Path) -> logging.Handler:
    """A handler that appends to `path`, in upstream's line format. A full disk ends it with one warning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(levelname)s - %(filename)s - %(asctime)s - %(message)s"))
    return handler


def progress_bar(total: int, *, initial: int = 0, unit: str, desc: str) -> tqdm:
    """A bar on stderr, on rank 0 only. It is rarely redrawn where stderr is a file; no work, no bar."""
    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        desc=desc,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        disable=total == initial or not distributed.is_main(),
    )


@contextmanager
def bar_of_all_ranks(total: int, own: int, *, unit: str, desc: str) -> Iterator[Callable[[int], None]]:
    """A bar of the work of all ranks. Rank 0 moves it by telling what it did of its `own` part.

    It has at least as much to do as another rank, so the bar is full when all are nearly ready.
    """
    done = 0
    with progress_bar(total, unit=unit, desc=desc) as bar:

        def did(n: int) -> None:
            nonlocal done
            done += n
            bar.update(done * total // own - bar.n)

        yield did


class _FileHandler(logging.FileHandler):
    failed = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.failed:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        self.failed = True
        logging.warning(f"{self.baseFilename} takes no more lines ({sys.exc_info()[1]}); the work goes on")


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
