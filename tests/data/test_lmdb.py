"""LSUN, FFHQ and packed images are read as upstream reads them; the index of keys is small and made once."""

import hashlib
import pickle
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image
from support.layouts import data_config, decoded, encoded, photo, pixels, write_ffhq, write_lmdb
from support.processes import finished, started
from support.program import ROOT, files_below, main, refuses, small_config
from torchvision.transforms import CenterCrop, Compose, Resize

from datasets import dataset_root, get_dataset
from datasets.batches import load, training_order
from datasets.lmdb_files import Lmdb, keys_of

SMALL = dict(data__image_size=8, data__channels=3, model__in_channels=3, model__out_ch=3)
SMALL |= dict(training__batch_size=5, training__n_iters=1)


LSUN = dict(data__dataset="LSUN", data__category="bedroom", **SMALL)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """A cache of its own, outside of what a test compares."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "ddim" / "lmdb_keys"


def everything(n):
    return slice(0, n)


def write_lsun(root: Path, name: str = "bedroom_train_lmdb", n: int = 12) -> dict[bytes, bytes]:
    """Photos of several shapes, as JPEG and WebP, under keys of several lengths."""
    shapes = [(75, 64), (64, 64), (64, 101), (96, 64), (40, 33)]
    keys = [f"{i * 7919 % 1000:03d}".encode() * (1 + i % 3) + b"\0" * (i % 2) for i in range(n)]
    kinds = ["WEBP", "JPEG"]
    entries = {
        key: encoded(photo(*shapes[i % 5], seed=i), kinds[i % 2], quality=75) for i, key in enumerate(keys)
    }
    write_lmdb(root / name, entries)
    return entries


def test_lsun_is_resized_on_the_shorter_side_and_cropped_at_the_centre(tmp_path, cache):
    data = data_config("LSUN", image_size=32, category="bedroom")
    root = dataset_root(data, str(tmp_path), None)
    assert root == tmp_path / "datasets" / "lsun"
    entries = write_lsun(root)
    before = files_below(root)
    dataset = get_dataset(data, root, train=True)
    upstreams = Compose([Resize(32), CenterCrop(32)])
    assert len(dataset) == len(entries)
    for i, key in enumerate(sorted(entries)):
        assert np.array_equal(dataset[i].numpy(), pixels(upstreams(decoded(entries[key]).convert("RGB"))))

    # By hand, for one of 75 x 64: 37 x 32, of which the columns from round(2.5) on.
    i, picture = next(
        (i, p) for i, k in enumerate(sorted(entries)) if (p := decoded(entries[k])).size == (75, 64)
    )
    resized = pixels(picture.convert("RGB").resize((37, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(dataset[i].numpy(), resized[:, :, 2:34])
    assert files_below(root) == before  # the index lies in the cache
    assert len(list(cache.glob("*.npy"))) == 1


def test_an_object_is_read_as_it_unpacks(tmp_path):
    entries = write_lsun(tmp_path, "cat", n=3)
    data = data_config("LSUN", image_size=8, category="cat")
    assert len(get_dataset(data, tmp_path, train=True)) == len(entries)
    assert get_dataset(data, tmp_path, train=False) is None
    with pytest.raises(ValueError, match=r"LSUN's dog is not in .* the unpacked folder dog with"):
        get_dataset(data_config("LSUN", image_size=8, category="dog"), tmp_path, train=True)


def test_without_its_validation_lmdb_lsun_trains_and_only_test_is_refused(tmp_path):
    write_lsun(tmp_path / "datasets" / "lsun")
    config = small_config(tmp_path / "c.yml", **LSUN)
    command = ("--config", config, "--exp", tmp_path, "--doc", "d")
    said = main(*command).stderr
    missing = str(tmp_path / "datasets" / "lsun" / "bedroom_val_lmdb")
    assert "training on 12 images of LSUN" in said and "no validation_loss" in said and missing in said
    refuses(*command, "--test", says=("LSUN has no test split", missing), tree=tmp_path)
    write_lsun(tmp_path / "datasets" / "lsun", "bedroom_val_lmdb", n=4)
    assert "on 4 test images" in main(*command, "--test").stdout


def test_a_wrong_category_is_told_the_right_ones(tmp_path):
    config = small_config(tmp_path / "c.yml", **LSUN | dict(data__category="bedrooms"))
    command = ("--config", config, "--exp", tmp_path, "--doc", "d")
    refuses(
        *command, says=("'bedrooms'", "bedroom", "church_outdoor", "cat", "tower"), tree=tmp_path, fresh=True
    )
    config = small_config(tmp_path / "c.yml", **LSUN)
    refuses(*command, says=("bedroom_train_lmdb", str(tmp_path / "datasets" / "lsun")), tree=tmp_path)


def test_the_index_holds_any_keys_and_is_made_once_for_an_lmdb(tmp_path, cache):
    entries = {
        bytes(key): b"x"
        for key in (b"\0", b"\0\0", b"a", b"a\0", b"\xff" * 511, b"longer key", "ключ".encode())
    }
    write_lmdb(tmp_path / "data", entries)
    keys = keys_of(tmp_path / "data")
    assert list(keys) == sorted(entries) and len(keys) == len(entries) and keys[2] == sorted(entries)[2]
    [table] = cache.glob("*.npy")
    made = table.stat()
    assert list(keys_of(tmp_path / "data")) == sorted(entries) and table.stat() == made

    again = pickle.loads(pickle.dumps(keys))  # as for a worker that is not forked
    assert list(again) == sorted(entries) and len(pickle.dumps(keys)) < 500

    write_lmdb(tmp_path / "data", {b"another": b"x"})
    assert list(keys_of(tmp_path / "data")) == sorted([*entries, b"another"])
    assert list(keys) == sorted(entries)

    for damaged in (b"", table.read_bytes()[:100], b"no table"):
        table.write_bytes(damaged)
    for other in cache.glob("*.npy"):
        other.write_bytes(b"\x93NUMPY")
    assert list(keys_of(tmp_path / "data")) == sorted([*entries, b"another"])


READER = """
import hashlib, sys
from pathlib import Path
from datasets.lmdb_files import keys_of
from datasets.lmdb_files import LmdbValues
assert "torch" not in sys.modules  # else this test takes long
path, rounds = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(rounds):
    source = LmdbValues(path, keys_of(path))
    whole = b"".join(source.keys[i] + source.read(i) for i in range(len(source.keys)))
    print(hashlib.sha256(whole).hexdigest(), flush=True)
