"""What precision costs: images of a trained network from the same x_T, in grey levels against float32.

python -m benchmarks.accuracy --config digits.yml --ckpt demo/logs/digits/ckpt.pth --out out/accuracy
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import main as program
from benchmarks.measuring import Row, write
from functions.runtime.device import choose_device

REFERENCE = ["--precision", "fp32", "--compile", "off"]
VARIANTS = {
    "default": ["--compile", "off"],
    "default, compiled": ["--compile", "on"],
    "bf16": ["--precision", "bf16", "--compile", "off"],
    "bf16, compiled": ["--precision", "bf16", "--compile", "on"],
}


def images(arguments: argparse.Namespace, flags: list[str], steps: int, eta: float) -> np.ndarray:
    """Grey levels (n, h, w) or (n, h, w, 3), made by main.py."""
    with tempfile.TemporaryDirectory() as exp:
        named = ["--config", arguments.config, "--ckpt", arguments.ckpt, "--exp", exp]
        how = f"--num_samples {arguments.images} --timesteps {steps} --eta {eta} --batch_size 64"
        how += " --verbose warning"
        how += f" --device {arguments.device}" if arguments.device else ""
        assert program.main([*named, "--sample", "--fid", *how.split(), *flags]) == 0
        folder = Path(exp, "image_samples", "images")
        return np.stack(
            [np.asarray(Image.open(folder / f"{i}.png")).astype(int) for i in range(arguments.images)]
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="digits.yml")
    parser.add_argument("--ckpt", required=True, help="of a trained network")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--eta", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--device")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/out/accuracy"), help="{out}.md and {out}.json"
    )
    arguments = parser.parse_args()
    rows: list[Row] = []
    for steps in arguments.timesteps:
        for eta in arguments.eta:
            exact = images(arguments, REFERENCE, steps, eta)
            for name, flags in VARIANTS.items():
                difference = np.abs(images(arguments, flags, steps, eta) - exact)
                rows.append({
                    "against fp32": name, "S": steps, "η": eta, "largest": int(difference.max()),
                    "mean": float(difference.mean()), "above one level": f"{(difference > 1).mean():.3%}",
                })  # fmt: skip
    command = ["python", "-m", "benchmarks.accuracy", *sys.argv[1:]]
    title = f"{arguments.images} images, difference in grey levels of 255"
    write(arguments.out, choose_device(arguments.device), command, {title: rows})


if __name__ == "__main__":
    main()
