"""The album: drawn pictures on disk, per owner."""

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loldu.errors import LoLDUError
from loldu.files import write_atomically
from webui.drawing.settings import Settings


@dataclass(frozen=True)
class Kept:
    """A PNG of the album; `id` identifies it in requests and is never used as a path."""

    id: str
    path: Path


class Album:
    """A folder of pictures per owner; the oldest are deleted beyond a limit."""

    def __init__(self, folder: Path, limit: int = 200) -> None:
        """Keep at most `limit` pictures per owner; folders are made when needed."""
        self._folder = folder
        self._limit = limit

    def keep(self, owner: str, pictures: Sequence[tuple[Settings, bytes]]) -> None:
        """Save PNGs, the first one as the newest; equal settings replace a picture.

        Raises:
            LoLDUError: If they cannot be written.
        """
        folder, now = self._of(owner), time.time_ns()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for place, (settings, content) in enumerate(pictures):
                path = folder / f"{_name_of(settings)}.png"
                write_atomically(path, content)
                os.utime(path, ns=(now - place, now - place))
        except OSError as error:
            raise LoLDUError(f"The pictures cannot be saved ({error.strerror}).") from error
        for kept in self.list(owner)[self._limit :]:
            kept.path.unlink(missing_ok=True)

    def list(self, owner: str) -> tuple[Kept, ...]:
        """Return the pictures of an owner, newest first."""
        dated: list[tuple[int, Path]] = []
        for path in self._of(owner).glob("*.png"):
            with suppress(FileNotFoundError):  # deleted in another window at this moment
                dated.append((path.stat().st_mtime_ns, path))
        return tuple(Kept(path.stem, path) for _, path in sorted(dated, reverse=True))

    def get(self, picture_id: str | None, owner: str) -> Kept:
        """Return a picture of an owner.

        Raises:
            LoLDUError: If there is none of that id, or it belongs to somebody else.
        """
        for kept in self.list(owner):
            if kept.id == picture_id:
                return kept
        raise LoLDUError("That picture is gone: choose another.")

    def delete(self, picture_id: str | None, owner: str) -> None:
        """Delete a picture.

        Raises:
            LoLDUError: If there is none of that id, or it belongs to somebody else.
        """
        self.get(picture_id, owner).path.unlink(missing_ok=True)

    def _of(self, owner: str) -> Path:
        # A hash, as usernames may hold characters that paths cannot.
        return self._folder / hashlib.sha256(owner.encode()).hexdigest()[:32]


def _name_of(settings: Settings) -> str:
    return hashlib.sha256(settings.as_json().encode()).hexdigest()[:32]
