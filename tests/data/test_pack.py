"""datasets.pack packs what the readers would have given, whole or not at all, after any interruption."""

import json
import os
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image
from support.layouts import data_config, decoded, encoded, photo, pixels, read_lmdb, write_celeba, write_lmdb
from support.processes import finished, started, wait_until
from support.program import ROOT, files_below, main, small_config
from support.warm import WARM

from configs.refusal import Refusal
from datasets import get_dataset, pack
from datasets.pictures import crop_face

SHAPES = [(20, 12), (12, 12), (13, 30), (8, 8), (40, 41)]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write_folder(folder: Path, n: int) -> list[Image.Image]:
    folder.mkdir(parents=True, exist_ok=True)
    photos = [photo(*SHAPES[i % len(SHAPES)], seed=i) for i in range(n)]
    for i, picture in enumerate(photos):
        picture.save(folder / f"{i:04}.png")
    return photos


def packs(*arguments: object, code: int = 0) -> None:
    assert pack.main([str(argument) for argument in arguments]) == code


PACK = ("-m", "datasets.pack")


def refused(capsys, *arguments: object, says: tuple[str, ...], code: int = 2) -> None:
    packs(*arguments, code=code)
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("datasets.pack: error: ") and all(words in last for words in says), last


@pytest.mark.parametrize("kind", ["folder", "zip", "lmdb"])
def test_packed_images_are_those_that_training_would_have_read(tmp_path, kind):
    folder = tmp_path / "photos"
    photos = write_folder(folder, 7)
    names = sorted(path.name for path in folder.iterdir())
    source = folder
    if kind == "zip":
        source = tmp_path / "photos.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for name in reversed(names):
                archive.write(folder / name, f"deep/{name}")
            archive.writestr("__MACOSX/deep/._0000.png", b"no image")
            archive.writestr("notes.txt", b"no image")
    if kind == "lmdb":
        source = tmp_path / "bedroom_train_lmdb"
        write_lmdb(source, {name.encode(): (folder / name).read_bytes() for name in names})
    packs(source, tmp_path / "packed", "--size", 8)

    direct = get_dataset(data_config("FOLDER", image_size=8), folder, train=True)
    packed = get_dataset(data_config("LMDB", image_size=8), tmp_path / "packed", train=True)
    assert len(packed) == len(direct) == 7
    assert all(np.array_equal(packed[i], direct[i]) for i in range(7))
    assert np.array_equal(packed[1].numpy(), pixels(photos[1].resize((8, 8), Image.Resampling.BILINEAR)))

    # The layout is FFHQ's and nothing else but checksums, each image at its size.
    del packed  # LMDB may not be open twice in a process
    entries = read_lmdb(tmp_path / "packed")
    assert len(entries.pop(b"__crc32-0__")) == 4 * 7
    assert (
        sorted(entries) == [b"8-%05d" % i for i in range(7)] + [b"length"] and entries.pop(b"length") == b"7"
    )
    assert {decoded(content).size for content in entries.values()} == {(8, 8)}
    assert {path.name for path in tmp_path.iterdir() if "packed" in path.name} == {"packed", ".packed.lock"}


