"""`--test`: the training loss, and DDPM's bound on the likelihood of real images."""

import hashlib
import logging
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from configs.options import Options
from configs.refusal import Refusal
from datasets import Images
from datasets.batches import Batch, load
from functions import schedules
from functions.likelihood import Bound, Gaussians, bound_terms, gaussians, prior_bits
from functions.noise import Stream, step_noise
from functions.runtime import distributed
from functions.runtime.precision import precision_in_words
from functions.runtime.progress import bar_of_all_ranks
from runners.diffusion import Diffusion
from runners.evaluation import bound_report, reference
from runners.evaluation.loss import validation_loss
from runners.load import load_weights
from runners.speed import Speed


def test(diffusion: Diffusion, options: Options) -> None:
    """Evaluate a trained network on a split of its data: print a table, write the numbers and curves."""
    config, split = diffusion.config, options.reference
    chain = gaussians(schedules.betas(config.diffusion), config.model.var_type)
    T = len(chain.alphas_cumprod)
    dataset = reference.split(options, config)

    # The seed chooses the images, because a split may be sorted.
    if options.num_samples > len(dataset) and "num_samples" in options.given:
        raise Refusal(f"--num_samples is {options.num_samples}; the {split} split has {len(dataset)} images")
    order = np.random.default_rng([options.seed, 0, Stream.CHOICE]).permutation(len(dataset))
    chosen = np.sort(order[: options.num_samples])

    # Load the network.
    diffusion.accelerate(options.precision)
    loaded = load_weights(diffusion, options)
    if diffusion.T > T:
        logging.info(f"the bound begins at t = {T - 1}: above it ᾱ is 0, where x0 can't be predicted")
    work = f"{len(chosen)} images take {len(chosen) * T:,} evaluations of the network"
    logging.info(f"bits per dimension of {work}; --num_samples changes it")

    # Compute the loss, on the same images where they were asked for, then the bound.
    began = time.monotonic()
    of_loss = _subset(dataset, chosen) if "num_samples" in options.given else dataset
    loss = validation_loss(diffusion, of_loss, options.seed)
    if not np.isfinite(loss):
        raise FloatingPointError(f"the loss is not finite ({loss}); are the weights sound?")
    speed = Speed(options, diffusion, len(chosen))
    batch_size = speed.batch_size()
    speed.compile_if_it_pays(batch_size, -(-speed.share // batch_size) * T)
    bound = likelihood_bound(diffusion, chain, dataset, chosen, options.seed, batch_size)

    if distributed.is_main():
        weights, seconds = f"{loaded.kind} weights of {loaded.path}", round(time.monotonic() - began, 1)
        print(f"validation_loss: {loss:.6f} on {len(of_loss)} {split} images, {weights}")
        identity = {"weights": loaded.hash} | _identity(diffusion, options, chosen, dataset)
        record = {"config": options.config, "weights": weights, "batch_size": batch_size}
        record |= {"device": str(diffusion.device), "seconds": seconds}
        of = {"loss": loss, "images": len(of_loss)}
        bound_report.write(options, identity, record, bound, of, len(dataset))


def _subset(dataset: Images, chosen: np.ndarray) -> Images:
    if isinstance(dataset, Tensor):
        return dataset[torch.from_numpy(chosen)]
    return Subset(dataset, chosen.tolist())  # type: ignore[arg-type]


def likelihood_bound(
    diffusion: Diffusion, chain: Gaussians, dataset: Images, chosen: np.ndarray, seed: int, batch_size: int
) -> Bound:
    """The bound on the images `chosen` of `dataset`, not dequantized. Ranks share them; each gets the result.

    Image i has the same noise in any batch and on any rank. Raises FloatingPointError for NaN or infinity.
    """
    data, device, T = diffusion.config.data, diffusion.device, len(chain.alphas_cumprod)
    exact = torch.device("cpu") if device.type == "mps" else device  # Metal has no float64
    low = -1.0 if data.rescaled else 0.0

    # This rank's images, in batches, and where their terms go. (A rank without images has no batch.)
    mine = slice(distributed.rank(), None, distributed.world_size())
    indices = chosen[mine]
    batches = [Batch(0, 0, indices[k : k + batch_size]) for k in range(0, len(indices), batch_size)]
    image_terms = torch.zeros(len(chosen), 3, dtype=torch.float64, device=exact)
    curves = torch.zeros(3, T, dtype=torch.float64, device=exact)  # sums of bits, eps_mse, x0_mse

    loaded = load(dataset, batches, slice, data.num_workers)
    with bar_of_all_ranks(len(chosen) * T, len(indices) * T, unit="evaluation", desc="bits/dim") as did:
        for (batch, images), terms in zip(loaded, image_terms[mine].split(batch_size), strict=False):
            levels, of = images.to(exact), batch.indices.tolist()
            noise = step_noise(seed, of, diffusion.image_shape, T, exact, Stream.LIKELIHOOD)
            terms[:, 0] = prior_bits(levels, chain, low)
            for t, term in enumerate(bound_terms(diffusion.eps, levels, chain, low, device, noise)):
                terms[:, 1 if t else 2] += term.bits
                curves[:, t] += torch.stack(term).sum(dim=1)
                did(batch.size)
            if not (terms.isfinite().all() and curves.isfinite().all()):
                raise FloatingPointError("the bound on the likelihood is not finite; are the weights sound?")
    bits, eps_mse, x0_mse = (distributed.all_reduce_sum(curves) / len(chosen)).cpu().numpy()
    by_image = distributed.all_reduce_sum(image_terms).cpu().numpy()
    rate = by_image[:, 0].mean() + np.append(bits[1:], 0)[::-1].cumsum()[::-1]
    return Bound(by_image, bits, eps_mse, rate, np.sqrt(x0_mse))


def _identity(diffusion: Diffusion, options: Options, chosen: np.ndarray, images: Images) -> dict[str, Any]:
    """What decides the numbers besides the weights, as plain JSON values."""
    config, pixels = diffusion.config, hashlib.sha256()
    for i in chosen.tolist():
        pixels.update(images[i].numpy().tobytes())
    of = {"dataset": config.data.dataset, "split": options.reference, "images": pixels.hexdigest()}
    return {
        "data": {**of, "rescaled": config.data.rescaled},
        **diffusion.decides,
        "var_type": config.model.var_type,
        "num_samples": len(chosen),
        "seed": options.seed,
        "precision": precision_in_words(options.precision, diffusion.device),
    }
