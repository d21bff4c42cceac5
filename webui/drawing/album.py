"""The pictures that were drawn, kept on disk for whoever drew them."""

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
    """A picture of the album, a PNG; `id` is what it is asked for by and never a path."""

    id: str
    path: Path


class Album:
    """A folder of pictures for every owner, of which the oldest go when there are too many."""

    def __init__(self, folder: Path, limit: int = 200) -> None:
        """Keep so many pictures of each owner in a folder; it is made when there is one to keep."""
        self._folder = folder
        self._limit = limit

    def keep(self, owner: str, pictures: Sequence[tuple[Settings, bytes]]) -> None:
        """Keep PNGs, the first one as the newest; of the same settings there is one.

        Raises:
            LoLDUError: the disk does not take them.
        """
        folder, now = self._of(owner), time.time_ns()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for place, (settings, content) in enumerate(pictures):
                path = folder / f"{_name_of(settings)}.png"
                write_atomically(path, content)
                os.utime(path, ns=(now - place, now - place))
        except OSError as error:
            raise LoLDUError(f"The pictures cannot be kept ({error.strerror}).") from error
        for kept in self.list(owner)[self._limit :]:
            kept.path.unlink(missing_ok=True)

    def list(self, owner: str) -> tuple[Kept, ...]:
        """The pictures of an owner, newest first."""
        dated: list[tuple[int, Path]] = []
        for path in self._of(owner).glob("*.png"):
            with suppress(FileNotFoundError):  # deleted in another window at this moment
                dated.append((path.stat().st_mtime_ns, path))
        return tuple(Kept(path.stem, path) for _, path in sorted(dated, reverse=True))

    def get(self, picture_id: str | None, owner: str) -> Kept:
        """A picture of an owner.

        Raises:
            LoLDUError: there is none of that id, or it is somebody else's, which is not told.
        """
        for kept in self.list(owner):
            if kept.id == picture_id:
                return kept
        raise LoLDUError("That picture is gone: choose another.")

    def delete(self, picture_id: str | None, owner: str) -> None:
        """Delete a picture for good.

        Raises:
            LoLDUError: there is none of that id for them.
        """
        self.get(picture_id, owner).path.unlink(missing_ok=True)

    def _of(self, owner: str) -> Path:
        # A name may be anything, and a folder's name may not.
        return self._folder / hashlib.sha256(owner.encode()).hexdigest()[:32]


def _name_of(settings: Settings) -> str:
    return hashlib.sha256(settings.as_json().encode()).hexdigest()[:32]
