"""The work on one image folder: what decides its images, its manifest and lock, and what is said of it."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.options import Options
from functions.disk import files, images, manifest
from functions.runtime import acceleration, distributed
from functions.weights import weights_hash
from runners.diffusion import Diffusion, Sampling
from runners.load import Loaded

INTERPOLATION_POINTS = 11
SEQUENCE_CHAINS = 8


@dataclass(frozen=True)
class Job:
    """A network, what decides its images, and the folder they go to."""

    diffusion: Diffusion
    sampling: Sampling
    folder: Path
    decides: dict[str, object]
    records: dict[str, object]


def make_job(options: Options, diffusion: Diffusion, loaded: Loaded, keep_repeats: bool = False) -> Job:
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
        "image": {
            "size": data.image_size,
            "rescaled": data.rescaled,
            "logit_transform": data.logit_transform,
        },
        "diffusion": asdict(config.diffusion),
        "sample_type": options.sample_type,
        "eta": None if noisy else sampling.eta,
        "seed": sampling.seed,
        "precision": acceleration.precision_in_words(options.precision, device),
        "timesteps": list(timesteps),
    }
    records: dict[str, object] = {
        "checkpoint": str(loaded.path),
        "kind": loaded.kind,
        "config": options.config,
        "device": str(device),
    }
    return Job(diffusion, sampling, options.image_dir, decides, records)


def names_of(options: Options, steps: int) -> list[str]:
    """The files of a folder: {i}.png, or {chain}_{step}.png step by step for a sequence of so many steps."""
    if options.mode == "sequence":
        return [f"{j}_{i}.png" for i in range(steps) for j in range(SEQUENCE_CHAINS)]
    return [f"{i}.png" for i in range(options.num_samples if options.mode == "fid" else INTERPOLATION_POINTS)]


def recorded(job: Job, n: int) -> dict[str, Any]:
    """What the folder's manifest records of its last part, nothing of a new one; `missing` gives it.

    Raises Refusal where the folder is not for these n images.
    """
    there = manifest.check(job.folder, job.decides, n)
    return there["parts"][-1] if there and there["parts"] else {}


@contextmanager
def missing(job: Job, names: Sequence[str], **how: object) -> Iterator[list[int]]:
    """Hold the folder for this job and give the positions of the names that are not there yet; `how` is recorded."""
    manifest.check(
        job.folder, job.decides, len(names)
    )  # before the lock, which is a file: a refusal writes nothing
    with ExitStack() as stack:
        with distributed.main_first():
            if distributed.is_main():
                stack.enter_context(files.locked(job.folder))
                manifest.claim(job.folder, job.decides, len(names), job.records | how)
        todo = images.missing(job.folder, names)
        distributed.barrier()  # every rank has looked before one writes
        yield todo
        distributed.barrier()


@contextmanager
def held(folder: Path, n: int) -> Iterator[list[int]]:
    """Hold the folder's name for numbers without images, and give all n of them to make."""
    with ExitStack() as stack:
        with distributed.main_first():
            if distributed.is_main():
                stack.enter_context(files.locked(folder))
        yield list(range(n))
        distributed.barrier()


def announce(options: Options, job: Job, to_make: int, there: int, how: str) -> None:
    timesteps, device = job.sampling.timesteps, job.diffusion.device
    logging.info(
        f"{options.timesteps} steps asked, {len(timesteps)} evaluated, t from {timesteps[-1]} to {timesteps[0]}; "
        f"{to_make} images to make {how}, {there} already there; {job.decides['precision']} on {device}"
    )


def finish(job: Job, rows: Sequence[Sequence[str]], n: int) -> None:
    """Write the contact sheet of the files `rows` and name it."""
    if distributed.is_main():
        sheet = job.folder.with_name(f"{job.folder.name}.png")
        images.contact_sheet(sheet, job.folder, rows)
        print(f"{n} images in {job.folder}, contact sheet {sheet}")
