"""The training loop."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from configs import Config
from configs.options import Options
from configs.refusal import Refusal
from configs.run_record import RunRecord
from datasets import Images, dataset_root, get_dataset, test_split_would_be
from datasets.batches import Batch, load, training_order
from datasets.scaling import as_trained_on
from functions.disk import files
from functions.noise import BatchDraws, Stream, derived_seed, step_generator
from functions.objectives import loss_by_quarter, noise_estimation_loss
from functions.runtime import distributed
from functions.runtime.compilation import CompiledForBatches, seconds_of_batches, should_compile
from functions.runtime.memory import on_device
from functions.runtime.precision import autocast, precision_in_words
from functions.runtime.stopping import Stopped, Stopping, heeded
from functions.samplers import Model, last
from runners import doubts
from runners.diffusion import Diffusion, Sampling
from runners.evaluation.loss import validation_loss
from runners.load import load_weights
from runners.training import run_folder
from runners.training.report import Report
from runners.training.state import TrainingState

GRID_IMAGES, GRID_STEPS = 8, 10


class Draws(NamedTuple):
    """This rank's part of a batch: x0 and eps (b, c, h, w) in the model's range, t int64 (b,)."""

    x0: Tensor
    t: Tensor
    eps: Tensor


def train(diffusion: Diffusion, options: Options) -> None:
    """Train the network as the run `doc`: from its last checkpoint, from given weights or from the start."""
    config = diffusion.config
    checkpoint, source = run_folder.checkpoint_to_resume(options)
    if checkpoint is not None:
        run_folder.check_same_model(options, config)
    if checkpoint is None and not run_folder.may_begin(options):
        return

    # Start from random or given weights, or where the run stopped.
    seed = options.seed
    if checkpoint is not None and checkpoint.seed is not None and "seed" not in options.given:
        seed = checkpoint.seed
    torch.manual_seed(derived_seed(seed, Stream.WEIGHTS))
    begins = "from the start"
    if checkpoint is None and options.starts_from_weights:
        given = load_weights(diffusion, options)  # before the average begins
        begins = f"from the {given.kind} weights of {given.name} (average, optimizer and steps begin anew)"
    state = TrainingState(diffusion, seed)
    if checkpoint is not None:
        state.restore(checkpoint, str(source))
        begins = f"continuing after step {state.step}"

    # Read the data: after the weights, for it may take a download.
    doubts.say(config, diffusion.alphas_cumprod)
    root = dataset_root(config.data, options.exp, options.data)
    with distributed.main_first():
        dataset = get_dataset(config.data, root, train=True)
        test_set = get_dataset(config.data, root, train=False)
    last_step = final_step(state, len(dataset))
    if state.step >= last_step:
        logging.info(f"the run {options.log_dir} is finished at step {state.step}: there is nothing to do")
        return

    doubts.say_of_training(config, last_step, _images_here(config), diffusion.device, options.precision)

    # Lock the run's folder, and train.
    with ExitStack() as stack:
        with distributed.main_first():
            if distributed.is_main():
                stack.enter_context(files.locked(options.log_dir))
                if checkpoint is None:
                    run_folder.begin(options, config)
        stopping = stack.enter_context(heeded(config.training.snapshot_minutes))
        report = stack.enter_context(Report(options, config, state.step, last_step, state.seed))
        if checkpoint is not None and distributed.is_main():
            run_folder.record_changes(options, config, state.step)
        _describe(options, state, begins, len(dataset), test_set, last_step)
        _loop(options, state, dataset, test_set, last_step, report, stopping)
        logging.info(f"trained to step {state.step}: {options.log_dir / 'ckpt.pth'}")
        for what, line in run_folder.what_next(options, diffusion.T, state.step).items():
            logging.info(f"{what}: {line}")


def _loop(
    options: Options,
    state: TrainingState,
    dataset: Images,
    test_set: Images | None,
    last_step: int,
    report: Report,
    stopping: Stopping,
) -> None:
    """From the state's position in the data to `last_step`. Raises Stopped where a signal came before."""
    diffusion, device = state.diffusion, state.diffusion.device
    config, training = diffusion.config, diffusion.config.training
    parallel = distributed.parallel(diffusion.model.train())
    network = _compiled_if_it_pays(options, diffusion, parallel, last_step)
    if distributed.is_main():
        run_folder.record(options, _record(options, state, compiled=network is not parallel))
    alphas_cumprod, objective = diffusion.alphas_cumprod.to(device), diffusion.objective
    losses_of = partial(noise_estimation_loss, network, alphas_cumprod=alphas_cumprod, objective=objective)
    max_norm = math.inf if config.optim.grad_clip is None else config.optim.grad_clip

    for batch, images in _batches(options, state, dataset, report):
        state.step, state.epoch, state.images_seen = state.step + 1, batch.epoch, batch.images_seen

        # Draw what is random.
        draws = _draw(state, images, batch.size)
        torch.manual_seed(derived_seed(state.seed, Stream.DROPOUT, state.step, distributed.rank()))

        # Differentiate.
        state.optimizer.zero_grad()
        losses = _backward(losses_of, parallel, draws, options.precision, training.accumulate, batch.size)

        # Take the step.
        grad_norm = clip_grad_norm_(diffusion.model.parameters(), max_norm)
        lr = state.set_learning_rate(last_step)
        state.optimizer.step()

        # Update the average.
        if state.ema:
            state.ema.update(diffusion.model, state.step - 1)

        # Report.
        by_quarter = distributed.weight_of_share(batch.size) * loss_by_quarter(losses, draws.t, diffusion.T)
        report.step(state.step, distributed.all_reduce_sum(by_quarter), grad_norm, lr)

        # Validate.
        if test_set is not None and state.step % training.validation_freq == 0:
            report.read()
            with _evaluating(diffusion):
                report.validation(state.step, validation_loss(diffusion, test_set, state.seed))

        # Save.
        name, due = stopping.agreed(device)
        planned = run_folder.is_snapshot(state.step, last_step, training.snapshot_freq)
        if planned or due or name:
            _save(options, state, report, with_samples=planned)
        if state.step == last_step:
            break
        if name:
            raise Stopped(run_folder.stopped_at(state.step, name, options), name)


