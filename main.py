"""The command line of DDIM: train, sample, interpolate. `python main.py --help`."""

import logging
import sys

from configs import load_config
from configs.options import complete, parse

INTERRUPTED = "interrupted; what was written is whole: --resume_training continues a run, the same command continues images"


def main(argv: list[str]) -> int:
    """Run one command. Returns 0, 2 for a mistake of the user's, 1 for any other failure, 130 for an interrupt.

    What can be told in a sentence is; a bug keeps its traceback.
    """
    try:
        options = parse(argv)
        config = load_config(options.config)
        options = complete(options, config)
    except ValueError as error:
        return _fail(error, 2)

    # Not before the command is known to be sound: these take seconds, for they import torch.
    from torch import OutOfMemoryError

    from functions.progress import start_logging
    from runners import run

    start_logging(options.verbose)
    try:
        run(options, config)
    except (ValueError, OSError, FloatingPointError, OutOfMemoryError) as error:
        if options.verbose == "debug":
            logging.exception("the error below came from here")
        return _fail(error, 2 if isinstance(error, ValueError) else 1)
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, 130)
    return 0


def _fail(error: Exception | str, code: int) -> int:
    print(f"main.py: error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
