"""--plan: what a command would run, its evaluations, images, disk and time. Makes and downloads nothing."""

import io
import math
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from functools import partial

import torch

from configs.options import Options
from datasets import published_size
from functions.disk import files
from functions.objectives import noise_estimation_loss
from functions.runtime import distributed
from functions.runtime.compilation import seconds_of
from runners.diffusion import Diffusion
from runners.evaluation import reference
from runners.load import Loaded, load_weights, local_checkpoint, with_own_clipping
from runners.sampling.cells import cells
from runners.sampling.folder import Folder
from runners.sampling.tasks import TASKS
from runners.speed import Speed
from runners.training import run_folder
from runners.training.loop import final_step
from runners.training.state import TrainingState

OPTIMIZER_TENSORS = {
    "Adam": 2,
    "AdamW": 2,
    "RMSProp": 1,
    "SGD": 1,
}  # as many as the parameters; amsgrad has one more
MOST_SECONDS = 5.0  # that a batch may take to be timed
DAY = 86_400  # seconds
PNG_OVERHEAD, DISK_BLOCK = 200, 4096  # bytes


def plan(diffusion: Diffusion, options: Options) -> None:
    """Print what the command without --plan would do; on rank 0 only."""
    with nullcontext() if distributed.is_main() else redirect_stdout(io.StringIO()):
        print("a plan: nothing is made")
        if options.mode != "train":
            diffusion.accelerate(options.precision)
        if options.mode in TASKS:
            _plan_sampling(diffusion, options)
        else:
            # Count the images of the split, without fetching any.
            size = published_size(diffusion.config.data, train=options.reference == "train")
            n = size or len(reference.split(options, diffusion.config))
            (_plan_test if options.mode == "test" else _plan_training)(diffusion, options, n)


