"""One command: its device, its process group, its task."""

from importlib import import_module

from configs import Config
from configs.options import Options
from functions import devices, distributed
from functions.progress import quiet_ranks

# The module of each task, which has a function of the task's name; imported when it is needed, for that takes seconds.
_TASKS = {"train": "training", "test": "evaluation", "fid": "sampling", "interpolation": "sampling", "sequence": "sampling"}


def run(options: Options, config: Config) -> None:
    """Do what the options ask. Raises ValueError for the user's mistakes, FloatingPointError and OSError else."""
    device = devices.choose_device(options.device)
    devices.mention_idle_gpus(device)
    with distributed.process_group(device):
        quiet_ranks()
        task = import_module(f"runners.{_TASKS[options.mode]}")
        getattr(task, options.mode)(options, config, device)
