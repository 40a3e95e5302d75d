"""The command line of DDIM: train, sample, evaluate. `python main.py --help`."""

import errno
import os
import sys
import traceback

from configs import Config, changed, config_from, load_config, plain
from configs.arguments import parse
from configs.options import Options, fit
from configs.refusal import Refusal, one_line

NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
INTERRUPTED = (
    "interrupted; nothing is lost: images go on with the same command, training with --resume_training"
)
OUT_OF_MEMORY = "there is too little memory for this; a smaller batch, or fewer images, need less"


def main(argv: list[str]) -> int:
    """Run one command. Returns 0, 2 for a user's mistake, 1 for another failure, 130 for an interrupt,
    143 for SIGTERM.

    What can be told in a sentence is; a bug keeps its traceback.
    """
    debug = "debug" in argv
    try:
        options = parse(argv)
        if options.mode == "new_config":
            from runners.tools.new_config import new_config

            new_config(options)
            return 0
        config = _config(options)
        if config is not None:
            options = fit(options, config)

        # Not before the command is known to be right: this imports torch, which takes seconds.
        from functions.runtime.stopping import Stopped
        from runners import session
        from runners.diffusion import Diffusion
        from runners.tools.inspection import inspect

        with session(options) as device:
            if config is None or options.mode == "inspect":
                inspect(options, config)
            else:
                try:
                    getattr(Diffusion(config, device), options.verb)(options)
                except Stopped as stopped:
                    print(f"main.py: {stopped}", file=sys.stderr)
                    return stopped.code
    except Refusal as error:
        return _fail(error, 2, debug)
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's last flush fails too
        return 1
    except (OSError, FloatingPointError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
            where = f"{error.filename} cannot be used ({error.strerror})"
            return _fail(f"{where}; --exp names the folder for all that is written", 2, debug)
        return _fail(error, 1, debug)
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, 130, False)
    return 0


def _config(options: Options) -> Config | None:
    """The config that was named, or else the one that comes with the checkpoint. --inspect needs none."""
    if "config" in options.given:
        return load_config(options.config, options.changes)
    if options.mode == "inspect":
        return None
    from functions.weights.pretrained import own_config  # imports torch

    config = own_config(options.config)
    return config_from(changed(plain(config), options.changes), options.config) if options.changes else config


def _fail(error: Exception | str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    sentence = one_line(str(error)) or OUT_OF_MEMORY
    print(f"main.py: error: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
