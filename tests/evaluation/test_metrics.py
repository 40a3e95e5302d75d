"""--metrics: the numbers are those of the bytes in the PNGs, and the same however they are computed."""

import json
import shutil

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from sklearn.datasets import load_digits
from support.measuring import Constant, N, command, export, measurements, results
from support.program import main, refuses, small_config, two_ranks

from functions.metrics import neighbours
from functions.metrics.extractor import load_extractor
from runners.evaluation.evaluator import Samples

CPU = torch.device("cpu")


def assert_close(one: dict, other: dict, rel=1e-6):
    """The same numbers, whatever is nested in them."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_close(value, other[key], rel)
        else:
            assert value == pytest.approx(other[key], rel=rel, abs=1e-9), key


@pytest.fixture(scope="module")
def measured(run, extractor, tmp_path_factory):
    """Thirty images measured while they were made, by every metric that an exported program allows."""
    exp = tmp_path_factory.mktemp("measured")
    process = main(*command(run, exp, "--metrics", "fid", "kid", "pr", "nn", "--features", extractor))
    return exp, process


def test_a_run_prints_a_table_and_stores_all_that_decides_it(measured, extractor):
    exp, process = measured
    lines = [
        line
        for line in process.stdout.splitlines()
        if line.startswith(("fid", "kid", "precision", "recall", "nn"))
    ]
    assert len(lines) == 6
    assert all(
        words in lines[0]
        for words in ("±", " 30 ", "DIGITS train (1498 images)", "projection.pt2", "N is not 50,000")
    )
    assert "subsets of 30, where 1000 are usual" in process.stdout
    [content] = measurements(exp)
    assert content["num_samples"] == 30 and content["reference"]["num_images"] == 1498
    assert content["extractor"]["dim"] == 16 and len(content["extractor"]["hash"]) == 64
    assert content["versions"]["torch"] == str(torch.__version__)
    assert content["device"] == "cpu" and content["seconds"] > 0
    numbers, manifest = (
        json.loads((exp / "image_samples" / name).read_text())
        for name in ("f.metrics.json", "f/manifest.json")
    )
    assert numbers["decides"] == manifest["decides"]
    made = {p.name for p in (exp / "image_samples").iterdir()}
    assert made == {"f", "f.png", ".locks", "f.metrics.json", "f.nn.png"}


def test_the_numbers_are_those_of_the_bytes_in_the_pngs(measured, extractor):
    """Features by the projection's own formula, statistics by numpy, the reference from scikit-learn."""
    exp, _ = measured
    weight = torch.randn(192, 16, generator=torch.Generator().manual_seed(0)) / 8

    def features(pictures):
        x = np.repeat(np.asarray(pictures, np.float32)[:, None] / 255, 3, axis=1).reshape(len(pictures), -1)
        return np.tanh(x @ weight.numpy()).astype(float)

    samples = features([np.asarray(Image.open(exp / "image_samples" / "f" / f"{i}.png")) for i in range(N)])
    pictures = np.round(load_digits().images[np.arange(1797) % 6 != 5] * (255 / 16))
    reference = features(pictures)
    s1, s2 = np.cov(samples, rowvar=False), np.cov(reference, rowvar=False)
    expected = ((samples.mean(0) - reference.mean(0)) ** 2).sum() + np.trace(
        s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real
    )
    found = results(exp)
    assert found["fid"]["value"] == pytest.approx(expected, rel=1e-4)

    among = scipy.spatial.distance.cdist(reference, reference)
    radius = np.sort(among, axis=1)[:, 3]
    inside = scipy.spatial.distance.cdist(samples, reference) <= radius
    assert found["pr"]["precision"] == pytest.approx(inside.any(axis=1).mean(), abs=1e-6)

    nearest = found["nn"]["features"]["nearest"]
    first = np.asarray(Image.open(exp / "image_samples" / "f" / "0.png"))
    both = scipy.spatial.distance.cdist(features([first, first[:, ::-1]]), reference)
    assert nearest[0] == both.min(axis=0).argmin()
    assert found["nn"]["features"]["distances"][0] == pytest.approx(both.min(), rel=1e-4)
    assert found["nn"]["features"]["mirrored"][0] == (both[1].min() < both[0].min())


