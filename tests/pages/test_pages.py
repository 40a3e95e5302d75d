"""Every command on the pages is read from its page and run, the long ones made short by more flags."""

import gzip
import os
import re
import shlex
import shutil
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from fnmatch import fnmatch
from hashlib import md5
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from PIL import Image
from support.layouts import encoded, photo, write_celeba, write_cifar10, write_fashion, write_lmdb
from support.measuring import Projection, export
from support.processes import finished, free_port
from support.program import MAIN, ROOT, main
from support.warm import WARM

import configs
from configs import load_config
from configs.arguments import flags
from datasets import dataset_root
from functions.weights import diffusers, pretrained
from runners.diffusion import build_unet
from runners.tools import inspection

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "models" / "pretrained").glob("*.md")),
]


FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


SPAN = re.compile(r"`([^`]+)`")


THE_READERS = ("mine.yml", "X")  # configs


STARTS = ("python ", "torchrun ", "make ", "pip ")


def commands(text: str) -> list[str]:
    """What a reader would run: blocks of Python, the lines of other blocks, and code spans that are commands.

    A block that begins with `{exp}` lists files, an indented one is a drawing. A span with … is not complete.
    """
    found = []
    for language, block in FENCED.findall(text):
        if language == "python":
            found.append(block)
        elif language in ("", "bash", "sh") and not block.startswith(("{exp}", " ")):
            lines = [re.sub(r"(^|\s+)#.*", "", line) for line in re.sub(r"\\\n\s*", "", block).splitlines()]
            found += [spelled for line in lines if line for spelled in spelled_out(line)]
    spans = [" ".join(span.split()) for span in SPAN.findall(FENCED.sub("", text))]
    found += [
        spelled
        for span in spans
        if span.startswith(STARTS) and "…" not in span
        for spelled in spelled_out(span)
    ]
    return list(dict.fromkeys(found))


def spelled_out(line: str) -> list[str]:
    """`a [--b 1|2]` is `a`, and `a --b 2`."""
    bare, full = (re.sub(r" \[(--\w+ )?(?:[^]|]*\|)*([^]|]*)\]", by, line) for by in ("", r" \1\2"))
    return list(dict.fromkeys([bare, full]))


def of_pages() -> list:
    found = [
        (page, command)
        for page in PAGES
        for command in commands(page.read_text())
        if page.name != "python.md" or "\n" not in command
    ]  # test_python_page.py runs its blocks
    return [pytest.param(command, id=f"{page.name}: {command.splitlines()[0]}") for page, command in found]


def value(words: list[str], flag: str, otherwise: str) -> str:
    return words[words.index(flag) + 1] if flag in words else otherwise


def count(words: list[str], flag: str) -> int:
    """How many values the flag has."""
    after = words[words.index(flag) + 1 :] if flag in words else []
    return next((k for k, word in enumerate(after) if word.startswith("-")), len(after))


