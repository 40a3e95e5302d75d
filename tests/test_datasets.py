"""Data sets in their real layouts, against independent readings of the same files."""

import gzip
import hashlib
import os
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from conftest import ROOT, main, refuses, small_config
from layouts import data_config, random_images
from PIL import Image
from sklearn.datasets import load_digits

from datasets import dataset_root, get_dataset
from datasets.batches import load, plain_order, training_order, worker_count
from datasets.scaling import from_model_range, random_flip, to_model_range
from functions.noise import BatchDraws


def write_cifar10(root, monkeypatch):
    """The official pickles with a few images each, torchvision's md5 lists patched to them. Returns the images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = {}
    lists = {"train_list": [f"data_batch_{k}" for k in range(1, 6)], "test_list": ["test_batch"]}
    for attribute, names in lists.items():
        md5s = []
        for k, name in enumerate(names):
            images[name] = random_images(4, 3, 32, 32, seed=k + len(attribute))
            content = pickle.dumps({"data": images[name].reshape(4, -1), "labels": [0] * 4})
            (folder / name).write_bytes(content)
            md5s.append([name, hashlib.md5(content).hexdigest()])
        monkeypatch.setattr(torchvision.datasets.CIFAR10, attribute, md5s)
    meta = pickle.dumps({"label_names": ["a"]})
    (folder / "batches.meta").write_bytes(meta)
    patched = {"filename": "batches.meta", "key": "label_names", "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", patched)
    return images


def test_cifar10(tmp_path, monkeypatch):
    data = data_config("CIFAR10")
    root = dataset_root(data, str(tmp_path), None)
    assert root == tmp_path / "datasets" / "cifar10"
    images = write_cifar10(root, monkeypatch)
    train = np.concatenate([images[f"data_batch_{k}"] for k in range(1, 6)])
    assert np.array_equal(get_dataset(data, root, train=True).numpy(), train)
    assert np.array_equal(get_dataset(data, root, train=False).numpy(), images["test_batch"])

    # At another size it is PIL's antialiased bilinear filter.
    small = get_dataset(data_config("CIFAR10", image_size=16), root, train=True)[3].numpy()
    expected = Image.fromarray(train[3].transpose(1, 2, 0)).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(small, np.asarray(expected).transpose(2, 0, 1))


def test_cifar10_trains_through_the_command_line(tmp_path, monkeypatch):
    write_cifar10(tmp_path / "datasets" / "cifar10", monkeypatch)
    changes = dict(
        data__dataset="CIFAR10", data__image_size=32, data__channels=3, model__in_channels=3, model__out_ch=3
    )
    config = small_config(tmp_path / "c.yml", training__batch_size=8, **changes)
    assert (
        "training on 20 images of CIFAR10" in main("--config", config, "--exp", tmp_path, "--doc", "d").stderr
    )


def test_cifar10_unpacks_its_archive(tmp_path, monkeypatch):
    """The official archive put there by hand, its md5 patched."""
    images = write_cifar10(tmp_path / "made", monkeypatch)
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    digest = hashlib.md5((root / "cifar-10-python.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", digest)
    assert np.array_equal(
        get_dataset(data_config("CIFAR10"), root, train=False).numpy(), images["test_batch"]
    )


def test_cifar10s_second_copy_of_upstream_serves_the_test_split(tmp_path, monkeypatch):
    data = data_config("CIFAR10")
    images = write_cifar10(tmp_path / "datasets" / "cifar10_test", monkeypatch)
    dataset = get_dataset(data, dataset_root(data, str(tmp_path), None), train=False)
    assert np.array_equal(dataset.numpy(), images["test_batch"])


def write_fashion(root, packed):
    """IDX files by the format's own definition."""
    root.mkdir(parents=True)
    images = {}
    for k, (name, n) in enumerate([("train", 6), ("t10k", 3)]):
        images[name] = random_images(n, 28, 28, seed=k)
        content = (
            b"\x00\x00\x08\x03" + b"".join(d.to_bytes(4, "big") for d in (n, 28, 28)) + images[name].tobytes()
        )
        path = root / f"{name}-images-idx3-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)
    return images


@pytest.mark.parametrize("packed, below", [(True, "."), (False, "FashionMNIST/raw")])
def test_fashion_mnist(tmp_path, packed, below):
    images = write_fashion(tmp_path / "data" / below, packed)
    for name, train in (("train", True), ("t10k", False)):
        dataset = get_dataset(data_config("FASHION_MNIST", channels=1), tmp_path / "data", train)
        assert np.array_equal(dataset.numpy()[:, 0], np.pad(images[name], ((0, 0), (2, 2), (2, 2))))


REAL_FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