def test_a_finished_folder_gives_the_streamed_numbers_and_so_does_a_partial_one(
    run, measured, extractor, tmp_path
):
    exp = tmp_path / "copy"
    shutil.copytree(measured[0], exp)
    metrics = ("--metrics", "fid", "kid", "pr", "nn", "--features", extractor)
    for gone in ((), (0, 5, 6, 29)):
        (exp / "image_samples" / "f.metrics.json").unlink()
        for i in gone:
            (exp / "image_samples" / "f" / f"{i}.png").unlink()
        process = main(*command(run, exp, *metrics))
        assert (
            f"{len(gone)} images to make" in process.stderr
            and "computing the statistics" not in process.stderr
        )
        assert_close(results(exp), results(measured[0]))


def test_two_processes_measure_what_one_does(run, measured, extractor, tmp_path):
    """With the first batches of the images there already, but for one image, and the reference not."""
    folder = tmp_path / "image_samples" / "f"
    shutil.copytree(measured[0] / "image_samples" / "f", folder)
    for i in (5, *range(16, N)):
        (folder / f"{i}.png").unlink()
    two_ranks(*command(run, tmp_path, "--metrics", "fid", "kid", "pr", "nn", "--features", extractor))
    assert_close(results(tmp_path), results(measured[0]))


def test_numbers_alone_are_the_same_and_are_not_computed_twice(run, measured, extractor, tmp_path):
    arguments = command(run, tmp_path, "--metrics", "fid", "--features", extractor, "--keep_images", "no")
    main(*arguments)
    assert {p.name for p in (tmp_path / "image_samples").iterdir()} == {"f.metrics.json", ".locks"}
    assert_close(results(tmp_path)["fid"], results(measured[0])["fid"])
    assert "measured already" in main(*arguments).stderr
    refuses(
        *arguments,
        "--seed",
        7,
        says=["the numbers of other images: seed is 1234 there and 7 here"],
        tree=tmp_path,
    )


def test_the_distance_of_the_reference_to_itself_is_0(run, measured, extractor, tmp_path):
    """The folder as its own reference; the same numbers from its file of statistics."""
    exp = tmp_path / "copy"
    shutil.copytree(measured[0], exp)
    shutil.copytree(exp / "image_samples" / "f", tmp_path / "reference")
    main(
        *command(
            run, exp, "--metrics", "fid", "nn", "--features", extractor, "--reference", tmp_path / "reference"
        )
    )
    own = measurements(exp)[1]
    assert own["metrics"]["fid"]["value"] == pytest.approx(0, abs=1e-6)
    assert (
        max(own["metrics"]["nn"]["pixels"]["distances"]) == 0
        and own["metrics"]["nn"]["pixels"]["nearest"][1] == 1
    )
    [statistics] = set((exp / "fid_stats").glob("*.npz")) - set((measured[0] / "fid_stats").glob("*.npz")) - {
        exp / "fid_stats" / p.name for p in (measured[0] / "fid_stats").glob("*.npz")
    }  # fmt: skip
    main(*command(run, exp, "--metrics", "fid", "--features", extractor, "--reference", statistics))
    assert measurements(exp)[2]["metrics"]["fid"]["value"] == pytest.approx(0, abs=1e-6)
    main(*command(run, exp, "--metrics", "fid", "--features", extractor, "--reference", "test"))
    assert (
        measurements(exp)[3]["reference"]["name"] == "DIGITS test (299 images)"
        and len(measurements(exp)) == 4
    )