class Shelf:
    """What the commands need, each once and tiny: configs, data sets, weights, trained runs, an extractor."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch):
        self.root, self.configs, self.datasets, self.features = (
            root / name for name in ("", "configs", "datasets", "f.pt2")
        )
        self.configs.mkdir()
        for path in (ROOT / "configs").glob("*.yml"):
            (self.configs / path.name).write_text(yaml.safe_dump(shrunk(path)))
        folder_of_pictures = shrunk(ROOT / "configs" / "cifar10.yml")
        folder_of_pictures["data"]["dataset"] = "FOLDER"
        self.folder_config = root / "folder.yml"
        self.folder_config.write_text(yaml.safe_dump(folder_of_pictures))
        patch.setattr(configs, "CONFIG_DIR", self.configs)
        patch.setattr(inspection, "CONFIG_DIR", self.configs)
        self.write_datasets(patch)
        self.publish_weights(patch)
        export(self.features, Projection(32).eval(), 32)

    def write_datasets(self, patch: pytest.MonkeyPatch) -> None:
        write_cifar10(self.datasets / "cifar10", patch)
        write_celeba(self.datasets / "celeba", official=False)
        for split, images in write_fashion(self.datasets / "fashion_mnist", packed=True).items():
            labels = (
                b"\x00\x00\x08\x01"
                + len(images).to_bytes(4, "big")
                + bytes(i % 10 for i in range(len(images)))
            )
            (self.datasets / "fashion_mnist" / f"{split}-labels-idx1-ubyte.gz").write_bytes(
                gzip.compress(labels)
            )
        for name in ("bedroom_train_lmdb", "church_outdoor_train_lmdb", "cat"):
            pictures = {f"{i:040x}".encode(): encoded(photo(40, 36, seed=i), "JPEG") for i in range(6)}
            write_lmdb(self.datasets / "lsun" / name, pictures)
        for split in ("train", "test"):
            (self.datasets / "folder" / split).mkdir(parents=True)
            for i in range(6):
                photo(178, 218, seed=i).save(self.datasets / "folder" / split / f"{i}.png")

    def publish_weights(self, patch: pytest.MonkeyPatch) -> None:
        """Random weights for the small configs, where downloads are kept. What is shipped stays."""
        patch.setenv("XDG_CACHE_HOME", str(self.root / "cache"))
        for name, weights in list(pretrained.PUBLISHED.items()):
            if weights.url:
                weights.path.parent.mkdir(parents=True)
                torch.save(build_unet(load_config(weights.config)).state_dict(), weights.path)
                if weights.md5:
                    patch.setitem(
                        pretrained.PUBLISHED,
                        name,
                        replace(weights, md5=md5(weights.path.read_bytes()).hexdigest()),
                    )
        config = load_config("church.yml")
        diffusers.save(self.root / "hub", build_unet(config).state_dict(), config)
        patch.setattr(huggingface_hub, "snapshot_download", lambda repository, **_: str(self.root / "hub"))

    def config(self, name: str) -> Path:
        """The small config of a shipped one's name. The reader's own is of pictures in a folder."""
        return self.folder_config if name in THE_READERS else self.configs / name

    def data(self, config: Path) -> Path:
        return dataset_root(load_config(str(config)).data, str(self.root), None)

    def run(self, config: Path) -> Path:
        """The folder of a run of two steps, the config's third still to come."""
        exp = self.root / "runs" / config.stem
        if not exp.exists():
            exp.mkdir(parents=True)
            tree = yaml.safe_load(config.read_text())
            tree["training"]["n_iters"] = 2
            (exp / "two.yml").write_text(yaml.safe_dump(tree))
            main("--config", exp / "two.yml", "--exp", exp, "--doc D --device cpu --data", self.data(config))
        return exp / "logs" / "D"

    def furnish(self, words: list[str], config: Path, cwd: Path) -> None:
        """Put into the working folder what the words of a command name there."""
        named = re.search(r"(?<!\S)([^\s/]\S*)/(?:logs/(\w+)|datasets)/", " ".join(words))
        exp = named[1] if named else value(words, "--exp", "exp")
        doc = (named and named[2]) or value(words, "--doc", "")
        assert (cwd / exp).is_relative_to(cwd), f"{exp} is not below the working folder"
        (cwd / exp).mkdir(parents=True)
        (cwd / exp / "datasets").symlink_to(self.datasets)
        if doc and config.exists():
            shutil.copytree(self.run(config), cwd / exp / "logs" / doc)
        if config == self.folder_config:
            shutil.copy(config, cwd / value(words, "--config", ""))
        for flag in {"--images", "--new-config"} & set(words):
            folder = cwd / value(words, flag, "")
            folder.mkdir(parents=True)
            for i in range(4):
                photo(32, 32, seed=i).save(folder / f"{i}.png")
        for flag in ("--ckpt", "--inspect"):
            path = cwd / value(words, flag, "")
            if (
                path.suffix == ".pth"
                and "*" not in path.name
                and not path.exists()
                and path.is_relative_to(cwd)
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.run(config) / "ckpt.pth", path)


