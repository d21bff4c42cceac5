"""A cache of features, by the content of the picture and the identity of the encoder."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eval.encoders.encoder import Identity
from loldu.errors import LoLDUError

READER = 1
"""Version of the code that reads pictures; raise it to make older cache entries unused."""
_QUERY_SIZE = 500
_TABLES = """
CREATE TABLE IF NOT EXISTS features (
    extractor TEXT, content TEXT, row BLOB, PRIMARY KEY (extractor, content)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (question TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS black (content TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class FeatureCache:
    """A SQLite file of feature rows. Several processes may share it, and it may be deleted.

    The key of a row is the SHA-256 of the picture's file with the encoder's library, weights and
    preprocessing: a renamed file is found, an edited file is computed again.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            LoLDUError: If it cannot be created, or is not such a database.
        """
        self._path = path
        with self._explained_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=60)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.executescript(_TABLES)

    def get(self, identity: Identity, contents: Sequence[str]) -> dict[str, Float[Tensor, " d"]]:
        """Return the cached rows, by content."""
        key, found = _key(identity), {}
        for start in range(0, len(contents), _QUERY_SIZE):
            batch = contents[start : start + _QUERY_SIZE]
            placeholders = ", ".join("?" * len(batch))
            query = (
                "SELECT content, row FROM features WHERE extractor = ? "
                f"AND content IN ({placeholders})"
            )
            with self._explained_errors():
                for content, row in self._database.execute(query, (key, *batch)):
                    found[content] = torch.from_numpy(np.frombuffer(row, dtype=np.float32).copy())
        return found

    def put(self, identity: Identity, rows: Mapping[str, Float[Tensor, " d"]]) -> None:
        """Store rows by content, all or none."""
        key = _key(identity)
        entries = [(key, content, row.numpy().tobytes()) for content, row in rows.items()]
        with self._explained_errors(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", entries)

    def get_answer(self, key: str) -> str | None:
        """Return a judge's stored answer, or None."""
        with self._explained_errors():
            query = "SELECT answer FROM answers WHERE question = ?"
            found = self._database.execute(query, (key,)).fetchone()
        return found[0] if found else None

    def put_answer(self, key: str, answer: str) -> None:
        """Store a judge's answer."""
        with self._explained_errors(), self._database:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer))

    def black(self, contents: Sequence[str]) -> set[str]:
        """Return which of these pictures are known to be completely black."""
        with self._explained_errors():
            known = {content for (content,) in self._database.execute("SELECT content FROM black")}
        return known & set(contents)

    def put_black(self, contents: Sequence[str]) -> None:
        """Store which pictures are completely black."""
        with self._explained_errors(), self._database:
            self._database.executemany(
                "INSERT OR IGNORE INTO black VALUES (?)", [(content,) for content in contents]
            )

    @contextmanager
    def _explained_errors(self) -> Generator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise LoLDUError(
                f"The feature cache {self._path} cannot be used ({error}); choose another with "
                "--cache_file, or pass --no_cache."
            ) from error


def _key(identity: Identity) -> str:
    library = identity.library.split()[0]  # versions of one library differ in rounding alone
    parts = (READER, library, identity.weights, identity.preprocess)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
