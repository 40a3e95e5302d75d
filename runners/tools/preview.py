"""A look at the data: the first training images as the model will see them."""

import torch
from torch import Tensor

from configs import Config
from configs.options import Options
from configs.refusal import Refusal
from datasets import Images, dataset_root, get_dataset, test_split_would_be
from datasets.batches import load, training_order
from datasets.scaling import as_trained_on
from functions.disk.images import sheet
from functions.noise import BatchDraws, Stream, step_generator
from functions.runtime import distributed
from runners.diffusion import Diffusion

SHEET_IMAGES, SHEET_COLUMNS = 64, 8


def preview(diffusion: Diffusion, options: Options) -> None:
    """Write {image_folder}.preview.png, and print how many images there are, of which shape and range."""
    data, path = diffusion.config.data, options.image_dir.with_name(f"{options.image_dir.name}.preview.png")
    if path.with_suffix("").is_dir():
        raise Refusal(f"{path} is the contact sheet of the images in {path.with_suffix('')}; give another -i")
    root = dataset_root(data, options.exp, options.data)
    with distributed.main_first():
        dataset = get_dataset(data, root, train=True)
        test_set = get_dataset(data, root, train=False)
    if not distributed.is_main():
        return
    images, x0 = first_images(diffusion.config, dataset, options.seed, diffusion.device)
    sheet(path, [list(row) for row in diffusion.to_images(x0).split(SHEET_COLUMNS)])
    print(f"training on {len(dataset):,} images of {data.dataset}, each {tuple(x0.shape[1:])}")
    print(
        f"as they are read: {_range(images)}; as the model sees them: {_range(x0)}, over the {len(x0)} shown"
    )
    split = f"{len(test_set):,} test images" if test_set is not None else None
    print(split or f"no test split: {test_split_would_be(data, root)}")
    print(f"contact sheet {path}")


def first_images(config: Config, dataset: Images, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first images that training with `seed` takes: uint8 as read, and after flips and dequantization."""
    batches = training_order(
        len(dataset), config.training.batch_size, seed, epoch=0, images_seen=0, n_epochs=1
    )
    wanted = min(SHEET_IMAGES, len(dataset))
    read: list[Tensor] = []
    seen: list[Tensor] = []
    first_rows = load(dataset, batches, lambda n: slice(0, min(n, wanted)), num_workers=0)
    for k, (batch, images) in enumerate(first_rows):
        generator = step_generator(device, seed, Stream.TRAIN, k + 1)
        draws = BatchDraws(generator, batch.size, slice(0, len(images)))
        read.append(images)
        seen.append(as_trained_on(images.to(device), config.data, draws))
        if sum(map(len, read)) >= wanted:
            break
    return torch.cat(read)[:wanted], torch.cat(seen)[:wanted]


def _range(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} from {x.min().item():.4g} to {x.max().item():.4g}"
