"""A training run on disk: {exp}/logs/{doc} with checkpoints and config.yml, and {exp}/tensorboard/{doc}."""

import logging
import shlex
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from configs import Config, load_config, to_yaml
from configs.options import Options
from configs.refusal import Refusal
from functions.disk import files
from functions.runtime import distributed
from functions.weights import load_checkpoint, native
from functions.weights.checkpoint import Checkpoint

# What decides what a network's numbers mean. An empty tuple stands for all keys.
MEANING: dict[str, tuple[str, ...]] = {
    "data": ("image_size", "channels", "rescaled", "logit_transform"), "model": ("prediction",),
    "diffusion": (),
}  # fmt: skip


def checkpoint_to_resume(options: Options) -> Checkpoint | None:
    """The run's last checkpoint; None for a new run.

    Where ckpt.pth is damaged or gone, --resume_training auto takes the newest snapshot that is whole.
    Raises Refusal where there is none to continue.
    """
    if options.resume_training is None:
        return None
    path = options.log_dir / "ckpt.pth"
    fault = f"{path} does not exist"
    if path.exists():
        try:
            return load_checkpoint(path)
        except Refusal as error:
            fault = str(error)
    snapshot, checkpoint = _newest_whole_snapshot(options.log_dir)
    if snapshot is None and path.exists():
        raise Refusal(fault)
    if options.resume_training == "auto":
        if snapshot is not None:
            logging.warning(f"{fault}: going on from {snapshot}, which is whole")
        return checkpoint
    if snapshot is None:
        raise Refusal(f"--resume_training: there is no run to continue: {fault}; auto starts one")
    raise Refusal(f"{fault}; {snapshot} is whole: --resume_training auto goes on from it")


def _newest_whole_snapshot(folder: Path) -> tuple[Path | None, Checkpoint | None]:
    snapshots = {int(path.stem[5:]): path for path in folder.glob("ckpt_*.pth") if path.stem[5:].isdecimal()}
    for _, path in sorted(snapshots.items(), reverse=True):
        with suppress(Refusal):
            return path, load_checkpoint(path)
    return None, None


def check_same_model(options: Options, config: Config) -> None:
    """Raise Refusal where the run's own config.yml gives its weights another meaning than `config` does."""
    path = options.log_dir / "config.yml"
    try:
        run = load_config(str(path))
    except Refusal:
        return  # none, or upstream's, which is a pickle of Python objects
    for section, keys in MEANING.items():
        ours, theirs = (asdict(getattr(c, section)) for c in (config, run))
        for key in keys or ours:
            if ours[key] != theirs[key]:
                was = f"{section}.{key} is {ours[key]} in {options.config} and {theirs[key]} in {path}"
                raise Refusal(f"{was}: the weights would mean something else; begin another --doc")


def may_begin(options: Options) -> bool:
    """Whether a new run may have this name; an old one moves aside. Raises Refusal if nobody can be asked."""
    if not any(map(files.has_content, (options.log_dir, options.tensorboard_dir))):
        return True
    if options.ni or options.resume_training == "auto":
        return True
    if distributed.under_torchrun() or sys.stdin is None or not sys.stdin.isatty():
        raise Refusal(
            f"a run is in {options.log_dir} already: --resume_training continues it, --ni moves it aside and "
            "starts anew, another --doc keeps both"
        )
    try:
        answer = input(f"A run is in {options.log_dir} already. Move it aside and start anew? [y/N] ")
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")


def begin(options: Options, config: Config) -> None:
    """Make the folder of a new run. An older run of that name is moved aside, never deleted."""
    for old, new in files.move_aside(options.log_dir, options.tensorboard_dir):
        logging.info(f"the run that was in {old} is now in {new}")
    files.write_text(options.log_dir / "config.yml", to_yaml(config))


def stopped_at(step: int, name: str, options: Options) -> str:
    """What is said when the signal `name` stopped the run: its last step, and the command to go on."""
    words = [word for word in options.argv if word != "--ni"]
    if "--resume_training" not in words:
        words += ["--resume_training", *["auto"] * options.starts_from_weights]
    command = shlex.join(["python", "main.py", *words])
    return f"{name} came: step {step} is saved and nothing is lost; to continue: {command}"


def is_snapshot(step: int, last_step: int, snapshot_freq: int) -> bool:
    """Whether a checkpoint is saved after this step: the first, every `snapshot_freq`-th, and the last."""
    return step == 1 or step % snapshot_freq == 0 or step == last_step


def save(options: Options, checkpoint: Checkpoint) -> None:
    """Write ckpt_{step}.pth, and make it ckpt.pth too. Each is whole at every moment."""
    path = options.log_dir / f"ckpt_{checkpoint.step}.pth"
    native.save(path, checkpoint)
    files.link(path, options.log_dir / "ckpt.pth")
