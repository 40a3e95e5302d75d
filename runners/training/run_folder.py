"""A training run on disk: {exp}/logs/{doc} with checkpoints and config.yml, and {exp}/tensorboard/{doc}."""

import logging
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from configs import Config, TrainingConfig, load_config, to_yaml
from configs.options import Options, command
from configs.refusal import Refusal
from configs.run_record import NAME, RunRecord, as_yaml
from configs.run_record import read as read_run
from functions.disk import files
from functions.runtime import distributed
from functions.weights import load_checkpoint, native, weights_hash
from functions.weights.checkpoint import Checkpoint

# What decides what a network's numbers mean. An empty tuple stands for all keys.
MEANING: dict[str, tuple[str, ...]] = {
    "data": ("image_size", "channels", "rescaled", "logit_transform"), "model": ("prediction",),
    "diffusion": (),
}  # fmt: skip


def checkpoint_to_resume(options: Options) -> tuple[Checkpoint | None, Path]:
    """The run's last checkpoint, None for a new run; and its file.

    Where ckpt.pth is damaged or gone, --resume_training auto takes the newest snapshot that is whole.
    Raises Refusal where there is none to continue.
    """
    path = options.log_dir / "ckpt.pth"
    if options.resume_training is None:
        return None, path
    fault = f"{path} does not exist"
    if path.exists():
        try:
            return load_checkpoint(path), path
        except Refusal as error:
            fault = str(error)
    snapshot, checkpoint = _newest_whole_snapshot(options.log_dir)
    if snapshot is None and path.exists():
        raise Refusal(fault)
    if options.resume_training == "auto":
        if snapshot is not None:
            logging.warning(f"{fault}: going on from {snapshot}, which is whole")
        return checkpoint, snapshot or path
    if snapshot is None:
        raise Refusal(f"--resume_training: there is no run to continue: {fault}; auto starts one")
    raise Refusal(f"{fault}; {snapshot} is whole: --resume_training auto goes on from it")


def _newest_whole_snapshot(folder: Path) -> tuple[Path | None, Checkpoint | None]:
    for _, path in sorted(_numbered(folder, "ckpt", ".pth").items(), reverse=True):
        with suppress(Refusal):
            return path, load_checkpoint(path)
    return None, None


def check_same_model(options: Options, config: Config) -> None:
    """Raise Refusal where the run's own config.yml gives its weights another meaning than `config` does."""
    path = options.log_dir / "config.yml"
    run = _read(path)
    if run is None:
        return
    for section, keys in MEANING.items():
        ours, theirs = (asdict(getattr(c, section)) for c in (config, run))
        for key in keys or ours:
            if ours[key] != theirs[key]:
                was = f"{section}.{key} is {ours[key]} in {options.config} and {theirs[key]} in {path}"
                raise Refusal(f"{was}: the weights would mean something else; begin another --doc")


def may_begin(options: Options) -> bool:
    """Whether a new run may have this name; an old one moves aside. Raises Refusal if nobody can be asked,
    and for a name that is not a place of its own.
    """
    _check_place(options)
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


def _check_place(options: Options) -> None:
    """Raise Refusal where the run's folder leads elsewhere, or has to do with another run or other files."""
    for folder in (options.log_dir, options.tensorboard_dir):
        top, real = Path(options.exp, folder.relative_to(options.exp).parts[0]), folder.resolve()
        if not real.is_relative_to(top.resolve()):
            raise Refusal(f"{folder} leads to {real}, out of {top}; take another --doc, or another --exp")
    folder = options.log_dir
    parents = folder.parents[: len(Path(options.doc).parts) - 1]
    outer = next((parent for parent in parents if _is_run(parent)), None)
    inner = next((path.parent for path in folder.rglob("*/*") if _is_of_run(path)), None)
    if outer or inner:
        lies = f"lies in the run {outer}" if outer else f"has the run {inner} inside"
        raise Refusal(f"{folder} {lies}; take another --doc")
    if files.has_content(folder) and not _is_run(folder):
        raise Refusal(f"{folder} holds files that are not a run's; take another --doc")


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and any(map(_is_of_run, folder.iterdir()))


def _is_of_run(path: Path) -> bool:
    """Whether a run of this program, or of upstream's, has a file of this name."""
    return path.suffix == ".pth" or path.name in ("config.yml", "stdout.txt")


def begin(options: Options, config: Config) -> None:
    """Make the folder of a new run. An older run of that name is moved aside, never deleted."""
    for old, new in files.move_aside(options.log_dir, options.tensorboard_dir):
        logging.info(f"the run that was in {old} is now in {new}")
    files.write_text(options.log_dir / "config.yml", to_yaml(config))


def record(options: Options, run: RunRecord) -> None:
    """Keep what --doc alone will need."""
    files.write_text(options.log_dir / NAME, as_yaml(run))


