"""Output of a command: a table on the terminal, and the requested files."""

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
    """Raise an error if a file cannot be written or exists already.

    Raises:
        LoLDUError: If a file exists and `overwrite` is false, or a folder is not writable.
    """
    named = [path for path in paths if path not in (None, STDOUT)]
    for path in named:
        assert path is not None
        if path.is_dir():
            raise LoLDUError(f"{path} is a folder; give the name of a file.")
        if named.count(path) > 1:
            raise LoLDUError(f"{path} is given for two files; choose another name for one of them.")
        if path.exists() and not overwrite:
            raise LoLDUError(f"{path} exists; replace it with --overwrite, or choose another file.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LoLDUError(
                f"{path} cannot be written: {path.parent} is not a folder and cannot be created "
                f"({error.strerror})."
            ) from error
        if not os.access(path.parent, os.W_OK):
            raise LoLDUError(f"{path} cannot be written: no write permission for {path.parent}.")


def write(
    output: OutputConfig, table: str, content: Mapping[str, Any], page: Callable[[], str]
) -> None:
    """Print the table, or the JSON if it goes to `STDOUT`, and write the requested files."""
    text = json.dumps(content, indent=2) + "\n"
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
