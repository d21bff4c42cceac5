"""``python -m experiments.bases pretrain vit | roberta | llama``: trains the small base models."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from experiments.bases.llama import LlamaPretraining, pretrain_llama
from experiments.bases.roberta import RobertaPretraining, pretrain_roberta
from experiments.bases.vit import VitPretraining, pretrain_vit
from loldu.command import run_command
from loldu.errors import LoLDUError

_WEIGHTS = Path(__file__).parent / "weights"
_BUILD = Path.home() / ".cache" / "loldu" / "pocket"


@dataclass(frozen=True)
class Vit:
    """Train the base of the image experiments on the world's labels. You can stop and restart it.

    Attributes:
        output: Folder for the model, in transformers' format; it is replaced.
        build: Folder for work files, 1 GB: the corpus, checkpoints, logs.
        settings: Amounts; the defaults take a quarter of an hour on one core.
    """

    output: Path = _WEIGHTS / "vit"
    build: Path = _BUILD
    settings: tyro.conf.OmitArgPrefixes[VitPretraining] = field(default_factory=VitPretraining)

    def run(self) -> None:
        """Run the command."""
        pretrain_vit(self.output, self.build, self.settings)


@dataclass(frozen=True)
class Roberta:
    """Train the base of the text experiments by masking words. You can stop and restart it.

    Attributes:
        output: Folder for the model, in transformers' format.
        build: Folder for work files: checkpoints, logs.
        settings: Amounts; the defaults take a quarter of an hour on one core.
    """

    output: Path = _WEIGHTS / "roberta"
    build: Path = _BUILD
    settings: tyro.conf.OmitArgPrefixes[RobertaPretraining] = field(
        default_factory=RobertaPretraining
    )

    def run(self) -> None:
        """Run the command."""
        pretrain_roberta(self.output, self.build, self.settings)


@dataclass(frozen=True)
class Llama:
    """Train the small LLaMA on texts of the world. You can stop and restart it.

    Attributes:
        output: Folder for the model, in transformers' format.
        build: Folder for work files: checkpoints, logs.
        settings: Amounts; the defaults take about 40 minutes on one core.
    """

    output: Path = _WEIGHTS / "llama"
    build: Path = _BUILD
    settings: tyro.conf.OmitArgPrefixes[LlamaPretraining] = field(default_factory=LlamaPretraining)

    def run(self) -> None:
        """Run the command."""
        pretrain_llama(self.output, self.build, self.settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = (
        Annotated[Vit, tyro.conf.subcommand("vit")]
        | Annotated[Roberta, tyro.conf.subcommand("roberta")]
        | Annotated[Llama, tyro.conf.subcommand("llama")]
    )
    arguments = list(sys.argv[1:] if argv is None else argv)
    prog = "python -m experiments.bases pretrain"

    def run() -> None:
        if arguments[:1] not in (["pretrain"], ["--help"], ["-h"]):
            raise LoLDUError(f"The only command is pretrain: `{prog} vit`, `roberta` or `llama`.")
        flags = arguments[arguments[0] == "pretrain" :]
        tyro.cli(names, prog=prog, args=flags).run()  # type: ignore[arg-type]

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
