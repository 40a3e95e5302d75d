"""The program under test: main.py in this process, in one of its own or in two, and small configs."""

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import PIPE, CompletedProcess
from types import SimpleNamespace
from unittest.mock import patch

import yaml

import main as program
from support.processes import finished, free_port, started
from support.warm import WARM, Process

ROOT = Path(__file__).parent.parent.parent
MAIN = str(ROOT / "main.py")


def main(
    *arguments: object,
    code: int = 0,
    fresh: bool = False,
    python: str = WARM,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> SimpleNamespace:
    """Run main.py, expect `code`, and give what it printed: stdout, stderr.

    fresh: as a process of its own, of `python`, with no terminal. Else by `main.main` in this process, which
    costs less. Every task and every kind of refusal is run fresh somewhere.
    """
    argv = words(arguments)
    if fresh:
        process = finished([python, MAIN, *argv], cwd=cwd, env={**os.environ, **(env or {})})
        returned, stdout, stderr = process.returncode, process.stdout, process.stderr
    else:
        out, err = io.StringIO(), io.StringIO()
        with ExitStack() as stack:
            nothing = stack.enter_context(open(os.devnull))
            for context in (redirect_stdout(out), redirect_stderr(err), patch.object(sys, "stdin", nothing)):
                stack.enter_context(context)
            stack.enter_context(patch.dict(os.environ, env or {}))
            stack.enter_context(chdir(cwd or Path.cwd()))
            returned = program.main(argv)
        stdout, stderr = out.getvalue(), err.getvalue()
    assert returned == code, f"exit code {returned}, not {code}:\n{stdout}\n{stderr}"
    return SimpleNamespace(stdout=stdout, stderr=stderr)


def words(arguments: Iterable[object]) -> list[str]:
    """Each argument is a word, or, where it begins with a flag, several: `"--sample --fid"`."""
    texts = [str(argument) for argument in arguments]
    return [word for text in texts for word in (text.split() if text.startswith("--") else [text])]


def command_of_two(*arguments: object, script: str | Path = MAIN) -> list[str]:
    """A script in two processes under torchrun."""
    launch = ("-m", "torch.distributed.run", "--nproc_per_node 2 --master_port", free_port(), script)
    return [WARM, *words([*launch, *arguments])]


def torchrun(*arguments: object, code: int = 0, script: str | Path = MAIN) -> CompletedProcess[str]:
    """A script in two processes, to its end."""
    process = finished(command_of_two(*arguments, script=script))
    assert (process.returncode == 0) == (code == 0), process.stdout + process.stderr
    return process


@contextmanager
def two_started(*arguments: object, script: str | Path = MAIN) -> Iterator[list[Process]]:
    """A script in two processes as torchrun starts them, without the cost of the launcher."""
    of_both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    env = {**os.environ, **of_both, "MASTER_PORT": str(free_port())}
    command = [WARM, script, *words(arguments)]
    with ExitStack() as stack:
        both = (
            started(command, 120, env={**env, "RANK": rank, "LOCAL_RANK": rank}, stdout=PIPE) for rank in "01"
        )
        yield [stack.enter_context(one) for one in both]


def two_ranks(*arguments: object, code: int = 0, script: str | Path = MAIN) -> SimpleNamespace:
    """The same, to their end."""
    with two_started(*arguments, script=script) as processes:
        said = [process.communicate(timeout=120) for process in processes]
    stdout, stderr = ("".join(texts) for texts in zip(*said, strict=True))
    assert [process.returncode for process in processes] == [code, code], stdout + stderr
    return SimpleNamespace(stdout=stdout, stderr=stderr)


def refuses(*arguments: object, says: Sequence[str], tree: Path, code: int = 2, **options) -> None:
    """main.py ends with one sentence that holds all of `says`, and all below `tree` is as before."""
    before = files_below(tree)
    stderr = main(*arguments, code=code, **options).stderr
    *_, last = stderr.splitlines()
    assert last.startswith("main.py: error: ") and stderr.count("main.py: error: ") == 1, stderr
    assert "Traceback" not in stderr
    for words in says:
        assert words in last, f"{words!r} is not in {last!r}"
    assert files_below(tree) == before


def files_below(tree: Path) -> dict[str, bytes | None]:
    """Every file with its content, and every folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(tree.rglob("*"))}


def small_config(path: Path, **changes: object) -> Path:
    """digits.yml with a network of one level and four steps of training.

    Changes are `section__key=value`; None removes a key.
    """
    tree = yaml.safe_load((ROOT / "configs" / "digits.yml").read_text())
    tree["model"] |= {"ch_mult": [1], "attn_resolutions": [], "dropout": 0.1, "ema_rate": 0.9}
    tree["data"] |= {"random_flip": True, "uniform_dequantization": True}
    tree["training"] |= {"batch_size": 600, "n_iters": 4, "snapshot_freq": 2, "validation_freq": 3}
    tree["sampling"] |= {"batch_size": 4}
    # So that a network of four steps makes images that are not all black and white.
    tree["diffusion"] |= {"beta_end": 0.002}
    for name, value in changes.items():
        section, key = name.split("__")
        if value is None:
            tree[section].pop(key, None)
        else:
            tree[section][key] = value
    path.write_text(yaml.safe_dump(tree))
    return path


def sampling(config: object, ckpt: object, exp: object, *more: object, mode: str = "--fid") -> list[object]:
    """The arguments of a command that samples from a checkpoint."""
    return ["--config", config, "--ckpt", ckpt, "--exp", exp, "--sample", mode, *more]