def test_neighbours_are_found_through_the_mirror_and_an_image_is_not_its_own(extractor, tmp_path):
    """Samples are mirrored training images. The typical distance is that to the nearest other one."""
    dataset = torch.randint(256, (70, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = load_extractor(extractor, 8, CPU)
    numbers = [3, 40, 69]
    samples = dataset[numbers].flip(-1)
    found = neighbours.examine(samples, dataset, network(dataset)[0], network, tmp_path / "sheet.png")
    for space in ("pixels", "features"):
        assert found[space]["nearest"] == numbers and found[space]["mirrored"] == [True] * 3
        assert found[space]["distances"] == pytest.approx([0, 0, 0], abs=1e-5)
    pixels, mirrored = (x.flatten(1).numpy() / 255 for x in (dataset, dataset.flip(-1)))
    distances = np.minimum(*(scipy.spatial.distance.cdist(x, pixels) for x in (pixels, mirrored)))
    np.fill_diagonal(distances, np.inf)
    examined = distances[np.linspace(0, 69, 64).astype(int)].min(axis=1)
    assert found["pixels"]["typical"] == pytest.approx(
        np.sort(examined)[31], rel=1e-5
    )  # torch's median is the lower one
    assert Image.open(tmp_path / "sheet.png").height > 3 * 48


def test_statistics_are_kept_for_their_images_and_their_extractor_alone(run, tmp_path, extractor):
    """Splits of one folder of pictures, and another extractor: each computed once."""
    for split, shade in (("train", 60), ("test", 200)):
        (tmp_path / "pictures" / split).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), shade + 10 * i).save(tmp_path / "pictures" / split / f"{i}.png")
    config = small_config(tmp_path / "c.yml", data__dataset="FOLDER")
    other = export(tmp_path / "other.pt2", Constant(1.0), 8)
    base = [
        "--config",
        config,
        *command(run, tmp_path, "--data", tmp_path / "pictures", "--metrics", "fid")[2:],
    ]
    for arguments in (
        ["--features", extractor],
        ["--features", extractor, "--reference", "test"],
        ["--features", other],
    ):
        assert "computing the statistics" in main(*base, *arguments).stderr
        assert "computing the statistics" not in main(*base, *arguments).stderr
    assert len({m["metrics"]["fid"]["value"] for m in measurements(tmp_path)}) == 3


def test_metrics_that_cannot_be_computed_are_refused(run, measured, extractor, tmp_path):
    exp = measured[0]
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for i, size in enumerate((8, 8, 16)):
        Image.new("L", (size, size)).save(mixed / f"{i}.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    np.savez(tmp_path / "small.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez(tmp_path / "nan.npz", mu=np.zeros(16), sigma=np.full((16, 16), np.nan))
    np.savez(tmp_path / "skew.npz", mu=np.zeros(16), sigma=np.eye(16) + 5 * np.eye(16, k=1))
    np.savez(tmp_path / "below.npz", mu=np.zeros(16), sigma=np.diag([1.0] * 15 + [-1]))
    np.savez(tmp_path / "other.npz", mean=np.zeros(16))
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}]), sigma=np.zeros(1))
    with_program = ("--features", extractor)
    for arguments, says in [
        (["fid", *with_program, "--reference", mixed], ["2.png has 16 x 16 pixels", "8 x 8"]),
        (["fid", *with_program, "--reference", empty], ["holds 0 images"]),
        (["fid", *with_program, "--reference", tmp_path / "no"], ["no such folder", "train, test"]),
        (["fid", *with_program, "--reference", tmp_path / "small.npz"], ["mu (4,)", "16 features"]),
        (["fid", *with_program, "--reference", tmp_path / "nan.npz"], ["not finite"]),
        (["fid", *with_program, "--reference", tmp_path / "skew.npz"], ["sigma is not symmetric"]),
        (["fid", *with_program, "--reference", tmp_path / "below.npz"], ["sigma has the eigenvalue -1;"]),
        (["fid", *with_program, "--reference", tmp_path / "other.npz"], ["mu and sigma"]),
        (["fid", *with_program, "--reference", tmp_path / "pickled.npz"], ["mu and sigma"]),
        (["fid", *with_program, "--reference", tmp_path / "no.npz"], ["no.npz", "mu and sigma"]),
        (["kid", *with_program, "--reference", tmp_path / "small.npz"], ["--metrics kid needs images"]),
        (["is", *with_program], ["--metrics is needs the classes", "projection.pt2"]),
        (["fid", "--features", tmp_path / "no.pt2"], ["no such file"]),
        (["fid", "--features", run.ckpt], ["holds no Inception"]),
        (["fid", "--features", run.config], ["small.yml", "checkpoint"]),
        (["fid", *with_program, "--num_samples", 1], ["needs at least 2 images"]),
        (["is", "--num_samples", 9], ["needs at least 10 images", "--num_samples is 9"]),
    ]:
        refuses(*command(run, exp, "--metrics", *arguments, folder="new"), says=says, tree=tmp_path)
    assert not (exp / "image_samples" / "new").exists()
    for arguments, says in [
        (["--metrics", "fid", "fid"], ["--metrics names fid twice"]),
        (["--metrics", "fidd"], ["fidd", "kid"]),
        (["--reference", "test"], ["--reference goes with --metrics"]),
        (["--features", extractor], ["--features goes with --metrics"]),
        (["--keep_images", "no"], ["--keep_images goes with --metrics"]),
    ]:
        refuses(
            *command(run, exp, *arguments, folder="new"),
            says=says,
            tree=tmp_path,
            fresh=arguments[0] == "--reference",
        )


