"""The command line of DDIM: train, sample, interpolate. `python main.py --help`."""

import argparse
import sys
import traceback

from configs import Config, load_config
from configs.arguments import parse
from configs.options import complete
from configs.refusal import Refusal

INTERRUPTED = "interrupted; what was written is whole: images continue with the same command, training with --resume_training"


def main(argv: list[str]) -> int:
    """Run one command. Returns 0, 2 for a mistake of the user's, 1 for any other failure, 130 for an interrupt.

    What can be told in a sentence is; a bug keeps its traceback.
    """
    debug = False
    try:
        arguments = parse(argv)
        debug = arguments.verbose == "debug"
        config = _config(arguments)
        options = complete(arguments, config)

        # Not before the command is known to be sound: this imports torch, which takes seconds.
        from runners import run

        run(options, config)
    except Refusal as error:
        return _fail(error, 2, debug)
    except (OSError, FloatingPointError, MemoryError) as error:
        return _fail(error, 1, debug)
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, 130, False)
    return 0


def _config(arguments: argparse.Namespace) -> Config | None:
    """The config that was named, or else the one that comes with the checkpoint; --inspect needs none."""
    if arguments.config is not None:
        return load_config(arguments.config)
    if arguments.inspect is not None:
        return None
    from functions.weights.pretrained import (
        own_config,  # imports torch, to read what may be a folder of another program
    )

    return own_config(arguments.ckpt[0])


def _fail(error: Exception | str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"main.py: error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