"""


def test_an_index_is_right_while_others_make_and_read_it(tmp_path, cache):
    """Four processes begin at once; one more reads it again and again while it vanishes and is made anew."""
    entries = {hashlib.sha1(b"%d" % i).hexdigest().encode(): b"%d" % i for i in range(20_000)}
    write_lmdb(tmp_path / "data", entries)
    expected = hashlib.sha256(b"".join(key + entries[key] for key in sorted(entries))).hexdigest()

    with ExitStack() as stack:
        readers = []
        for rounds in (1, 1, 1, 5):
            command = [sys.executable, "-c", READER, tmp_path / "data", rounds]
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None)
            readers.append(stack.enter_context(started(command, timeout=120, cwd=ROOT, **pipes)))
        for process in readers:
            assert process.stdout.readline() == "ready\n"
        for process in readers:
            process.stdin.write("\n")
            process.stdin.flush()
        for _ in range(4):
            readers[-1].stdout.readline()
            for table in cache.glob("*.npy"):
                table.unlink()
        for process in readers:
            said, _ = process.communicate(timeout=60)
            assert process.returncode == 0 and set(said.split()) <= {expected} and said
    assert list(keys_of(tmp_path / "data")) == sorted(entries)
    assert {path.suffix for path in cache.iterdir()} == {".npy", ".lock"}  # nothing half-made stays


MEMORY = """
import sys, tracemalloc
from pathlib import Path
from configs import load_config
from datasets import get_dataset, lsun
data = load_config("bedroom.yml").data
status = Path("/proc/self/status")  # of Linux
tracemalloc.start()
for root in [sys.argv[1]] + 2 * [sys.argv[2]]:  # the index of the second is made, then found
    tracemalloc.reset_peak()
    dataset = get_dataset(data, Path(root), train=True)
    dataset[len(dataset) - 1]
    lines = status.read_text().splitlines() if status.exists() else ["RssAnon 0"]
    anonymous = [line.split()[1] for line in lines if line.startswith("RssAnon")]
    print(len(dataset), tracemalloc.get_traced_memory()[1], *anonymous)
