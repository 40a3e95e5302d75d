"""FID and its kin: against closed forms, against torch-fidelity and pytorch-fid, and the same however they are computed."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import ROOT, main, refuses, small_config
from PIL import Image
from sklearn.datasets import load_digits
from test_distributed import torchrun

from configs import load_config
from functions.metrics import frechet, scores
from functions.metrics.extractor import load_extractor
from functions.metrics.frechet import Gaussian, Moments, frechet_distance, root
from runners.diffusion import Diffusion
from runners.evaluation import neighbours
from runners.evaluation.metrics import Samples

CPU = torch.device("cpu")
N, STEPS = 30, 5


def command(run, exp, *arguments, folder="f", n=N) -> list:
    fixed = ["--config", run.config, "--exp", exp, "--ckpt", run.ckpt, "--sample", "--fid", "-i", folder]
    return [*fixed, "--num_samples", n, "--timesteps", STEPS, *arguments]


def measurements(exp, folder="f") -> list[dict]:
    return json.loads((exp / "image_samples" / f"{folder}.metrics.json").read_text())["measurements"]


def results(exp, folder="f") -> dict:
    return measurements(exp, folder)[0]["metrics"]


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
    process = main(
        *command(run, exp, "--metrics", "fid", "kid", "pr", "nn", "--features", extractor), fresh=True
    )
    return exp, process


def random_gaussian(rng, dim, rank) -> Gaussian:
    factor = rng.standard_normal((dim, rank))
    return Gaussian(torch.tensor(rng.standard_normal(dim)), torch.tensor(factor @ factor.T))


@pytest.mark.parametrize("rank", [12, 5])
def test_the_distance_is_the_closed_form_for_gaussians(rank):
    """Against scipy's matrix root and torch-fidelity's formula; 5 of 12 dimensions: singular covariances.

    pytorch-fid's own function is scipy's root of the product; with scipy 1.18 it no longer runs.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    rng = np.random.default_rng(0)
    one, other = (random_gaussian(rng, 12, rank) for _ in range(2))
    (m1, s1), (m2, s2) = ((g.mean.numpy(), g.covariance.numpy()) for g in (one, other))
    ours = frechet_distance(one, other, root(other.covariance))
    r = scipy.linalg.sqrtm(s1).real
    middle = scipy.linalg.sqrtm(r @ s2 @ r).real
    assert ours == pytest.approx(((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * middle), rel=1e-5)
    theirs = fid_statistics_to_metric({"mu": m1, "sigma": s1}, {"mu": m2, "sigma": s2}, False)[KEY_METRIC_FID]
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours == pytest.approx(
        ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real), rel=1e-4
    )
    assert frechet_distance(one, one, root(one.covariance)) == pytest.approx(0, abs=1e-5)


def test_the_distance_of_independent_gaussians_is_the_sum_over_dimensions():
    deviations = torch.tensor([[1.0, 2, 3], [4, 0.5, 3]], dtype=torch.float64)
    means = torch.tensor([[0.0, 0, 1], [3, 0, 1]], dtype=torch.float64)
    one, other = (Gaussian(m, torch.diag(d**2)) for m, d in zip(means, deviations, strict=True))
    assert frechet_distance(one, other, root(other.covariance)) == pytest.approx(9 + 9 + 2.25)


