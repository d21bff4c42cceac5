"""Form of Teach and prompt of Play as a person left them, kept over a reload and a restart."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from loldu.files import write_atomically
from webui.drawing.settings import MAX_PROMPT
from webui.teaching.crops import Crop
from webui.teaching.uploads import Upload


@dataclass(frozen=True)
class Draft:
    """A form that a person has filled in so far."""

    pictures: tuple[tuple[Upload, Crop], ...] = ()
    name: str = ""
    class_name: str = ""
    token: str = ""


class Drafts:
    """Files of each owner; `Uploads` keeps the pictures of a draft for a day."""

    def __init__(self, folder: Path, sent: Path) -> None:
        """Make the folder.

        Args:
            folder: Folder of the drafts.
            sent: Folder of the uploaded pictures.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._sent = folder, sent

    def save(self, owner: str, draft: Draft) -> None:
        """Keep a draft in the place of the owner's last one, and its pictures for another day."""
        pictures: list[Mapping[str, Any]] = []
        for upload, crop in draft.pictures:
            with suppress(OSError):
                os.utime(upload.path)
            pictures.append(
                {
                    "file": upload.path.name,
                    "name": upload.name,
                    "size": upload.size,
                    "crop": (crop.zoom, crop.x, crop.y),
                    "caption": upload.caption,
                }
            )
        text = {"name": draft.name, "class_name": draft.class_name, "token": draft.token}
        content = json.dumps({"pictures": pictures, **text})
        write_atomically(self._path(owner), content.encode())

    def load(self, owner: str) -> Draft:
        """Return the owner's draft without pictures that are gone; an unreadable one is empty."""
        try:
            content = json.loads(self._path(owner).read_bytes())
            pictures = tuple(self._pictures(content["pictures"]))
            texts = [str(content[name])[:200] for name in ("name", "class_name", "token")]
        except (OSError, ValueError, KeyError, TypeError):
            return Draft()
        return Draft(pictures, *texts)

    def keep_prompt(self, owner: str, prompt: str) -> None:
        """Keep the prompt that the owner typed in Play."""
        write_atomically(self._path(owner, "txt"), prompt.encode())

    def prompt(self, owner: str) -> str:
        """Return the prompt that the owner typed last in Play, or ""."""
        try:
            return self._path(owner, "txt").read_text(encoding="utf-8")[:MAX_PROMPT]
        except (OSError, ValueError):
            return ""

    def _pictures(self, kept: Sequence[Mapping[str, Any]]) -> list[tuple[Upload, Crop]]:
        found: list[tuple[Upload, Crop]] = []
        for one in kept:
            path = self._sent / Path(one["file"]).name
            width, height = cast(list[int], one["size"])
            if path.is_file():
                upload = Upload(path, one["name"], (width, height), str(one.get("caption", "")))
                found.append((upload, Crop(*one["crop"])))
        return found

    def _path(self, owner: str, suffix: str = "json") -> Path:
        return self._folder / f"{hashlib.sha256(owner.encode()).hexdigest()[:32]}.{suffix}"
