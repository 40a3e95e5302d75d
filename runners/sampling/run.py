"""--sample: the folder of a single run, or a folder for each cell of a grid and a table of them."""

import logging
from dataclasses import replace

from configs import Config
from configs.choices import SAMPLERS
from configs.options import Options
from functions.runtime import distributed
from runners import doubts
from runners.diffusion import Diffusion
from runners.evaluation import measurements, published
from runners.evaluation.evaluator import Evaluator
from runners.load import load_weights, with_own_clipping
from runners.sampling import cells, tables
from runners.sampling.folder import Folder, fill
from runners.sampling.result import Result
from runners.sampling.tasks import TASKS
from runners.speed import Speed


def write_samples(diffusion: Diffusion, options: Options) -> None:
    """Fill every folder that the options ask for, measure each if they ask for metrics, and print a table."""
    config = diffusion.config
    _hint(options, config)
    doubts.say(config, diffusion.alphas_cumprod)

    # Refuse what can be refused before the work.
    cells.check(options)
    folders = [
        Folder(TASKS[options.mode](with_own_clipping(cell), diffusion)) for cell in cells.cells(options)
    ]

    from_noise = [folder for folder in folders if folder.task.from_noise]
    for timesteps, spacing in {(each.sampling.timesteps, each.options.skip_type) for each in from_noise}:
        doubts.say_of_steps(timesteps, diffusion.alphas_cumprod, spacing)

    diffusion.accelerate(options.precision)
    loaded = load_weights(diffusion, folders[0].options)
    evaluator = Evaluator(options, config, diffusion.device) if options.metrics else None
    speed = Speed(options, diffusion, len(folders[0].files))
    results = []
    for k, folder in enumerate(folders):
        if k and folder.options.ckpts != folders[k - 1].options.ckpts:
            loaded = load_weights(diffusion, folder.options)
        if options.is_grid:
            logging.info(f"cell {k + 1} of {len(folders)}: {folder.options.image_folder}")
        reuse = options.is_grid or not options.keep_images
        measured = fill(folder, loaded, speed, evaluator, folders[k + 1 :], reuse=reuse)
        steps, evaluations = len(folder.sampling.timesteps), folder.evaluations_of_chain
        cost = (steps, evaluations, len(folder.files))
        results.append(Result(folder.options, loaded.name, loaded.step, *cost, measured))
        if measured and not options.is_grid and distributed.is_main():
            print(measurements.table(measured, published.published_fid(config, options)))

    if not distributed.is_main():
        return
    tasks = {folder.path: folder.task for folder in folders}
    results = [
        replace(result, own=folder.task.numbers(folder.path, tasks), note=folder.task.note())
        for result, folder in zip(results, folders, strict=True)
    ]
    if options.is_grid:
        tables.write(options, config, results)
    elif results[0].own:
        print(tables.single(config, results[0]))


def _hint(options: Options, config: Config) -> None:
    if config.data.dataset == "CIFAR10" and options.skip_type == "uniform" and options.mode == "fid":
        logging.info("the paper's Table 1 spaced CIFAR10's timesteps by --skip_type quad")
    name = options.sample_type
    if "eta" in options.given and len(options.sample_types) == 1 and not SAMPLERS[name].takes_eta:
        logging.info(f"--eta has no effect with --sample_type {name}")
    noisiest = [name for name in options.sample_types if SAMPLERS[name].noise == "always"]
    if noisiest and config.model.var_type == "fixedsmall":
        logging.info(
            f"model.var_type is fixedsmall: this model was trained for --eta 1, not for {noisiest[0]}'s σ̂"
        )
