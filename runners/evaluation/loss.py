"""The training loss on images that were not trained on."""

import torch

from datasets import Images
from datasets.batches import load, plain_order
from datasets.scaling import to_model_range
from functions.noise import BatchDraws, Stream, step_generator
from functions.objectives import noise_estimation_loss
from functions.runtime import distributed
from functions.runtime.progress import progress_bar
from runners.diffusion import Diffusion


@torch.no_grad()
def validation_loss(diffusion: Diffusion, dataset: Images, seed: int) -> float:
    """The mean loss per image over `dataset`, with t, noise and dequantization drawn from `seed`."""
    config, device, network = diffusion.config, diffusion.device, diffusion.network
    how = (config.data.num_workers, config.data.on_error)
    alphas_cumprod, total = diffusion.alphas_cumprod.to(device), torch.zeros((), device=device)
    order = plain_order(len(dataset), config.training.batch_size)
    batches = load(dataset, order, distributed.share_of, *how)
    with progress_bar(len(dataset), unit="image", desc="validation") as bar:
        for k, (batch, images) in enumerate(batches):
            generator = step_generator(device, seed, Stream.VALIDATION, k)
            draws = BatchDraws(generator, batch.size, distributed.share_of(batch.size))
            x0 = to_model_range(images.to(device), config.data, draws)
            t, eps = draws.t(diffusion.T), draws.normal(*x0.shape[1:])
            losses = noise_estimation_loss(network, x0, t, eps, alphas_cumprod, diffusion.objective)
            total += losses.sum() * distributed.weight_of_share(batch.size)
            bar.update(batch.size)
    return distributed.all_reduce_sum(total).item() / len(dataset)
