"""Every reader of files and flags, given inputs that lie: its value, or one sentence that names the file.

`make fuzz` does the same with 100,000 inputs; docs/reliability.md has its figures.
"""

import gzip
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as as_safetensors
from support.fuzzing import ODD, TEXTS, Content, altered, cases, damaged, rezipped, told
from support.layouts import data_config, encoded, photo, write_lmdb
from support.program import ROOT

from configs import config_from, load_config, to_yaml
from configs.arguments import flags, parse
from configs.options import Options
from configs.timesteps import read_timesteps
from datasets import get_dataset
from datasets.pictures import exact_pictures
from functions.disk import latents, manifest
from functions.weights import diffusers, diffusers_config, load_checkpoint, load_for, native
from runners.diffusion import Diffusion
from runners.evaluation import measurements, reference
from runners.tools.inspection import inspect
from runners.training.state import TrainingState

TREE = yaml.safe_load((ROOT / "configs" / "digits.yml").read_text())


@pytest.fixture(scope="module")
def where(tmp_path_factory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield tmp_path_factory.mktemp("fuzz")
    patch.undo()


def text_of(tree: object) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8")


def json_of(tree: object) -> bytes:
    return json.dumps(tree).encode()


def filled(folder: Path, files: dict[str, bytes]) -> Path:
    """A folder with these files alone."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# Configs, flags, timesteps.

ODD_YAML = b"a: &a {image_size: 8}\ndata: {<<: *a, x: !!set {y}, z: 2001-01-01, w: .nan}\nmodel: [*a, 0o7]\n"


@cases(250)
@given(
    st.one_of(damaged((ROOT / "configs" / "digits.yml").read_bytes(), ODD_YAML), altered(TREE).map(text_of))
)
def test_configs(where, content):
    path = where / "c.yml"
    path.write_bytes(content)
    told(lambda: to_yaml(load_config(str(path))), "c.yml")


@cases(80)
@given(st.sampled_from([f"{section}.{key}" for section, keys in TREE.items() for key in keys]), TEXTS)
def test_changes_of_a_config(key, text):
    told(lambda: load_config("digits.yml", [f"{key}={text}"]), "")


def words() -> st.SearchStrategy[str]:
    usual = [
        "--sample",
        "--fid",
        "--doc",
        "d",
        "--config",
        "digits.yml",
        "4",
        "ddim",
        "--timesteps",
        "/dev/zero",
    ]
    return st.one_of(st.sampled_from(flags()), st.sampled_from(usual), TEXTS)


@cases(200)
@given(st.lists(words(), max_size=8))
def test_flags(argv):
    def read():
        try:
            parse(["--config", "digits.yml", *argv])
        except SystemExit as end:  # --help
            assert end.code == 0

    told(read, "")


@cases(60)
@given(
    st.one_of(damaged(b"0, 1 2.5\n# a comment\n999\n"), st.lists(ODD, max_size=5).map(repr).map(str.encode))
)
def test_files_of_timesteps(where, content):
    (where / "t.txt").write_bytes(content)
    told(lambda: read_timesteps(str(where / "t.txt")), "t.txt")


# What the program left beside images.

MADE = {"mode": "fid", "weights": "0" * 64, "image": {"size": 8}, "seed": 1, "timesteps": [0, 500]}
PART = {"up_to": 8, "date": "2026-01-01", "torch": "2", "batch_size": 4, "checkpoint": "c.pth"}
MANIFEST = {"decides": MADE, "num_samples": 8, "parts": [PART]}


@cases(150)
@given(st.one_of(altered(MANIFEST).map(json_of), damaged(json_of(MANIFEST))))
def test_manifests(where, content):
    folder = filled(where / "images", {manifest.NAME: content})
    told(lambda: manifest.claim(folder, MADE, 16, {}), "images")


RESULTS = {
    "fid": {"value": 3.0}, "kid": {"mean": 0.1, "std": 0.01}, "is": {"mean": 2.0, "std": 0.1},
}  # fmt: skip
MEASURED = {
    "metrics": RESULTS, "num_samples": 8, "reference": {"name": "a", "hash": "b"},
    "extractor": {"name": "Inception", "hash": "c", "dim": 16},
}  # fmt: skip


@cases(150)
@given(st.one_of(altered({"decides": MADE, "measurements": [MEASURED]}).map(json_of)))
def test_files_of_metrics(where, content):
    path = measurements.path_of(where / "measured")
    path.write_bytes(content)

    def read():
        found = measurements.find(where / "measured", MADE, {"num_samples": 8}, ["fid"])
        if found:
            measurements.table(found, None)

    told(read, path.name)


def npz(**arrays: np.ndarray) -> Content:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return Content(file.getvalue())


def any_zip(*sound: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(damaged(*sound), rezipped(*sound))


STATISTICS = [npz(mu=np.zeros(4), sigma=np.eye(4)), npz(mu=np.array([None]), sigma=np.array(["a"]))]
LATENTS = [
    npz(latents=np.zeros((2, 1, 8, 8), "f4"), manifest=np.array(json.dumps({"decides": MADE}))),
    npz(latents=np.zeros((2, 1, 8, 8), "c8")), npz(latents=np.zeros((1, 1, 8, 8), "M8[s]")),
]  # fmt: skip


@cases(100)
@given(any_zip(*STATISTICS))
def test_statistics(where, content):
    path = where / "s.npz"
    path.write_bytes(content)
    options = Options(reference=str(path), metrics=("fid",))
    told(lambda: reference.find(options, config_from(TREE, "digits"), 4), "s.npz")


@cases(100)
@given(st.one_of(any_zip(*LATENTS), altered({"decides": MADE}).map(json.dumps).map(
    lambda text: npz(latents=np.zeros((1, 1, 8, 8), "f4"), manifest=np.array(text)))))  # fmt: skip
def test_latents(where, content):
    (where / "l.npz").write_bytes(content)
    told(lambda: latents.read_latents(where / "l.npz", (1, 8, 8), 999), "l.npz")


# Checkpoints.


def saved(content: object, **how: object) -> Content:
    file = io.BytesIO()
    torch.save(content, file, **how)
    return Content(file.getvalue())


def tiny(**more: object) -> dict:
    """A checkpoint of this program, as its reader knows it; of a network that has three parameters."""
    names = ("temb.dense.0.weight", "conv_in.weight", "conv_out.weight")
    weights = {name: torch.zeros(2, 2, 1, 1) for name in names}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    parts = {"model": weights, "ema": weights, "optimizer": optimizer}
    return {"format": native.FORMAT, **parts, "epoch": 0, "step": 1, "images_seen": 0, "seed": 1, **more}


ODD_TENSORS = st.sampled_from([
    torch.zeros(3), torch.zeros(0), torch.tensor(float("nan")), torch.ones(2, dtype=torch.complex64),
    torch.eye(3).to_sparse(), torch.zeros(2, device="meta"), torch.ones(2, dtype=torch.float8_e4m3fn),
    torch.ones(2, dtype=torch.bool), torch.zeros(1).expand(2**40), np.float64(1), np.zeros(2),
])  # fmt: skip
OTHERS = st.one_of(ODD, ODD_TENSORS)


def formats() -> st.SearchStrategy[Content]:
    """Sound in their bytes, wrong in what they hold: native, upstream's, a state dict, nested ones."""
    tree = tiny()
    parts = [tree[name] for name in ("model", "optimizer", "epoch", "step", "ema")]
    trees = [tree, parts, tree["model"], {"state_dict": tree["model"], "ema": {"shadow": tree["ema"]}}]
    return st.one_of(*(altered(tree, OTHERS) for tree in trees)).map(saved)


def damaged_formats() -> st.SearchStrategy[Content]:
    sound = [saved(tiny()), saved(tiny()["model"])]
    old = saved(tiny(), _use_new_zipfile_serialization=False)
    return st.one_of(damaged(old, *sound), rezipped(*sound), damaged(as_safetensors(tiny()["model"])))


@cases(300)
@given(st.one_of(st.deferred(formats), st.deferred(damaged_formats)))
def test_checkpoints(where, content):
    (where / "c.pth").write_bytes(content)
    told(lambda: load_checkpoint(where / "c.pth").select("ema", "c.pth"), "c.pth")


@cases(40)
@given(st.one_of(st.deferred(formats), st.deferred(damaged_formats)))
def test_what_is_inspected(where, content):
    (where / "c.pth").write_bytes(content)
    told(lambda: inspect(Options(mode="inspect", inspect=str(where / "c.pth")), None), "c.pth")


@lru_cache
def state() -> TrainingState:
    """Of a small network after a step."""
    tree = {**TREE, "model": TREE["model"] | {"ch_mult": [1], "attn_resolutions": []}}
    state = TrainingState(Diffusion(config_from(tree, "small"), "cpu"), 0)
    for param in state.diffusion.model.parameters():
        param.grad = torch.ones_like(param)
    state.optimizer.step()
    state.step = 1
    return state


@lru_cache
def state_tree() -> dict:
    return tiny(**vars(state().checkpoint()))


@st.composite
def states(draw) -> Content:
    """Of a run: the parts that are no weights are wrong."""
    tree = state_tree()
    part = draw(st.sampled_from(["optimizer", "epoch", "step", "images_seen", "seed"]))
    if part != "optimizer":
        return saved(tree | {part: draw(OTHERS)})
    optimizer = tree["optimizer"]
    few = {0: optimizer["state"][0]}
    altered_few = draw(altered({"state": few, "param_groups": optimizer["param_groups"]}, OTHERS))
    if isinstance(altered_few, dict) and isinstance(altered_few.get("state"), dict):
        altered_few["state"] = {**optimizer["state"], **altered_few["state"]}
    return saved(tree | {"optimizer": altered_few})


@cases(100)
@given(states())
def test_runs_that_go_on(where, content):
    (where / "c.pth").write_bytes(content)

    def read():
        state().restore(load_checkpoint(where / "c.pth"), str(where / "c.pth"))
        state().step += 1
        state().optimizer.step()

    told(read, "c.pth")


@lru_cache
def pipeline() -> dict[str, bytes]:
    """The files of a diffusers folder."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "pipe")
        diffusers.save(folder, state().diffusion.model.state_dict(), state().diffusion.config)
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }


@st.composite
def pipelines(draw) -> dict[str, bytes]:
    files = dict(pipeline())
    name = draw(st.sampled_from(sorted(files)))
    if name.endswith(".json"):
        files[name] = draw(st.one_of(altered(json.loads(files[name])).map(json_of), damaged(files[name])))
    else:
        files[name] = draw(damaged(files[name]))
    if draw(st.booleans()):
        weights = files.pop("unet/diffusion_pytorch_model.safetensors")
        index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}, "metadata": {}}
        files["unet/diffusion_pytorch_model.safetensors.index.json"] = draw(altered(index).map(json_of))
        files["unet/a.safetensors"] = weights
    return files


@cases(150)
@given(pipelines())
def test_folders_of_diffusers(where, files):
    folder = filled(where / "pipe", files)

    def read():
        config = diffusers_config.read(folder)
        diffusers_config.clipping(folder)
        load_for(config, folder)

    told(read, "pipe")


# Pictures.


@lru_cache
def pictures() -> list[bytes]:
    kinds = [
        "PNG",
        "JPEG",
        "GIF",
        "TIFF",
        "WEBP",
        "BMP",
        "PPM",
        "TGA",
        "ICO",
        "JPEG2000",
        "PCX",
        "DDS",
        "SGI",
    ]
    deep = encoded(photo(9, 7).convert("I;16"), "PNG")
    return [*(encoded(photo(16, 12), kind) for kind in kinds), encoded(photo(9, 7).convert("P"), "PNG"), deep]


@st.composite
def trees(draw) -> dict[str, bytes]:
    names = st.sampled_from(
        ["a.png", "b.JPG", "train/c.png", "test/d.gif", ".e.png", "f.tif", "g.txt", "ü.webp"]
    )
    of = st.one_of(damaged(*pictures()), st.sampled_from(pictures()))
    return draw(st.dictionaries(names, of, min_size=1, max_size=4))


@cases(300)
@given(st.deferred(trees), st.sampled_from([1, 3]))
def test_trees_of_pictures(where, files, channels):
    folder = filled(where / "tree", files)

    def read():
        images = get_dataset(data_config("FOLDER", 8, channels), folder, train=True)
        assert all(image.shape == (channels, 8, 8) for image in images)
        images.identity()

    told(read, "tree")


@cases(60)
@given(st.deferred(lambda: damaged(*pictures())))
def test_pictures_of_one_size(where, content):
    folder = filled(where / "exact", {"0.png": content})
    told(lambda: [*exact_pictures(folder, ["0.png"], (3, 12, 16))], "0.png")


@lru_cache
def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, content in enumerate(pictures()[:3]):
            archive.writestr(f"train/{i}.png", content)
    return Content(file.getvalue())


@cases(120)
@given(st.deferred(lambda: any_zip(zipped())))
def test_zip_files_of_pictures(where, content):
    with tempfile.NamedTemporaryFile(dir=where, suffix="z.zip") as file:  # each its own: the last stays open
        file.write(content)
        file.flush()

        def read():
            images = get_dataset(data_config("FOLDER", 8), Path(file.name), train=True)
            assert all(image.shape == (3, 8, 8) for image in images)

        told(read, "z.zip")


IDX = bytes.fromhex("00000803") + b"".join(n.to_bytes(4, "big") for n in (2, 4, 4)) + bytes(32)
PARTITION = "".join(f"{i}.jpg {i % 3}\n" for i in range(5)).encode()


@cases(60)
@given(st.one_of(damaged(IDX, gzip.compress(IDX))), st.sampled_from(["", ".gz"]))
def test_idx_files(where, content, suffix):
    folder = filled(where / "idx", {f"train-images-idx3-ubyte{suffix}": content})
    told(lambda: get_dataset(data_config("FASHION_MNIST", 8, 1), folder, train=True), "idx3-ubyte")


@cases(60)
@given(
    st.deferred(lambda: damaged(PARTITION)), st.deferred(lambda: damaged(encoded(photo(178, 218), "JPEG")))
)
def test_celebas_partition(where, content, picture):
    files = {f"img_align_celeba/{i}.jpg": picture for i in range(5)}
    folder = filled(where / "faces", {"list_eval_partition.txt": content, **files})
    told(lambda: list(get_dataset(data_config("CELEBA", 8), folder, train=True)), "faces")


@lru_cache
def databases() -> list[bytes]:
    """Of LMDBs as FFHQ's: one with a tree of two levels and values in pages of their own, one packed."""
    found = []
    for n, kinds in ((400, ["GIF"]), (3, ["PNG"]), (0, [])):
        with tempfile.TemporaryDirectory() as folder:
            entries = {b"length": b"%d" % n, b"__crc32-0__": b""} if n else {}
            for i in range(n):
                entries[b"8-%05d" % i] = encoded(photo(*(8, 8 + 60 * (i % 7 == 0)), seed=i), kinds[0])
            write_lmdb(Path(folder), entries)
            found.append(Path(folder, "data.mdb").read_bytes())
    return found


@cases(200)
@given(st.deferred(lambda: damaged(*databases())), st.sampled_from(["FFHQ", "LSUN"]))
def test_lmdbs(where, content, dataset):
    folder = filled(where / "lmdb", {"cat/data.mdb": content, "data.mdb": content})

    def read():
        images = get_dataset(data_config(dataset, 8, category="cat"), folder, train=True)
        assert all(image.shape == (3, 8, 8) for image in images)

    told(read, "lmdb")
