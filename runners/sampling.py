"""The tasks that make images: one function a mode, each into a folder that its manifest keeps for it."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from configs import Config
from configs.options import Options
from functions import devices, distributed, files, images, manifest
from functions.denoising import Step, last
from functions.noise import initial_noise, slerp
from functions.progress import progress_bar
from functions.weights import weights_hash
from runners import grid, metrics, paper
from runners.diffusion import Diffusion, Sampling
from runners.load import Loaded, load_weights

SHEET_IMAGES, SHEET_COLUMNS = 64, 8
INTERPOLATION_POINTS = 11
SEQUENCE_CHAINS, SEQUENCE_SHEET_STEPS = 8, 10


@dataclass(frozen=True)
class Job:
    """A network, what decides its images, and the folder they go to."""

    diffusion: Diffusion
    sampling: Sampling
    folder: Path
    decides: dict[str, object]
    records: dict[str, object]


def fid(options: Options, config: Config, device: torch.device) -> None:
    """Write {i}.png for every i below num_samples that is not there yet, and measure them: a folder for each cell of a grid."""
    if config.data.dataset == "CIFAR10" and options.skip_type == "uniform":
        logging.info("the paper's Table 1 spaced CIFAR10's timesteps by --skip_type quad")
    cells = grid.cells(options)
    if options.is_grid:
        grid.check(options)
    diffusion = Diffusion(config, device)
    for cell in cells:
        diffusion.timesteps(cell.skip_type, cell.timesteps)  # a refusal comes before the work
    loaded = load_weights(diffusion, cells[0])
    evaluator = metrics.Evaluator(options, config, device) if options.metrics else None
    results = []
    for k, cell in enumerate(cells):
        if cell.ckpts != cells[max(0, k - 1)].ckpts:
            loaded = load_weights(diffusion, cell)
        if options.is_grid:
            logging.info(f"cell {k + 1} of {len(cells)}: {cell.image_folder}")
        job = make_job(cell, diffusion, loaded, cell.batch_size)
        measured = _make(cell, job, evaluator, reuse=options.is_grid or not options.keep_images)
        results.append(grid.Result(cell, str(loaded.path), loaded.step, len(job.sampling.timesteps), measured))
        if measured and not options.is_grid and distributed.is_main():
            metrics.print_table(measured, paper.published_fid(config, cell))
    if options.is_grid and distributed.is_main():
        grid.write_tables(options, config, results)


def _make(options: Options, job: Job, evaluator: metrics.Evaluator | None, reuse: bool) -> dict[str, Any] | None:
    """The images of one folder, measured as they are made; with `reuse`, a measurement that is there is taken as it is."""
    n, batch_size = options.num_samples, options.batch_size
    names = [f"{i}.png" for i in range(n)]
    began = time.monotonic()
    with _missing(job, names) if options.keep_images else _held(job.folder, n) as todo:
        measured = metrics.stored(job.folder, job.decides, evaluator, n) if evaluator and reuse else None
        if measured and not (todo and options.keep_images):
            logging.info(f"measured already: {metrics.path_of(job.folder)}")
            return measured
        _announce(options, job, len(todo), n - len(todo), f"in batches of {batch_size}")
        samples = evaluator.samples(n, batch_size, job.folder, job.diffusion.image_shape) if evaluator else None
        _sample(job, todo, batch_size, samples, options.keep_images)
        if evaluator and samples:
            measured = metrics.measure(evaluator, samples, job.decides, began)
    if options.keep_images:
        shown = names[:SHEET_IMAGES]
        _finish(job, [shown[i : i + SHEET_COLUMNS] for i in range(0, len(shown), SHEET_COLUMNS)], n)
    return measured


def _sample(job: Job, todo: list[int], batch_size: int, samples: metrics.Samples | None, keep_images: bool) -> None:
    """This rank's share of the images `todo`, whole batches at a time; `samples` gets those too that are there already."""
    unfinished = sorted({i // batch_size for i in todo})
    if samples:
        finished = sorted(set(range(-(-samples.n // batch_size))).difference(unfinished))
        samples.read(finished[distributed.rank() :: distributed.world_size()])
    mine = set(unfinished[distributed.rank() :: distributed.world_size()])
    todo = [i for i in todo if i // batch_size in mine]
    with progress_bar(len(todo), unit="image", desc="images") as bar:
        for indices, batch in job.diffusion.sample_batches(todo, job.sampling, batch_size):
            if samples:
                samples.add(indices, batch)
            if keep_images:
                for i, image in zip(indices, batch.cpu(), strict=True):
                    images.write_png(job.folder / f"{i}.png", image)
            bar.update(len(indices))


def interpolation(options: Options, config: Config, device: torch.device) -> None:
    """Write {k}.png for 11 points on the arc between x_T of images 0 and 1 (arXiv 2010.02502, section 5.3)."""
    diffusion = Diffusion(config, device)
    job = make_job(options, diffusion, load_weights(diffusion, options), INTERPOLATION_POINTS)
    names = [f"{k}.png" for k in range(INTERPOLATION_POINTS)]
    with _missing(job, names) as todo:
        _announce(options, job, len(todo), len(names) - len(todo), "as one batch")
        if todo and distributed.is_main():
            z1, z2 = initial_noise(job.sampling.seed, (0, 1), job.diffusion.image_shape)
            x_T = torch.stack([slerp(z1, z2, k / (INTERPOLATION_POINTS - 1)) for k in range(INTERPOLATION_POINTS)])
            for k, image in enumerate(job.diffusion.to_images(last(_with_bar(job, x_T)).x)):
                if k in todo:
                    images.write_png(job.folder / names[k], image)
    _finish(job, [names], len(names))


def sequence(options: Options, config: Config, device: torch.device) -> None:
    """Write {j}_{i}.png, the x0 that chain j of 8 predicts at step i, as the steps run (arXiv 2010.02502, figure 4)."""
    diffusion = Diffusion(config, device)
    job = make_job(options, diffusion, load_weights(diffusion, options), SEQUENCE_CHAINS, keep_repeats=True)
    steps = len(job.sampling.timesteps)
    names = [f"{j}_{i}.png" for i in range(steps) for j in range(SEQUENCE_CHAINS)]
    with _missing(job, names) as todo:
        _announce(options, job, len(todo), len(names) - len(todo), f"of {SEQUENCE_CHAINS} chains")
        wanted = {names[k] for k in todo}
        if todo and distributed.is_main():
            x_T = initial_noise(job.sampling.seed, range(SEQUENCE_CHAINS), job.diffusion.image_shape)
            for i, step in enumerate(_with_bar(job, x_T)):
                for j, image in enumerate(job.diffusion.to_images(step.x0)):
                    if f"{j}_{i}.png" in wanted:
                        images.write_png(job.folder / f"{j}_{i}.png", image)
    columns = torch.linspace(0, steps - 1, min(steps, SEQUENCE_SHEET_STEPS)).round().int().tolist()
    _finish(job, [[f"{j}_{i}.png" for i in columns] for j in range(SEQUENCE_CHAINS)], len(names))


def make_job(options: Options, diffusion: Diffusion, loaded: Loaded, batch_size: int, keep_repeats: bool = False) -> Job:
    """The work on the folder of `options`, a single run or a cell."""
    config, device = diffusion.config, diffusion.device
    timesteps = diffusion.timesteps(options.skip_type, options.timesteps, keep_repeats=keep_repeats)
    noisy = options.sample_type == "ddpm_noisy"
    if noisy and options.eta_given:
        logging.info("--eta has no effect with --sample_type ddpm_noisy, which has a noise of its own")
    sampling = Sampling(timesteps, options.sample_type, options.eta, options.seed)
    data = config.data
    decides: dict[str, object] = {
        "mode": options.mode,
        "weights": weights_hash(diffusion.model.state_dict()),
        "image": {"size": data.image_size, "rescaled": data.rescaled, "logit_transform": data.logit_transform},
        "diffusion": asdict(config.diffusion),
        "sample_type": options.sample_type,
        "eta": None if noisy else sampling.eta,
        "seed": sampling.seed,
        "precision": devices.precision_in_words(device),
        "timesteps": list(timesteps),
    }
    records = {
        "checkpoint": str(loaded.path), "kind": loaded.kind, "config": options.config, "batch_size": batch_size,
        "device": str(device),
    }  # fmt: skip
    return Job(diffusion, sampling, options.image_dir, decides, records)


@contextmanager
def _missing(job: Job, names: Sequence[str]) -> Iterator[list[int]]:
    """Hold the folder for this job and give the positions of the names that are not there yet."""
    manifest.check(job.folder, job.decides, len(names))  # before the lock, which is a file: a refusal writes nothing
    with ExitStack() as stack:
        with distributed.main_first():
            if distributed.is_main():
                stack.enter_context(files.locked(job.folder))
                manifest.claim(job.folder, job.decides, len(names), job.records)
        todo = images.missing(job.folder, names)
        distributed.barrier()  # every rank has looked before one writes
        yield todo
        distributed.barrier()


@contextmanager
def _held(folder: Path, n: int) -> Iterator[list[int]]:
    """Hold the folder's name for numbers without images, and give all n of them to make."""
    with ExitStack() as stack:
        with distributed.main_first():
            if distributed.is_main():
                stack.enter_context(files.locked(folder))
        yield list(range(n))
        distributed.barrier()


def _announce(options: Options, job: Job, to_make: int, there: int, how: str) -> None:
    timesteps, device = job.sampling.timesteps, job.diffusion.device
    logging.info(
        f"{options.timesteps} steps asked, {len(timesteps)} evaluated, t from {timesteps[-1]} to {timesteps[0]}; "
        f"{to_make} images to make {how}, {there} already there; {devices.precision_in_words(device)} on {device}"
    )


def _with_bar(job: Job, x_T: torch.Tensor) -> Iterator[Step]:
    with progress_bar(len(job.sampling.timesteps), unit="step", desc="steps") as bar:
        for step in job.diffusion.denoise(x_T, range(len(x_T)), job.sampling):
            yield step
            bar.update()


def _finish(job: Job, rows: Sequence[Sequence[str]], n: int) -> None:
    if distributed.is_main():
        sheet = job.folder.with_name(f"{job.folder.name}.png")
        images.contact_sheet(sheet, job.folder, rows)
        print(f"{n} images in {job.folder}, contact sheet {sheet}")
