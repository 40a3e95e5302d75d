"""Training, read from top to bottom."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from configs import Config
from configs.options import Options
from datasets import Images, dataset_root, get_dataset, test_split_would_be
from datasets.batches import load, training_order
from datasets.scaling import as_trained_on
from functions.disk import files
from functions.noise import BatchDraws, Stream, derived_seed, initial_noise, step_generator
from functions.objectives import loss_by_quarter, noise_estimation_loss
from functions.runtime import acceleration, distributed
from functions.samplers import Model, last
from runners.diffusion import Diffusion, Sampling
from runners.evaluation.bound import validation_loss
from runners.training import run_folder
from runners.training.report import Report
from runners.training.state import TrainingState

GRID_IMAGES, GRID_STEPS = 8, 10


def train(options: Options, config: Config, device: torch.device) -> None:
    """Train the config's network as the run `doc`, anew or from its last checkpoint."""
    checkpoint = run_folder.checkpoint_to_resume(options)
    if checkpoint is None and not run_folder.may_begin(options):
        return
    root = dataset_root(config.data, options.exp, options.data)
    with distributed.main_first():
        dataset = get_dataset(config.data, root, train=True)
        test_set = get_dataset(config.data, root, train=False)

    seed = options.seed
    if checkpoint is not None and checkpoint.seed is not None and not options.seed_given:
        seed = checkpoint.seed
    torch.manual_seed(derived_seed(seed, Stream.INIT))
    diffusion = Diffusion(config, device)
    state = TrainingState(diffusion.model, config, seed)
    if checkpoint is not None:
        state.restore(checkpoint, str(options.log_dir / "ckpt.pth"))

    last_step = final_step(state, len(dataset))
    if state.step >= last_step:
        logging.info(f"the run {options.log_dir} is finished at step {state.step}: there is nothing to do")
        return
    is_main = distributed.is_main()
    with ExitStack() as stack:
        with distributed.main_first():
            if is_main:
                stack.enter_context(files.locked(options.log_dir))
                if checkpoint is None:
                    run_folder.begin(options, config)
        with Report(options, config, state.step, last_step, state.seed) as report:
            _describe(options, diffusion, state, len(dataset), test_set, last_step)
            _loop(options, diffusion, state, dataset, test_set, last_step, report)


def _loop(
    options: Options,
    diffusion: Diffusion,
    state: TrainingState,
    dataset: Images,
    test_set: Images | None,
    last_step: int,
    report: Report,
) -> None:
    """From the state's position in the data to `last_step`."""
    config, device = diffusion.config, diffusion.device
    training = config.training
    model = distributed.parallel(state.model.train())
    forward = _compiled_where_it_repays(options, diffusion, model, last_step)
    losses_of = partial(noise_estimation_loss, forward, alphas_cumprod=diffusion.alphas_cumprod.to(device))
    max_norm = math.inf if config.optim.grad_clip is None else config.optim.grad_clip

    order = training_order(
        len(dataset), training.batch_size, state.seed, state.epoch, state.images_seen, training.n_epochs
    )
    dataset = acceleration.on_device(dataset, device) if isinstance(dataset, Tensor) else dataset
    for batch, images in report.awaiting(load(dataset, order, distributed.share_of, config.data.num_workers)):
        state.step, state.epoch, state.images_seen = state.step + 1, batch.epoch, batch.images_seen

        # Draw what is random.
        x0, t, eps = _draw(diffusion, state, images, batch.size)
        torch.manual_seed(derived_seed(state.seed, Stream.DROPOUT, state.step, distributed.rank()))

        # Differentiate.
        state.optimizer.zero_grad()
        losses = _backward(losses_of, model, (x0, t, eps), options.precision, training.accumulate, batch.size)

        # Take the step.
        grad_norm = clip_grad_norm_(state.model.parameters(), max_norm)
        state.optimizer.step()

        # Update the average.
        if state.ema:
            state.ema.update(state.model)

        # Report.
        counted = distributed.weight_of_share(batch.size) * loss_by_quarter(
            losses, t, config.diffusion.num_diffusion_timesteps
        )
        report.step(state.step, distributed.all_reduce_sum(counted), grad_norm)

        # Validate.
        if test_set is not None and state.step % training.validation_freq == 0:
            report.read()
            with _evaluating(state):
                report.validation(state.step, validation_loss(diffusion, test_set, state.seed))

        # Save, after a look at the losses so far: a run that diverged keeps its last good snapshot.
        if state.step == 1 or state.step % training.snapshot_freq == 0 or state.step == last_step:
            report.read()
            if distributed.is_main():
                run_folder.save(options, state.checkpoint())
                report.samples(state.step, _samples(diffusion, state))
            distributed.barrier()

        if state.step == last_step:
            break


