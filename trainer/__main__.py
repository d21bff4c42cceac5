"""`python -m trainer`: parse first, so that --help and a mistyped flag answer at once."""

import logging
import sys
from collections.abc import Sequence

from loldu.errors import LoLDUError, Stopped
from trainer.options.preset import parse


def run(argv: Sequence[str] | None = None) -> int:
    """The command: train, or tell a person's mistake in one line with exit status 2.

    A run that was asked to stop has the exit status 130, as after any Ctrl-C.
    """
    status, sentence = outcome(sys.argv[1:] if argv is None else argv)
    if sentence:
        sys.stderr.write(f"{sentence}\n")
    return status


def outcome(argv: Sequence[str]) -> tuple[int, str]:
    """Train; the exit status, and what is to be told of a run that did not reach its end."""
    logging.basicConfig(format="%(message)s")
    for package in ("loldu", "trainer"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        config = parse(argv)
        if config.run.doctor_only:
            from trainer.training.doctor import diagnose

            diagnose(config)
            return 0, ""
        from trainer.train_dreambooth_loldu import main
        from trainer.training.memory import out_of_memory_in_one_sentence

        with out_of_memory_in_one_sentence(config):
            main(config)
    except LoLDUError as error:
        return 2, str(error)
    except OSError as error:  # a full disk, a folder that may not be written
        return 2, f"{error.filename or 'A file'}: {error.strerror or error}."
    except Stopped:
        return 130, ""
    except KeyboardInterrupt:
        return 130, "Stopped; --resume latest continues from the last checkpoint."
    return 0, ""


if __name__ == "__main__":
    sys.exit(run())
