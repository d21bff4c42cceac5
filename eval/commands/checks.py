"""Check option values before anything is loaded."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from eval.report.output import STDOUT
from loldu.errors import LoLDUError

_AT_LEAST_ONE = ("num_inference_steps", "batch_size", "bootstrap_samples")


def check(config: Any) -> None:  # noqa: ANN401  any command's config
    """Raise an error for the first invalid option.

    Raises:
        LoLDUError: If a value is invalid; the message names the flag and a remedy.
    """
    values = dict(_values(config))
    for flag in _AT_LEAST_ONE:
        if values.get(flag, 1) < 1:
            raise LoLDUError(f"--{flag} is {values[flag]}; it must be at least 1.")
    if not math.isfinite(values.get("guidance_scale", 0)):
        raise LoLDUError(f"--guidance_scale is {values['guidance_scale']}; it must be a number.")
    scale = values.get("clip_t_scale")
    if scale is not None and not (scale > 0 and math.isfinite(scale)):
        raise LoLDUError(f"--clip_t_scale is {scale}; it must be above 0, such as 2.5.")
    for flag in ("html", "plot"):
        if values.get(flag) == STDOUT:
            raise LoLDUError(f"--{flag} - is not a file; only --json can be printed.")
    seeds = values.get("seeds", (0,))
    if not seeds:
        raise LoLDUError("--seeds is empty: give some, such as 0 1 2 3.")
    if len(set(seeds)) < len(seeds):
        raise LoLDUError(f"--seeds has a duplicate ({' '.join(map(str, seeds))}); all must differ.")


def _values(config: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yield name and value of every option, also of nested configs."""
    for option in fields(config):
        value = getattr(config, option.name)
        if is_dataclass(value):
            yield from _values(value)
        else:
            yield option.name, value
