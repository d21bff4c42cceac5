"""From the command line to a Config: TOML presets become flags placed before the person's own."""

from collections.abc import Sequence
from pathlib import Path

import tyro

from loldu.errors import LoLDUError
from loldu.presets import preset_flags
from trainer.options.checks import check, check_fit
from trainer.options.config import Config, option_names

PRESETS = Path(__file__).parent.parent / "presets"


def parse(argv: Sequence[str]) -> Config:
    """The Config of a command line; one parser validates presets and flags, the last value wins.

    Raises:
        LoLDUError: for an unknown preset, an unknown key in it, or a value that cannot work.
        SystemExit: from tyro, with status 2, for an unknown flag or a value of the wrong type.
    """
    flags = [*preset_flags(argv, PRESETS, option_names()), *argv]
    config = tyro.cli(
        Config,
        args=["--output_dir", ".", *flags],  # the doctor needs none, and tyro would ask for it
        prog="python -m trainer",
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if not config.run.doctor_only and "output_dir" not in _named(flags):
        raise LoLDUError("--output_dir is missing: name a folder for the run.")
    check(config)
    check_fit(config, _named(argv))
    return config


def _named(flags: Sequence[str]) -> dict[str, str]:
    """The options that flags are of, with the flag of each as it was written."""
    written = [flag.partition("=")[0] for flag in flags if flag.startswith("--")]
    return {flag[2:].replace("-", "_").removeprefix("no_"): flag for flag in written}
