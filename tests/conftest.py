"""What many tests read: one small trained run, one small feature extractor, one small pipeline."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from support.program import main, small_config


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
    """For --features: an exported program, uint8 (n, 3, 8, 8) to 16 features."""
    from support.measuring import Projection, export

    return export(tmp_path_factory.mktemp("extractor") / "projection.pt2", Projection(8).eval(), 8)


@pytest.fixture(scope="session")
def pipe(tmp_path_factory) -> Path:
    """The folder of a small pipeline, as diffusers writes it."""
    from support.pipelines import pipeline

    return pipeline(tmp_path_factory.mktemp("pipe") / "pipe", variance_type="fixed_large")
