"""What a command would run: steps, evaluations, images, disk and time. Makes and downloads nothing."""

import io
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout

import torch

from configs import Config
from configs.options import Options
from datasets import dataset_root, get_dataset
from functions.disk import files, images, manifest
from functions.noise import initial_noise
from functions.objectives import noise_estimation_loss
from functions.runtime import distributed
from functions.samplers import last
from runners.diffusion import Diffusion, Sampling
from runners.load import load_weights, local_checkpoint, new_diffusion
from runners.sampling import grid
from runners.sampling.folder import INTERPOLATION_POINTS, SEQUENCE_CHAINS, make_job, names_of
from runners.sampling.speed import Pace
from runners.training import run_folder
from runners.training.loop import final_step
from runners.training.state import TrainingState

# Training and test images of the data sets that would have to be fetched to be counted.
SIZES = {
    "CIFAR10": (50_000, 10_000), "FASHION_MNIST": (60_000, 10_000), "CELEBA": (162_770, 19_962), "FFHQ": (63_000, 7_000),
    "bedroom": (3_033_042, 300), "church_outdoor": (126_227, 300),
}  # fmt: skip
OPTIMIZER_TENSORS = {"Adam": 2, "RMSProp": 1, "SGD": 1}  # as many as the parameters; amsgrad has one more
LONG = 5.0  # seconds that a batch may take to be timed
SHOWN_STEPS = 16


def plan(options: Options, config: Config, device: torch.device) -> None:
    """Print what the command without --plan would do."""
    with nullcontext() if distributed.is_main() else redirect_stdout(io.StringIO()):
        _plan(options, config, device)


def _plan(options: Options, config: Config, device: torch.device) -> None:
    print("a plan: nothing is made")
    if options.mode == "train":
        _plan_training(options, Diffusion(config, device))
        return
    diffusion = new_diffusion(options, config, device)
    if options.mode == "test":
        _plan_test(options, diffusion)
    else:
        _plan_sampling(options, diffusion)


