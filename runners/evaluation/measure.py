"""`--metrics … --images`: the metrics of a folder of images, whoever made them."""

import re
import time
from dataclasses import replace
from pathlib import Path

import torch

from configs import Config
from configs.options import Options
from configs.refusal import Refusal
from datasets.pictures import exact_pictures
from datasets.tree import image_files
from functions.runtime import distributed
from functions.runtime.progress import progress_bar
from runners.evaluation import measurements
from runners.evaluation.evaluator import Evaluator


def measure(options: Options, config: Config, device: torch.device) -> None:
    """Measure the first --num_samples of a folder, by default all of them, and print the table.

    10.png is after 9.png. Raises Refusal for a picture of another size, before anything is computed.
    """
    # Find the images.
    began, source = time.monotonic(), Path(options.images).resolve()
    names = sorted(image_files(source), key=_in_order) if source.is_dir() else []
    n = options.num_samples if "num_samples" in options.given else len(names)
    if not names or n > len(names):
        raise Refusal(f"--images {options.images} holds {len(names)} images; {max(n, 1)} are needed")
    pictures = exact_pictures(source, names[:n], config.data.shape, config.data.background)

    # The numbers go where those of one's own images are.
    by_name = options.image_dir.with_name(source.name)
    folder = options.image_dir if "image_folder" in options.given else by_name
    identity = {"mode": "images", "files": pictures.identity()}
    evaluator = Evaluator(replace(options, num_samples=n), config, device)
    measured = measurements.find(folder, identity, evaluator.deciding(n), evaluator.metrics)
    if measured is None:
        given, of_config = options.batch_size, config.sampling.batch_size
        batch_size = given if isinstance(given, int) else of_config
        samples = evaluator.samples(n, batch_size, folder, config.data.shape, pictures)
        mine = range(-(-n // batch_size))[distributed.rank() :: distributed.world_size()]
        with progress_bar(len(mine), unit="batch", desc="images") as bar:
            for k in mine:
                samples.read([k])
                bar.update()
        measured = evaluator.measure(samples, identity, began)
    if distributed.is_main():
        print(measurements.table(measured, None))
        print(f"kept in {measurements.path_of(folder)}")


def _in_order(name: str) -> list[int | str]:
    """To sort by the numbers in names."""
    return [int(part) if k % 2 else part for k, part in enumerate(re.split("([0-9]+)", name))]
