"""`python -m eval COMMAND`, or `loldu-eval COMMAND`; `--help` explains every option."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from transformers.utils import logging as transformers_logging

from eval import config as options
from eval.commands.adapter import evaluate_adapter
from eval.commands.calibrate import calibrate
from eval.commands.checks import check
from eval.commands.compare import compare
from eval.commands.images import evaluate_images
from eval.commands.suite import evaluate_suite
from loldu.command import attempt, report
from loldu.options import options as known_options
from loldu.presets import preset_values, with_preset

PRESETS = Path(__file__).parent / "presets"

Command = (
    Annotated[options.ImagesConfig, tyro.conf.subcommand("images")]
    | Annotated[options.AdapterConfig, tyro.conf.subcommand("adapter")]
    | Annotated[options.SuiteConfig, tyro.conf.subcommand("suite")]
    | Annotated[options.CalibrateConfig, tyro.conf.subcommand("calibrate")]
    | Annotated[options.CompareConfig, tyro.conf.subcommand("compare")]
)
RUN: dict[type, Callable[[Any], None]] = {
    options.ImagesConfig: evaluate_images,
    options.AdapterConfig: evaluate_adapter,
    options.SuiteConfig: evaluate_suite,
    options.CalibrateConfig: calibrate,
    options.CompareConfig: compare,
}


def parse(argv: Sequence[str]) -> Any:  # noqa: ANN401
    """Return the config of a command line: flags override the preset, which overrides defaults.

    Raises:
        LoLDUError: For an unknown preset, an unknown key in it, or a value that cannot work.
        SystemExit: From tyro, with status 2, for an unknown flag or a value of the wrong type.
    """
    arguments, values = list(argv), {}
    if arguments[:1] == ["adapter"]:
        values = preset_values(argv, PRESETS, known_options(options.AdapterConfig))
        for name in {"concept", "output_dir"} & values.keys():  # tyro would ask for them
            arguments[1:1] = [f"--{name}", str(values[name])]
    config = tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]  a union of annotated types is a form
        args=arguments,
        prog="python -m eval",
        description="Score personalization: DINO, CLIP-I, CLIP-T, diversity and drift.",
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    config = with_preset(config, values, argv) if values else config
    check(config)
    return config


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status: 2 after a mistake, told in one sentence."""
    return report(lambda: outcome(sys.argv[1:] if argv is None else argv))


def outcome(argv: Sequence[str]) -> tuple[int, str]:
    """Run the command, and return its exit status and a sentence for people, "" after success."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("eval").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()

    def score() -> None:
        config = parse(argv)
        RUN[type(config)](config)

    return attempt(score, "Stopped; the same command continues from here.")


if __name__ == "__main__":
    sys.exit(run())
