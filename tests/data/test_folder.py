"""A folder of pictures is a data set, and workers read each image once."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from support.layouts import data_config, random_images
from support.program import main, refuses, small_config

from configs.machine import cores
from datasets import get_dataset
from datasets.batches import load, plain_order, training_order


@pytest.fixture
def tree(tmp_path):
    """A tree of every kind of image, each with one colour: name -> (grey, rgb) that it must become."""
    folder = tmp_path / "mine" / "deep"
    folder.mkdir(parents=True)
    red, size = (200, 40, 40), (20, 12)
    grey = int(Image.new("RGB", (1, 1), red).convert("L").getpixel((0, 0)))
    blend = tuple(round((value * 128 + 255 * 127) / 255) for value in red)  # on white
    blend_grey = int(Image.new("RGB", (1, 1), blend).convert("L").getpixel((0, 0)))
    Image.new("RGB", size, red).save(folder / "a_rgb.png")
    Image.new("RGBA", size, (*red, 128)).save(folder / "b_rgba.png")
    Image.new("RGB", size, red).quantize(4).save(folder / "c_palette.png")
    Image.new("L", size, 90).save(folder / "d_grey.png")
    Image.fromarray(np.full((12, 20), 90 << 8, np.uint16)).save(folder / "e_grey16.png")
    Image.new("CMYK", size, (0, 0, 0, 0)).save(folder / "f_cmyk.jpg")
    (folder / "notes.txt").write_text("no image")
    expected = [
        (grey, red),
        (blend_grey, blend),
        (grey, red),
        (90, (90,) * 3),
        (90, (90,) * 3),
        (255, (255,) * 3),
    ]
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
        *command, "good", "--ni", says=(f"the image {broken} is damaged or not a picture",), tree=tmp_path
    )


def test_an_image_that_breaks_during_a_run_is_named_by_the_worker_that_reads_it(tmp_path):
    """As in a folder too large to be checked at the start."""
    for i in range(6):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    dataset = get_dataset(data_config("FOLDER", image_size=8, channels=1), tmp_path, train=True)
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"the image {tmp_path}/3.png is damaged"):
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
    assert [cores(n) for n in (0, 2, 32)] == [0, 2, 3]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun's processes share the machine
    assert cores(32) == 1
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
