"""What training left behind, read back and compared."""

import hashlib

import torch


def checkpoint(exp, doc="d", name="ckpt.pth"):
    return torch.load(exp / "logs" / doc / name, weights_only=True)


def assert_same(a, b, path=""):
    """Bit for bit, through dicts and lists."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def losses(exp, doc) -> list[float]:
    lines = (exp / "logs" / doc / "stdout.txt").read_text().splitlines()
    return [float(line.split(", loss: ")[1]) for line in lines if ", loss: " in line]


def fingerprint(saved: dict) -> dict[str, dict[str, object]]:
    """Of the model, its average and the optimizer's moments: a hash of all their bytes, and their norm."""
    groups = {name: list(saved[name].values()) for name in ("model", "ema")}
    states = saved["optimizer"]["state"].values()
    groups |= {name: [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")}
    found = {}
    for name, tensors in groups.items():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        found[name] = {
            "sha256": hashlib.sha256(flat.numpy().tobytes()).hexdigest(),
            "norm": flat.double().norm().item(),
        }
    return found
