"""Processes that tests start. Each is killed when its time or its test is over."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support import warm

TIMEOUT = 300  # seconds


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def started(command: Iterable[object], timeout: float = TIMEOUT, **how) -> Iterator[subprocess.Popen[str]]:
    """A command that runs beside the test, without a terminal; of its output stderr alone is kept.

    WARM as its first word is Python, forked with torch imported.

    It is killed with its children at the end of the block, or when `timeout` seconds are over.
    """
    how = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL} | how
    words = [*map(str, command)]
    start = warm.Process if words[0] == warm.WARM else subprocess.Popen
    process = start(words, text=True, **how)
    timer = threading.Timer(timeout, kill, [process])
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        kill(process)
        process.communicate(timeout=60)


def kill(process: subprocess.Popen[str]) -> None:
    """And its descendants, which torchrun puts into sessions of their own."""
    if process.poll() is None:
        for pid in family(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def family(pid: int) -> list[int]:
    """The process and its descendants; where there is no /proc, the process alone."""
    lists = [path.read_text() for path in Path("/proc", str(pid), "task").glob("*/children")]
    return [pid, *(one for child in " ".join(lists).split() for one in family(int(child)))]


def finished(command: Iterable[object], timeout: float = TIMEOUT, **how) -> subprocess.CompletedProcess[str]:
    """A command that ran to its end, and what it printed."""
    with started(command, timeout, stdout=subprocess.PIPE, **how) as process:
        stdout, stderr = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[str], pause: float = 0.01, seconds: float = 120
) -> None:
    """Until what the process is to do is done; it must not end before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline, f"not after {seconds} s"
        time.sleep(pause)