@pytest.mark.skipif(
    not REAL_FASHION.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_real_fashion_mnist_trains(tmp_path):
    """fashion_mnist.yml with a small network, through main.py: the loss falls to under a third of its start."""
    tree = yaml.safe_load((ROOT / "configs" / "fashion_mnist.yml").read_text())
    tree["model"] |= {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [8]}
    tree["training"] |= {"batch_size": 16, "n_iters": 200, "validation_freq": 1000}
    tree["optim"]["lr"] = 0.001
    (tmp_path / "c.yml").write_text(yaml.safe_dump(tree))
    process = main(
        "--config", tmp_path / "c.yml", "--exp", tmp_path, "--doc", "d", "--data", REAL_FASHION, fresh=True
    )
    assert "training on 60000 images of FASHION_MNIST" in process.stderr
    lines = (tmp_path / "logs" / "d" / "stdout.txt").read_text()
    losses = [float(loss) for loss in re.findall(r"step: \d+, loss: ([\d.]+)", lines)]
    assert len(losses) == 200
    assert np.mean(losses[-20:]) < losses[0] / 3


def test_damaged_fashion_mnist_is_named(tmp_path):
    write_fashion(tmp_path / "data", packed=True)
    path = tmp_path / "data" / "train-images-idx3-ubyte.gz"
    config = small_config(tmp_path / "c.yml", data__dataset="FASHION_MNIST", data__image_size=32)
    command = ("--config", config, "--exp", tmp_path / "exp", "--doc", "d", "--data", tmp_path / "data")
    whole = path.read_bytes()
    for damaged in (
        whole[:-20],
        whole[:40] + bytes(400) + whole[440:],
        gzip.compress(b"\0\0\x08\x01" + bytes(12)),
    ):
        path.write_bytes(damaged)
        refuses(*command, says=(str(path), "damaged"), tree=tmp_path)


@pytest.mark.parametrize(
    "name, says",
    [
        ("cifar10", ["CIFAR10", "put the folder cifar-10-batches-py"]),
        ("fashion_mnist", ["FASHION_MNIST", "put the four *-ubyte.gz"]),
        ("celeba", ["CELEBA", "put the folder img_align_celeba and list_eval_partition.txt"]),
    ],
)
def test_data_that_cannot_be_downloaded_leave_nothing_and_say_where_they_go(tmp_path, name, says):
    offline = {
        key: "http://127.0.0.1:9" for key in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    }
    exp = tmp_path / "exp"
    says = (*says, f"{exp}/datasets/{name}")
    refuses("--config", f"{name}.yml", "--exp", exp, "--doc", "d", says=says, tree=tmp_path, env=offline)


def test_digits():
    data = data_config("DIGITS", image_size=8, channels=1)
    train, test = get_dataset(data, None, train=True), get_dataset(data, None, train=False)
    assert (train.shape, test.shape) == ((1498, 1, 8, 8), (299, 1, 8, 8))
    real = {np.round(image * 255 / 16).astype(np.uint8).tobytes() for image in load_digits().images}
    assert {image.numpy().tobytes() for image in (*train, *test)} == real
    assert get_dataset(data_config("DIGITS", image_size=16, channels=3), None, train=True).shape == (
        1498,
        3,
        16,
        16,
    )


@pytest.fixture
def tree(tmp_path):
    """A tree of every kind of image, each with one colour: name -> (grey, rgb) that it must become."""
    folder = tmp_path / "mine" / "deep"
    folder.mkdir(parents=True)
    red, size = (200, 40, 40), (20, 12)
    grey = int(Image.new("RGB", (1, 1), red).convert("L").getpixel((0, 0)))
    Image.new("RGB", size, red).save(folder / "a_rgb.png")
    Image.new("RGBA", size, (*red, 128)).save(folder / "b_rgba.png")
    Image.new("RGB", size, red).quantize(4).save(folder / "c_palette.png")
    Image.new("L", size, 90).save(folder / "d_grey.png")
    Image.fromarray(np.full((12, 20), 90 << 8, np.uint16)).save(folder / "e_grey16.png")
    Image.new("CMYK", size, (0, 0, 0, 0)).save(folder / "f_cmyk.jpg")
    (folder / "notes.txt").write_text("no image")
    expected = [(grey, red), (grey, red), (grey, red), (90, (90,) * 3), (90, (90,) * 3), (255, (255,) * 3)]
    return tmp_path / "mine", expected


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_every_kind_of_image(tree, channels):
    root, expected = tree
    dataset = get_dataset(data_config("FOLDER", image_size=8, channels=channels), root, train=True)
    assert len(dataset) == len(expected)
    for image, (grey, rgb) in zip((dataset[i] for i in range(len(dataset))), expected, strict=True):
        assert image.shape == (channels, 8, 8) and image.dtype == torch.uint8
        assert (
            image.flatten(1).amax(1).tolist()
            == image.flatten(1).amin(1).tolist()
            == ([grey] if channels == 1 else list(rgb))
        )


def test_a_folders_images_are_resized_on_the_shorter_side_and_cropped_at_the_centre(tmp_path):
    picture = Image.fromarray(random_images(30, 50, 3))
    picture.save(tmp_path / "x.png")
    image = get_dataset(data_config("FOLDER", image_size=10), tmp_path, train=True)[0]
    wide = np.asarray(picture.resize((16, 10), Image.Resampling.BILINEAR))
    assert np.array_equal(image.numpy(), wide[:, 3:13].transpose(2, 0, 1))


def test_a_photo_is_turned_as_its_exif_says(tmp_path):
    picture = Image.fromarray(random_images(8, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "x.png", exif=exif)
    image = get_dataset(data_config("FOLDER", image_size=8), tmp_path, train=True)[0]
    assert np.array_equal(image.numpy().transpose(1, 2, 0), np.asarray(picture)[::-1, ::-1])


def test_a_folder_linked_into_itself_counts_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    Image.new("L", (8, 8), 1).save(tmp_path / "mine" / "a.png")
    Image.new("L", (8, 8), 2).save(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "mine" / "sub" / "up").symlink_to(tmp_path / "mine")
    (tmp_path / "mine" / "linked").symlink_to(tmp_path / "elsewhere")
    assert (
        len(get_dataset(data_config("FOLDER", image_size=8, channels=1), tmp_path / "mine", train=True)) == 2
    )


def test_folders_train_and_test_are_the_splits(tmp_path):
    for split, n in (("train", 3), ("test", 2)):
        (tmp_path / split).mkdir()
        for i in range(n):
            Image.new("L", (8, 8), i).save(tmp_path / split / f"{i}.png")
    data = data_config("FOLDER", image_size=8, channels=1)
    assert (len(get_dataset(data, tmp_path, train=True)), len(get_dataset(data, tmp_path, train=False))) == (
        3,
        2,
    )
    assert get_dataset(data, tmp_path / "train", train=False) is None


def test_a_folder_trains_through_workers_and_an_image_that_cannot_be_decoded_is_named(tmp_path):
    data = tmp_path / "mine"
    data.mkdir()
    for i in range(12):
        Image.fromarray(random_images(9, 11, 3, seed=i)).save(data / f"{i}.png")
    changes = dict(
        data__dataset="FOLDER", data__channels=3, model__in_channels=3, model__out_ch=3, data__num_workers=2
    )
    config = small_config(tmp_path / "c.yml", training__batch_size=5, **changes)
    command = ("--config", config, "--exp", tmp_path / "exp", "--data", data, "--doc")
    assert "no test split" in main(*command, "good").stderr
    one = small_config(tmp_path / "one.yml", training__batch_size=5, **(changes | dict(data__num_workers=0)))
    main("--config", one, "--exp", tmp_path / "exp", "--data", data, "--doc", "one")
    a, b = (
        torch.load(tmp_path / "exp" / "logs" / doc / "ckpt.pth", weights_only=True)["model"]
        for doc in ("good", "one")
    )
    assert all(torch.equal(a[name], b[name]) for name in a)  # nothing random happens in workers

    broken = data / "5.png"
    broken.write_bytes(broken.read_bytes()[:100])
    refuses(
        *command, "good", "--ni", says=(f"the image {broken} cannot be decoded",), tree=tmp_path, fresh=True
    )


def test_an_image_that_breaks_during_a_run_is_named_by_the_worker_that_reads_it(tmp_path):
    """As in a folder too large to be checked at the start."""
    for i in range(6):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    dataset = get_dataset(data_config("FOLDER", image_size=8, channels=1), tmp_path, train=True)
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"the image {tmp_path}/3.png cannot be decoded"):
        list(load(dataset, plain_order(6, 2), lambda n: slice(0, n), num_workers=2))


def test_test_without_a_test_split_is_refused(tmp_path, run):
    Image.new("L", (8, 8), 1).save(tmp_path / "a.png")
    config = small_config(tmp_path / "c.yml", data__dataset="FOLDER")
    command = ("--config", config, "--exp", tmp_path, "--ckpt", run.ckpt, "--data", tmp_path, "--test")
    refuses(*command, says=("FOLDER has no test split", "test/"), tree=tmp_path)


def test_an_empty_or_missing_folder_is_named(tmp_path):
    config = small_config(tmp_path / "c.yml", data__dataset="FOLDER")
    (tmp_path / "empty").mkdir()
    for name, says in (("empty", "holds no images"), ("missing", "there is no folder")):
        command = ("--config", config, "--exp", tmp_path / "exp", "--doc", "d", "--data", tmp_path / name)
        refuses(*command, says=(says, str(tmp_path / name)), tree=tmp_path)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_image_is_lost_or_doubled(tmp_path, num_workers):
    for i in range(23):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i:02}.png")
    dataset = get_dataset(data_config("FOLDER", image_size=8, channels=1), tmp_path, train=True)

    def everything(n):
        return slice(0, n)

    order = training_order(23, 5, seed=1, epoch=0, images_seen=0, n_epochs=2)
    batches = list(load(dataset, order, everything, num_workers))
    seen = [(batch.epoch, int(i)) for batch, images in batches for i in images[:, 0, 0, 0]]
    assert sorted(seen) == [(epoch, i) for epoch in range(2) for i in range(23)]
    batches = list(load(dataset, plain_order(23, 4), everything, num_workers))
    assert [int(i) for _, images in batches for i in images[:, 0, 0, 0]] == list(range(23))