def _plan_sampling(diffusion: Diffusion, options: Options) -> None:
    """Two lines for each folder, and their sum."""
    made, evaluations = 0, 0
    folders = [Folder(TASKS[options.mode](with_own_clipping(cell), diffusion)) for cell in cells(options)]
    n = len(folders[0].files)
    batch_size = n if folders[0].task.one_batch else Speed(options, diffusion, n).batch_size()
    for k, folder in enumerate(folders):
        # Refuse another run's folder, as the command would.
        if not k or folder.options.ckpts != folders[k - 1].options.ckpts:
            loaded = _weights_there(diffusion, folder.options)
        if loaded:
            folder.check(loaded)

        # Say which steps it takes and what is missing.
        S, steps, missing = folder.options.S, folder.sampling.timesteps, folder.missing()
        asked = diffusion.sampling(**folder.options.sampling, keep_repeats=True).timesteps
        repeats = len(asked) - len(steps)
        dropped = f", {repeats} repeats dropped" if repeats else ""
        numbers = [f"{t:.6g}" for t in steps]
        shown = numbers if len(steps) <= 16 else [*numbers[:8], "…", *numbers[-8:]]
        chains = folder.chains_with(missing)
        run = batch_size * len({i // batch_size for i in chains})
        work = run * folder.evaluations_of_chain
        work += folder.task.evaluations_first * bool(missing)
        present = len(folder.names) - len(missing)
        if options.is_grid:
            print(f"{folder.options.image_folder}:")
        print(f"  τ: {S} steps asked, {len(steps)} evaluated{dropped}: {', '.join(shown)}")
        print(f"  {folder.cost_in_words}")
        print(
            f"  {len(missing)} {folder.task.makes} to make, {present} already there; "
            f"{work:,} evaluations of the network"
            f"{f', in whole batches of {batch_size}' * (run > len(chains))}"
        )
        made, evaluations = made + len(missing), evaluations + work

    # A PNG of noise is as large as its pixels, and a file takes whole blocks.
    blocks = math.ceil((math.prod(diffusion.image_shape) + PNG_OVERHEAD) / DISK_BLOCK)
    size = _size(made * blocks * DISK_BLOCK if options.keep_images else 0)
    of_all = f"{made:,} images, {evaluations:,} evaluations, at most about {size} of PNGs"
    print(f"in all: {len(folders)} folder{'s' * (len(folders) > 1)}, {of_all}")
    if options.metrics:
        print(f"metrics: {', '.join(options.metrics)} against {options.reference}, not counted in the time")
    _print_time(diffusion, evaluations, batch_size, diffusion.evaluate)


def _weights_there(diffusion: Diffusion, options: Options) -> Loaded | None:
    """Load the weights if that takes no download. Returns None where they are missing."""
    path = local_checkpoint(options, diffusion.config)
    if path.exists():
        return load_weights(diffusion, options)
    print(f"weights: {path}, which are not there yet")
    return None


def _plan_training(diffusion: Diffusion, options: Options, n: int) -> None:
    # Where does it begin, and when does it end?
    training, optim = diffusion.config.training, diffusion.config.optim
    checkpoint, source = run_folder.checkpoint_to_resume(options)
    if checkpoint is None and options.starts_from_weights:
        _weights_there(diffusion, options)
    state = TrainingState(diffusion, options.seed)
    if checkpoint is not None:
        state.restore(checkpoint, str(source))
    elif files.has_content(options.log_dir):
        print(f"the run that is in {options.log_dir} would be moved aside")
    start, end = state.step, max(state.step, final_step(state, n))
    epochs = (end - start) / math.ceil(n / training.batch_size)
    print(f"steps: {start} to {end}, batches of {training.batch_size} of {n:,} images")
    print(f"epochs: {epochs:.1f}, ended by n_epochs {training.n_epochs} or n_iters {training.n_iters}")

    # What does it leave?
    steps = range(start + 1, end + 1)
    snapshots = [step for step in steps if run_folder.is_snapshot(step, end, training.snapshot_freq)]
    stay = len(run_folder.kept(snapshots, training))
    copies = 1 + (state.ema is not None) + OPTIMIZER_TENSORS[optim.optimizer]
    copies += optim.amsgrad and optim.is_adam
    size = copies * sum(p.numel() * p.element_size() for p in diffusion.model.parameters())
    of_them = f", of which {stay} stay" if stay < len(snapshots) else ""
    print(f"snapshots: {len(snapshots)} of {_size(size)}{of_them}, in all {_size(stay * size)}")

    def step(n: int) -> None:
        x0 = torch.randn(n, *diffusion.image_shape, device=diffusion.device)
        t = torch.zeros(n, dtype=torch.long, device=diffusion.device)
        alphas_cumprod = diffusion.alphas_cumprod.to(diffusion.device)
        state.optimizer.zero_grad()
        noise_estimation_loss(diffusion.model, x0, t, x0, alphas_cumprod).mean().backward()
        state.optimizer.step()

    share = training.batch_size // distributed.world_size() or 1
    _print_time(diffusion, (end - start) * share * distributed.world_size(), share, step)


def _plan_test(diffusion: Diffusion, options: Options, n: int) -> None:
    chosen = min(n, options.num_samples)
    of_loss = chosen if "num_samples" in options.given else n
    evaluations = of_loss + chosen * diffusion.T
    of = f"the loss on {of_loss:,} of {n:,} {options.reference} images, bits/dim on {chosen:,}"
    print(f"{evaluations:,} evaluations of the network: {of}")
    _print_time(diffusion, evaluations, Speed(options, diffusion, chosen).batch_size(), diffusion.evaluate)


def _print_time(diffusion: Diffusion, n: int, batch_size: int, work: Callable[[int], object]) -> None:
    """The time of n images through `work(n)` on all ranks, from a short measurement on random weights."""
    try:
        few = int(MOST_SECONDS / seconds_of(partial(work, 1), diffusion.device))
        batch_size = min(batch_size, max(1, few))
        seconds = seconds_of(partial(work, batch_size), diffusion.device) / batch_size
    except torch.OutOfMemoryError:
        print("time: unknown, a batch does not fit into memory")
    else:
        measured = f"by one batch of {batch_size} timed just now ({_duration(seconds)} an image)"
        print(f"time: about {_duration(n / distributed.world_size() * seconds)}, {measured}")


def _size(n: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def _duration(seconds: float) -> str:
    """As a person would write it: two or three digits, and a unit that needs no more."""
    units = [
        ("ms", 1e-3, 1),
        ("s", 1, 120),
        ("min", 60, 7200),
        ("h", 3600, 172_800),
        ("days", DAY, 730 * DAY),
    ]
    unit, length = next(
        ((unit, length) for unit, length, most in units if seconds < most), ("years", 365 * DAY)
    )
    value = seconds / length
    return f"{value:.2g} {unit}" if value < 10 else f"{value:,.0f} {unit}"
