"""One command: its log, its device, its process group, its task."""

import torch

from configs import Config
from configs.options import Options
from functions.runtime import acceleration, distributed
from functions.runtime import device as devices
from functions.runtime.progress import quiet_ranks, start_logging


def run(options: Options, config: Config | None) -> None:
    """Do what the options ask; only "inspect" does without a config.

    Raises Refusal for the user's mistakes; OSError, MemoryError and FloatingPointError for what else can fail.
    """
    start_logging(options.verbose)
    device = devices.choose_device(options.device)
    devices.mention_idle_gpus(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with distributed.process_group(device):
        quiet_ranks()
        try:
            with acceleration.numerics(options.precision, device, training=options.mode == "train"):
                _do_task(options, config, device)
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"{device} has too little memory; a smaller batch needs less ({error})"
            ) from error


def _do_task(options: Options, config: Config | None, device: torch.device) -> None:
    # Imported when needed, for a task's own libraries take seconds to load.
    if options.mode == "inspect":
        from runners.tools.inspection import inspect

        return inspect(options, config)
    assert config is not None
    if options.plan:
        from runners.tools.plan import plan

        plan(options, config, device)
        return
    match options.mode:
        case "train":
            from runners.training.loop import train as task
        case "test":
            from runners.evaluation.bound import test as task
        case "preview":
            from runners.tools.preview import preview as task
        case "export":
            from runners.tools.export import export as task
        case "fid":
            from runners.sampling.tasks import fid as task
        case "interpolation":
            from runners.sampling.tasks import interpolation as task
        case "sequence":
            from runners.sampling.tasks import sequence as task
    task(options, config, device)
