"""CelebA in torchvision's layout and as a bare folder, against the crop and the split by their definition."""

import numpy as np
import pytest
import torchvision
from PIL import Image
from support.layouts import data_config, encoded, photo, pixels, write_celeba
from support.program import main, refuses, small_config

from datasets import dataset_root, get_dataset

CELEBA = dict(
    data__dataset="CELEBA", data__image_size=16, data__channels=3, model__in_channels=3, model__out_ch=3
)


def face(picture: Image.Image, size: int) -> np.ndarray:
    """Rows 57..185 and columns 25..153, resized by PIL."""
    cropped = Image.fromarray(np.asarray(picture)[57:185, 25:153])
    return pixels(cropped.resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("official, below", [(True, "celeba"), (False, "celeba"), (False, ".")])
def test_both_splits_are_the_cropped_faces(tmp_path, monkeypatch, official, below):
    data = data_config("CELEBA", image_size=64)
    root = dataset_root(data, str(tmp_path), None)
    assert root == tmp_path / "datasets" / "celeba"
    by_split = write_celeba(root / below, official, monkeypatch)
    assert [len(by_split[k]) for k in range(3)] == [5, 1, 2]
    for train, split in ((True, 0), (False, 2)):
        dataset = get_dataset(data, root, train)
        assert len(dataset) == len(by_split[split])
        for i, picture in enumerate(by_split[split]):
            assert np.array_equal(dataset[i].numpy(), face(picture, 64))
    if official:  # torchvision, reading the same files, agrees on what they are
        for split, k in (("train", 0), ("test", 2)):
            theirs = torchvision.datasets.CelebA(root, split=split, target_type=[])
            assert [np.array_equal(theirs[i][0], by_split[k][i]) for i in range(len(theirs))] == [True] * len(
                by_split[k]
            )


def test_the_folder_of_images_itself_may_be_named(tmp_path):
    by_split = write_celeba(tmp_path, official=False)
    dataset = get_dataset(
        data_config("CELEBA", image_size=8, channels=3), tmp_path / "img_align_celeba", train=False
    )
    assert np.array_equal(dataset[1].numpy(), face(by_split[2][1], 8))


def test_trains_and_tests_through_the_command_line(tmp_path, monkeypatch):
    write_celeba(tmp_path / "datasets" / "celeba" / "celeba", True, monkeypatch)
    config = small_config(tmp_path / "c.yml", training__batch_size=3, training__n_iters=1, **CELEBA)
    said = main("--config", config, "--exp", tmp_path, "--doc", "d").stderr
    assert "training on 5 images of CELEBA" in said and "no test split" not in said
    assert "on 2 test images" in main("--config", config, "--exp", tmp_path, "--doc", "d", "--test").stdout


def test_a_list_with_another_md5_is_named(tmp_path, monkeypatch):
    place = tmp_path / "data" / "celeba"
    write_celeba(place, True, monkeypatch)
    with open(place / "list_bbox_celeba.txt", "a") as file:
        file.write("\n")
    data = data_config("CELEBA", image_size=8)
    assert len(get_dataset(data, tmp_path / "data", train=True)) == 5  # a list that is never read
    with open(place / "list_eval_partition.txt", "a") as file:
        file.write("\n")
    config = small_config(tmp_path / "c.yml", **CELEBA)
    command = ("--config", config, "--exp", tmp_path / "exp", "--doc", "d", "--data", tmp_path / "data")
    refuses(*command, says=(str(place / "list_eval_partition.txt"), "damaged", "md5"), tree=tmp_path)


def test_bare_folders_that_are_wrong(tmp_path):
    place = tmp_path / "data"
    write_celeba(place, official=False)
    config = small_config(tmp_path / "c.yml", **CELEBA)
    command = ("--config", config, "--exp", tmp_path / "exp", "--doc", "d", "--data", place)
    image, partition = place / "img_align_celeba" / "000002.jpg", place / "list_eval_partition.txt"
    content, lines = image.read_bytes(), partition.read_text()

    image.unlink()
    refuses(*command, says=("1 of the 5 images are missing", "000002.jpg"), tree=tmp_path)
    image.write_bytes(encoded(photo(170, 100), "JPEG"))
    refuses(*command, says=(str(image), "170 x 100", "178 x 218"), tree=tmp_path)
    image.write_bytes(content[:500])
    refuses(*command, says=(str(image), "is damaged or not a picture"), tree=tmp_path)
    image.write_bytes(content)
    for wrong in (lines.replace(" 2", " 3"), lines + "000009.jpg", "text"):
        partition.write_text(wrong)
        refuses(*command, says=(str(partition), "damaged", "0, 1 or 2"), tree=tmp_path)
    partition.write_text("")
    refuses(*command, says=(str(partition), "no training images"), tree=tmp_path)