def test_moments_merged_in_any_order_are_numpys():
    """Features far from 0, where a sum of squares would lose its digits."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 6)) + 1e5)
    whole, parts = Moments(6, CPU), [Moments(6, CPU) for _ in range(3)]
    for part, rows in zip(parts, (x[30:], x[:7], x[7:30]), strict=True):
        for few in rows.split(4):
            part.add(few)
        whole.merge(part)
    rest = whole.without(parts[0])
    for moments, rows in ((whole, x), (rest, x[:30])):
        mean, covariance = moments.gaussian()
        assert moments.n == len(rows)
        np.testing.assert_allclose(mean, rows.numpy().mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(covariance, np.cov(rows.numpy(), rowvar=False), rtol=1e-6)


def test_the_interval_covers_the_spread_of_independent_draws():
    """FIDs of 200 sets of 100 draws: their standard deviation is what the jackknife says of each, and less biased."""
    generator = torch.Generator().manual_seed(0)
    reference = Gaussian(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
    found = []
    for _ in range(200):
        groups = [Moments(4, CPU) for _ in range(frechet.GROUPS)]
        for group in groups:
            group.add(0.5 + 1.2 * torch.randn(100 // frechet.GROUPS, 4, generator=generator))
        found.append(frechet.fid(groups, reference))
    values = np.array([f.value for f in found])
    spread = np.sqrt(np.mean([(f.half_width / 2.776) ** 2 for f in found]))
    assert spread == pytest.approx(values.std(), rel=0.15)
    truth = 4 * (0.25 + 0.04)
    inside = np.mean([abs(f.bias_corrected - truth) < f.half_width for f in found])
    assert 0.9 <= inside <= 0.99
    assert abs(np.mean([f.bias_corrected for f in found]) - truth) < 0.3 * abs(values.mean() - truth)


def test_the_scores_are_torch_fidelitys():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.randn(53, 7, generator=torch.Generator().manual_seed(0)) * 3
    theirs = isc_features_to_metric(logits)
    ours = scores.inception_score(logits)
    assert ours == pytest.approx((theirs["inception_score_mean"], theirs["inception_score_std"]), rel=1e-12)


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
    assert (
        content["versions"]["torch"] == str(torch.__version__)
        and content["device"] == "cpu"
        and content["seconds"] > 0
    )
    manifest = json.loads((exp / "image_samples" / "f" / "manifest.json").read_text())
    assert (
        json.loads((exp / "image_samples" / "f.metrics.json").read_text())["decides"] == manifest["decides"]
    )
    assert {p.name for p in (exp / "image_samples").iterdir()} == {
        "f",
        "f.png",
        "f.lock",
        "f.metrics.json",
        "f.nn.png",
    }


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
    torchrun(*command(run, tmp_path, "--metrics", "fid", "kid", "pr", "nn", "--features", extractor))
    assert_close(results(tmp_path), results(measured[0]))


def test_numbers_alone_are_the_same_and_are_not_computed_twice(run, measured, extractor, tmp_path):
    arguments = command(run, tmp_path, "--metrics", "fid", "--features", extractor, "--keep_images", "no")
    main(*arguments)
    assert {p.name for p in (tmp_path / "image_samples").iterdir()} == {"f.metrics.json", "f.lock"}
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
    """The images of the folder as the reference of the folder; the same numbers from its file of statistics."""
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
    """Samples that are mirrored training images: memorised. The typical distance is that to the nearest other one."""
    dataset = torch.randint(256, (70, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = load_extractor(extractor, 8, CPU)
    numbers = [3, 40, 69]
    samples = dataset[numbers].flip(-1)
    found = neighbours.examine(samples, dataset, network(dataset).features, network, tmp_path / "sheet.png")
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
    other = export(
        tmp_path / "other.pt2", Constant(1.0), torch.zeros(4, 3, 8, 8, dtype=torch.uint8), any_n=True
    )
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
    np.savez(tmp_path / "other.npz", mean=np.zeros(16))
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}]), sigma=np.zeros(1))
    with_program = ("--features", extractor)
    for arguments, says in [
        (["fid", *with_program, "--reference", mixed], ["2.png has 16 x 16 pixels", "8 x 8"]),
        (["fid", *with_program, "--reference", empty], ["holds 0 images"]),
        (["fid", *with_program, "--reference", tmp_path / "no"], ["no such folder", "train, test"]),
        (["fid", *with_program, "--reference", tmp_path / "small.npz"], ["mu (4,)", "16 features"]),
        (["fid", *with_program, "--reference", tmp_path / "nan.npz"], ["not finite"]),
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
    samples = Samples(load_extractor(extractor, 8, CPU), ["fid"], 10, 4, tmp_path, (1, 8, 8))
    images = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
    samples.add([0, 1, 2, 3], images[:4])
    samples.add([8, 9], images[8:])
    with pytest.raises(ValueError, match="10 images were asked for and there are features of 6"):
        samples.sum_over_ranks()
    with pytest.raises(ValueError, match=r"5\.png"):
        samples.add([4], images[:1])


def export(path, module, example, any_n=False):
    shapes = ({0: torch.export.Dim("n")},) if any_n else None
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=shapes), path)
    return path


class Constant(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, images):
        return images.float().flatten(1)[:, :4] * self.value


def test_programs_that_do_not_serve_are_refused_and_nan_features_have_no_number(run, tmp_path, extractor):
    fixed = export(tmp_path / "fixed.pt2", Constant(1.0), torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    arguments = command(run, tmp_path, "--metrics", "fid", "--features")
    refuses(*arguments, fixed, says=["fixed.pt2", "any N"], tree=tmp_path / "image_samples")
    nan = load_extractor(extractor, 8, CPU)
    object.__setattr__(nan, "network", Constant(float("nan")))
    with pytest.raises(FloatingPointError, match="are not finite, so there is no distance"):
        nan(torch.ones(2, 1, 8, 8, dtype=torch.uint8))


def test_without_a_network_the_file_and_its_address_are_named(run, tmp_path):
    offline = {
        "TORCH_HOME": str(tmp_path / "hub"),
        "https_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    arguments = command(run, tmp_path, "--metrics", "fid")
    says = [
        "could not be downloaded",
        "weights-inception-2015-12-05-6726825d.pth",
        "6726825d",
        "--features",
        str(tmp_path / "hub"),
    ]
    refuses(*arguments, says=says, tree=tmp_path / "image_samples", env=offline)


def inception_weights(path):
    """A seeded random state dict in the official layout: the real file can't be had where the tests run.

    Its first kernels sum to 0, so that the features are in proportion to the contrast of the picture.
    """
    from torch_fidelity import feature_extractor_inceptionv3 as module

    class Unloaded(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.torch, "load", lambda *args, **kwargs: {})
        weights = Unloaded("inception", ["2048"], feature_extractor_weights_path="none").state_dict()
    generator = torch.Generator().manual_seed(0)
    first = "Conv2d_1a_3x3.conv.weight"
    for name, value in weights.items():
        if name.endswith("conv.weight"):  # He's variance, so that features differ between images
            weights[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
    weights[first] -= weights[first].mean(dim=(1, 2, 3), keepdim=True)
    weights["fc.weight"] = torch.randn(weights["fc.weight"].shape, generator=generator)
    torch.save(weights, path)


class Executes:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def two_in_one(payload: bytes) -> bytes:
    """Sound safetensors, and to tarfile a tar in torch's first format, whose pickles are `payload`."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    hidden = file.getvalue()
    tensors = {
        "Mixed_7c.branch1x1.conv.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "tar": {"dtype": "U8", "shape": [len(hidden) + 508], "data_offsets": [4, len(hidden) + 512]},
    }
    # The 8 bytes of the header's length and the first of its JSON are the first 512 of the tar: a member's header.
    start = b'{"__metadata__":{"a":"'
    fields = b"0000644 " + b"0000000 " * 2 + b"00000000000 " * 2  # mode, uid, gid, size, mtime
    header = start.ljust(92, b"x") + fields + b"%CHKSUM%" + b"0"
    header = header.ljust(321, b"x") + b"0000000 " * 2  # the device's numbers
    header = header.ljust(450, b"x") + b'"},' + json.dumps(tensors).encode()[1:].ljust(520, b" ")
    whole = (1024 - 8).to_bytes(8, "little") + header.ljust(1024 - 8, b" ")
    size = b"%011o " % (1024 - 512 + 512)
    whole = whole[:124] + size + whole[136:148] + b" " * 8 + whole[156:]
    return whole[:148] + b"%06o  " % sum(whole[:512]) + whole[156:] + bytes(512) + hidden