def shrunk(path: Path) -> dict:
    """A shipped config with three steps of training, 100 timesteps, and two narrow levels for 32 x 32 images.

    Fashion-MNIST's network and schedule stay, for its weights are shipped too.
    """
    tree = yaml.safe_load(path.read_text())
    if path.name != "fashion_mnist.yml":
        tree["model"] |= {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": []}
        tree["model"]["dropout"] = 0.0
        tree["diffusion"]["num_diffusion_timesteps"] = 100
        tree["data"]["image_size"] = min(32, tree["data"]["image_size"])
    tree["data"]["num_workers"] = 0
    tree["training"] |= {"batch_size": 2, "n_iters": 3, "snapshot_freq": 1, "validation_freq": 2}
    tree["sampling"]["batch_size"] = 4
    return tree


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """And no network, nor the wait for one."""
    with pytest.MonkeyPatch.context() as patch:
        for scheme in ("http", "https"):
            patch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
        yield Shelf(tmp_path_factory.mktemp("shelf"), patch)


def files(tree: Path) -> dict[str, int]:
    """When each file was written, without the data sets."""
    return {
        str(path.relative_to(tree)): path.stat().st_mtime_ns for path in tree.rglob("*") if path.is_file()
    }


def run_it(command: str, shelf: Shelf, cwd: Path) -> None:
    """Run a command in a folder that has what it needs. It must make what such a command makes."""
    if "\n" in command:
        before = files(cwd)
        with chdir(cwd):
            exec(compile(command, "a page", "exec"), {"torch": torch, "network": Projection(32).eval()})
        assert files(cwd) != before, "it made nothing"
        return
    match shlex.split(command):
        case ["python", "main.py", "--help"]:  # which exits
            assert process([MAIN, "--help"], cwd)
        case ["python", "main.py", *words]:
            config = shelf.config(value(words, "--config", "cifar10.yml"))
            more = shorter(words, shelf, config)
            run_and_look(lambda: main(*words, *more, cwd=cwd).stdout, words, config, shelf, cwd)
        case ["torchrun", *launch] if "main.py" in launch:
            at = launch.index("main.py")
            words = launch[at + 1 :]
            config = shelf.folder_config  # CIFAR10's hashes are patched in this process only
            two = [*launch[:at], "--nproc_per_node", "2", "--master_port", str(free_port()), MAIN]
            more = [*words, *shorter(words, shelf, config), "--config", str(config)]
            run_and_look(
                lambda: process(["-m", "torch.distributed.run", *two, *more], cwd), words, config, shelf, cwd
            )
        case ["python", "-m", module, *words] if module in RULES:
            run_a_module(["-m", module], module, words, shelf, cwd)
        case ["python", script, *words] if (module := script.removesuffix(".py").replace("/", ".")) in RULES:
            run_a_module([str(ROOT / script)], module, words, shelf, cwd)
        case ["make", target, *variables]:
            # test_demo.py runs `make demo`; `make test` is what runs this very test.
            makefile = (ROOT / "Makefile").read_text()
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)
            assert {name.split("=")[0] for name in variables} <= set(
                re.findall(r"^(\w+) \?=", makefile, re.MULTILINE)
            )
        case ["pip", "install", "-r", name]:
            # It would ask the network; that the packages are enough is shown by every other test here.
            assert [
                Requirement(line)
                for line in (ROOT / name).read_text().splitlines()
                if not line.startswith("-r ")
            ]
        case _:
            pytest.fail(f"no rule to run this: {command}")


def run_and_look(run: Callable[[], str], words: list[str], config: Path, shelf: Shelf, cwd: Path) -> None:
    """Run main.py, and look for what such words are to make."""
    shelf.furnish(words, config, cwd)
    before = files(cwd)
    printed = run()
    made = [name for name, when in files(cwd).items() if before.get(name) != when]
    expected = makes(words)
    if not expected:
        assert printed and not made
    for pattern, n in expected.items():
        assert sum(fnmatch(name, pattern) for name in made) == n, f"{pattern} is not {n} of {sorted(made)}"


def shorter(words: list[str], shelf: Shelf, config: Path) -> list[str]:
    """Flags that make a command short, and name what the shelf has: a later one counts."""
    more = ["--device", "cpu"]
    if {"--sample", "--restoration"} & set(words):
        more += ["--timesteps", *(str(2 + k) for k in range(max(1, count(words, "--timesteps"))))]
    if {"--fid", "--restoration", "--edit"} & set(words):
        more += ["--num_samples", "4", "--batch_size", "4"]
    if "--test" in words:
        more += ["--num_samples", "1", "--batch_size", "1"]
    if "--metrics" in words:
        more += ["--features", str(shelf.features)]
    if "--compile" in words:
        more += ["--compile", "off"]
    if "--set" in words and "--sample" not in words:
        more += ["--set", "training.n_iters=3"]
    if "--data" in words:
        more += ["--data", str(shelf.data(config))]
    return more


