"""A folder of images: from its manifest and its lock to the last PNG and the contact sheet."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor

from configs.choices import SAMPLERS
from configs.options import command
from functions.disk import files, images, manifest
from functions.runtime import distributed
from functions.runtime.precision import precision_in_words
from functions.runtime.progress import bar_of_all_ranks
from functions.runtime.stopping import Stopped, Stopping, heeded
from functions.samplers import CLEAN, Step
from runners.evaluation import measurements
from runners.evaluation.evaluator import Evaluator, Samples
from runners.load import Loaded
from runners.sampling.tasks import Task
from runners.speed import Rate, Speed


class Folder:
    """The folder of one run or of one cell of a grid: which pictures belong in it, and what decides them."""

    def __init__(self, task: Task):
        self.options, self.task, self.diffusion = task.options, task, task.diffusion
        self.sampling, self.evaluations_of_chain = task.sampling, task.evaluations_of_chain
        self.path = self.options.image_dir
        self.files = [task.files(i) for i in range(task.chains())]  # of each chain
        self.names = list(chain.from_iterable(self.files))

    @property
    def cost_in_words(self) -> str:
        """What an image costs, and where its last step ends."""
        end, abar = self.sampling.end, self.diffusion.alphas_cumprod
        where = "a clean image" if end == CLEAN else f"t = {end}, where ᾱ is {abar[end + 1]:.6g}"
        first = self.task.evaluations_first
        before = f", after {first} that encode pictures" if first else ""
        return f"{self.evaluations_of_chain} evaluations an image (NFE), which end at {where}{before}"

    def missing(self) -> set[str]:
        """The pictures that are not there yet. With --keep_images no, all of them."""
        return set(images.missing(self.path, self.names) if self.options.keep_images else self.names)

    def chains_with(self, names: set[str]) -> list[int]:
        """The chains that have one of these pictures."""
        return [i for i, files in enumerate(self.files) if not names.isdisjoint(files)]

    def evaluations(self, batch_size: int) -> int:
        """How often this rank evaluates the network on a batch to make what is missing."""
        batches = len({i // batch_size for i in self.chains_with(self.missing())})
        return -(-batches // distributed.world_size()) * self.evaluations_of_chain

    def identity(self, weights: str) -> dict[str, Any]:
        """Everything that decides the pixels, as plain JSON values. weights: their hash."""
        data = self.diffusion.config.data
        takes_eta = SAMPLERS[self.sampling.sample_type].takes_eta
        return {
            "mode": self.options.mode,
            "weights": weights,
            "image": {
                "size": data.image_size, "rescaled": data.rescaled, "logit_transform": data.logit_transform,
            },
            **self.diffusion.decides,
            "sample_type": self.sampling.sample_type,
            "eta": self.sampling.eta if takes_eta else None,
            "seed": self.sampling.seed,
            "precision": precision_in_words(self.options.precision, self.diffusion.device),
            "timesteps": list(self.sampling.timesteps),
            **self.sampling.decides,
            **self.task.reads(),
        }  # fmt: skip

    def record(self, loaded: Loaded) -> dict[str, Any]:
        """What the manifest tells of weights and timesteps, beside what it compares."""
        return {
            "checkpoint": str(loaded.path), "kind": loaded.kind, "step": loaded.step,
            "spacing": f"{self.options.spacing_label}, S = {self.options.S}",
            "command": command(*self.options.argv),
        }  # fmt: skip

    def check(self, loaded: Loaded) -> dict[str, Any]:
        """How the manifest says the last images were made. Raises Refusal for the folder of another run."""
        identity = self.identity(loaded.hash)
        content = manifest.check(self.path, identity, len(self.names), self.record(loaded))
        return content["parts"][-1] if content and content["parts"] else {}

    @contextmanager
    def locked(self, identity: dict[str, Any], record: dict[str, Any]) -> Iterator[set[str]]:
        """Lock the folder for all ranks, write its manifest, and give the pictures that are missing."""
        with ExitStack() as stack:
            with distributed.main_first():
                if distributed.is_main():
                    stack.enter_context(files.locked(self.path))
                    if self.options.keep_images:
                        manifest.claim(self.path, identity, len(self.names), record)
            missing = self.missing()
            distributed.barrier()  # every rank has looked before one writes
            yield missing
            distributed.barrier()


def fill(
    folder: Folder,
    loaded: Loaded,
    speed: Speed,
    evaluator: Evaluator | None = None,
    later: Sequence[Folder] = (),
    *,
    reuse: bool = False,
) -> dict[str, Any] | None:
    """Make the pictures that are missing, measure them, and draw the contact sheet. Returns the measurement.

    later: the folders still to come; their work counts in the decision to compile.
    reuse: return a stored measurement instead of a new one, if no picture is missing.
    """
    options, diffusion, path, n = folder.options, folder.diffusion, folder.path, len(folder.files)
    began = time.monotonic()

    # Refuse a folder with other images. Return early if this one is complete and measured.
    identity = folder.identity(loaded.hash)
    previous = folder.check(loaded)
    if evaluator:
        measured = measurements.find(path, identity, evaluator.deciding(n), evaluator.metrics)
        if measured and reuse and (not options.keep_images or not folder.missing()):
            logging.info(f"measured already: {measurements.path_of(path)}")
            return measured

    # Choose the batch, and compile if that pays.
    batch_size = n if folder.task.one_batch else speed.batch_size(previous)
    evaluations = sum(each.evaluations(batch_size) for each in (folder, *later))
    compiled = speed.compile_if_it_pays(batch_size, evaluations, previous)

    record = folder.record(loaded) | {
        "config": options.config, "device": str(diffusion.device), "batch_size": batch_size,
        "compiled": compiled,
    }  # fmt: skip
    with folder.locked(identity, record) as missing:
        _announce(folder, missing, batch_size, identity["precision"])
        samples = evaluator.samples(n, batch_size, path, diffusion.image_shape) if evaluator else None
        with images.writer(path, diffusion.device, folder.task.write) as write, heeded() as stopping:
            for names, pictures in _made(folder, missing, batch_size, samples, stopping):
                write(names, pictures)
        measured = evaluator.measure(samples, identity, began) if evaluator and samples else None
    if options.keep_images and distributed.is_main():
        if gone := folder.missing():
            left = f"{len(gone)} of the {len(folder.names)} files in {path} have gone while others were made"
            raise OSError(f"{left}; the same command makes them anew")
        made = [f"{len(folder.names)} {folder.task.makes} in {path}"]
        if rows := folder.task.sheet():
            sheet = path.with_name(f"{path.name}.png")
            images.sheet_of_files(sheet, path, rows)
            made.append(f"contact sheet {sheet}")
        print(", ".join(filter(None, [*made, folder.task.finish(path)])))
    return measured


def _made(
    folder: Folder, missing: set[str], batch_size: int, samples: Samples | None, stopping: Stopping
) -> Iterator[tuple[list[str], Tensor]]:
    """This rank's missing pictures: names, uint8 (b, c, h, w). Finished ones are read into `samples`."""
    # Share out the batches.
    chains = folder.chains_with(missing)
    unfinished = sorted({i // batch_size for i in chains})
    rank, ranks = distributed.rank(), distributed.world_size()
    if samples:
        finished = sorted(set(range(-(-len(folder.files) // batch_size))).difference(unfinished))
        samples.read(finished[rank::ranks])
    mine = set(unfinished[rank::ranks])
    chains = [i for i in chains if i // batch_size in mine]

    # Make them.
    task = folder.task
    rate = Rate(folder.diffusion.device)
    steps = [len(batches) * task.steps_of_chain for batches in (unfinished, mine)]
    with bar_of_all_ranks(*steps, unit="step", desc=folder.options.mode) as did:
        pictures = partial(_pictures_with_bar, task, did)
        how = (folder.sampling, batch_size, task.start, pictures, task.stored)
        for batch in folder.diffusion.sample_batches(chains, *how):
            if samples:
                samples.add(batch.chains, batch.images)
            # Of some chains only the first pictures are kept.
            names = [(*folder.files[i][batch.k : batch.k + 1], "")[0] for i in batch.chains]
            rows = [row for row, name in enumerate(names) if name in missing]
            if rows and folder.options.keep_images:
                made = batch.images if len(rows) == len(names) else batch.images[rows]
                yield [names[row] for row in rows], made
            if (name := stopping.name) and batch.k == len(folder.files[0]) - 1:
                keep = folder.options.keep_images
                kept = "is kept; the same command goes on from there" if keep else "was the last"
                raise Stopped(f"{name} came: the batch in flight {kept}", name)
            if batch.k == 0:
                rate.count(len(names))
    rate.log(folder.evaluations_of_chain)


def _pictures_with_bar(
    task: Task, did: Callable[[int], None], x: Tensor, chains: Sequence[int]
) -> Iterator[Tensor]:
    def counted() -> Iterator[Step]:
        for step in task.steps(x, chains):
            yield step
            did(1)

    return task.pictures(counted(), chains)


def _announce(folder: Folder, missing: set[str], batch_size: int, precision: str) -> None:
    timesteps, done = folder.sampling.timesteps, len(folder.names) - len(missing)
    span = f"t from {timesteps[-1]:.6g} to {timesteps[0]:.6g}"
    logging.info(
        f"{folder.options.S} steps asked, {len(timesteps)} evaluated, {span}; "
        f"{len(missing)} {folder.task.makes} to make in batches of {batch_size}, {done} already there; "
        f"{precision} on {folder.diffusion.device}; "
        f"{folder.cost_in_words}"
    )