def _plan_sampling(options: Options, diffusion: Diffusion) -> None:
    """One line a cell, and their sum."""
    cells = grid.cells(options)
    fixed = {"interpolation": INTERPOLATION_POINTS, "sequence": SEQUENCE_CHAINS}
    B = (
        fixed[options.mode]
        if options.mode in fixed
        else Pace(options, diffusion, options.num_samples).batch_size()
    )
    work = []
    for cell in cells:
        _check_folder(cell, diffusion)
        every = diffusion.timesteps(cell.skip_type, cell.timesteps, keep_repeats=True)
        steps = every if cell.mode == "sequence" else diffusion.timesteps(cell.skip_type, cell.timesteps)
        names = names_of(cell, len(steps))
        todo = images.missing(cell.image_dir, names) if cell.keep_images else list(range(len(names)))
        rows = len({k // B for k in todo}) * B if cell.mode == "fid" else B * bool(todo)
        evaluations = rows * len(steps)
        work.append(
            (len(todo), evaluations, _bytes_of_images(diffusion, len(todo)) if cell.keep_images else 0)
        )
        if options.is_grid:
            print(f"{cell.image_folder}:")
        repeated = len(every) - len(steps)
        print(
            f"  τ: {cell.timesteps} steps asked, {len(steps)} evaluated"
            + (f", {repeated} repeats dropped" if repeated else "")
            + f": {_steps_in_words(steps)}\n  {len(todo)} images to make, {len(names) - len(todo)} already there; "
            f"{evaluations:,} evaluations of the network"
        )
    made, evaluations, size = (sum(column) for column in zip(*work, strict=True))
    print(
        f"in all: {len(cells)} folders, {made:,} images, {evaluations:,} evaluations, at most about {_size(size)} of PNGs"
    )
    if options.metrics:
        print(f"metrics: {', '.join(options.metrics)} against {options.reference}, not counted in the time")
    _print_time(evaluations / distributed.world_size(), B, lambda n: _evaluate(diffusion, n))


def _check_folder(options: Options, diffusion: Diffusion) -> None:
    """Raise Refusal, as the command itself would, where the folder is another run's; weights that are not there are named."""
    path = local_checkpoint(options, diffusion.config)
    if not path.exists():
        print(f"weights: {path}, which are not there yet")
        return
    job = make_job(
        options, diffusion, load_weights(diffusion, options), keep_repeats=options.mode == "sequence"
    )
    manifest.check(job.folder, job.decides, len(names_of(options, len(job.sampling.timesteps))))


def _plan_training(options: Options, diffusion: Diffusion) -> None:
    config, training = diffusion.config, diffusion.config.training
    checkpoint = run_folder.checkpoint_to_resume(options)
    state = TrainingState(diffusion.model, config, options.seed)
    if checkpoint is not None:
        state.restore(checkpoint, str(options.log_dir / "ckpt.pth"))
    elif files.has_content(options.log_dir):
        print(f"the run that is in {options.log_dir} would be moved aside")
    n = _count(options, config, train=True)
    if n is None:
        print(
            f"training from step {state.step}; how long is not known, for the data are not there to be counted"
        )
        return
    start, end = state.step, max(state.step, final_step(state, n))
    print(f"steps: {start} to {end}, batches of {training.batch_size} of {n:,} images")
    epochs = (end - start) / -(-n // training.batch_size)
    print(f"epochs: {epochs:.1f}, ended by n_epochs {training.n_epochs} or n_iters {training.n_iters}")
    snapshots = sum(s == 1 or s % training.snapshot_freq == 0 or s == end for s in range(start + 1, end + 1))
    print(
        f"snapshots: {snapshots} of {_size(_checkpoint_size(state))}, in all {_size(snapshots * _checkpoint_size(state))}"
    )
    share = training.batch_size // distributed.world_size() or 1
    _print_time((end - start) * share, share, lambda b: _train_step(state, diffusion, b))


def _plan_test(options: Options, diffusion: Diffusion) -> None:
    n = _count(options, diffusion.config, train=options.reference == "train")
    if n is None:
        print(
            f"how many {options.reference} images there are is not known: the data are not there to be counted"
        )
        return
    T = diffusion.config.diffusion.num_diffusion_timesteps
    chosen = min(n, options.num_samples)
    evaluations = n + chosen * T
    print(
        f"{evaluations:,} evaluations of the network: the loss on all {n:,} {options.reference} images, bits/dim on {chosen:,}"
    )
    batch_size = Pace(options, diffusion, chosen).batch_size()
    _print_time(evaluations / distributed.world_size(), batch_size, lambda b: _evaluate(diffusion, b))


def _steps_in_words(steps: tuple[int, ...]) -> str:
    """τ, ascending; the middle of a long one left out."""
    words = [str(t) for t in steps]
    half = SHOWN_STEPS // 2
    return ", ".join(words if len(words) <= SHOWN_STEPS else [*words[:half], "…", *words[-half:]])


def _count(options: Options, config: Config, train: bool) -> int | None:
    """How many images a split has, without fetching any; None where that is not known."""
    data = config.data
    name = data.name
    if data.dataset in ("DIGITS", "FOLDER"):
        dataset = get_dataset(data, dataset_root(data, options.exp, options.data), train)
        return None if dataset is None else len(dataset)
    return SIZES[name][0 if train else 1] if name in SIZES else None


def _bytes_of_images(diffusion: Diffusion, n: int) -> int:
    """An upper estimate: a PNG of noise is as large as its pixels, and a file takes whole blocks of 4 kB."""
    channels, height, width = diffusion.image_shape
    return n * -(-(channels * height * width + 200) // 4096) * 4096


def _checkpoint_size(state: TrainingState) -> int:
    optim = state.config.optim
    copies = (
        1
        + (state.ema is not None)
        + OPTIMIZER_TENSORS[optim.optimizer]
        + (optim.amsgrad and optim.optimizer == "Adam")
    )
    return copies * sum(p.numel() * p.element_size() for p in state.model.parameters())


def _evaluate(diffusion: Diffusion, n: int) -> None:
    """One evaluation for each of n images, waited for."""
    x_T = initial_noise(0, range(n), diffusion.image_shape)
    step = last(diffusion.denoise(x_T, range(n), Sampling((0,), "generalized", 0.0, 0)))
    step.x.sum().item()


def _train_step(state: TrainingState, diffusion: Diffusion, n: int) -> None:
    """Forward, backward and the optimizer's step for a batch of n images, waited for."""
    x0 = initial_noise(0, range(n), diffusion.image_shape).to(diffusion.device)
    t = torch.zeros(n, dtype=torch.long, device=diffusion.device)
    losses = noise_estimation_loss(state.model, x0, t, x0, diffusion.alphas_cumprod.to(diffusion.device))
    state.optimizer.zero_grad()
    losses.mean().backward()
    state.optimizer.step()
    losses.sum().item()


def _print_time(amount: float, batch_size: int, work: Callable[[int], None]) -> None:
    """The time for `amount` images through `work(n)`, by a short measurement on random weights."""
    try:
        seconds, measured = _seconds_per_image(batch_size, work)
    except torch.OutOfMemoryError:
        print("time: unknown, for a batch does not fit into memory")
        return
    print(
        f"time: about {_duration(amount * seconds)}, by one batch of {measured} timed just now ({seconds * 1e3:.3g} ms an image)"
    )


def _seconds_per_image(batch_size: int, work: Callable[[int], None]) -> tuple[float, int]:
    """Seconds of an image, and the batch that was timed: the whole one, or as much of it as takes no longer than LONG."""
    work(1)  # the first call prepares the device
    n = min(batch_size, max(1, int(LONG / _timed(work, 1))))
    work(n)
    return min(_timed(work, n), _timed(work, n)) / n, n


def _timed(work: Callable[[int], None], n: int) -> float:
    began = time.perf_counter()
    work(n)
    return time.perf_counter() - began


def _size(n: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86400:.1f} days"