"""


def test_200_000_entries_open_in_constant_memory(tmp_path):
    content = encoded(photo(8, 8))
    for n in (2_000, 200_000):
        write_lmdb(tmp_path / str(n) / "bedroom_train_lmdb", {b"%040d" % i: content for i in range(n)})
    process = finished([sys.executable, "-c", MEMORY, tmp_path / "2000", tmp_path / "200000"], cwd=ROOT)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    (few, peak, anonymous), *large = [[int(word) for word in line.split()] for line in lines]
    assert few == 2_000 and len(large) == 2
    for many, peak_of_many, anonymous_of_many in large:
        assert many == 200_000
        assert peak_of_many < peak + 200_000  # bytes: not one an entry
        assert anonymous_of_many < anonymous + 4_000  # kB; the keys alone have 8,000


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_image_is_lost_or_doubled_by_workers(tmp_path, num_workers):
    entries = {b"%d" % i: encoded(Image.new("RGB", (8, 8), (i, i, i))) for i in range(23)}
    write_lmdb(tmp_path / "tower_train_lmdb", entries)
    dataset = get_dataset(data_config("LSUN", image_size=8, category="tower"), tmp_path, train=True)
    dataset[3]  # open in this process before the workers are made of it
    order = training_order(23, 5, seed=1, epoch=0, images_seen=0, n_epochs=2)
    batches = list(load(dataset, order, everything, num_workers))
    seen = [(batch.epoch, int(i)) for batch, images in batches for i in images[:, 0, 0, 0]]
    assert sorted(seen) == [(epoch, i) for epoch in range(2) for i in range(23)]
    keys = sorted(entries)
    assert [keys[k] for batch, _ in batches for k in batch.indices] == [b"%d" % i for _, i in seen]


def test_a_truncated_lmdb_is_refused(tmp_path):
    """And not read past its end, which would kill the process without a word."""
    write_lsun(tmp_path / "whole")
    whole = (tmp_path / "whole" / "bedroom_train_lmdb" / "data.mdb").read_bytes()
    folder = tmp_path / "data" / "bedroom_train_lmdb"
    folder.mkdir(parents=True)
    config = small_config(tmp_path / "c.yml", **LSUN)
    command = ("--config", config, "--exp", tmp_path / "exp", "--doc", "d", "--data", tmp_path / "data")
    for size in (0, 100, 4096, 8192, len(whole) // 2, len(whole) - 1):
        (folder / "data.mdb").write_bytes(whole[:size])
        words = "is truncated" if size >= 8192 else "is damaged"
        refuses(*command, says=(str(folder), words), tree=tmp_path, fresh=size == len(whole) // 2)
    (folder / "data.mdb").write_bytes(bytes(20_000))
    refuses(*command, says=(str(folder), "is damaged"), tree=tmp_path)


@pytest.mark.parametrize("n, longest", [(0, 1), (1, 9000), (40, 9000), (2000, 300)])
def test_the_library_finds_the_same_keys_and_values(tmp_path, n, longest):
    """Of trees of one to three levels, with large values, and with pages that were freed and used again."""
    random = np.random.default_rng(n)
    with lmdb.open(str(tmp_path), map_size=2**26) as environment:
        for _ in range(3):
            with environment.begin(write=True) as transaction:
                for i in random.permutation(n):
                    key = b"%d" % (i * 7919) + b"k" * int(random.integers(1, 200))
                    transaction.put(key[: 200 if i % 3 else 5], random.bytes(random.integers(longest)))
                for key in [*transaction.cursor().iternext(values=False)][::5]:
                    transaction.delete(key)
        with environment.begin() as transaction:
            entries = dict(transaction.cursor())
    ours = Lmdb(tmp_path)
    assert list(ours) == sorted(entries) and len(entries) == ours.entries
    assert all(ours.get(key) == value for key, value in entries.items())
    assert all(ours.get(key + b"x") is None and ours.get(key[:-1] + b"\0") is None for key in entries)
    assert ours.get(b"") is None and ours.get(b"\xff" * 300) is None


def test_a_long_key_leaves_room_for_the_name_of_its_lmdb(tmp_path):
    write_lmdb(tmp_path / "bedroom_train_lmdb", {b"\xff" * 400: b""})
    with pytest.raises(ValueError, match="bedroom_train_lmdb is damaged or not a picture"):
        get_dataset(data_config("LSUN", image_size=8, category="bedroom"), tmp_path, train=True)[0]


def test_an_image_that_cannot_be_decoded_is_named_by_its_key(tmp_path):
    entries = write_lsun(tmp_path / "data")
    keys = sorted(entries)
    write_lmdb(tmp_path / "data" / "bedroom_train_lmdb", {keys[5]: entries[keys[5]][:60], keys[6]: b""})
    dataset = get_dataset(
        data_config("LSUN", image_size=8, category="bedroom"), tmp_path / "data", train=True
    )
    for i in (5, 6):
        with pytest.raises(ValueError, match="is damaged or not a picture") as error:
            dataset[i]
        assert f"the image {repr(keys[i])[2:-1]} of {tmp_path}/data/bedroom_train_lmdb" in str(error.value)

    # In a run, by a worker.
    config = small_config(tmp_path / "c.yml", **LSUN | dict(data__num_workers=2))
    command = ("--config", config, "--exp", tmp_path / "exp", "--doc", "d", "--data", tmp_path / "data")
    last = main(*command, code=2, fresh=True).stderr.splitlines()[-1]
    assert (
        last.startswith("main.py: error: the image ")
        and f"of {tmp_path}/data/bedroom_train_lmdb is damaged or not a picture" in last
    )


def test_ffhq_is_split_as_upstream_splits_it(tmp_path):
    data = data_config("FFHQ", image_size=8)
    root = dataset_root(data, str(tmp_path), None)
    assert root == tmp_path / "datasets" / "FFHQ"
    photos = write_ffhq(root, 8, 30)
    indices = list(range(30))
    np.random.RandomState(2019).shuffle(indices)
    for train, chosen in ((True, indices[:27]), (False, indices[27:])):
        dataset = get_dataset(data, root, train)
        assert len(dataset) == len(chosen)
        assert all(np.array_equal(dataset[k].numpy(), pixels(photos[i])) for k, i in enumerate(chosen))


def test_ffhq_of_another_resolution_or_another_layout(tmp_path):
    root = tmp_path / "data"
    for size, n in ((16, 12), (128, 3)):
        write_ffhq(root, size, n)
    config = small_config(tmp_path / "c.yml", **SMALL | dict(data__dataset="FFHQ"))
    command = ("--config", config, "--exp", tmp_path / "exp", "--doc", "d", "--data", root)
    refuses(*command, says=("data.image_size is 8", "it has 16, 128"), tree=tmp_path)
    write_lmdb(root, {b"8-00000": b"x"})
    refuses(*command, says=("its length is 3", "no 8-00002"), tree=tmp_path)
    write_lmdb(root, {b"8-00001": encoded(photo(8, 8)), b"8-00002": encoded(photo(8, 8))})
    refuses(*command, says=("the image 8-00000 of", "damaged or not a picture"), tree=tmp_path)
    shutil.rmtree(root)
    write_lsun(tmp_path, "data")
    refuses(*command, says=("not in FFHQ's layout", "length"), tree=tmp_path)
    shutil.rmtree(root)
    refuses(*command, says=(f"FFHQ is not in {root}", "datasets.pack"), tree=tmp_path)


def test_one_lmdb_is_a_training_set_and_two_are_splits(tmp_path):
    photos = {split: write_ffhq(tmp_path / "data" / split, 8, n) for split, n in (("train", 6), ("test", 2))}
    data = data_config("LMDB", image_size=8)
    for train, split in ((True, "train"), (False, "test")):
        dataset = get_dataset(data, tmp_path / "data", train)
        assert [np.array_equal(dataset[i].numpy(), pixels(p)) for i, p in enumerate(photos[split])] == [
            True
        ] * len(photos[split])
    assert len(get_dataset(data, tmp_path / "data" / "train", train=True)) == 6
    assert get_dataset(data, tmp_path / "data" / "train", train=False) is None
    with pytest.raises(ValueError, match="it has 8"):
        get_dataset(data_config("LMDB", image_size=16), tmp_path / "data", train=True)
    with pytest.raises(ValueError, match=r"LMDB is not in .*datasets.pack"):
        get_dataset(data, tmp_path, train=True)
