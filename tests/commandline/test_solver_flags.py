"""Solvers and spacings by the command line: dpm-solver's own commands, files of timesteps, refusals."""

import json

import numpy as np
import pytest
from support.images import grey_levels
from support.program import main, refuses, sampling

FORK = "--timesteps=6 --eta 0 --ni --skip_type=logSNR --dpm_solver_order=3 --dpm_solver_method=multistep"


def decides(exp, name="images"):
    return json.loads((exp / "image_samples" / name / "manifest.json").read_text())["decides"]


def test_a_command_line_of_dpm_solvers_own_program(run, tmp_path):
    command = sampling(run.config, run.ckpt, tmp_path, "--num_samples", 2, "--sample_type=dpmsolver++")
    said = main(*command, FORK, "--dpm_solver_type=dpmsolver").stderr
    assert "6 steps asked, 6 evaluated, t from 999 to " in said
    assert "; 6 evaluations an image (NFE), which end at t = 0, where ᾱ is 0.9999" in said
    found = decides(tmp_path)
    assert (found["order"], found["method"], found["end"], found["eta"]) == (3, "multistep", 0, None)
    assert found["solver_type"] == "dpmsolver" and found["lower_order_final"] is True
    assert len(found["timesteps"]) == 6 and not found["timesteps"][0].is_integer()

    # Each of its settings decides the images.
    for more, says in [
        ("--order 2", "order is 3 there and 2 here"), ("--dpm_solver_method singlestep", "values from"),
        ("--dpm_solver_type taylor", "solver_type is dpmsolver there and taylor here"),
        ("--lower_order_final no", "lower_order_final is True there and False here"),
        ("--denoise", "timesteps is"), ("--clip_x0 on", "clip_x0 is not given there and on here"),
        ("--skip_type time_uniform", "timesteps is"),
    ]:  # fmt: skip
        refuses(*command, FORK, more, says=[says, "-i"], tree=tmp_path)


def test_evaluations_are_counted_where_they_are_not_the_steps(run, tmp_path):
    command = sampling(
        run.config, run.ckpt, tmp_path, "--num_samples", 4, "--batch_size", 4, "--timesteps", 10
    )
    for name, n in (("pndm", 19), ("plms", 11), ("heun", 19)):
        assert (
            f"; {n} evaluations an image (NFE), which end at a clean image"
            in main(*command, "-i", name, "--sample_type", name).stderr
        )
        assert (
            f"; {4 * n} evaluations of the network"
            in main(*command, "-i", "p", "--sample_type", name, "--plan").stdout
        )


def test_a_sequence_of_a_solver_has_a_picture_a_timestep(run, tmp_path):
    command = sampling(run.config, run.ckpt, tmp_path, "--timesteps", 7, mode="--sequence")
    for name, more in (("pndm", ()), ("dpmsolver", ("--dpm_solver_method", "singlestep"))):
        main(*command, "-i", name, "--sample_type", name, *more)
        pictures = list((tmp_path / "image_samples" / name).glob("0_*.png"))
        assert len(pictures) == (8 if name == "pndm" else 7)  # 7 does not divide 1000


def test_a_file_of_timesteps(run, tmp_path):
    command = sampling(run.config, run.ckpt, tmp_path, "--num_samples", 3)
    path = tmp_path / "steps.txt"
    path.write_text("0, 200, 400  # as --skip_type uniform\n800\n600\n")
    said = main(*command, "-i", "file", "--skip_type", path).stderr
    assert "5 steps asked, 5 evaluated, t from 800 to 0;" in said
    main(*command, "-i", "uniform", "--timesteps", 5)
    assert decides(tmp_path, "file") == decides(tmp_path, "uniform")
    assert "5 steps" in main(*command, "--skip_type", path, "--sample_type", "deis", "-i", "d").stderr
    for text, says in [
        ("1 2 2", "timestep 2 twice"), ("1 two", "'two' is not a timestep"), ("-1", "'-1' is not"),
        ("# none", "no timesteps"), ("5 1000", "1000 is too large"),
    ]:  # fmt: skip
        path.write_text(text)
        refuses(
            *command, "--skip_type", path, "-i", "x", says=[says, str(path)], tree=tmp_path / "image_samples"
        )
    path.write_text("1 2 3")
    refuses(
        *command,
        "--skip_type",
        path,
        "--timesteps",
        5,
        "-i",
        "x",
        says=["3 timesteps", "--timesteps"],
        tree=tmp_path,
    )