def test_a_folder_with_an_image_of_another_size_is_refused(run, measured, extractor, tmp_path):
    exp = tmp_path / "copy"
    shutil.copytree(measured[0], exp)
    Image.new("L", (16, 16)).save(exp / "image_samples" / "f" / "7.png")
    refuses(
        *command(run, exp, "--metrics", "fid", "--features", extractor),
        says=["7.png has 16 x 16", "8 x 8"],
        tree=exp,
    )


def test_fewer_images_than_asked_have_no_number(extractor, tmp_path):
    samples = Samples(load_extractor(extractor, 8, CPU), {"moments"}, 10, 4, tmp_path, (1, 8, 8))
    images = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
    samples.add([0, 1, 2, 3], images[:4])
    samples.add([8, 9], images[8:])
    with pytest.raises(ValueError, match="10 images were asked for, and only 6 have features"):
        samples.sum_over_ranks()
    with pytest.raises(ValueError, match=r"5\.png"):
        samples.add([4], images[:1])


def test_a_folder_of_images_has_the_numbers_of_the_run_that_made_them(run, measured, extractor, tmp_path):
    """And of no other pictures: the first N, in the order of their numbers, on any number of ranks."""
    theirs = tmp_path / "theirs"
    shutil.copytree(measured[0] / "image_samples" / "f", theirs)
    (theirs / "manifest.json").unlink()
    of = ("--config", run.config, "--exp", tmp_path, "--features", extractor, "--images", theirs)
    said = main(*of, "--metrics", "fid", "kid", "pr", "nn").stdout
    assert_close(results(tmp_path, "theirs"), results(measured[0]))
    table = [line for line in measured[1].stdout.splitlines() if line.startswith("fid")]
    assert [line.split()[:3] for line in said.splitlines() if line.startswith("fid")] == [
        line.split()[:3] for line in table
    ]
    assert (tmp_path / "image_samples" / "theirs.nn.png").exists()
    assert not (tmp_path / "image_samples" / "theirs").exists()

    two_ranks(*of, "--metrics", "fid", "--num_samples", 11, "-i", "eleven")
    for i in range(11, N):
        (theirs / f"{i}.png").unlink()
    with_others = [*of, "--metrics", "fid"]
    refuses(*with_others, says=["numbers of other images", "another folder with -i"], tree=tmp_path)
    main(*with_others, "-i", "first")
    assert_close(results(tmp_path, "eleven"), results(tmp_path, "first"))

    Image.new("L", (16, 16)).save(theirs / "3.png")
    for arguments, says in (
        ([*with_others, "-i", "x"], "3.png has 16 x 16 pixels, not 8 x 8"),
        ([*with_others, "--num_samples", 12], "theirs holds 11 images; 12 are needed"),
        ([*of[:-1], tmp_path / "none", "--metrics", "fid"], "none holds 0 images"),
        ((*of[:4], *of[6:]), "--images goes with --metrics"),
        ([*with_others, "--keep_images", "no"], "--keep_images goes with"),
        ([*with_others, "--plan"], "--plan goes with"),
        ([*with_others, "--sample", "--fid"], "--sample and --images are two tasks"),
    ):
        refuses(*arguments, says=[says], tree=tmp_path)
