"""`python -m trainer`, or `loldu-train`; --help and a mistyped flag answer before torch loads."""

import sys
from collections.abc import Sequence

from trainer import command
from trainer.options.config import Config


def run(argv: Sequence[str] | None = None) -> int:
    """Train, and return the exit status: 2 after a mistake, 130 after a stop."""
    return command.run(sys.argv[1:] if argv is None else argv, _train)


def outcome(argv: Sequence[str]) -> tuple[int, str]:
    """Train, and return the exit status and a sentence for people, "" after success."""
    return command.outcome(argv, _train)


def _train(config: Config) -> None:
    if config.fleet.on is not None:
        from trainer.fleet import train_fleet

        train_fleet(config)
        return
    from trainer.train_dreambooth_loldu import main

    main(config)


if __name__ == "__main__":
    sys.exit(run())
