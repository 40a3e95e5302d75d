"""The house keeps its rules: imports go one way, tables agree, functions are short, the way to a PNG too."""

import ast
import traceback
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from support.program import ROOT, main, sampling

from configs import DataConfig, DiffusionConfig, choices
from functions import restoration, samplers, schedules
from functions.disk import images
from functions.metrics import metrics
from runners.sampling import tasks

RANKS = {"configs": 0, "models": 1, "datasets": 1, "functions": 1, "runners": 2, "main": 3}
ROOMS = ("configs", "models", "datasets", "functions", "runners")
FILES = [ROOT / "main.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]


def imported(path: Path) -> set[str]:
    """The project's modules that a file imports anywhere in it, as full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                inside = ROOT / node.module.replace(".", "/")
                is_module = (inside / f"{name.name}.py").exists() or (inside / name.name).is_dir()
                found.add(f"{node.module}.{name.name}" if is_module else node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.split(".")[0] in RANKS}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own = module_of(path).split(".")[0]
    for name in imported(path):
        room = name.split(".")[0]
        assert room == own or RANKS[room] < RANKS[own], f"{path} imports {name}"


def test_no_module_imports_itself_by_way_of_others():
    """But for `Diffusion`, whose verbs import the modules with the work, which are about it."""
    graph = {module_of(path): imported(path) for path in FILES}
    verbs = {"runners.training.loop", "runners.evaluation.bound", "runners.sampling.run"}
    verbs |= {f"runners.tools.{tool}" for tool in ("preview", "export", "plan")}
    graph["runners.diffusion"] -= verbs

    def reaches(start: str) -> set[str]:
        seen, todo = set(), list(graph[start])
        while todo:
            name = todo.pop()
            if name in graph and name not in seen:
                seen.add(name)
                todo += graph[name]
        return seen

    assert [name for name in graph if name in reaches(name)] == []


def test_the_tables_of_names_agree():
    assert choices.SAMPLERS.keys() == samplers.SAMPLERS.keys()
    assert choices.SPACINGS.keys() == schedules.SPACINGS.keys() | schedules.CURVES.keys()
    assert choices.CLIPS.keys() == samplers.CLIPS.keys()
    assert choices.TASKS.keys() == tasks.TASKS.keys()
    assert choices.METRICS.keys() == metrics.METRICS.keys()
    assert choices.DEGRADATIONS.keys() == restoration.DEGRADATIONS.keys()
    assert set(get_args(get_type_hints(DiffusionConfig)["beta_schedule"])) == schedules.SCHEDULES.keys()
    for name in get_args(get_type_hints(DataConfig)["dataset"]):
        assert (ROOT / "datasets" / f"{name.lower()}.py").exists()


def test_functions_are_short_but_the_list_of_flags():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name != "_parser":
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_from_the_command_to_a_png_it_is_six_frames(run, tmp_path, monkeypatch):
    """Counted where the file is written: functions of the program, `main` and `write_png` included."""
    stacks, write_png = [], images.write_png

    def counted(path, image):
        stacks.append(traceback.extract_stack())
        write_png(path, image)

    monkeypatch.setattr(images, "write_png", counted)
    main(*sampling(run.config, run.ckpt, tmp_path, "--num_samples", 1), "--timesteps", 2)
    ours = {str(path) for path in FILES}
    frames = [frame.name for frame in stacks[0] if frame.filename in ours]
    assert len(frames) + 1 <= 6, frames
