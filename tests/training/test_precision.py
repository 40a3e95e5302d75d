"""Compiled, in bfloat16 or in parts, training is the same training."""

import numpy as np
import torch
from support.program import main, small_config
from support.runs import losses


def test_training_compiled_is_training(tmp_path):
    """The epoch's last batch, of 298, runs uncompiled."""
    changes = dict(data__image_size=4, training__n_iters=3, training__validation_freq=9)
    config = small_config(tmp_path / "c.yml", model__dropout=0.0, model__num_res_blocks=1, **changes)
    main("--config", config, "--exp", tmp_path, "--doc", "eager")
    main("--config", config, "--exp", tmp_path, "--doc", "compiled", "--compile", "on", fresh=True)
    eager, compiled = losses(tmp_path, "eager"), losses(tmp_path, "compiled")
    assert len(eager) == 3
    np.testing.assert_allclose(compiled, eager, rtol=1e-3)


def test_training_in_bfloat16_learns_the_same(tmp_path):
    changes = dict(data__image_size=4, model__dropout=0.0, training__validation_freq=9)
    config = small_config(tmp_path / "c.yml", **changes)
    main("--config", config, "--exp", tmp_path, "--doc", "fp32")
    said = main("--config", config, "--exp", tmp_path, "--doc", "bf16", "--precision", "bf16").stderr
    assert "bfloat16 on cpu" in said
    fp32, bf16 = losses(tmp_path, "fp32"), losses(tmp_path, "bf16")
    assert fp32 != bf16
    np.testing.assert_allclose(bf16, fp32, rtol=0.02)
    saved = torch.load(tmp_path / "logs" / "bf16" / "ckpt.pth", weights_only=True)
    assert {value.dtype for value in saved["model"].values()} == {torch.float32}


def test_a_batch_worked_off_in_parts_is_the_batch(tmp_path):
    parts = 7
    changes = dict(data__image_size=4, model__dropout=0.0, training__validation_freq=9)
    changes |= dict(optim__optimizer="SGD", optim__lr=1e-5)
    main("--config", small_config(tmp_path / "one.yml", **changes), "--exp", tmp_path, "--doc", "one")
    config = small_config(tmp_path / "parts.yml", **changes, training__accumulate=parts)
    assert f"in {parts} parts" in main("--config", config, "--exp", tmp_path, "--doc", "parts").stderr
    one, many = (
        torch.load(tmp_path / "logs" / doc / "ckpt.pth", weights_only=True)["model"]
        for doc in ("one", "parts")
    )
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(losses(tmp_path, "parts"), losses(tmp_path, "one"), rtol=1e-5)
