"""Flags that repeat make a grid: a folder for each cell, and a table with the paper's numbers beside ours."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.program import main, refuses, sampling, small_config

from configs import load_config
from configs.arguments import parse
from configs.options import fit
from runners.diffusion import Diffusion, build_unet
from runners.evaluation.published import FINDERS, Published, published_fid
from runners.sampling.cells import cells


def options(*arguments, config="cifar10.yml"):
    argv = ["--config", config, "--doc", "d", "--sample", "--fid", *arguments]
    return fit(parse([str(argument) for argument in argv]), load_config(config))


def names(*arguments) -> list[str]:
    return [cell.image_folder for cell in cells(options("-i", "g", *arguments))]


def test_the_cells_are_the_product_and_eta_makes_no_noisy_ones():
    both = ("--sample_type", "generalized", "ddpm_noisy")
    assert names("--timesteps", 10, 20, "--eta", 0, 0.5, *both) == [
        "g/S10_eta0_seed1234", "g/S20_eta0_seed1234", "g/S10_eta0.5_seed1234", "g/S20_eta0.5_seed1234",
        "g/S10_ddpm_noisy_seed1234", "g/S20_ddpm_noisy_seed1234",
    ]  # fmt: skip
    assert names("--seed", 1, 2, "--timesteps", 10) == ["g/S10_eta0_seed1", "g/S10_eta0_seed2"]
    assert names("--timesteps", 10, "--seed", 1) == ["g"]  # one value is no grid


def test_checkpoints_by_a_pattern_come_in_the_order_of_their_steps_each_with_a_name_of_its_own(tmp_path):
    for name in ("ckpt_500.pth", "ckpt_10000.pth", "ckpt_9000.pth", "a/ckpt.pth", "b/ckpt.pth"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    cells = names("--timesteps", 10, "--ckpt", tmp_path / "ckpt_*.pth")
    assert cells == [f"g/ckpt_{step}_S10_eta0_seed1234" for step in (500, 9000, 10000)]
    cells = names("--timesteps", 10, "--ckpt", tmp_path / "a" / "ckpt.pth", tmp_path / "b" / "ckpt.pth")
    assert cells == ["g/a_ckpt_S10_eta0_seed1234", "g/b_ckpt_S10_eta0_seed1234"]


@pytest.mark.parametrize(
    "config, arguments, fid",
    [
        ("cifar10.yml", ["--timesteps", 10, "--skip_type", "quad"], 13.36),
        ("cifar10.yml", ["--timesteps", 100, "--skip_type", "quadratic", "--eta", 0.5], 4.46),
        ("cifar10.yml", ["--timesteps", 1000, "--skip_type", "quad", "--sample_type", "ddpm_noisy"], 3.17),
        ("cifar10.yml", ["--timesteps", 10], None),  # the paper's CIFAR10 table is of quadratic steps
        ("cifar10.yml", ["--timesteps", 30, "--skip_type", "quad"], None),
        ("cifar10.yml", ["--timesteps", 10, "--skip_type", "quad", "--eta", 0.3], None),
        ("celeba.yml", ["--timesteps", 20, "--eta", 1], 26.03),
        ("bedroom.yml", ["--timesteps", 50], 6.75),
        ("church.yml", ["--timesteps", 100, "--eta", 1], 8.27),
        ("bedroom.yml", ["--timesteps", 1000, "--eta", 1], 6.36),
        ("church.yml", ["--timesteps", 1000, "--eta", 1], 7.89),
        ("church.yml", ["--timesteps", 1000], None),
        ("church.yml", ["--timesteps", 100, "--sample_type", "ddpm_noisy"], None),
        ("digits.yml", ["--timesteps", 100], None),
    ],
)
def test_the_papers_value_is_that_of_the_same_data_steps_and_sampler(config, arguments, fid):
    found = published_fid(load_config(config), options(*arguments, config=config))
    assert found == (fid and (fid, "paper"))


@pytest.mark.parametrize(
    "arguments, fid",
    [
        (["--sample_type", "dpmsolver", "--dpm_solver_method", "singlestep", "--timesteps", 12], 4.65),
        (["--sample_type", "dpmsolver", "--dpm_solver_method", "multistep", "--timesteps", 12], None),
        (
            [
                "--sample_type",
                "dpmsolver",
                "--dpm_solver_method",
                "singlestep",
                "--timesteps",
                12,
                "--denoise",
            ],
            None,
        ),
        (["--skip_type", "quad", "--timesteps", 15], 8.92),
        (["--skip_type", "quad", "--timesteps", 15, "--clip_x0", "on"], None),
        (["--skip_type", "uniform", "--timesteps", 15], None),
    ],
)
def test_what_others_published_is_for_the_published_weights_alone(arguments, fid):
    config, published = load_config("cifar10.yml"), (fid and (fid, "DPM-Solver"))
    assert published_fid(config, options(*arguments, "--use_pretrained")) == published
    assert published_fid(config, options(*arguments, "--ckpt", "ema_cifar10")) == published
    assert published_fid(config, options(*arguments)) is None


@pytest.fixture(scope="module")
def table(run, extractor, tmp_path_factory):
    """Twelve cells, of which only the numbers are kept."""
    exp = tmp_path_factory.mktemp("grid")
    config = small_config(exp / "c.yml")
    command = sampling(config, run.ckpt, exp, "-i", "g", "--num_samples", 20)
    command += ["--timesteps", 3, 5, "--eta 0 1 --sample_type generalized ddpm_noisy --seed 1 2"]
    command += ["--metrics", "fid", "pr", "--features", extractor, "--keep_images", "no"]
    return exp / "image_samples" / "g", command, main(*command, fresh=True)


def test_a_grid_writes_its_tables_and_keeps_only_numbers(table):
    folder, _, process = table
    assert "cell 12 of 12" in process.stderr and process.stderr.count("weights: ") == 1
    assert not list(folder.glob("S*/*")) and len(list(folder.glob("*.metrics.json"))) == 12
    content = json.loads((folder / "table.json").read_text())
    cells = {cell["folder"]: cell for cell in content["cells"]}
    values = [cells[f"g/S3_eta1_seed{seed}"]["numbers"]["fid"] for seed in (1, 2)]
    stored = json.loads((folder / "S3_eta1_seed2.metrics.json").read_text())["measurements"][0]["metrics"][
        "fid"
    ]["value"]
    assert values[1] == stored and values[0] != values[1]
    entry = next(e for e in content["over_seeds"]["fid"] if (e["sampler"], e["timesteps"]) == ("η = 1", 3))
    mean, spread = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    assert (entry["mean"], entry["spread"], entry["seeds"]) == (
        pytest.approx(mean),
        pytest.approx(spread),
        [1, 2],
    )
    text = (folder / "table.md").read_text()
    assert f"| η = 1 | {mean:.4g} ± {spread:.2g} |" in text and text in process.stdout
    assert "| σ̂ (ddpm_noisy) |" in text and "## precision" in text and "N is not 50,000" in text
    picture = np.asarray(Image.open(folder / "table.png").convert("RGB"))
    assert picture.shape[1] > 500 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 3


def test_samplers_are_compared_by_evaluations(run, extractor, tmp_path):
    """Three steps of Heun's cost as much as five of DDIM: they stand in one column, and a line says why."""
    command = sampling(
        run.config, run.ckpt, tmp_path, "--num_samples", 20, "--keep_images no --timesteps 3 5"
    )
    command += ["--sample_type", "generalized", "heun", "--metrics", "fid", "--features", extractor]
    said = main(*command, "-i", "g", "--skip_type", "trailing").stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line[:1] == "|"]
    assert rows[0] == ["", "NFE 3", "NFE 5", "NFE 9"]
    filled = {row[0]: [bool(cell) for cell in row[1:]] for row in rows[2:]}
    assert filled == {"η = 0": [True, True, False], "heun": [False, True, True]}
    assert "- heun: S = 5 evaluates 5 timesteps, NFE 9" in said and "for an image; trailing steps" in said
    content = json.loads((tmp_path / "image_samples" / "g" / "table.json").read_text())
    heun = [cell for cell in content["cells"] if cell["sample_type"] == "heun"]
    assert [(cell["timesteps"], cell["evaluations"]) for cell in heun] == [(3, 5), (5, 9)]


