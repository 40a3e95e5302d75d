"""The tasks that make images: one function a mode, each into a folder that its manifest keeps for it."""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from configs import Config
from configs.options import Options
from functions.disk import images
from functions.noise import initial_noise, slerp
from functions.runtime import distributed
from functions.runtime.progress import progress_bar
from functions.runtime.threads import works_beside
from functions.samplers import Step, last
from runners.diffusion import Diffusion
from runners.evaluation import metrics
from runners.evaluation import published as paper
from runners.load import load_weights, new_diffusion
from runners.sampling import grid
from runners.sampling.folder import (
    INTERPOLATION_POINTS,
    SEQUENCE_CHAINS,
    Job,
    announce,
    finish,
    held,
    make_job,
    missing,
    names_of,
    recorded,
)
from runners.sampling.speed import Pace

SHEET_IMAGES, SHEET_COLUMNS = 64, 8
SEQUENCE_SHEET_STEPS = 10


def fid(options: Options, config: Config, device: torch.device) -> None:
    """Write {i}.png for every i below num_samples that is not there yet, and measure them: a folder for each cell of a grid."""
    if config.data.dataset == "CIFAR10" and options.skip_type == "uniform":
        logging.info("the paper's Table 1 spaced CIFAR10's timesteps by --skip_type quad")
    cells = grid.cells(options)
    if options.is_grid:
        grid.check(options)
    diffusion = new_diffusion(options, config, device)
    for cell in cells:
        diffusion.timesteps(cell.skip_type, cell.timesteps)  # a refusal comes before the work
    loaded = load_weights(diffusion, cells[0])
    evaluator = metrics.Evaluator(options, config, device) if options.metrics else None
    pace = Pace(options, diffusion, options.num_samples)
    results = []
    for k, cell in enumerate(cells):
        if cell.ckpts != cells[max(0, k - 1)].ckpts:
            loaded = load_weights(diffusion, cell)
        if options.is_grid:
            logging.info(f"cell {k + 1} of {len(cells)}: {cell.image_folder}")
        job = make_job(cell, diffusion, loaded)
        reuse = options.is_grid or not options.keep_images
        measured = _make(cell, job, pace, evaluator, cells[k + 1 :], reuse)
        results.append(grid.Result(cell, loaded.name, loaded.step, len(job.sampling.timesteps), measured))
        if measured and not options.is_grid and distributed.is_main():
            metrics.print_table(measured, paper.published_fid(config, cell))
    if options.is_grid and distributed.is_main():
        grid.write_tables(options, config, results)
        if options.keep_images:
            grid.write_sheet(options)


def _make(
    options: Options,
    job: Job,
    pace: Pace,
    evaluator: metrics.Evaluator | None,
    later: Sequence[Options],
    reuse: bool,
) -> dict[str, Any] | None:
    """The images of one folder, measured as they are made; with `reuse`, a measurement that is there is taken as it is.

    later: the cells to come, for whose sake too a network may be worth compiling.
    """
    n = options.num_samples
    names, how = names_of(options, len(job.sampling.timesteps)), recorded(job, n)
    began = time.monotonic()
    if evaluator:
        metrics.check(job.folder, job.decides)
        measured = metrics.stored(job.folder, job.decides, evaluator, n)
        finished = not options.keep_images or not images.missing(job.folder, names)
        if measured and finished and reuse:
            logging.info(f"measured already: {metrics.path_of(job.folder)}")
            return measured
    batch_size = pace.batch_size(how)
    evaluations = sum(_evaluations(cell, job.diffusion, batch_size) for cell in (options, *later))
    compiled = pace.compile_where_it_repays(batch_size, evaluations, how)
    folder = (
        missing(job, names, batch_size=batch_size, compiled=compiled)
        if options.keep_images
        else held(job.folder, n)
    )
    with folder as todo:
        announce(options, job, len(todo), n - len(todo), f"in batches of {batch_size}")
        samples = (
            evaluator.samples(n, batch_size, job.folder, job.diffusion.image_shape) if evaluator else None
        )
        _sample(job, todo, batch_size, samples, options.keep_images)
        measured = metrics.measure(evaluator, samples, job.decides, began) if evaluator and samples else None
    if options.keep_images:
        shown = names[:SHEET_IMAGES]
        finish(job, [shown[i : i + SHEET_COLUMNS] for i in range(0, len(shown), SHEET_COLUMNS)], n)
    return measured


