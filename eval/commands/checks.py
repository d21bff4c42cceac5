"""Check option values before anything is loaded."""

from typing import Any

from eval.report.limits import parse_limits
from eval.report.output import STDOUT
from loldu.errors import LoLDUError
from loldu.options import limit_problems, text_problems, values_of


def check(config: Any) -> None:  # noqa: ANN401  any command's config
    """Raise an error for the first invalid option.

    Raises:
        LoLDUError: If a value is invalid; the message names the flag and a remedy.
    """
    for problem in (*text_problems(config), *limit_problems(config)):
        raise LoLDUError(problem)
    values = values_of(config)
    parse_limits(values.get("fail_under", ()))
    for flag in ("html", "plot"):
        if values.get(flag) == STDOUT:
            raise LoLDUError(f"--{flag} - is not a file; only --json can be printed.")
    seeds = values.get("seeds", (0,))
    if not seeds:
        raise LoLDUError("--seeds is empty: give some, such as 0 1 2 3.")
    if len(set(seeds)) < len(seeds):
        raise LoLDUError(f"--seeds has a duplicate ({' '.join(map(str, seeds))}); all must differ.")