def _batches(
    options: Options, state: TrainingState, dataset: Images, report: Report
) -> Iterator[tuple[Batch, Tensor]]:
    """From the state's position on. Where an image cannot be read, or a worker died, the state is saved."""
    config, training = state.diffusion.config, state.diffusion.config.training
    n, position = len(dataset), (state.seed, state.epoch, state.images_seen)
    order = training_order(n, training.batch_size, *position, training.n_epochs)
    if isinstance(dataset, Tensor):
        dataset = on_device(dataset, state.diffusion.device)
    loaded = load(dataset, order, distributed.share_of, config.data.num_workers, config.data.on_error)
    begun = state.step
    try:
        yield from report.awaiting(loaded)
    except (Refusal, OSError) as error:
        if distributed.is_main() and state.step > begun:  # the other ranks may wait: no barrier
            report.read()
            run_folder.save(options, state.checkpoint(), training)
            raise type(error)(f"{error}; step {state.step} is saved, and --resume_training goes on") from None
        raise


def _save(options: Options, state: TrainingState, report: Report, *, with_samples: bool) -> None:
    """Save a snapshot. Reading the losses first stops a run that diverged, which keeps its last good one."""
    report.read()
    if distributed.is_main():
        run_folder.save(options, state.checkpoint(), state.diffusion.config.training)
        if with_samples:
            report.samples(state.step, _samples(state))
    distributed.barrier()


def _draw(state: TrainingState, images: Tensor, n: int) -> Draws:
    """From this rank's uint8 images, and random numbers that (seed, step) decides for all n of the batch."""
    diffusion, device = state.diffusion, state.diffusion.device
    generator = step_generator(device, state.seed, Stream.TRAIN, state.step)
    draws = BatchDraws(generator, n, distributed.share_of(n))
    images = images.to(device, non_blocking=device.type == "cuda")
    x0 = as_trained_on(images, diffusion.config.data, draws)
    antithetic = diffusion.config.training.antithetic
    return Draws(x0, draws.t(diffusion.T, antithetic), draws.normal(*x0.shape[1:]))


def _backward(
    losses_of: Callable[..., Tensor], model: nn.Module, draws: Draws, precision: str, parts: int, n: int
) -> Tensor:
    """Add the gradients of the mean loss over the global batch of n. Returns this rank's losses (b,).

    Gradients are averaged over the ranks, so a rank's sum counts world_size times.
    """
    scale = distributed.weight_of_share(n) * distributed.world_size() / n
    losses_of_parts = []
    chunks = list(zip(*(drawn.chunk(parts) for drawn in draws), strict=True))
    for k, chunk in enumerate(chunks):
        with distributed.without_averaging(model) if k < len(chunks) - 1 else nullcontext():
            with autocast(precision, draws.x0.device):
                losses = losses_of(*chunk)
            (losses.sum() * scale).backward()
        losses_of_parts.append(losses.detach())
    return torch.cat(losses_of_parts)