def test_a_grid_continues_cell_by_cell(table):
    """A cell whose numbers are gone is made again, to the same; a new value only adds its cells."""
    folder, command, _ = table
    before = json.loads((folder / "S5_eta0_seed1.metrics.json").read_text())["measurements"][0]["metrics"]
    (folder / "S5_eta0_seed1.metrics.json").unlink()
    process = main(*command)
    assert process.stderr.count("measured already") == 11 and process.stderr.count("to make") == 1
    assert (
        json.loads((folder / "S5_eta0_seed1.metrics.json").read_text())["measurements"][0]["metrics"]
        == before
    )
    process = main(*[7 if argument == 3 else argument for argument in command])
    assert process.stderr.count("measured already") == 6
    only_fid = [argument for argument in command if argument != "pr"]
    main(
        *[9 if argument == 3 else argument for argument in only_fid]
    )  # old cells have more numbers than new ones
    text = (folder / "table.md").read_text()
    fid, precision, *_ = text.split("## ")[1:]
    assert fid.startswith("fid") and "| NFE 4 | NFE 5 | NFE 8 | NFE 10 |" in fid
    assert not any("|  |" in row for row in fid.splitlines() if row.startswith("| η"))
    assert precision.startswith("precision")  # with nothing for the new cells
    assert all("|  |" in row for row in precision.splitlines() if row.startswith("| η"))


