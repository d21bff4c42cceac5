"""`python -m trainer`: parse first, so that --help and a mistyped flag answer at once."""

import logging
import sys
from collections.abc import Sequence

from loldu.command import attempt, report
from trainer.options.preset import parse


def run(argv: Sequence[str] | None = None) -> int:
    """Train, and return the exit status: 2 after a mistake, 130 after a stop."""
    return report(lambda: outcome(sys.argv[1:] if argv is None else argv))


def outcome(argv: Sequence[str]) -> tuple[int, str]:
    """Train, and return the exit status and a sentence for people, "" after success."""
    logging.basicConfig(format="%(message)s")
    for package in ("loldu", "trainer"):
        logging.getLogger(package).setLevel(logging.INFO)

    def train() -> None:
        config = parse(argv)
        if config.run.doctor_only:
            from trainer.training.doctor import diagnose

            diagnose(config)
            return
        from trainer.train_dreambooth_loldu import main
        from trainer.training.memory import out_of_memory_in_one_sentence

        with out_of_memory_in_one_sentence(config):
            main(config)

    return attempt(train, "Stopped; --resume latest continues from the last checkpoint.")


if __name__ == "__main__":
    sys.exit(run())
