"""Features that were computed once: kept by the content of the picture and what looked at it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eval.encoders.extractors import Identity
from loldu.errors import LoLDUError

READER = 1
"""Raised whenever pictures are read in another way, so that what was kept before is not used."""
_AT_ONCE = 500
_TABLES = """
CREATE TABLE IF NOT EXISTS features (
    extractor TEXT, content TEXT, row BLOB, PRIMARY KEY (extractor, content)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS black (content TEXT PRIMARY KEY) WITHOUT ROWID;
"""


def default_cache() -> Path:
    """The file in the person's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "loldu" / "features.sqlite"


class FeatureCache:
    """A SQLite file of feature rows: safe to share between processes, and to delete.

    A row is found by the SHA-256 of the picture's file and by the extractor's weights, network and
    preprocessing: renaming a file changes nothing, editing it computes it anew.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Raises:
            LoLDUError: If it cannot be made, or is something else.
        """
        self._path = path
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=60)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.executescript(_TABLES)

    def get(self, identity: Identity, contents: Sequence[str]) -> dict[str, Float[Tensor, " d"]]:
        """The rows that are there, by content."""
        key, found = _key(identity), {}
        for start in range(0, len(contents), _AT_ONCE):
            some = contents[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            query = (
                f"SELECT content, row FROM features WHERE extractor = ? AND content IN ({marks})"
            )
            with self._told():
                for content, row in self._database.execute(query, (key, *some)):
                    found[content] = torch.from_numpy(np.frombuffer(row, dtype=np.float32).copy())
        return found

    def put(self, identity: Identity, rows: Mapping[str, Float[Tensor, " d"]]) -> None:
        """Keep rows by content, all or none."""
        key = _key(identity)
        kept = [(key, content, row.numpy().tobytes()) for content, row in rows.items()]
        with self._told(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", kept)

    def black(self, contents: Sequence[str]) -> set[str]:
        """Which of these pictures were seen to be black all over."""
        with self._told():
            known = {content for (content,) in self._database.execute("SELECT content FROM black")}
        return known & set(contents)

    def put_black(self, contents: Sequence[str]) -> None:
        """Remember pictures that are black all over."""
        with self._told(), self._database:
            self._database.executemany(
                "INSERT OR IGNORE INTO black VALUES (?)", [(content,) for content in contents]
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise LoLDUError(
                f"The feature cache {self._path} cannot be used ({error}); name another with "
                "--cache_file, or go without by --no_cache."
            ) from error


def _key(identity: Identity) -> str:
    library = identity.library.split()[0]  # another version of it rounds differently, no more
    parts = (READER, library, identity.weights, identity.preprocess)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
