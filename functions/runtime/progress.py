"""What a person sees while the program runs: log lines, and progress bars that they do not tear."""

import logging
import sys
from pathlib import Path

from tqdm import tqdm

from functions.runtime import distributed


def start_logging(level: str) -> None:
    """Log lines of at least `level` go to stderr."""
    logging.basicConfig(level=level.upper(), format="%(message)s", handlers=[_ConsoleHandler()], force=True)
    logging.captureWarnings(True)


def quiet_ranks() -> None:
    """Every rank would say the same: only rank 0 says what is no warning."""
    if not distributed.is_main():
        logging.getLogger().setLevel(max(logging.WARNING, logging.getLogger().level))


def log_file(path: Path) -> logging.FileHandler:
    """A handler that appends to `path`, in upstream's line format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(levelname)s - %(filename)s - %(asctime)s - %(message)s"))
    return handler


def progress_bar(total: int, *, initial: int = 0, unit: str, desc: str) -> tqdm:
    """A bar on stderr with rate and time left; on rank 0 only, seldom redrawn where stderr is a file, none for nothing."""
    return tqdm(
        total=total, initial=initial, unit=unit, desc=desc, dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30, disable=total == initial or not distributed.is_main(),
    )  # fmt: skip


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