def test_a_features_file_runs_no_code(run, tmp_path):
    """Weights for our reader, a legacy pickle for torch-fidelity's; and a program under the name of weights."""
    evil = tmp_path / "evil.pth"
    evil.write_bytes(two_in_one(pickle.dumps(Executes(tmp_path / "executed"), protocol=2)))
    with pytest.raises(EOFError):  # the pickle runs, and then something is missing
        torch.load(evil, weights_only=False)
    assert (tmp_path / "executed").exists()
    (tmp_path / "executed").unlink()
    arguments = command(run, tmp_path, "--metrics", "fid", "--features")
    refuses(*arguments, evil, says=["evil.pth", "does not fit Inception"], tree=tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_program_is_loaded_by_its_own_suffix_only(run, tmp_path, extractor):
    shutil.copy(extractor, tmp_path / "features.pth")
    arguments = command(run, tmp_path, "--metrics", "fid", "--features", tmp_path / "features.pth")
    refuses(*arguments, says=["runs code", "ends in .pt2"], tree=tmp_path)


def process(*command, **environment):
    """Another program's command line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True, env=environment
    ).stdout


def test_torch_fidelity_and_pytorch_fid_agree(tmp_path, monkeypatch):
    """Their command lines and this program on the same PNG folders with the same weights file.

    The weights are random (see above). The sampler's place is taken by pictures of 299 x 299: at other sizes pytorch-fid
    resizes unlike torch-fidelity and TensorFlow. It also divides pixels by 127.5, and they by 128: with these weights its
    features are larger by just that. Its distance takes a minute at 2048 features, so its command line gives the
    statistics; its formula is held against ours above.
    """
    rng = np.random.default_rng(0)
    names = [tmp_path / "reference" / f"{i}.png" for i in range(5)]
    names[0].parent.mkdir()
    shades = [
        np.kron(rng.integers(0, 256, (23, 23, 3)), np.ones((13, 13, 1))).astype(np.uint8) for _ in range(15)
    ]
    for name, picture in zip(names, shades[10:], strict=True):
        Image.fromarray(picture // 2).save(name)
    pictures = torch.from_numpy(np.stack(shades[:10])).permute(0, 3, 1, 2)
    monkeypatch.setattr(
        Diffusion, "sample_batches", lambda self, indices, sampling, B: iter([(list(range(10)), pictures)])
    )
    weights = tmp_path / "hub" / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    weights.parent.mkdir(parents=True)
    inception_weights(weights)
    changes = dict(
        data__dataset="FOLDER", data__image_size=299, data__channels=3, model__in_channels=3, model__out_ch=3
    )
    config = small_config(tmp_path / "c.yml", sampling__batch_size=10, **changes)
    network = Diffusion(load_config(str(config)), CPU).model
    torch.save(network.state_dict(), tmp_path / "w.pth")
    arguments = [
        "--config",
        config,
        "--exp",
        tmp_path,
        "--ckpt",
        tmp_path / "w.pth",
        "--sample",
        "--fid",
        "--num_samples",
        10,
    ]
    arguments += [
        "--metrics",
        "fid",
        "is",
        "kid",
        "pr",
        "--features",
        weights,
        "--reference",
        tmp_path / "reference",
    ]
    main(*arguments)
    ours = results(tmp_path, "images")

    folders = ("--input1", tmp_path / "image_samples" / "images", "--input2", tmp_path / "reference")
    settings = ("--feature-extractor-weights-path", weights, "--feature-extractor", "inception-v3-compat")
    kinds = ("--isc", "--fid", "--kid", "--kid-subset-size", 5, "--prc")
    program = (sys.executable, "-c", "from torch_fidelity.fidelity import main; main()", *kinds, "--json")
    theirs = json.loads(process(*program, *folders, *settings, "--cpu", "--no-cache", "--silent"))
    assert ours["fid"]["value"] > 0.1
    assert ours["fid"]["value"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["is"]["mean"] == pytest.approx(theirs["inception_score_mean"], rel=1e-3)
    assert ours["kid"]["mean"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert (ours["pr"]["precision"], ours["pr"]["recall"]) == (theirs["precision"], theirs["recall"])

    save = (sys.executable, "-m", "pytorch_fid", "--device", "cpu", "--num-workers", "0", "--save-stats")
    process(*save, tmp_path / "reference", tmp_path / "theirs.npz", TORCH_HOME=str(tmp_path))
    [statistics] = (tmp_path / "fid_stats").glob("*.npz")
    with np.load(statistics) as mine, np.load(tmp_path / "theirs.npz") as their:
        for name, factor in (("mu", 128 / 127.5), ("sigma", (128 / 127.5) ** 2)):
            assert np.abs(factor * mine[name] - their[name]).max() < 1e-3 * np.abs(their[name]).max()


def test_the_statistics_of_many_images_stay_small():
    """At 2048 features a process that streams has, at its peak, less than 1 GB: benchmarks/fid_memory.py, with few images.

    Memory does not depend on how many: 50,000 take what 1,000 take, and a minute more.
    """
    said = process(sys.executable, ROOT / "benchmarks" / "fid_memory.py", "1000")
    assert float(said.split("whole process: ")[1].split()[0]) < 1