def test_the_spacing_is_an_axis_of_the_grid(run, tmp_path):
    """Each spacing in its own folder; without one, each sampler has its own."""
    command = sampling(run.config, run.ckpt, tmp_path, "--num_samples", 2, "--timesteps", 4)
    main(*command, "-i", "g", "--skip_type", "uniform", "trailing", "logSNR", "--sample_type", "gradient")
    folder = tmp_path / "image_samples" / "g"
    names = [f"{name}_S4_gradient_seed1234" for name in ("uniform", "trailing", "logSNR")]
    assert sorted(path.name for path in folder.glob("[!.]*") if path.is_dir()) == sorted(names)
    assert len({(folder / name / "0.png").read_bytes() for name in names}) == 3
    main(*command, "-i", "h", "--sample_type", "generalized", "dpmsolver++", "--order", 2, "--eta", 0, 1)
    cells = {path.name for path in (tmp_path / "image_samples" / "h").glob("[!.]*") if path.is_dir()}
    assert cells == {"S4_eta0_seed1234", "S4_eta1_seed1234", "S4_dpmsolver++_2M_seed1234"}
    assert decides(tmp_path, "h/S4_eta0_seed1234")["timesteps"] == [0, 250, 500, 750]
    assert decides(tmp_path, "h/S4_dpmsolver++_2M_seed1234")["end"] == 0


def test_clipping_is_for_every_sampler_and_off_by_default(run, tmp_path):
    command = sampling(run.config, run.ckpt, tmp_path, "--num_samples", 3, "--timesteps", 5)
    for name in ("generalized", "dpmsolver++", "ddpm_noisy"):
        for clip_x0 in (None, "off", "on", "dynamic"):
            more = ("--clip_x0", clip_x0) if clip_x0 else ()
            main(*command, "-i", f"{name}_{clip_x0}", "--sample_type", name, *more)
        images = [
            grey_levels(tmp_path / "image_samples" / f"{name}_{clip_x0}", 3)
            for clip_x0 in (None, "off", "on", "dynamic")
        ]
        same = 2 if name == "ddpm_noisy" else 1
        assert np.array_equal(images[0], images[same])
        assert not np.array_equal(images[1], images[2]) and not np.array_equal(images[2], images[3])
        assert "clip_x0" not in decides(tmp_path, f"{name}_None")


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("--sample_type unipc --eta 0.5", ["--eta is 0.5", "unipc draws no noise"]),
        ("--sample_type generalized --order 2", ["--order", "no meaning", "generalized"]),
        ("--sample_type unipc --order 4", ["--order is 4", "unipc takes 1, 2, 3"]),
        (
            "--sample_type unipc --dpm_solver_method singlestep",
            ["--dpm_solver_method", "no meaning", "unipc"],
        ),
        ("--sample_type dpmsolver --dpm_solver_method adaptive", ["adaptive", "singlestep"]),
        ("--sample_type pndm --lower_order_final no", ["--lower_order_final", "multistep"]),
        ("--sample_type pndm --dpm_solver_type taylor", ["--dpm_solver_type", "no meaning"]),
        ("--clip_x0 maybe", ["maybe", "dynamic"]),
        ("--skip_type logsnr", ["logsnr", "logSNR"]),
    ],
)
def test_what_a_sampler_does_not_take_is_refused(run, tmp_path, arguments, says):
    refuses(*sampling(run.config, run.ckpt, tmp_path), arguments, says=says, tree=tmp_path)


def test_a_model_of_the_smaller_variance_is_told_to_take_eta_1(run, tmp_path):
    from support.program import small_config

    config = small_config(tmp_path / "c.yml", model__var_type="fixedsmall")
    command = sampling(config, run.ckpt, tmp_path, "--num_samples", 1, "--timesteps", 2)
    assert "trained for --eta 1" in main(*command, "--sample_type", "ddpm_noisy").stderr
    assert "trained for --eta 1" not in main(*command, "--eta", 1, "-i", "x").stderr
