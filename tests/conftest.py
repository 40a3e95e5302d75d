"""What the tests share: main.py as a real process, small configs, and one trained run."""

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import yaml

import main as program

ROOT = Path(__file__).parent.parent
MAIN = str(ROOT / "main.py")


def main(
    *arguments: object,
    code: int = 0,
    fresh: bool = False,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> SimpleNamespace:
    """Run main.py, expect `code`, and give what it printed: stdout, stderr.

    fresh: as a process of its own, with no terminal. Else by `main.main` in this process, which saves seconds of imports;
    every task and every kind of refusal is run fresh somewhere.
    """
    argv = [str(argument) for argument in arguments]
    if fresh:
        process = subprocess.run(
            [sys.executable, MAIN, *argv],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, cwd=cwd, env={**os.environ, **(env or {})},
        )  # fmt: skip
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
    """digits.yml with a network of one level and four steps of training; changes as `section__key=value`, None removes."""
    tree = yaml.safe_load((ROOT / "configs" / "digits.yml").read_text())
    tree["model"] |= {"ch_mult": [1], "attn_resolutions": [], "dropout": 0.1, "ema_rate": 0.9}
    tree["data"] |= {"random_flip": True, "uniform_dequantization": True}
    tree["training"] |= {"batch_size": 600, "n_iters": 4, "snapshot_freq": 2, "validation_freq": 3}
    tree["sampling"] |= {"batch_size": 4}
    tree["diffusion"] |= {
        "beta_end": 0.002
    }  # so that a network of four steps makes images that are not all black and white
    for name, value in changes.items():
        section, key = name.split("__")
        if value is None:
            tree[section].pop(key, None)
        else:
            tree[section][key] = value
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> SimpleNamespace:
    """One small trained run, for reading only: exp, doc, config, ckpt, and what the process said."""
    exp = tmp_path_factory.mktemp("run")
    config = small_config(exp / "small.yml")
    process = main("--config", config, "--exp", exp, "--doc", "d", "--comment", "a note", fresh=True)
    return SimpleNamespace(
        exp=exp, doc="d", config=config, ckpt=exp / "logs" / "d" / "ckpt.pth", stderr=process.stderr
    )


@pytest.fixture(scope="session")
def extractor(tmp_path_factory) -> Path:
    """An exported program, uint8 (N, 3, 8, 8) to 16 features, of seeded random weights: what --features takes."""
    import torch

    class Projection(torch.nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.weight = torch.nn.Parameter(torch.randn(3 * 8 * 8, 16, generator=generator) / 8)

        def forward(self, images):
            return torch.tanh((images.float() / 255).flatten(1) @ self.weight)

    path = tmp_path_factory.mktemp("extractor") / "projection.pt2"
    example = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    program = torch.export.export(
        Projection().eval(), (example,), dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    torch.export.save(program, path)
    return path
