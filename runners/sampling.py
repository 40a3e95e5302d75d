"""The tasks that make images: one function a mode, each into a folder that its manifest keeps for it."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from configs import Config
from configs.options import Options
from functions import devices, distributed, files, images, manifest
from functions.denoising import Step, last
from functions.noise import initial_noise, slerp
from functions.progress import progress_bar
from functions.weights import weights_hash
from runners.diffusion import Diffusion, Sampling
from runners.load import load_diffusion

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
    """Write {i}.png for every i below num_samples that is not there yet."""
    n, batch_size = options.num_samples, options.batch_size
    if config.data.dataset == "CIFAR10" and options.skip_type == "uniform":
        logging.info("the paper's Table 1 spaced CIFAR10's timesteps by --skip_type quad")
    job = _job(options, config, device, batch_size)
    names = [f"{i}.png" for i in range(n)]
    with _missing(job, names) as todo:
        _announce(options, job, len(todo), n - len(todo), f"in batches of {batch_size}")
        batches = sorted({i // batch_size for i in todo})
        mine = set(batches[distributed.rank() :: distributed.world_size()])
        todo = [i for i in todo if i // batch_size in mine]
        with progress_bar(len(todo), unit="image", desc="images") as bar:
            for i, image in job.diffusion.images(todo, job.sampling, batch_size):
                images.write_png(job.folder / names[i], image)
                bar.update()
        shown = names[:SHEET_IMAGES]
        rows = [shown[i : i + SHEET_COLUMNS] for i in range(0, len(shown), SHEET_COLUMNS)]
    _finish(job, rows, n)


def interpolation(options: Options, config: Config, device: torch.device) -> None:
    """Write {k}.png for 11 points on the arc between x_T of images 0 and 1 (arXiv 2010.02502, section 5.3)."""
    job = _job(options, config, device, INTERPOLATION_POINTS)
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
    job = _job(options, config, device, SEQUENCE_CHAINS, keep_repeats=True)
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


def _job(options: Options, config: Config, device: torch.device, batch_size: int, keep_repeats: bool = False) -> Job:
    diffusion, path, which = load_diffusion(options, config, device)
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
    records = {"checkpoint": str(path), "kind": which, "config": options.config, "batch_size": batch_size, "device": str(device)}
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
