"""`python -m eval score` and `python -m eval report`; `--help` explains every option."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import tyro
from transformers.utils import logging as transformers_logging

from eval.config import ReportConfig, ScoreConfig, ScoringConfig
from eval.report import report
from eval.score import score
from loldu import ConceptError
from trainer.errors import TrainerError
from trainer.preset import preset_flags

PRESETS = Path(__file__).parent / "presets"

Command = (
    Annotated[ScoreConfig, tyro.conf.subcommand("score")]
    | Annotated[ReportConfig, tyro.conf.subcommand("report")]
)


def parse(argv: Sequence[str]) -> ScoreConfig | ReportConfig:
    """Return the config of a command line; a preset's flags come first, so the person's win.

    Raises:
        TrainerError: For an unknown preset or an unknown key in it.
        SystemExit: From tyro, with status 2, for an unknown flag or a value of the wrong type.
    """
    arguments = list(argv)
    if arguments[:1] == ["report"]:
        options = [option.name for part in (ReportConfig, ScoringConfig) for option in fields(part)]
        arguments[1:1] = preset_flags(arguments, PRESETS, options)
    return tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]  a union of annotated types is a form
        args=arguments,
        prog="python -m eval",
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command, and tell a person's mistake in one line with exit status 2."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("eval").setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        if isinstance(config, ScoreConfig):
            score(config)
        else:
            report(config)
    except (TrainerError, ConceptError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped; nothing was written.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run())
