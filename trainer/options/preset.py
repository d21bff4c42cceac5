"""From a command line, or values by option name, to a Config."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

from loldu.command import program
from loldu.errors import LoLDUError
from loldu.options import build, options, typed_values
from loldu.presets import installed_path, preset_values, typed_options, with_list, with_preset
from trainer.options.checks import check, check_fit
from trainer.options.config import Config

PRESETS = Path(__file__).parent.parent / "presets"
"""Folder of the shipped presets; a TOML file in it is a preset of every command and page."""


def parse(argv: Sequence[str]) -> Config:
    """Return the Config of a command line: flags override the preset, which overrides defaults.

    Raises:
        LoLDUError: If the preset is unknown or has an unknown option, or a value cannot work.
        SystemExit: From tyro, with status 2, for an unknown flag or a value of the wrong type.
    """
    values, typed = preset_values(argv, PRESETS, options(Config)), typed_options(argv)
    config = tyro.cli(
        Config,
        args=["--output_dir", ".", *argv],  # the doctor needs none, and tyro would ask for it
        description=with_list(Config.__doc__ or "", PRESETS),
        prog=program("trainer"),
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    config = with_preset(config, values, argv)
    if (pictures := config.instance.instance_data_dir) is not None:  # may be a shipped example
        found = Path(installed_path(str(pictures)))
        config = replace(config, instance=replace(config.instance, instance_data_dir=found))
    if not config.run.doctor_only and "output_dir" not in {*values, *typed}:
        raise LoLDUError("--output_dir is missing: name a folder for the run.")
    check(config)
    check_fit(config, typed)
    return config


def configure(values: Mapping[str, Any], where: str = "The training") -> Config:
    """Return the Config with these values by option name; the others are at their defaults.

    Args:
        values: Values in TOML's types or those of their options.
        where: Name of their source, for messages.

    Raises:
        LoLDUError: If an option is unknown, a value has the wrong type or cannot work.
    """
    config = build(Config, typed_values(values, options(Config), where))
    check(config)
    check_fit(config, {})
    return config
