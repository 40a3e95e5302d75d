"""Peak host memory and time of the FID of 50,000 images with 2048 features, without the cost of Inception.

    python benchmarks/fid_memory.py [images]

The images go through the code that --metrics fid runs; a random projection stands in for the network.
"""

import resource
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from functions.metrics import frechet
from functions.metrics.extractor import Extractor
from runners.evaluation.evaluator import Samples

DIM, BATCH, SHAPE = 2048, 500, (3, 32, 32)


def main(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(3 * 32 * 32, DIM, generator=generator)
    cpu = torch.device("cpu")
    extractor = Extractor(
        "projection", "", DIM, 0, cpu, lambda images: images.flatten(1).float() @ projection / 1000
    )
    began = time.perf_counter()
    samples = Samples(extractor, {"moments"}, n, BATCH, Path(), SHAPE)
    for first in range(0, n, BATCH):
        indices = range(first, min(first + BATCH, n))
        samples.add(
            indices, torch.randint(256, (len(indices), *SHAPE), generator=generator, dtype=torch.uint8)
        )
    samples.sum_over_ranks()
    streamed = time.perf_counter()
    reference = frechet.Gaussian(torch.zeros(DIM, dtype=torch.float64), torch.eye(DIM, dtype=torch.float64))
    print(frechet.fid(samples.moments, reference))
    distance = time.perf_counter() - streamed
    print(
        f"{n} images of {DIM} features: {streamed - began:.1f} s to stream, {distance:.1f} s for the distance"
    )
    print(f"peak host memory of the whole process: {peak_memory():.3f} GB")


def peak_memory() -> float:
    """In GB. On Linux by the kernel's own mark: getrusage remembers the process that started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000)