def test_numbers_without_images_are_not_replaced_by_another_runs(table):
    folder, command, _ = table
    refuses(
        *command,
        "--precision",
        "bf16",
        says=["precision is float32 there and bfloat16 here", "-i"],
        tree=folder,
    )


def test_a_cell_has_the_images_of_a_single_run_and_the_network_is_built_once(run, tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr("runners.diffusion.build_unet", lambda config: built.append(1) or build_unet(config))
    command = ["--config", run.config, "--exp", tmp_path, "--sample --fid --num_samples 3 --timesteps 4"]
    checkpoints = ["--ckpt", run.exp / "logs" / "d" / "ckpt_*.pth"]
    process = main(*command, *checkpoints, "-i", "g")
    assert len(built) == 1 and process.stderr.count("weights: ") == 3
    main(*command, "--ckpt", run.exp / "logs" / "d" / "ckpt_2.pth", "-i", "single")
    single, cell = (
        tmp_path / "image_samples" / "single",
        tmp_path / "image_samples" / "g" / "ckpt_2_S4_eta0_seed1234",
    )
    other = tmp_path / "image_samples" / "g" / "ckpt_1_S4_eta0_seed1234"
    for i in range(3):
        assert (cell / f"{i}.png").read_bytes() == (single / f"{i}.png").read_bytes()
    assert (other / "0.png").read_bytes() != (single / "0.png").read_bytes()
    assert {p.name for p in cell.iterdir()} == {"0.png", "1.png", "2.png", "manifest.json"}
    content = json.loads((tmp_path / "image_samples" / "g" / "table.json").read_text())
    assert [c["step"] for c in content["cells"]] == [1, 2, 4] and content["over_seeds"] == {}
    sheet = np.asarray(Image.open(tmp_path / "image_samples" / "g.png"))
    # A row for each cell, 8x8 pixels enlarged to 48x48; names of rows and columns at the left and above.
    top, left = sheet.shape[0] - (3 * 50 + 2), sheet.shape[1] - (3 * 50 + 2)
    for i in range(3):
        enlarged = np.asarray(Image.open(cell / f"{i}.png")).repeat(6, 0).repeat(6, 1)
        assert np.array_equal(sheet[top + 52 : top + 100, left + 50 * i + 2 : left + 50 * i + 50], enlarged)
        assert (sheet[top + 50 * i : top + 50 * i + 50, : left - 2] < 128).any()
        assert (sheet[:top, left + 50 * i : left + 50 * i + 50] < 128).any()


def test_the_best_checkpoint_is_named_and_the_papers_ratio_stands_beside_a_value(
    tmp_path, extractor, monkeypatch
):
    """Two checkpoints of a network that is told to be CIFAR10's at S = 10."""
    config = small_config(tmp_path / "c.yml", data__dataset="FOLDER", training__n_iters=1)
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        Image.effect_noise((8, 8), 80).save(tmp_path / "pictures" / f"{i}.png")
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(
            Diffusion(load_config(str(config)), torch.device("cpu")).model.state_dict(),
            tmp_path / f"w{seed}.pth",
        )
    monkeypatch.setitem(FINDERS, "fid", lambda config, options: Published(0.5, "paper"))
    command = sampling(config, tmp_path / "w?.pth", tmp_path, "--num_samples", 6)
    main(*command, "--timesteps 10 --metrics fid --features", extractor, "--data", tmp_path / "pictures")
    text = (tmp_path / "image_samples" / "images" / "table.md").read_text()
    values = [
        float(value)
        for value in re.findall(r"^\| w\d, η = 0 \| ([\d.]+) \(paper 0.5, ×[\d.]+\) \|$", text, re.MULTILINE)
    ]
    assert len(values) == 2 and f"Lowest: w{values.index(min(values))}, η = 0, S = 10" in text
    assert f"(paper 0.5, ×{values[0] / 0.5:.2f}"[:-1] in text


def test_cells_of_earlier_commands_stay_in_the_table_and_on_the_sheet(run, tmp_path):
    """And a cell whose folder is gone does not."""
    command = ["--config", run.config, "--exp", tmp_path, "--ckpt", run.ckpt, "-i", "g"]
    command += ["--sample --fid --num_samples 2"]
    folder = tmp_path / "image_samples" / "g"
    main(*command, "--timesteps 2 3 --eta 0 1")
    assert main(*command, "--timesteps 2 --seed 1234 5").stdout.count("\n| g/S") == 5
    rows = [line.split(" | ") for line in (folder / "table.md").read_text().splitlines() if "| g/S" in line]
    assert sorted((row[0], row[2], row[6]) for row in rows) == [
        ("| g/S2_eta0_seed1234", "0", "1234 |"), ("| g/S2_eta0_seed5", "0", "5 |"),
        ("| g/S2_eta1_seed1234", "1", "1234 |"), ("| g/S3_eta0_seed1234", "0", "1234 |"),
        ("| g/S3_eta1_seed1234", "1", "1234 |"),
    ]  # fmt: skip
    assert (Image.open(tmp_path / "image_samples" / "g.png").height - 2) // 50 == 5

    one = main(*command, "--timesteps 4")  # a command without a repeated flag adds one
    assert one.stdout.count("\n| g/S") == 6 and (folder / "S4_eta0_seed1234").is_dir()
    assert "to make, 2 already there" in main(*command, "--timesteps 3 --plan").stdout
    said = main("--inspect", folder).stdout
    assert "6 cells" in said and len(re.findall("^made by: python main.py .* -i g ", said, re.MULTILINE)) == 3
    shutil.rmtree(folder / "S4_eta0_seed1234")

    shutil.rmtree(folder / "S3_eta1_seed1234")
    main(*command, "--timesteps 2 --seed 1234 5")
    cells = json.loads((folder / "table.json").read_text())["cells"]
    assert len(cells) == 4 and "g/S3_eta1_seed1234" not in {cell["folder"] for cell in cells}
    (folder / "table.json").write_text("{")
    assert "table.json" in main(*command, "--timesteps 2 --seed 1234 5").stderr
    assert len(json.loads((folder / "table.json").read_text())["cells"]) == 2


def test_the_interval_of_one_measurement_stands_beside_it(run, extractor, tmp_path):
    command = sampling(run.config, run.ckpt, tmp_path, "-i", "g", "--num_samples", 20, "--timesteps 2 3")
    said = main(*command, "--metrics fid --features", extractor, "--keep_images no").stdout
    content = json.loads((tmp_path / "image_samples" / "g" / "table.json").read_text())
    for cell in content["cells"]:
        fid = cell["measured"]["metrics"]["fid"]
        assert fid["half_width"] > 0 and f"| {fid['value']:.4g} ± {fid['half_width']:.2g} |" in said
    assert "- ± of fid: half of the 95 % interval" in said
    # Cells without numbers, and then all of the numbers again.
    said = main(*command[:-1], "--timesteps 4 5").stdout
    assert "| NFE 2 | NFE 4 |" in said and said.count("| g/S") == 2


def test_what_is_no_grid_is_refused(run, tmp_path):
    base = ["--config", run.config, "--exp", tmp_path, "--sample", "--num_samples", 2, "--timesteps", 3]
    own = ["--ckpt", run.ckpt]
    main(*base, *own, "--fid", "-i", "single")
    for arguments, says in [
        ([*own, "--fid", "-i", "single", "--seed", 1, 2], ["holds the images of a single run", "-i"]),
        ([*own, "--fid", "--eta", 0, 1, 0], ["--eta names 0.0 twice"]),
        ([*own, "--fid", "--eta", 0, 1.5], ["--eta is 1.5"]),
        ([*own, "--fid", "--timesteps", 3, 1001], ["--timesteps is 1001", "at most 1000"]),
        (["--ckpt", run.ckpt, tmp_path / "no.pth", "--fid"], ["no checkpoint at", "no.pth"]),
        (["--ckpt", tmp_path / "*.pth", "--fid"], ["*.pth", "no file"]),
    ]:
        refuses(*base, *arguments, says=says, tree=tmp_path)
    several = ["--config", run.config, "--exp", tmp_path, "--doc", "d"]
    for arguments in (
        ["--seed", 1, 2],
        ["--sample", "--sequence", "--timesteps", 3, 4],
        ["--sample", "--interpolation", "--eta", 0, 1],
    ):
        flag = next(a for a in arguments if a in ("--seed", "--timesteps", "--eta"))
        says = [f"several values of {flag}", "--sample --fid"]
        refuses(*several, *arguments, says=says, tree=tmp_path, fresh=flag == "--seed")
    main(*base, *own, "--fid", "-i", "g", "--seed", 1, 2)
    refuses(*base[:5], *base[7:], *own, "--sequence", "-i", "g", says=["-i"], tree=tmp_path)
