"""The training loss on the test split, its randomness fixed by the seed."""

import torch

from configs import Config
from configs.options import Options
from datasets import Images, dataset_root, get_dataset, test_split_would_be
from datasets.batches import load, plain_order
from datasets.scaling import to_model_range
from functions import distributed
from functions.losses import noise_estimation_loss
from functions.noise import BatchDraws, Stream, step_generator
from functions.progress import progress_bar
from runners.diffusion import Diffusion
from runners.load import load_diffusion


def test(options: Options, config: Config, device: torch.device) -> None:
    """Print the loss of a trained network on the whole test split."""
    with distributed.main_first():
        root = dataset_root(config.data, options.exp, options.data)
        dataset = get_dataset(config.data, root, train=False)
    if dataset is None:
        raise ValueError(f"{config.data.dataset} has no test split here: {test_split_would_be(config.data, root)}")
    diffusion, path, which = load_diffusion(options, config, device)
    loss = validation_loss(diffusion, dataset, options.seed)
    if distributed.is_main():
        print(f"validation_loss: {loss:.6f} on {len(dataset)} test images, {which} weights of {path}")


@torch.no_grad()
def validation_loss(diffusion: Diffusion, dataset: Images, seed: int) -> float:
    """The mean over `dataset` of the loss per image, with t, noise and dequantization drawn from `seed`."""
    config, device = diffusion.config, diffusion.device
    alphas_cumprod = diffusion.alphas_cumprod.to(device)
    total = torch.zeros((), device=device)
    batches = load(dataset, plain_order(len(dataset), config.training.batch_size), distributed.share_of, config.data.num_workers)
    with progress_bar(len(dataset), unit="image", desc="test images") as bar:
        for k, (batch, images) in enumerate(batches):
            draws = BatchDraws(step_generator(device, seed, Stream.VALIDATION, k), batch.size, distributed.share_of(batch.size))
            x0 = to_model_range(images.to(device), config.data, draws)
            t, eps = draws.timesteps(len(alphas_cumprod) - 1), draws.normal(*x0.shape[1:])
            losses = noise_estimation_loss(diffusion.model, x0, t, eps, alphas_cumprod)
            total += losses.sum() * distributed.weight_of_share(batch.size)
            bar.update(batch.size)
    return distributed.all_reduce_sum(total).item() / len(dataset)