def makes(words: list[str]) -> dict[str, int]:
    """What such a command of main.py makes when `shorter`: patterns, and how many. {}: it only prints."""
    exp = value(words, "--exp", "exp")
    run = f"{exp}/logs/{value(words, '--doc', '')}".rstrip("/")
    images = f"{exp}/image_samples/{value(words, '-i', value(words, '--image_folder', 'images'))}"
    if "--inspect" in words or "--plan" in words:
        return {}
    if "--export" in words:
        path = value(words, "--export", "")
        return {path if Path(path).suffix else f"{path}/*/{diffusers.SAFETENSORS}": 1}
    if "--images" in words:
        return {f"{exp}/image_samples/{value(words, '--images', '')}.metrics.json": 1}
    if "--new-config" in words:
        return {f"{Path(value(words, '--new-config', '')).name}.yml": 1}
    if "--preview" in words:
        return {f"{images}.preview.png": 1}
    if "--test" in words:
        return {f"{run}/test_*.json": 1}
    if "--interpolation" in words:
        return {f"{images}/*.png": 11}
    if "--sequence" in words:
        return {f"{images}/*_*.png": 8 * 2}
    if {"--restoration", "--edit"} & set(words):
        return {f"{images}/*_input.png": 4}
    if not {"--fid", "--reconstruction", "--consistency"} & set(words):
        return {f"{run}/ckpt_3.pth": 1}
    if any(
        count(words, flag) > 1 for flag in ("--timesteps", "--skip_type", "--eta", "--sample_type", "--seed")
    ) or "*" in " ".join(words):
        return {f"{images}/table.md": 1}
    if "--reconstruction" in words:
        return {f"{images}/*_original.png": 4}
    numbers = {f"{images}.metrics.json": 1} if "--metrics" in words else {}
    return numbers | ({f"{images}/*.png": 4} if value(words, "--keep_images", "yes") == "yes" else {})


# Of each module: flags that make it short, the config where it cannot be the page's, and what it makes.
RULES = {
    "benchmarks.accuracy": ("--images 2 --timesteps 2 --eta 0 --out made", None, "made.md"),
    "benchmarks.data": ("--images 4", None, None),
    "benchmarks.fashion_classifier": (
        "--epochs 1 --images 6 --program made.pt2 --out made",
        "fashion_mnist.yml",
        "made.pt2",
    ),
    "benchmarks.recipes": ("--runs D --out made --plot made.png", "digits.yml", "made.md"),
    "benchmarks.sampling": (
        "--batch 2 --steps 2 --batches 1 --repeats 1 --only η --out made",
        None,
        "made.md",
    ),
    "benchmarks.solvers": ("--images 1 --evaluations 2 --reference 3 --out made", None, "made.md"),
    "benchmarks.training": ("--steps 20 --repeats 1 --only upstream --out made", "digits.yml", "made.md"),
    "benchmarks.widths": ("--networks 32:1,1:1: --seconds 1 --out made", None, "made.md"),
    "datasets.pack": ("", None, "{1}/data.mdb"),
}


def run_a_module(start: list[str], module: str, words: list[str], shelf: Shelf, cwd: Path) -> None:
    flags, instead, makes = RULES[module]
    config = shelf.config(instead or value(words, "--config", "cifar10.yml"))
    shelf.furnish(words, config, cwd)
    if module == "datasets.pack" and not (cwd / words[0]).exists():
        (cwd / words[0]).parent.mkdir(parents=True, exist_ok=True)
        (cwd / words[0]).symlink_to(shelf.datasets / "folder")
    if module == "benchmarks.recipes":
        for folder in ("logs", "tensorboard"):
            shutil.copytree(shelf.run(config).parents[1] / folder, cwd / value(words, "--exp", "") / folder)
    more = flags.split() + (["--figure", "2"] if "--figure" in words else [])
    for flag, instead in (("--config", config), ("--data", shelf.data(config))):
        more += [flag, str(instead)] if flag in words else []
    assert process([*start, *words, *more], cwd)
    assert makes is None or (cwd / makes.format(*words)).exists()


