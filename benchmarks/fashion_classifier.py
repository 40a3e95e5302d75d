"""Features of Fashion-MNIST for a Fréchet distance: a small classifier, exported for `main.py --features`.

    python -m benchmarks.fashion_classifier --data path/to/fashion-mnist --program fashion_features.pt2

Inception has seen photographs; what tells a shirt from a coat in 28x28 grey pixels is learned here from the
labels. The features are the 64 inputs of the last layer. The test split chooses nothing: its accuracy is only
reported.
"""

import argparse
import gzip
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measuring import write
from configs import load_config
from datasets import get_dataset
from functions.runtime.device import choose_device
from functions.runtime.precision import memory_format

FEATURES, CLASSES = 64, 10
BATCH, MAX_LR = 128, 0.004


class Classifier(nn.Module):
    """uint8 (n, 3, 32, 32), three equal channels, -> the features (n, 64) that its last layer reads."""

    def __init__(self) -> None:
        super().__init__()

        def conv(in_ch: int, out_ch: int, kernel: int) -> list[nn.Module]:
            return [
                nn.Conv2d(in_ch, out_ch, kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(out_ch),
                nn.ReLU(),
            ]

        self.body = nn.Sequential(
            *conv(1, 32, 5), nn.MaxPool2d(2), *conv(32, 64, 3), nn.MaxPool2d(2),
            *conv(64, 128, 3), *conv(128, 128, 3),
            nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 4 * 4, FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images[:, :1].float() / 127.5 - 1)

    def logits(self, images: Tensor) -> Tensor:
        return self.last(self.forward(images))


def labels(root: Path, train: bool) -> Tensor:
    """The classes (n,) int64, from the gzipped IDX file beside the images. main.py does not download it."""
    path = root / f"{'train' if train else 't10k'}-labels-idx1-ubyte.gz"
    if not path.is_file():
        raise SystemExit(f"{path} is missing: put the four *-ubyte.gz files of Fashion-MNIST there")
    content = gzip.decompress(path.read_bytes())
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=8).astype(np.int64))


def train(network: Classifier, images: Tensor, classes: Tensor, epochs: int) -> None:
    """Adam with one cycle of the learning rate, on images mirrored half of the time."""
    steps = epochs * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, steps + 1)
    for epoch in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            mirrored = torch.rand(len(rows), 1, 1, 1, device=images.device) < 0.5
            batch = torch.where(mirrored, images[rows].flip(3), images[rows])
            loss = F.cross_entropy(network.train().logits(batch), classes[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.4f}", file=sys.stderr, flush=True)


@torch.no_grad()
def accuracy(network: Classifier, images: Tensor, classes: Tensor) -> float:
    network.eval()
    right = [
        network.logits(batch).argmax(1) == of
        for batch, of in zip(images.split(500), classes.split(500), strict=True)
    ]
    return torch.cat(right).float().mean().item()


def export(network: Classifier, path: Path) -> None:
    """The program that --features takes, for any device."""
    example = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    batch = torch.export.Dim("n")
    torch.export.save(
        torch.export.export(network.cpu().eval(), (example,), dynamic_shapes=({0: batch},)), path
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of the four *-ubyte.gz files")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=60_000, help="train on the first so many")
    parser.add_argument("--device")
    parser.add_argument(
        "--program", type=Path, default=Path("fashion_features.pt2"), help="the exported program"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/out/fashion_classifier"), help="{out}.md and {out}.json"
    )
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    data = load_config("fashion_mnist.yml").data
    train_images, test_images = (get_dataset(data, arguments.data, train=split) for split in (True, False))
    assert isinstance(train_images, Tensor) and isinstance(test_images, Tensor)
    train_images = train_images[: arguments.images].to(device)
    classes = labels(arguments.data, True)[: arguments.images].to(device)
    test_classes = labels(arguments.data, False).to(device)

    torch.manual_seed(0)
    network = Classifier().to(device, memory_format=memory_format(device))
    began = time.monotonic()
    train(network, train_images, classes, arguments.epochs)
    row = {
        "test accuracy": accuracy(network, test_images.to(device), test_classes),
        "training accuracy": accuracy(network, train_images, classes),
        "features": FEATURES,
        "parameters": sum(p.numel() for p in network.parameters()),
        "epochs": arguments.epochs,
        "seconds": time.monotonic() - began,
    }
    export(network, arguments.program)
    command = ["python", "-m", "benchmarks.fashion_classifier", *sys.argv[1:]]
    write(arguments.out, device, command, {"classifier of Fashion-MNIST": [row]})


if __name__ == "__main__":
    main()