def _compiled_if_it_pays(options: Options, diffusion: Diffusion, model: nn.Module, steps: int) -> Model:
    """The model as the loop calls it. A forward and backward pass tells how long the steps would take.

    A resumed run stays as it was.
    """
    training, device = diffusion.config.training, diffusion.device
    n = -(-_images_here(diffusion.config) // training.accumulate)

    def one_pass(images: int) -> None:
        x = torch.zeros(images, *diffusion.image_shape, device=device)
        t = torch.zeros(images, dtype=torch.long, device=device)
        with autocast(options.precision, device):
            output = diffusion.model(x, t)
        output.float().sum().backward()
        diffusion.model.zero_grad()

    seconds_of_run = partial(seconds_of_batches, one_pass, n, steps * training.accumulate, device)
    choice = run_folder.compile_choice(options, device.type)
    if distributed.min_over_ranks(should_compile(choice, device, seconds_of_run), device):
        sizes = map(len, torch.empty(_images_here(diffusion.config)).chunk(training.accumulate))
        return CompiledForBatches(model, sizes, graphs=training.accumulate == 1)
    return model


def _images_here(config: Config) -> int:
    """Images of a batch that this process takes."""
    rows = distributed.share_of(config.training.batch_size)
    return rows.stop - rows.start


def _record(options: Options, state: TrainingState, *, compiled: bool) -> RunRecord:
    data = state.diffusion.config.data
    root = str(dataset_root(data, options.exp, options.data).resolve())
    kind = state.diffusion.device.type
    return RunRecord(data.name, root, state.seed, options.precision, kind, compiled)


def final_step(state: TrainingState, length: int) -> int:
    """The number of the last step: n_epochs or n_iters, whichever ends first."""
    training = state.diffusion.config.training
    this_epoch = -(-max(0, length - state.images_seen) // training.batch_size)
    later = (training.n_epochs - state.epoch - 1) * -(-length // training.batch_size)
    return min(training.n_iters, state.step + max(0, this_epoch + later))


def _describe(
    options: Options, state: TrainingState, begins: str, length: int, test_set: Images | None, last_step: int
) -> None:
    diffusion, config = state.diffusion, state.diffusion.config
    if options.comment:
        logging.info(f"comment: {options.comment}")
    if options.starts_from_weights and state.step:
        logging.info("the run goes on from its own checkpoint: the weights that are named began it")
    parts = f" in {config.training.accumulate} parts" if config.training.accumulate > 1 else ""
    processes = f" in {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
    root = dataset_root(config.data, options.exp, options.data)
    logging.info(
        f"training on {length} images of {config.data.dataset} in {root}, "
        f"{begins} to step {last_step}, "
        f"batch {config.training.batch_size}{parts}, "
        f"{sum(p.numel() for p in diffusion.model.parameters()):,} parameters, seed {state.seed}, "
        f"{precision_in_words(options.precision, diffusion.device)} on {diffusion.device}{processes}"
    )
    if test_set is None:
        would_be = test_split_would_be(config.data, root)
        logging.info(f"these data have no test split, so there will be no validation_loss ({would_be})")
    if config.optim.grad_clip is None:
        logging.info("gradients are not clipped: the config has no optim.grad_clip")
    if config.sampling.last_only:
        logging.debug("sampling.last_only is accepted and does nothing: no trajectory is ever kept")


def _samples(state: TrainingState) -> Tensor:
    """A few images from the same x_T at every snapshot: uint8 (n, c, h, w)."""
    diffusion, T = state.diffusion, state.diffusion.T
    timesteps = [t for t in range(0, T, -(-T // GRID_STEPS)) if diffusion.alphas_cumprod[t + 1] > 0]
    sampling = Sampling(tuple(timesteps), "generalized", 0.0, state.seed)
    with _evaluating(diffusion):
        x = last(diffusion.denoise(diffusion.latents(range(GRID_IMAGES), state.seed), sampling)).x
    return diffusion.to_images(x.nan_to_num())  # a poor picture is no reason to stop


@contextmanager
def _evaluating(diffusion: Diffusion) -> Iterator[None]:
    """Inside the block the model has the averaged weights, where there are any, and dropout is off."""
    diffusion.model.eval()
    try:
        with diffusion.ema.average_weights(diffusion.model) if diffusion.ema else nullcontext():
            yield
    finally:
        diffusion.model.train()
