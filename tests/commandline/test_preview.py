"""--preview shows what training sees."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from support.layouts import photo
from support.program import files_below, main, refuses, sampling, small_config

from configs import load_config
from datasets import get_dataset
from functions import objectives as losses
from runners.tools.preview import first_images
from runners.training import loop as training


def test_the_sheet_holds_the_images_with_their_count_shape_and_range(tmp_path):
    (tmp_path / "mine" / "train").mkdir(parents=True)
    (tmp_path / "mine" / "test").mkdir()
    photos = [photo(48, 48, seed=i) for i in range(70)]
    for i, picture in enumerate(photos):
        picture.save(tmp_path / "mine" / "train" / f"{i:02}.png")
    photos[0].save(tmp_path / "mine" / "test" / "a.png")
    changes = dict(
        data__dataset="FOLDER", data__image_size=48, data__channels=3, model__in_channels=3, model__out_ch=3
    )
    config = small_config(
        tmp_path / "c.yml", data__uniform_dequantization=False, training__batch_size=10, **changes
    )
    command = ("--config", config, "--exp", tmp_path / "exp", "--data", tmp_path / "mine", "--preview")
    said = main(*command, fresh=True).stdout
    sheet = tmp_path / "exp" / "image_samples" / "images.preview.png"
    numbers = ("70 images of FOLDER", "(3, 48, 48)", "uint8 from 0 to 255", "float32 from -1 to 1")
    for words in (*numbers, "1 test images", str(sheet)):
        assert words in said
    assert [str(path) for path in (tmp_path / "exp").rglob("*") if path.is_file()] == [str(sheet)]

    # Each cell is one of the pictures or its mirror image, and no picture is there twice.
    cells = np.asarray(Image.open(sheet))
    assert cells.shape == (8 * 50 + 2, 8 * 50 + 2, 3)
    known = {np.asarray(picture).tobytes(): i for i, picture in enumerate(photos)}
    mirrored = {
        np.ascontiguousarray(np.asarray(picture)[:, ::-1]).tobytes(): i for i, picture in enumerate(photos)
    }
    shown = [
        cells[2 + 50 * y : 50 + 50 * y, 2 + 50 * x : 50 + 50 * x].tobytes()
        for y in range(8)
        for x in range(8)
    ]
    assert len({(known | mirrored)[cell] for cell in shown}) == 64
    assert 16 < sum(cell in mirrored for cell in shown) < 48  # the config flips half of them


@pytest.mark.parametrize("batch_size, steps", [(40, 2), (600, 1)])
def test_they_are_the_images_of_trainings_first_steps(tmp_path, batch_size, steps):
    config = small_config(tmp_path / "c.yml", training__batch_size=batch_size, training__n_iters=steps)
    seen = []

    def record(model, x0, t, eps, **how):
        seen.append(x0)
        return losses.noise_estimation_loss(model, x0, t, eps, **how)

    with patch.object(training, "noise_estimation_loss", record):
        main("--config", config, "--exp", tmp_path, "--doc", "d", "--seed", 5)
    checked = load_config(str(config))
    _, x0 = first_images(checked, get_dataset(checked.data, tmp_path, train=True), 5, torch.device("cpu"))
    assert torch.equal(x0, torch.cat(seen)[:64])


def test_fewer_than_64_images_and_no_test_split(tmp_path):
    (tmp_path / "mine").mkdir()
    for i in range(3):
        photo(8, 8, seed=i).save(tmp_path / "mine" / f"{i}.png")
    config = small_config(tmp_path / "c.yml", data__dataset="FOLDER")
    command = ("--config", config, "--exp", tmp_path, "--data", tmp_path / "mine", "--preview", "-i", "mine")
    said = main(*command).stdout
    assert "3 images of FOLDER" in said and "no test split: folders train/ and test/" in said
    assert (tmp_path / "image_samples" / "mine.preview.png").is_file()


def test_nothing_but_a_preview_is_replaced(tmp_path, run):
    config = run.config
    sample = sampling(config, run.ckpt, tmp_path, "--num_samples", 4, "--timesteps", 2)
    main(*sample, "-i", "a")
    before = files_below(tmp_path)
    for _ in range(2):
        main("--config", config, "--exp", tmp_path, "--preview", "-i", "a")
    after = files_below(tmp_path)
    assert after.keys() - before.keys() == {str(tmp_path / "image_samples" / "a.preview.png")}
    assert all(after[path] == before[path] for path in before)
    main(*sample, "-i", "b.preview")
    command = ("--config", config, "--exp", tmp_path, "--preview", "-i", "b")
    refuses(*command, says=("b.preview.png is the contact sheet", "-i"), tree=tmp_path)
