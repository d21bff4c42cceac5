"""A command line of the trainer: parse it, look at the pictures or train, and return the status."""

import logging
from collections.abc import Callable, Sequence

from loldu.command import attempt, report
from trainer.options.config import Config
from trainer.options.preset import parse

Train = Callable[[Config], None]


def run(argv: Sequence[str], train: Train) -> int:
    """Train, and return the exit status: 2 after a mistake, 130 after a stop."""
    return report(lambda: outcome(argv, train))


def outcome(argv: Sequence[str], train: Train) -> tuple[int, str]:
    """Train, and return the exit status and a sentence for people, "" after success.

    Args:
        argv: The flags.
        train: Trains; the callers import it, because it loads torch.
    """
    logging.basicConfig(format="%(message)s")
    for package in ("loldu", "trainer"):
        logging.getLogger(package).setLevel(logging.INFO)

    def run() -> None:
        config = parse(argv)
        if config.run.doctor_only:
            from trainer.training.instances import inspect_only

            inspect_only(config)
            return
        from trainer.training.memory import out_of_memory_in_one_sentence

        with out_of_memory_in_one_sentence(config):
            train(config)

    return attempt(run, "Stopped; --resume latest continues from the last checkpoint.")