def _backward(
    losses_of: Callable[..., Tensor],
    model: nn.Module,
    draws: tuple[Tensor, Tensor, Tensor],
    precision: str,
    parts: int,
    n: int,
) -> Tensor:
    """Add the gradients of the mean loss over the global batch of n, from this rank's draws; give their losses (b,).

    Gradients are averaged over the ranks, so a rank's sum counts world_size-fold.
    """
    scale = distributed.weight_of_share(n) * distributed.world_size() / n
    of_parts = []
    chunks = list(zip(*(drawn.chunk(parts) for drawn in draws), strict=True))
    for k, chunk in enumerate(chunks):
        with distributed.without_averaging(model) if k < len(chunks) - 1 else nullcontext():
            with acceleration.autocast(precision, draws[0].device):
                losses = losses_of(*chunk)
            (losses.sum() * scale).backward()
        of_parts.append(losses.detach())
    return torch.cat(of_parts)


def _compiled_where_it_repays(options: Options, diffusion: Diffusion, model: nn.Module, steps: int) -> Model:
    """The model as the loop calls it. What the steps would take uncompiled is reckoned from one forward and backward pass.

    All steps of the run count, not those that are left: a resumed run computes as it began.
    """
    training, device = diffusion.config.training, diffusion.device
    rows = distributed.share_of(training.batch_size)
    x = torch.zeros(
        -(-(rows.stop - rows.start) // training.accumulate), *diffusion.image_shape, device=device
    )
    t = torch.zeros(len(x), dtype=torch.long, device=device)

    def one_pass() -> None:
        with acceleration.autocast(options.precision, device):
            eps = diffusion.model(x, t)
        eps.float().sum().backward()
        diffusion.model.zero_grad()

    def seconds_left() -> float:
        return steps * training.accumulate * acceleration.seconds_of(one_pass, device)

    if distributed.least(acceleration.should_compile(options.compile, device, seconds_left), device):
        return acceleration.CompiledForBatches(model, len(x), graphs=training.accumulate == 1)
    return model


def _draw(
    diffusion: Diffusion, state: TrainingState, images: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x0 from this rank's uint8 images, and its t and eps, out of draws for the whole batch of n by (seed, step)."""
    data, device = diffusion.config.data, diffusion.device
    draws = BatchDraws(
        step_generator(device, state.seed, Stream.TRAIN, state.step), n, distributed.share_of(n)
    )
    x0 = as_trained_on(images.to(device, non_blocking=device.type == "cuda"), data, draws)
    return (
        x0,
        draws.timesteps(diffusion.config.diffusion.num_diffusion_timesteps),
        draws.normal(*x0.shape[1:]),
    )


def final_step(state: TrainingState, length: int) -> int:
    """The number of the last step: n_epochs or n_iters, whichever ends first."""
    training = state.config.training
    this_epoch = -(-max(0, length - state.images_seen) // training.batch_size)
    later = (training.n_epochs - state.epoch - 1) * -(-length // training.batch_size)
    return min(training.n_iters, state.step + max(0, this_epoch + later))


def _describe(
    options: Options,
    diffusion: Diffusion,
    state: TrainingState,
    length: int,
    test_set: Images | None,
    last_step: int,
) -> None:
    config = diffusion.config
    if options.comment:
        logging.info(f"comment: {options.comment}")
    parameters = sum(p.numel() for p in state.model.parameters())
    begin = f"continuing after step {state.step}" if state.step else "from the start"
    parts = f" in {config.training.accumulate} parts" if config.training.accumulate > 1 else ""
    processes = f" in {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
    logging.info(
        f"training on {length} images of {config.data.dataset}, {begin} to step {last_step}, "
        f"batch {config.training.batch_size}{parts}, {parameters:,} parameters, seed {state.seed}, "
        f"{acceleration.precision_in_words(options.precision, diffusion.device)} on {diffusion.device}{processes}"
    )
    if test_set is None:
        root = dataset_root(config.data, options.exp, options.data)
        would_be = test_split_would_be(config.data, root)
        logging.info(f"these data have no test split, so there will be no validation_loss ({would_be})")
    if config.optim.grad_clip is None:
        logging.info("gradients are not clipped: the config has no optim.grad_clip")
    if config.sampling.last_only:
        logging.debug("sampling.last_only is accepted and does nothing: no trajectory is ever kept")


def _samples(diffusion: Diffusion, state: TrainingState) -> Tensor:
    """A few images from the same x_T at every snapshot: uint8 (n, c, h, w)."""
    T = diffusion.config.diffusion.num_diffusion_timesteps
    timesteps = [t for t in range(0, T, -(-T // GRID_STEPS)) if diffusion.alphas_cumprod[t + 1] > 0]
    sampling = Sampling(tuple(timesteps), "generalized", 0.0, state.seed)
    x = initial_noise(state.seed, range(GRID_IMAGES), diffusion.image_shape)
    with _evaluating(state):
        x = last(diffusion.denoise(x, range(GRID_IMAGES), sampling)).x
    return diffusion.to_images(x.nan_to_num())  # a poor picture is no reason to stop


@contextmanager
def _evaluating(state: TrainingState) -> Iterator[None]:
    """Inside the block the model is the average, where there is one, and does not drop out."""
    state.model.eval()
    try:
        with state.ema.average_weights(state.model) if state.ema else nullcontext():
            yield
    finally:
        state.model.train()
