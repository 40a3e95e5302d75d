"""docs/python.md: each answer has at most six lines, and they run one after the other as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.program import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text()
ANSWERS = {
    heading: block
    for heading, block in re.findall(
        r"^#+ ([^\n]*)\n(?:(?!^#).)*?^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
    )
}
*IN_ORDER, BESIDE = ANSWERS


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict:
    """What the names of the page stand for after all of its answers, and after each of them."""
    folder, names = tmp_path_factory.mktemp("page"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torch._dynamo.config, "disable", True)  # compiling takes long; `compile` is called
        after = {}
        for heading in IN_ORDER:
            exec(compile(ANSWERS[heading], heading, "exec"), names)
            after[heading] = dict(names)
    return {"folder": folder, "after": after, **names}


def test_each_answer_has_at_most_six_lines():
    assert len(ANSWERS) == PAGE.count("```python") >= 11
    for heading, block in ANSWERS.items():
        assert sum(bool(line) for line in block.splitlines()) <= 6, heading


def test_samples_steps_and_latents(made):
    """Two images by `sample`, by steps and by way of their latents."""
    after = made["after"]
    files = [np.asarray(Image.open(made["folder"] / f"{i}.png")) for i in range(4)]
    stepwise = after["Something at each step"]["images"]
    assert np.abs(stepwise[:, 0].numpy().astype(int) - np.stack(files[:2]).astype(int)).max() <= 1
    again = after["Latents in and out"]["again"]
    assert (again.double() - stepwise.double()).square().mean() < (
        stepwise.double() - 128
    ).square().mean() / 9


def test_the_loop_on_the_page_is_ddim(made):
    own, diffusion = made["own"], made["after"]["Your own sampler"]["diffusion"]
    ddim = diffusion.sampling(timesteps=4)
    ddim = type(own)((0, 300, 600, 900), "generalized", 0.0, 1234, ddim.end)
    x = made["last"](diffusion.denoise(diffusion.latents([0]), ddim)).x
    assert (diffusion.to_images(x).int() - made["mine"].int()).abs().max() <= 1


def test_spacing_schedule_and_compiling(made):
    assert made["own"].timesteps == (0, 20, 100, 400, 800) and made["quad"].timesteps != made["own"].timesteps
    # Nichol and Dhariwal's cosine, in closed form.
    f = torch.cos((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    assert made["cosine"].alphas_cumprod[500].item() == pytest.approx((f[500] / f[0]).item(), rel=1e-3)
    plain = made["after"]["Another spacing"]["images"]
    assert (plain.int() - made["images"].int()).abs().max() <= 1


def test_the_loss_is_of_these_images_at_these_t(made):
    diffusion, x0, t, eps, abar = (made["after"]["The loss of given images at given t"][name]
                                   for name in ("diffusion", "x0", "t", "eps", "abar"))  # fmt: skip
    for k in range(2):
        a = abar[t[k] + 1]
        x = a.sqrt() * x0[k : k + 1] + (1 - a).sqrt() * eps[k : k + 1]
        with torch.no_grad():
            error = (diffusion.model(x, t[k : k + 1]) - eps[k]).square().sum()
        assert made["losses"][k].item() == pytest.approx(error.item(), rel=1e-4)


def test_training_leaves_a_run(made):
    assert (Path(made["folder"]) / "E" / "logs" / "D" / "ckpt_2.pth").is_file()


def test_the_other_datasets_is_found_where_this_folder_is_on_the_path(monkeypatch, tmp_path):
    """The page's command, with a script in place of the download that says what is found by the name."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda command, **how: asked.append((command, how)))
    exec(compile(ANSWERS[BESIDE], BESIDE, "exec"), {})
    (command, how), find = asked[0], "import importlib.util as u; print(u.find_spec('datasets'))"
    assert how["check"] and command[0] == sys.executable
    monkeypatch.undo()
    environment = {"PYTHONPATH": str(ROOT)}
    of_page, plain = (
        subprocess.run([*flags, "-c", find], cwd=ROOT, env=environment, capture_output=True, text=True).stdout
        for flags in (command[:-2], [sys.executable])
    )
    assert str(ROOT) in plain and str(ROOT / "datasets") not in of_page and of_page
