"""What a command leaves: a table on the terminal, and the files that were asked for."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.config import OutputConfig
from loldu.errors import LoLDUError
from loldu.files import write_atomically

logger = logging.getLogger(__name__)
STDOUT = Path("-")


def refuse_to_overwrite(paths: Sequence[Path | None], *, overwrite: bool) -> None:
    """Raise if results of an earlier call are there and are not to be replaced.

    Raises:
        LoLDUError: naming the first such file, or a folder that cannot be written into.
    """
    named = [path for path in paths if path not in (None, STDOUT)]
    for path in named:
        assert path is not None
        if path.is_dir():
            raise LoLDUError(f"{path} is a folder; name a file to write.")
        if named.count(path) > 1:
            raise LoLDUError(f"{path} is given for two files; name another for one of them.")
        if path.exists() and not overwrite:
            raise LoLDUError(
                f"{path} is there already: replace it with --overwrite, or name another."
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LoLDUError(
                f"{path} cannot be written: {path.parent} is no folder and cannot be made one "
                f"({error.strerror})."
            ) from error
        if not os.access(path.parent, os.W_OK):
            raise LoLDUError(f"{path} cannot be written: {path.parent} is not yours to write into.")


def write(
    output: OutputConfig, table: str, told: Mapping[str, Any], page: Callable[[], str]
) -> None:
    """Print the table, or the JSON in its place, and write the files asked for."""
    text = json.dumps(told, indent=2) + "\n"
    print(text if output.json == STDOUT else table)  # noqa: T201
    written = []
    if output.json not in (None, STDOUT):
        write_atomically(output.json, text)
        written.append(output.json)
    if output.html:
        write_atomically(output.html, page())
        written.append(output.html)
    if written:
        logger.info("Wrote %s", " and ".join(map(str, written)))