def process(arguments: list[str], cwd: Path) -> str:
    """What Python prints when it is started outside the repository, with nothing compiled."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"}
    ended = finished([WARM, *arguments], cwd=cwd, env=env)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.mark.parametrize("command", of_pages())
def test_a_command_on_a_page_runs(command, shelf, tmp_path):
    run_it(command, shelf, tmp_path)


@pytest.mark.parametrize(
    "command, says",
    [
        ("python main.py --config cifar10.yml --exp E --doc D --sampel --fid", "unknown argument --sampel"),
        ("python main.py --config cifer10.yml --exp E --doc D --ni", "no config 'cifer10.yml'"),
        ("python main.py --config cifar10.yml --exp E --doc D --sample --fid --metrics psnr", "psnr"),
        (
            "python main.py --config cifar10.yml --exp E --doc D --sample --fid -i a -i b",
            "a/\\*.png is not 4 of",
        ),
        ("python -m datasets.pack SOURCE DEST --sise 64", "--sise"),
        ("python -m benchmarks.nothing --out a", "no rule"),
        ("python benchmarks/nothing.py", "no rule"),
        ("make nothing", "nothing"),
        ("make demo NOTHING=a", "NOTHING"),
        ("pip install nothing", "no rule"),
        ("pip install -r LICENSE", "MIT"),
        ("curl http://localhost", "no rule"),
        (
            "from runners.diffusion import Diffusion\nDiffusion.from_pretrained('nothing')\n",
            "no checkpoint at nothing",
        ),
        ("made = 0\n", "made nothing"),
    ],
)
def test_a_wrong_command_fails(command, says, shelf, tmp_path):
    with pytest.raises((Exception, pytest.fail.Exception), match=says):
        run_it(command, shelf, tmp_path)


PAGE = """
Say `make demo`, `python main.py …` or `python
a.py`, and `--flag`.
```
python main.py --config a.yml \\
    --exp E                      # a comment
# nothing
git clone a [--depth 1|2]
```
```
{exp}/logs/    files
```
```
    make
      |
```
```python
import a
b = `a`
```
```yaml
python: no
```
"""


def test_commands_are_found_on_a_page():
    lines = [
        "python main.py --config a.yml --exp E",
        "git clone a",
        "git clone a --depth 2",
        "import a\nb = `a`\n",
    ]
    assert commands(PAGE) == [*lines, "make demo", "python a.py"]


def test_every_command_on_the_pages_is_found():
    """By another way: pieces between fences, and lines that begin with a command's name."""
    found = {page.name: commands(page.read_text()) for page in PAGES}
    assert len(found["README.md"]) >= 15 and len(found["command-line.md"]) >= 10
    assert len(found["evaluation.md"]) >= 5 and sum(map(len, found.values())) >= 45
    for page in PAGES:
        pieces = page.read_text().split("```")
        languages = {piece.split("\n")[0] for piece in pieces[1::2]}
        assert len(pieces) % 2 and languages <= {"", "bash", "bibtex", "python", "sh"}
        lines = [line for piece in pieces[1::2] for line in piece.splitlines() if line.startswith(STARTS)]
        spans = re.findall(r"`((?:python|torchrun) [^`…]+)`", " ".join(pieces[::2]).replace("\n", " "))
        for line in lines + spans:
            begin = re.split(r" +#| \[| \\", line)[0]
            assert any(command.startswith(begin) for command in found[page.name]), line


def test_every_flag_is_in_the_table_and_no_other():
    rows = [
        line.split("|")[1]
        for line in (ROOT / "docs" / "command-line.md").read_text().splitlines()
        if line.startswith("| `-")
    ]
    assert set(re.findall(r"(?<![\w-])--?[a-z_0-9-]+", " ".join(rows))) == set(flags()) - {"-h", "--help"}


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "docs").glob("*/*.md"))], ids=lambda page: page.name
)
def test_every_file_that_a_page_names_is_there(page):
    """By a link, with its heading, or by a path in the repository."""
    text = page.read_text()
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target.read_text()), link
    for path in re.findall(
        r"`((?:benchmarks|configs|datasets|docs|functions|models|runners|tests)/[\w./]*)`", text
    ):
        assert (ROOT / path).exists(), path


def headings(text: str) -> list[str]:
    """As GitHub makes anchors of them."""
    lines = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines]


def test_the_paper_to_cite_is_the_one_of_the_readme():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["preferred-citation"]["url"] in (ROOT / "README.md").read_text()


def test_the_readmes_five_lines(tmp_path, pipe, monkeypatch):
    """They are run as they stand, with a small network in place of the shipped one."""
    [lines] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) == 5 and '"fashion_mnist"' in lines
    monkeypatch.chdir(tmp_path)
    exec(lines.replace('"fashion_mnist"', repr(str(pipe))), {})
    images = sorted(tmp_path.glob("*.png"))
    of_all = f"--num_samples {len(images)} --batch_size {len(images)}"
    main("--ckpt", pipe, "--sample --fid --timesteps 20", of_all)
    for path in images:
        expected = Image.open(tmp_path / "exp" / "image_samples" / "images" / path.name)
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(expected))