def _evaluations(options: Options, diffusion: Diffusion, batch_size: int) -> int:
    """How often a cell will have this rank evaluate a batch, by the images that its folder has not."""
    steps = len(diffusion.timesteps(options.skip_type, options.timesteps))
    todo = (
        images.missing(options.image_dir, names_of(options, steps))
        if options.keep_images
        else range(options.num_samples)
    )
    batches = len({i // batch_size for i in todo})
    return -(-batches // distributed.world_size()) * steps


def _sample(
    job: Job, todo: list[int], batch_size: int, samples: metrics.Samples | None, keep_images: bool
) -> None:
    """This rank's share of the images `todo`, whole batches at a time; `samples` gets those too that are there already."""
    unfinished = sorted({i // batch_size for i in todo})
    if samples:
        finished = sorted(set(range(-(-samples.n // batch_size))).difference(unfinished))
        samples.read(finished[distributed.rank() :: distributed.world_size()])
    mine = set(unfinished[distributed.rank() :: distributed.world_size()])
    todo = [i for i in todo if i // batch_size in mine]
    began, since = 0.0, 0
    with (
        images.png_writer(job.folder, beside=works_beside(job.diffusion.device)) as write,
        progress_bar(len(todo), unit="image", desc="images") as bar,
    ):
        for k, (indices, batch) in enumerate(job.diffusion.sample_batches(todo, job.sampling, batch_size)):
            if samples:
                samples.add(indices, batch)
            if keep_images:
                write([f"{i}.png" for i in indices], batch)
            bar.update(len(indices))
            began, since = (time.monotonic(), 0) if k == 0 else (began, since + len(indices))
    if since:
        seconds = time.monotonic() - began
        rate = since * len(job.sampling.timesteps) / seconds
        logging.info(
            f"after the first batch, {since} images in {seconds:.3f} s: {rate:.4g} evaluations/s a process"
        )


def interpolation(options: Options, config: Config, device: torch.device) -> None:
    """Write {k}.png for 11 points on the arc between x_T of images 0 and 1 (arXiv 2010.02502, section 5.3)."""
    diffusion = new_diffusion(options, config, device)
    job = make_job(options, diffusion, load_weights(diffusion, options))
    steps = len(job.sampling.timesteps)
    names = names_of(options, steps)
    pace, how = Pace(options, diffusion, len(names)), recorded(job, len(names))
    compiled = pace.compile_where_it_repays(len(names), steps * bool(images.missing(job.folder, names)), how)
    with missing(job, names, batch_size=len(names), compiled=compiled) as todo:
        announce(options, job, len(todo), len(names) - len(todo), "as one batch")
        if todo and distributed.is_main():
            z1, z2 = initial_noise(job.sampling.seed, (0, 1), diffusion.image_shape)
            x_T = torch.stack(
                [slerp(z1, z2, k / (INTERPOLATION_POINTS - 1)) for k in range(INTERPOLATION_POINTS)]
            )
            made = diffusion.to_images(last(_with_bar(job, x_T)).x)
            with images.png_writer(job.folder, beside=works_beside(job.diffusion.device)) as write:
                write([names[k] for k in todo], made[todo])
    finish(job, [names], len(names))


def sequence(options: Options, config: Config, device: torch.device) -> None:
    """Write {j}_{i}.png, the x0 that chain j of 8 predicts at step i, as the steps run (arXiv 2010.02502, figure 4)."""
    diffusion = new_diffusion(options, config, device)
    job = make_job(options, diffusion, load_weights(diffusion, options), keep_repeats=True)
    steps = len(job.sampling.timesteps)
    names = names_of(options, steps)
    pace, how = Pace(options, diffusion, SEQUENCE_CHAINS), recorded(job, len(names))
    compiled = pace.compile_where_it_repays(
        SEQUENCE_CHAINS, steps * bool(images.missing(job.folder, names)), how
    )
    with missing(job, names, batch_size=SEQUENCE_CHAINS, compiled=compiled) as todo:
        announce(options, job, len(todo), len(names) - len(todo), f"of {SEQUENCE_CHAINS} chains")
        wanted = set(todo)
        if todo and distributed.is_main():
            x_T = initial_noise(job.sampling.seed, range(SEQUENCE_CHAINS), diffusion.image_shape)
            with images.png_writer(job.folder, beside=works_beside(job.diffusion.device)) as write:
                for i, step in enumerate(_with_bar(job, x_T)):
                    chains = [j for j in range(SEQUENCE_CHAINS) if i * SEQUENCE_CHAINS + j in wanted]
                    write([f"{j}_{i}.png" for j in chains], diffusion.to_images(step.x0)[chains])
    columns = torch.linspace(0, steps - 1, min(steps, SEQUENCE_SHEET_STEPS)).round().int().tolist()
    finish(job, [[f"{j}_{i}.png" for i in columns] for j in range(SEQUENCE_CHAINS)], len(names))


def _with_bar(job: Job, x_T: torch.Tensor) -> Iterator[Step]:
    with progress_bar(len(job.sampling.timesteps), unit="step", desc="steps") as bar:
        for step in job.diffusion.denoise(x_T, range(len(x_T)), job.sampling):
            yield step
            bar.update()
