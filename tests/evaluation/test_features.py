"""--features: Inception's numbers are torch-fidelity's and pytorch-fid's, and no weights file runs code."""

import io
import json
import os
import pickle
import shutil
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from support.measuring import Constant, command, export, results
from support.processes import finished
from support.program import ROOT, main, refuses, small_config
from support.warm import WARM

from functions.metrics.extractor import load_extractor

CPU = torch.device("cpu")


def test_programs_that_do_not_serve_are_refused_and_nan_features_have_no_number(run, tmp_path, extractor):
    fixed = export(tmp_path / "fixed.pt2", Constant(1.0), 8, any_n=False)
    arguments = command(run, tmp_path, "--metrics", "fid", "--features")
    refuses(*arguments, fixed, says=["fixed.pt2", "any N"], tree=tmp_path / "image_samples")
    nan = load_extractor(extractor, 8, CPU)
    object.__setattr__(nan, "network", Constant(float("nan")))
    with pytest.raises(FloatingPointError, match="are not finite, so there is no distance"):
        nan(torch.ones(2, 1, 8, 8, dtype=torch.uint8))


def test_without_a_network_the_file_and_its_address_are_named(run, tmp_path):
    nowhere = "http://127.0.0.1:9"
    offline = {"TORCH_HOME": str(tmp_path / "hub"), "https_proxy": nowhere, "HTTPS_PROXY": nowhere}
    arguments = command(run, tmp_path, "--metrics", "fid")
    says = ["could not be downloaded", "weights-inception-2015-12-05-6726825d.pth", "--features"]
    says += [str(tmp_path / "hub")]
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
    # The header's length and the beginning of its JSON are the first 512 bytes of the tar: a member's header.
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
    """Weights for our reader, a legacy pickle for torch-fidelity's."""
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
    process = finished(command, env=environment)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_torch_fidelity_and_pytorch_fid_agree(tmp_path):
    """Their command lines and this program on the same PNG folders with the same weights file.

    The weights are random (see above). The pictures have 299 x 299 pixels: at other sizes pytorch-fid
    resizes unlike torch-fidelity and TensorFlow. pytorch-fid divides pixels by 127.5, the others
    by 128: with these weights its features are larger by just that. Its distance takes a minute at 2048
    features, so its command line gives the statistics only.
    """
    rng = np.random.default_rng(0)
    for name in ("made", "reference"):
        (tmp_path / name).mkdir()
    shades = [
        np.kron(rng.integers(0, 256, (23, 23, 3)), np.ones((13, 13, 1))).astype(np.uint8) for _ in range(15)
    ]
    for i, picture in enumerate(shades):
        if i < 10:
            Image.fromarray(picture).save(tmp_path / "made" / f"{i}.png")
        else:
            Image.fromarray(picture // 2).save(tmp_path / "reference" / f"{i}.png")
    weights = tmp_path / "hub" / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    weights.parent.mkdir(parents=True)
    inception_weights(weights)
    changes = dict(
        data__dataset="FOLDER", data__image_size=299, data__channels=3, model__in_channels=3, model__out_ch=3
    )
    config = small_config(tmp_path / "c.yml", sampling__batch_size=10, **changes)
    folders = ("--images", tmp_path / "made", "--reference", tmp_path / "reference")
    main("--config", config, "--exp", tmp_path, *folders, "--metrics fid is kid pr --features", weights)
    ours = results(tmp_path, "made")

    folders = ("--input1", tmp_path / "made", "--input2", tmp_path / "reference")
    settings = ("--feature-extractor-weights-path", weights, "--feature-extractor", "inception-v3-compat")
    kinds = ("--isc", "--fid", "--kid", "--kid-subset-size", 5, "--prc")
    program = (WARM, "-m", "torch_fidelity.fidelity", *kinds, "--json")
    theirs = json.loads(process(*program, *folders, *settings, "--cpu", "--no-cache", "--silent"))
    assert ours["fid"]["value"] > 0.1
    assert ours["fid"]["value"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["is"]["mean"] == pytest.approx(theirs["inception_score_mean"], rel=1e-3)
    assert ours["kid"]["mean"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert (ours["pr"]["precision"], ours["pr"]["recall"]) == (theirs["precision"], theirs["recall"])

    save = (WARM, "-m", "pytorch_fid", "--device", "cpu", "--num-workers", "0", "--save-stats")
    process(*save, tmp_path / "reference", tmp_path / "theirs.npz", TORCH_HOME=str(tmp_path))
    [statistics] = (tmp_path / "fid_stats").glob("*.npz")
    with np.load(statistics) as mine, np.load(tmp_path / "theirs.npz") as their:
        for name, factor in (("mu", 128 / 127.5), ("sigma", (128 / 127.5) ** 2)):
            assert np.abs(factor * mine[name] - their[name]).max() < 1e-3 * np.abs(their[name]).max()


def test_the_statistics_of_many_images_stay_small():
    """At 2048 features a process that streams peaks below 1 GB: benchmarks/fid_memory.py, with few images.

    Memory does not depend on how many: 50,000 take what 1,000 take, and a minute more.
    """
    said = process(sys.executable, ROOT / "benchmarks" / "fid_memory.py", "1000")
    assert float(said.split("whole process: ")[1].split()[0]) < 1
