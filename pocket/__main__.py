"""``python -m pocket pretrain | concepts``: makes the embedded base and the example concepts."""

import logging
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from loldu.command import run_command
from pocket.concepts import render_concept
from pocket.pretrain import Pretraining, pretrain
from pocket.world import CONCEPTS

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Pretrain:
    """Render the world and train every part of the base. You can stop and restart it.

    Attributes:
        output: Folder for `base` and `encoders`.
        build: Folder for work files, 2 GB: the corpus, checkpoints, logs.
        settings: Amounts of everything.
    """

    output: Path = _HERE
    build: Path = Path.home() / ".cache" / "loldu" / "pocket"
    settings: tyro.conf.OmitArgPrefixes[Pretraining] = field(default_factory=Pretraining)

    def run(self) -> None:
        """Run the command."""
        pretrain(self.output, self.build, self.settings)


@dataclass(frozen=True)
class Concepts:
    """Render the held-out concepts: for each, five pictures and up to six more for scoring.

    Attributes:
        output: Folder that gets one folder per concept.
        token: Rare token in the captions.
    """

    output: Path = _HERE.parent / "datasets" / "concepts"
    token: str = "sks"

    def run(self) -> None:
        """Run the command."""
        for name, look in CONCEPTS.items():
            render_concept(name, look, self.output / name, self.token)


def main() -> int:
    """Run the command line and return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    commands = (
        Annotated[Pretrain, tyro.conf.subcommand("pretrain")]
        | Annotated[Concepts, tyro.conf.subcommand("concepts")]
    )
    parse = partial(tyro.cli, commands, prog="python -m pocket")  # type: ignore[arg-type]
    return run_command(lambda: parse().run())


if __name__ == "__main__":
    sys.exit(main())
