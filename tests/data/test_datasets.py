"""CIFAR10, Fashion-MNIST and the digits are read from the layouts that users have on disk."""

import gzip
import hashlib
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from support.layouts import data_config, write_cifar10, write_fashion
from support.program import ROOT, main, refuses, small_config

from datasets import dataset_root, get_dataset


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
    """fashion_mnist.yml with a small network: the loss falls to under a third of its start."""
    tree = yaml.safe_load((ROOT / "configs" / "fashion_mnist.yml").read_text())
    tree["model"] |= {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [8]}
    tree["training"] |= {"batch_size": 8, "n_iters": 40, "validation_freq": 1000}
    tree["optim"]["lr"] = 0.001
    (tmp_path / "c.yml").write_text(yaml.safe_dump(tree))
    process = main("--config", tmp_path / "c.yml", "--exp", tmp_path, "--doc", "d", "--data", REAL_FASHION)
    assert "training on 60000 images of FASHION_MNIST" in process.stderr
    lines = (tmp_path / "logs" / "d" / "stdout.txt").read_text()
    losses = [float(loss) for loss in re.findall(r"step: \d+, loss: ([\d.]+)", lines)]
    assert len(losses) == 40
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
        ("cifar10", ["CIFAR10", "put the folder cifar-10-batches-py", "--data"]),
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