def test_crops(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    picture = photo(178, 218)
    picture.save(tmp_path / "photos" / "a.png")
    whole = picture.resize((16, 16), Image.Resampling.BILINEAR)
    face = Image.fromarray(np.asarray(picture)[57:185, 25:153]).resize((16, 16), Image.Resampling.BILINEAR)
    # 19.6 and 1.5 as torchvision rounds.
    center = picture.resize((16, 19), Image.Resampling.BILINEAR).crop((0, 2, 16, 18))
    for crop, expected in (("none", whole), ("celeba", face), ("center", center)):
        packs(tmp_path / "photos", tmp_path / crop, "--size", 16, "--crop", crop)
        packed = get_dataset(data_config("LMDB", image_size=16), tmp_path / crop, train=True)
        assert np.array_equal(packed[0].numpy(), pixels(expected)), crop
    photo(50, 50).save(tmp_path / "photos" / "b.png")
    arguments = (tmp_path / "photos", tmp_path / "x", "--size", 16, "--crop", "celeba")
    refused(capsys, *arguments, says=("b.png is 50 x 50", "178 x 218"))


def test_grey_stays_grey(tmp_path):
    (tmp_path / "grey").mkdir()
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    grey.save(tmp_path / "grey" / "a.png")
    packs(tmp_path / "grey", tmp_path / "packed", "--size", 16)
    for channels in (1, 3):
        data = data_config("LMDB", image_size=16, channels=channels)
        image = get_dataset(data, tmp_path / "packed", train=True)[0]
        assert all(np.array_equal(channel, np.asarray(grey)) for channel in image)


def test_celebas_partition_and_folders_split_what_is_packed(tmp_path, capsys):
    by_split = write_celeba(tmp_path / "celeba", official=False)
    for split in ("train", "test"):
        dest = tmp_path / "packed" / split
        packs(tmp_path / "celeba", dest, "--size", 64, "--crop", "celeba", "--split", split)
    for train, k in ((True, 0), (False, 2)):
        dataset = get_dataset(data_config("LMDB", image_size=64), tmp_path / "packed", train)
        direct = get_dataset(data_config("CELEBA", image_size=64), tmp_path / "celeba", train)
        assert len(dataset) == len(direct) == len(by_split[k])
        assert all(np.array_equal(dataset[i], direct[i]) for i in range(len(direct)))
        assert np.array_equal(
            dataset[0].numpy(), pixels(crop_face(by_split[k][0]).resize((64, 64), Image.Resampling.BILINEAR))
        )

    for split, n in (("train", 3), ("test", 2)):
        write_folder(tmp_path / "mine" / split, n)
        packs(tmp_path / "mine", tmp_path / f"mine_{split}", "--size", 8, "--split", split)
        assert read_lmdb(tmp_path / f"mine_{split}")[b"length"] == b"%d" % n
    arguments = (tmp_path / "mine" / "test", tmp_path / "x", "--size", 8, "--split", "test")
    refused(capsys, *arguments, says=("no test split",))


def done(unfinished: Path) -> int:
    """How many images another process has packed."""
    if not (unfinished / "data.mdb").exists():
        return 0
    try:
        with (
            lmdb.open(str(unfinished), readonly=True, lock=False) as environment,
            environment.begin() as transaction,
        ):
            return json.loads(transaction.get(b"pack", b'{"done": 0}'))["done"]
    except lmdb.Error:  # being made
        return 0


def test_killed_at_any_moment_it_continues_to_the_same_result(tmp_path):
    """A pipe among the images stops it where it can be killed: the reader waits for ever."""
    folder, dest = tmp_path / "photos", tmp_path / "packed"
    write_folder(folder, 3 * pack.BATCH)
    packs(folder, tmp_path / "undisturbed", "--size", 8)
    blocked = sorted(folder.iterdir())[2 * pack.BATCH + 40]
    content = blocked.read_bytes()
    blocked.unlink()
    os.mkfifo(blocked)
    command = (*PACK, folder, dest, "--size", 8)
    with started([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE) as process:
        wait_until(lambda: done(tmp_path / "packed.partial") >= 2 * pack.BATCH, process, pause=0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)  # its workers hold its pipes: they are gone too
    assert not dest.exists()

    blocked.unlink()
    blocked.write_bytes(content)
    process = finished([WARM, *command], cwd=ROOT)
    assert process.returncode == 0 and f"{3 * pack.BATCH} images of 8 x 8" in process.stdout
    assert f"{2 * pack.BATCH}/{3 * pack.BATCH}" in process.stderr  # where it went on
    assert read_lmdb(dest) == read_lmdb(tmp_path / "undisturbed")
    assert not (tmp_path / "packed.partial").exists()


def test_killed_before_it_got_its_name_it_only_gets_it(tmp_path):
    write_folder(tmp_path / "photos", 5)
    packs(tmp_path / "photos", tmp_path / "packed", "--size", 8)
    whole = read_lmdb(tmp_path / "packed")
    (tmp_path / "packed").rename(tmp_path / "packed.partial")
    packs(tmp_path / "photos", tmp_path / "packed", "--size", 8)
    assert read_lmdb(tmp_path / "packed") == whole


def test_a_beginning_of_something_else_is_not_continued(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pack, "BATCH", 4)
    folder, dest = tmp_path / "photos", tmp_path / "packed"
    write_folder(folder, 10)
    broken = folder / "0006.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:50])
    says = (f"the image {broken} is damaged or not a picture", "4 images are packed")
    refused(capsys, folder, dest, "--size", 8, says=says)
    assert not dest.exists() and done(tmp_path / "packed.partial") == 4
    before = read_lmdb(tmp_path / "packed.partial")
    for change in (("--size", 16), ("--size", 8, "--crop", "none")):
        refused(capsys, folder, dest, *change, says=("packed.partial", "size or crop"))
    (folder / "0001.png").rename(folder / "0001b.png")
    refused(capsys, folder, dest, "--size", 8, says=("packed.partial", "other images"))
    (folder / "0001b.png").rename(folder / "0001.png")
    assert read_lmdb(tmp_path / "packed.partial") == before

    broken.unlink()  # the remedy that the sentence names
    packs(folder, dest, "--size", 8)
    direct = get_dataset(data_config("FOLDER", image_size=8), folder, train=True)
    packed = get_dataset(data_config("LMDB", image_size=8), dest, train=True)
    assert len(packed) == 9 and all(np.array_equal(packed[i], direct[i]) for i in range(9))


def test_a_full_disk_ends_it_and_what_was_packed_is_kept(tmp_path):
    """A limit on the size of files stands for the disk."""
    folder, dest = tmp_path / "photos", tmp_path / "packed"
    write_folder(folder, 2 * pack.BATCH)
    packs(folder, tmp_path / "undisturbed", "--size", 32)
    # The first of two transactions fits.
    limit = (tmp_path / "undisturbed" / "data.mdb").stat().st_size * 3 // 4
    limits = {resource.RLIMIT_FSIZE: limit}
    process = finished([WARM, *PACK, folder, dest, "--size", 32], cwd=ROOT, limits=limits)
    last = process.stderr.splitlines()[-1]
    assert process.returncode == 1 and "the disk takes no more" in last and "packed.partial" in last
    assert done(tmp_path / "packed.partial") == pack.BATCH and not dest.exists()
    packs(folder, dest, "--size", 32)
    assert read_lmdb(dest) == read_lmdb(tmp_path / "undisturbed")


def test_the_lmdb_grows_as_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "FIRST_MAP", 2**15)
    write_folder(tmp_path / "photos", 40)
    packs(tmp_path / "photos", tmp_path / "packed", "--size", 32)
    assert (tmp_path / "packed" / "data.mdb").stat().st_size > 2**16
    assert len(read_lmdb(tmp_path / "packed")) == 42  # with their number and checksums


def test_bad_input_is_told_and_nothing_is_written(tmp_path, capsys):
    write_folder(tmp_path / "photos", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    write_lmdb(tmp_path / "cut", {b"a": encoded(photo(64, 64))})
    (tmp_path / "cut" / "data.mdb").write_bytes((tmp_path / "cut" / "data.mdb").read_bytes()[:9000])
    (tmp_path / "there").mkdir()
    before = files_below(tmp_path)
    for source, dest, says in [
        ("nothing", "x", ("nothing does not exist", "a zip file")),
        ("empty", "x", ("empty holds no images",)),
        ("text.zip", "x", ("damaged or not a folder, a zip file or an LMDB",)),
        ("none.zip", "x", ("none.zip holds no images",)),
        ("cut", "x", ("cut is truncated",)),
        ("photos", "there", ("there already exists", "another name")),
    ]:
        refused(capsys, tmp_path / source, tmp_path / dest, "--size", 8, says=says)
    process = finished([WARM, *PACK, tmp_path / "photos", tmp_path / "x", "--size", "big"], cwd=ROOT)
    assert process.returncode == 2 and "invalid int value: 'big'" in process.stderr
    assert files_below(tmp_path) == before


def test_a_bit_that_flips_in_a_packed_image_is_noticed(tmp_path):
    """A picture that still decodes, to other colours. Sets from before there were checksums are read."""
    write_folder(tmp_path / "photos", 3)
    packs(tmp_path / "photos", tmp_path / "packed", "--size", 8)
    path = tmp_path / "packed" / "data.mdb"
    content, value = bytearray(path.read_bytes()), read_lmdb(tmp_path / "packed")[b"8-00001"]
    data, flips = data_config("LMDB", 8), 0
    for at in range(30, len(value)):
        other = bytearray(value)
        other[at] ^= 8
        begin = content.index(value)
        path.write_bytes(content[:begin] + other + content[begin + len(value) :])
        with pytest.raises(Refusal, match=r"8-00001.*(checksum is wrong)"):
            get_dataset(data, tmp_path / "packed", train=True)[1]
        flips += 1
    assert flips > 20

    # Without checksums.
    write_lmdb(tmp_path / "old", {k: v for k, v in read_lmdb(tmp_path / "packed").items() if k[:2] != b"__"})
    assert len(list(get_dataset(data, tmp_path / "old", train=True))) == 3


def test_packed_images_train_through_the_command_line(tmp_path):
    write_folder(tmp_path / "photos", 12)
    packs(tmp_path / "photos", tmp_path / "datasets" / "lmdb", "--size", 8)
    changes = dict(data__channels=3, model__in_channels=3, model__out_ch=3)
    changes |= dict(training__batch_size=5, training__n_iters=1, data__num_workers=2)
    config = small_config(tmp_path / "c.yml", data__dataset="LMDB", **changes)
    said = main("--config", config, "--exp", tmp_path, "--doc", "d").stderr
    assert "training on 12 images of LMDB" in said and "no test split" in said
