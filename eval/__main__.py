"""`python -m eval COMMAND`, or `loldu-eval COMMAND`; `--help` explains every option."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from eval import config as options
from eval.commands.checks import check
from eval.metrics import METRICS
from eval.protocols.named import with_protocol
from loldu.command import attempt, program, report
from loldu.options import options as known_options
from loldu.presets import preset_values, typed_options, with_list, with_preset

PRESETS = Path(__file__).parent / "presets"

_ADAPTER = with_list(options.AdapterConfig.__doc__ or "", PRESETS)
Command = (
    Annotated[options.ImagesConfig, tyro.conf.subcommand("images")]
    | Annotated[options.AdapterConfig, tyro.conf.subcommand("adapter", description=_ADAPTER)]
    | Annotated[options.SuiteConfig, tyro.conf.subcommand("suite")]
    | Annotated[options.CalibrateConfig, tyro.conf.subcommand("calibrate")]
    | Annotated[options.CompareConfig, tyro.conf.subcommand("compare")]
)


def parse(argv: Sequence[str]) -> Any:  # noqa: ANN401
    """Return the config of a command line.

    Flags override the preset, which overrides the protocol, which overrides defaults.

    Raises:
        LoLDUError: If the preset or one of its keys is unknown, or a value is invalid.
        SystemExit: If tyro finds an unknown flag or a value of the wrong type (status 2).
    """
    arguments, values = list(argv), {}
    if arguments[:1] == ["adapter"]:
        values = preset_values(argv, PRESETS, known_options(options.AdapterConfig))
        for name in {"concept", "output_dir"} & values.keys():  # tyro would ask for them
            arguments[1:1] = [f"--{name}", str(values[name])]
    metrics = ", ".join(metric.title for metric in METRICS.values())
    config = tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]  a union of annotated types is a form
        args=arguments,
        prog=program("eval"),
        description=f"Score personalization: {metrics}.",
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    config = with_preset(config, values, argv) if values else config
    config = with_protocol(config, {*typed_options(argv), *values})
    check(config)
    return config


def run(argv: Sequence[str] | None = None) -> int:
    """Run a command line, and return its exit status; a user's mistake is one line and status 2."""
    return report(lambda: outcome(sys.argv[1:] if argv is None else argv))


def outcome(argv: Sequence[str]) -> tuple[int, str]:
    """Run a command line, and return its exit status and the error message, "" after success.

    The status is 1 if a score failed its limit.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("eval").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry

    failed: list[str] = []

    def score() -> None:
        config = parse(argv)
        _quiet_transformers()
        failed.append(_command(config)(config) or "")

    status, sentence = attempt(score, "Stopped; run the same command again to continue.")
    return (1, failed[0]) if failed and failed[0] else (status, sentence)


def _command(config: object) -> Callable[[Any], str | None]:
    """Return the function of a command; its libraries take seconds to import."""
    match config:
        case options.ImagesConfig():
            from eval.commands.images import evaluate_images as command
        case options.AdapterConfig():
            from eval.commands.adapter import evaluate_adapter as command
        case options.SuiteConfig():
            from eval.commands.suite import evaluate_suite as command
        case options.CalibrateConfig():
            from eval.commands.calibrate import calibrate as command
        case _:
            from eval.commands.compare import compare as command
    return command


def _quiet_transformers() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(run())
