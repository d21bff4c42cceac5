"""``python -m experiments.bases pretrain vit | roberta | llama``: trains the small base models."""

import logging
import sys
from collections.abc import Sequence

import tyro

from experiments.bases.llama import pretrain_llama
from experiments.bases.roberta import pretrain_roberta
from experiments.bases.vit import pretrain_vit
from loldu.command import run_command
from loldu.errors import LoLDUError

PRETRAININGS = {"vit": pretrain_vit, "roberta": pretrain_roberta, "llama": pretrain_llama}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = list(sys.argv[1:] if argv is None else argv)
    prog = "python -m experiments.bases pretrain"

    def run() -> None:
        if arguments[:1] not in (["pretrain"], ["--help"], ["-h"]):
            raise LoLDUError(f"The only command is pretrain: `{prog} vit`, `roberta` or `llama`.")
        flags = arguments[arguments[0] == "pretrain" :]
        config = (tyro.conf.OmitArgPrefixes,)
        tyro.extras.subcommand_cli_from_dict(PRETRAININGS, prog=prog, args=flags, config=config)

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