def compile_choice(options: Options, device: str) -> str:
    """--compile; auto continues as the run was on such a device, not as a new timing would have it."""
    run = read_run(options.log_dir)
    if options.compile != "auto" or run is None or run.device != device:
        return options.compile
    return "on" if run.compiled else "off"


def stopped_at(step: int, name: str, options: Options) -> str:
    """What is said when the signal `name` stopped the run: its last step, and the command to go on."""
    words = [word for word in options.argv if word != "--ni"]
    if "--resume_training" not in words:
        words += ["--resume_training", *["auto"] * options.starts_from_weights]
    return f"{name} came: step {step} is saved and nothing is lost; to continue: {command(*words)}"


def what_next(options: Options, T: int, step: int) -> dict[str, str]:
    """The commands to sample from a run of T timesteps after `step`, and to measure it."""
    run, folder = ("--exp", options.exp, "--doc", options.doc), f"{options.doc}_{step}"
    return {
        "to sample": to_sample(*run, T=T, folder=folder),
        "to measure (50,000 images, see --plan)": to_sample(*run, T=T, folder=f"{folder}_fid", measure=True),
    }


def to_sample(*weights: str, T: int, folder: str, measure: bool = False) -> str:
    """A command that fills `folder`. weights: the flags that name them."""
    words = ("--sample", "--fid", "--timesteps", str(min(50, T)), "-i", folder)
    return command(*weights, *words, *(("--metrics", "fid") if measure else ("--num_samples", "64")))


def is_snapshot(step: int, last_step: int, snapshot_freq: int) -> bool:
    """Whether a checkpoint is saved after this step: the first, every `snapshot_freq`-th, and the last."""
    return step == 1 or step % snapshot_freq == 0 or step == last_step


def kept(steps: Iterable[int], training: TrainingConfig) -> list[int]:
    """Of snapshots at `steps`, those that stay, ascending: the newest, and multiples of `keep_every`."""
    ordered = sorted(steps)
    if training.keep_snapshots is None:
        return ordered
    newest = set(ordered[-training.keep_snapshots :])
    every = training.keep_every
    return [step for step in ordered if step in newest or (every is not None and step % every == 0)]


def save(options: Options, checkpoint: Checkpoint, training: TrainingConfig) -> None:
    """Write ckpt_{step}.pth, and make it ckpt.pth too. Each is whole at every moment.

    Older ones go where the config says so, but none before this one was read back.
    """
    path = options.log_dir / f"ckpt_{checkpoint.step}.pth"
    native.save(path, checkpoint)
    files.link(path, options.log_dir / "ckpt.pth")
    snapshots = {step: file for step, file in _numbered(options.log_dir, "ckpt", ".pth").items()
                 if step <= checkpoint.step}  # fmt: skip
    protected = _last_step_that_kept_all(options.log_dir)
    gone = [step for step in snapshots.keys() - kept(snapshots, training) if step > protected]
    if gone and _is_sound(path, checkpoint):
        for step in gone:
            snapshots[step].unlink()


def _numbered(folder: Path, stem: str, suffix: str) -> dict[int, Path]:
    """The files `{stem}_{step}{suffix}` of a run, by step."""
    found = {path.name[len(stem) + 1 : -len(suffix)]: path for path in folder.glob(f"{stem}_*{suffix}")}
    return {int(step): path for step, path in found.items() if step.isdecimal()}


def _is_sound(path: Path, checkpoint: Checkpoint) -> bool:
    """Whether the file holds the checkpoint's weights; a warning where it does not."""
    try:
        if weights_hash(load_checkpoint(path).model) == weights_hash(checkpoint.model):
            return True
        fault = "other weights than were written"
    except Refusal as error:
        fault = str(error)
    logging.warning(f"older snapshots stay: {path} was read back and is not whole ({fault})")
    return False


def _last_step_that_kept_all(folder: Path) -> int:
    """Until this step the run's config had no keep_snapshots; 0 if it always had."""
    configs = {step: _read(path) for step, path in _numbered(folder, "config", ".yml").items()}
    kept_all = [step for step, config in configs.items() if not config or not config.training.keep_snapshots]
    return max(kept_all, default=0)


def _read(path: Path) -> Config | None:
    """A config that a run left; None where there is none, or upstream's, a pickle of Python objects."""
    try:
        return load_config(str(path.absolute()))
    except Refusal:
        return None


def record_changes(options: Options, config: Config, step: int) -> None:
    """Of a run that goes on after `step`: log what its config changed, and make config.yml the one in force.

    The older one stays as config_{step}.yml, which says that it held until that step.
    """
    path = options.log_dir / "config.yml"
    before = _read(path)
    if before == config:
        return
    if before is not None:
        now, then = asdict(config), asdict(before)
        for section, keys in now.items():
            for key, value in keys.items():
                if value != (old := then[section][key]):
                    logging.info(f"changed after step {step}: {section}.{key} is {value}, was {old}")
    older = path.with_name(f"config_{step}.yml")
    if path.exists() and not older.exists():  # else the older one made no step
        path.rename(older)
    files.write_text(path, to_yaml(config))