class WhoReads:
    """Images that hold the process that read them."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.tensor(list(os.getpid().to_bytes(4, "big")), dtype=torch.uint8).reshape(1, 2, 2)


def test_workers_start_once_for_all_epochs_and_are_no_more_than_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert [worker_count(n) for n in (0, 2, 32)] == [0, 2, 3]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun's processes share the machine
    assert worker_count(32) == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    order = training_order(40, 5, seed=1, epoch=0, images_seen=0, n_epochs=3)
    batches = [images for _, images in load(WhoReads(), order, lambda n: slice(0, n), num_workers=2)]
    readers = {image.tobytes() for images in batches for image in images.numpy()}
    assert len(batches) == 24 and len(readers) == 2
    assert os.getpid().to_bytes(4, "big") not in readers


def test_a_tensor_is_indexed_where_it_lies():
    """A data set on a GPU gives batches on it; meta is another device that every machine has."""
    dataset = torch.empty(6, 1, 2, 2, dtype=torch.uint8, device="meta")
    batches = list(load(dataset, plain_order(6, 4), lambda n: slice(0, n), num_workers=2))
    assert [(images.device.type, len(images)) for _, images in batches] == [("meta", 4), ("meta", 2)]


def draws(n=4):
    return BatchDraws(torch.Generator().manual_seed(0), n, slice(0, n))


@pytest.mark.parametrize(
    "changes, tolerance",
    [(dict(), 1e-6), (dict(rescaled=False), 1e-6), (dict(rescaled=False, logit_transform=True), 1e-4),
     (dict(uniform_dequantization=True), 1 / 255), (dict(gaussian_dequantization=True), 0.06)],
)  # fmt: skip
def test_scaling_and_back(changes, tolerance):
    data = data_config("DIGITS", image_size=8, channels=1, **changes)
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    x = to_model_range(images, data, draws())
    back = from_model_range(x, data)
    assert (back - images / 255).abs().max() <= tolerance
    if not (data.uniform_dequantization or data.gaussian_dequantization):
        expected = {True: lambda y: 2 * y - 1, False: lambda y: y}[data.rescaled]
        if data.logit_transform:
            p = 1e-6 + (1 - 2e-6) * images.double() / 255
            torch.testing.assert_close(x.double(), torch.log(p / (1 - p)), rtol=1e-2, atol=1e-2)
        else:
            torch.testing.assert_close(x, expected(images / 255))


def test_uniform_dequantization_is_ddpms():
    data = data_config("DIGITS", image_size=8, channels=1, uniform_dequantization=True, rescaled=False)
    images = torch.full((2000, 1, 8, 8), 255, dtype=torch.uint8)
    x = to_model_range(images, data, draws(2000))
    assert x.min() >= 255 / 256 and x.max() < 1 and abs(x.mean() - 255.5 / 256) < 1e-4


def test_half_of_the_images_are_flipped_whole():
    images = torch.arange(8).repeat(2000, 1, 8, 1)
    flipped = random_flip(images, draws(2000))
    first = flipped[:, 0, 0, 0]
    assert set(first.tolist()) == {0, 7} and abs((first == 7).float().mean() - 0.5) < 0.05
    assert torch.equal(flipped[first == 7], images[first == 7].flip(-1))


def test_a_ranks_draws_are_its_rows_of_the_whole_batchs():
    whole, part = (
        BatchDraws(torch.Generator().manual_seed(5), 6, rows) for rows in (slice(0, 6), slice(2, 4))
    )
    for draw in (lambda d: d.normal(1, 2, 2), lambda d: d.uniform(3), lambda d: d.timesteps(100)):
        assert torch.equal(draw(whole)[2:4], draw(part))
