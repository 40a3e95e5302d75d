"""Python processes that begin with torch imported: forked from one that imported it and computed nothing.

A process of its own spends two to four seconds of CPU on imports, and the suite starts a hundred. A forked
one is a process too, with its own arguments, streams, environment, working folder, signals and exit code.
"""

import atexit
import gc
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

WARM = "python, with torch imported"  # in place of sys.executable, as the first word of a command
IMPORTS = ("torch._dynamo", "torchvision", "torch.utils.tensorboard", "sklearn.datasets")
READ_AT_IMPORT = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONPATH", "TORCH_COMPILE_DISABLE")


class Process:
    """What the tests use of subprocess.Popen. Output that is kept goes to files, so that it blocks nobody."""

    def __init__(
        self,
        args: Sequence[str],
        stdin: int,
        stdout: int,
        stderr: int,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        text: bool = True,
        limits: Mapping[int, int] | None = None,  # as resource.setrlimit's
    ):
        self.args, self.returncode = args, None
        env = dict(os.environ if env is None else env)
        keep = (to == subprocess.PIPE for to in (stdout, stderr))
        self.files = [tempfile.TemporaryFile() if kept else None for kept in keep]  # noqa: SIM115
        self.talk, theirs = socket.socketpair()
        with open(os.devnull, "r+b") as nothing, theirs:
            fds = [nothing.fileno() if stdin == subprocess.DEVNULL else stdin]
            fds += [(file or nothing).fileno() for file in self.files]
            way = server(tuple(env.get(name) for name in READ_AT_IMPORT))
            socket.send_fds(way, [b"."], [*fds, theirs.fileno()])
        request = {"argv": args[1:], "env": env, "cwd": str(cwd or Path.cwd())}
        request["limits"] = list((limits or {}).items())
        self.talk.sendall(json.dumps(request).encode())
        self.talk.shutdown(socket.SHUT_WR)
        self.pid = int.from_bytes(self.talk.recv(4, socket.MSG_WAITALL))

    def poll(self) -> int | None:
        self._look(0)
        return self.returncode

    def _look(self, timeout: float | None) -> None:
        """Has it ended? Two threads may ask, so the code is left there."""
        if self.returncode is None and select.select([self.talk], [], [], timeout)[0]:
            self.returncode = int(self.talk.recv(8, socket.MSG_PEEK))

    def communicate(self, timeout: float | None = None) -> tuple[str | None, ...]:
        self._look(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        for file in filter(None, self.files):
            file.seek(0)
        return tuple(file and file.read().decode() for file in self.files)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


@cache
def server(read_at_import: tuple[str | None, ...]) -> socket.socket:
    """The way to the process that forks those of such an environment."""
    values = dict(zip(READ_AT_IMPORT, read_at_import, strict=True))
    env = {name: value for name, value in (os.environ | values).items() if value is not None}
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        # -P: this file's folder is not one to import from.
        process = subprocess.Popen([sys.executable, "-P", __file__, str(fd)], env=env, pass_fds=[fd])
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def serve(control: socket.socket) -> list[str]:
    """Fork at each request, and tell pids and exit codes. Returns in a forked process, with its arguments."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    running: dict[int, socket.socket] = {}
    while True:
        ready = select.select([control, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            tell_codes(running)
        if control not in ready:
            continue
        word, fds, _, _ = socket.recv_fds(control, 1, 4)
        if not word:  # the tests have ended
            sys.exit()
        talk = socket.socket(fileno=fds.pop())
        with talk.makefile("rb") as file:
            request = json.load(file)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for one in (control, talk, *running.values()):
                one.close()
            become(request, fds)
            return request["argv"]
        for fd in fds:
            os.close(fd)
        talk.sendall(pid.to_bytes(4))
        running[pid] = talk


def tell_codes(running: dict[int, socket.socket]) -> None:
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with running.pop(pid) as talk:
                talk.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def become(request: dict[str, Any], fds: Sequence[int]) -> None:
    """Take what a new process has: streams, environment, working folder, limits, and the usual signals."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    os.closerange(3, 256)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    for which, limit in request["limits"]:
        resource.setrlimit(which, (limit, limit))


def run(argv: list[str]) -> None:
    """`python argv`: a script, or -m and a module."""
    if argv[0] == "-m":
        sys.argv, sys.path[:0] = argv[1:], [os.getcwd()]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:0] = argv, [str(Path(argv[0]).resolve().parent)]
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    for name in IMPORTS:
        __import__(name)
    gc.freeze()  # else the collector touches, and so copies, the memory that the forked ones share
    run(serve(socket.socket(fileno=int(sys.argv[1]))))
