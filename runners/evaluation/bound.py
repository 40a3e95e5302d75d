"""`--test`: the training loss and DDPM's bound on the likelihood of real images, their randomness fixed by the seed."""

import logging
import time

import numpy as np
import torch

from configs import Config
from configs.options import Options
from configs.refusal import Refusal
from datasets import Images, dataset_root, get_dataset, test_split_would_be
from datasets.batches import Batch, load, plain_order
from datasets.scaling import to_model_range
from functions.likelihood import Bound, Chain, bound_terms, chain, prior_bits
from functions.noise import BatchDraws, Stream, step_generator, step_noise
from functions.objectives import noise_estimation_loss
from functions.runtime import distributed
from functions.runtime.progress import progress_bar
from functions.schedules import betas
from runners.diffusion import Diffusion
from runners.evaluation import bound_report as likelihood_report
from runners.load import load_diffusion
from runners.sampling.speed import Pace


def test(options: Options, config: Config, device: torch.device) -> None:
    """Evaluate a trained network on a split of its data: print a table, and write the numbers and their curves over t."""
    gaussians = chain(betas(config.diffusion), config.model.var_type)
    dataset = _split(options, config)
    chosen = _choose(options, len(dataset))
    diffusion, path, which = load_diffusion(options, config, device)
    _announce(diffusion, gaussians, len(chosen))
    begin = time.monotonic()
    loss = validation_loss(diffusion, dataset, options.seed)
    pace = Pace(options, diffusion, len(chosen))
    batch_size = pace.batch_size()
    pace.compile_where_it_repays(batch_size, -(-pace.share // batch_size) * gaussians.T)
    bound = likelihood_bound(diffusion, gaussians, dataset, chosen, options.seed, batch_size)
    if distributed.is_main():
        weights = f"{which} weights of {path}"
        print(f"validation_loss: {loss:.6f} on {len(dataset)} {options.reference} images, {weights}")
        seconds = time.monotonic() - begin
        evaluation = likelihood_report.Evaluation(
            options, diffusion, dataset, chosen, batch_size, loss, bound, weights, seconds
        )
        likelihood_report.write(evaluation)


def _split(options: Options, config: Config) -> Images:
    with distributed.main_first():
        root = dataset_root(config.data, options.exp, options.data)
        dataset = get_dataset(config.data, root, train=options.reference == "train")
    if dataset is None:
        raise Refusal(
            f"{config.data.dataset} has no test split here: {test_split_would_be(config.data, root)}; "
            "--reference train evaluates on what it was trained on"
        )
    return dataset


def _choose(options: Options, length: int) -> np.ndarray:
    """The images to evaluate, ascending: by the seed, for a split may be sorted by class. More images keep the fewer."""
    n = options.num_samples
    if n > length:
        if options.num_samples_given:
            raise Refusal(f"--num_samples is {n}; the {options.reference} split has {length} images")
        n = length
    return np.sort(np.random.default_rng([options.seed, 0, Stream.CHOICE]).permutation(length)[:n])


def _announce(diffusion: Diffusion, chain: Chain, n: int) -> None:
    left_out = len(diffusion.alphas_cumprod) - 1 - chain.T
    if left_out:
        logging.info(f"the bound begins at t = {chain.T - 1}: above it ᾱ is 0, where x0 can't be predicted")
    logging.info(
        f"bits per dimension of {n} images take {n * chain.T:,} evaluations of the network; --num_samples changes it"
    )


@torch.no_grad()
def validation_loss(diffusion: Diffusion, dataset: Images, seed: int) -> float:
    """The mean over `dataset` of the loss per image, with t, noise and dequantization drawn from `seed`."""
    config, device = diffusion.config, diffusion.device
    alphas_cumprod = diffusion.alphas_cumprod.to(device)
    total = torch.zeros((), device=device)
    batches = load(
        dataset,
        plain_order(len(dataset), config.training.batch_size),
        distributed.share_of,
        config.data.num_workers,
    )
    with progress_bar(len(dataset), unit="image", desc="validation") as bar:
        for k, (batch, images) in enumerate(batches):
            draws = BatchDraws(
                step_generator(device, seed, Stream.VALIDATION, k),
                batch.size,
                distributed.share_of(batch.size),
            )
            x0 = to_model_range(images.to(device), config.data, draws)
            t, eps = draws.timesteps(len(alphas_cumprod) - 1), draws.normal(*x0.shape[1:])
            losses = noise_estimation_loss(diffusion.network, x0, t, eps, alphas_cumprod)
            total += losses.sum() * distributed.weight_of_share(batch.size)
            bar.update(batch.size)
    return distributed.all_reduce_sum(total).item() / len(dataset)


def likelihood_bound(
    diffusion: Diffusion, chain: Chain, dataset: Images, chosen: np.ndarray, seed: int, batch_size: int
) -> Bound:
    """The bound on the images `chosen` of `dataset`, not dequantized; the ranks share them, and each rank gets the result.

    Image i has the same noise in any batch and on any rank. Raises FloatingPointError for a network that is not finite.
    """
    data, device = diffusion.config.data, diffusion.device
    exact = torch.device("cpu") if device.type == "mps" else device  # Metal has no float64
    low = -1.0 if data.rescaled else 0.0
    mine = chosen[distributed.rank() :: distributed.world_size()]
    batches = [
        Batch(0, start + batch_size, mine[start : start + batch_size])
        for start in range(0, len(mine), batch_size)
    ]
    image_terms = torch.zeros(len(chosen), 3, dtype=torch.float64, device=exact)
    curves = torch.zeros(3, chain.T, dtype=torch.float64, device=exact)  # sums of bits, eps_mse, x0_mse
    rows = image_terms[distributed.rank() :: distributed.world_size()].split(batch_size)
    # (A rank without an image has one chunk of no rows, and no batch.)
    with progress_bar(len(mine) * chain.T, unit="evaluation", desc="bits/dim") as bar:
        for (batch, images), own in zip(
            load(dataset, batches, lambda n: slice(n), data.num_workers), rows, strict=False
        ):
            levels = images.to(exact)
            randn_like = step_noise(
                seed, batch.indices.tolist(), diffusion.image_shape, chain.T, exact, Stream.LIKELIHOOD
            )
            own[:, 0] = prior_bits(levels, chain, low)
            for term in bound_terms(diffusion.network, levels, chain, low, device, randn_like):
                own[:, 1 if term.t else 2] += term.bits
                curves[:, term.t] += torch.stack([term.bits, term.eps_mse, term.x0_mse]).sum(dim=1)
                bar.update(batch.size)
            if not (own.isfinite().all() and curves.isfinite().all()):
                raise FloatingPointError("the bound on the likelihood is not finite; are the weights sound?")
    bits, eps_mse, x0_mse = (distributed.all_reduce_sum(curves) / len(chosen)).cpu().numpy()
    return Bound(distributed.all_reduce_sum(image_terms).cpu().numpy(), bits, eps_mse, x0_mse)
