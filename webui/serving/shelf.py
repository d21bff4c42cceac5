"""The concept files that a server draws with: a folder of them, here or on an object store."""

import hashlib
import json
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from loldu.errors import LoLDUError, hint
from loldu.files import drafted
from webui.drawing.facts import Facts, facts_of
from webui.drawing.words import has
from webui.library.collection import ENTRY, read_record
from webui.library.entry import CONCEPT, Entry

_FRESH_S = 10.0
"""Seconds until the folder is listed again."""
_HINTED = 10_000
"""With more concepts than that, finding a similar name takes too long."""


class NoConceptError(LoLDUError):
    """No concept has this name or word."""


class Shelf:
    """The concepts of a folder by name.

    `NAME.safetensors` and `NAME/concept.safetensors` (a run) are the concept NAME. In the folder
    `library` of a studio, concepts have the names that people gave them, and those in the trash are
    left out. A new file is found at once when somebody asks for it, and a changed one after ten
    seconds.
    """

    def __init__(self, place: str, copies: Path | None = None) -> None:
        """List a folder.

        Args:
            place: A folder, or an address that fsspec reads, such as s3://bucket/concepts.
            copies: Folder for copies of remote files; a temporary one by default.

        Raises:
            LoLDUError: If the folder cannot be read.
        """
        self.place = place
        self._lock = threading.Lock()
        self._files: dict[str, tuple[str, str]] = {}
        self._tokens: dict[str, tuple[str, str | None]] = {}
        self._listed = -_FRESH_S
        try:
            self._system, self._root = fsspec.core.url_to_fs(place)
            if not self._system.isdir(self._root):
                raise LoLDUError(f"--concepts {place} is not a folder: name one of concept files.")
        except (OSError, ValueError, ImportError) as error:
            raise LoLDUError(f"--concepts {place} cannot be read: {error}") from error
        self._is_here = isinstance(self._system, LocalFileSystem)
        self._copies = copies
        self._refresh()

    def names(self) -> list[str]:
        """Return the names of all concepts, sorted."""
        self._refresh(_FRESH_S)
        return sorted(self._files)

    def get(self, name: str) -> Entry:
        """Return a concept; a remote file is copied here first.

        Raises:
            NoConceptError: If there is none of that name.
            LoLDUError: If a remote file cannot be read.
        """
        self._refresh(_FRESH_S)
        if name not in self._files:
            self._refresh(1.0)
        if name not in self._files:
            near = hint(name, self._files if len(self._files) < _HINTED else (), _SEE)
            raise NoConceptError(f"There is no concept {name[:100]!r}; {near}.")
        path = Path(self._here(name))
        return Entry(name, name, None, path.parent, 0.0, file=path.name)

    def called_in(self, prompt: str) -> dict[str, list[str]]:
        """Return the words in a prompt that call concepts, each with the names of these.

        The first call reads the header of every file.
        """
        found: dict[str, list[str]] = {}
        for name in self.names():
            word = self._token(name)
            if word and word.lower() in prompt.lower() and has(prompt, word):
                found.setdefault(word.lower(), []).append(name)
        return found

    def facts(self, name: str) -> Facts:
        """Return the facts of a concept.

        Raises:
            NoConceptError: If there is none of that name.
            ConceptError: If its file is damaged.
        """
        return facts_of(self.get(name))

    def _token(self, name: str) -> str | None:
        _, stamp = self._files.get(name, ("", ""))
        if self._tokens.get(name, ("", None))[0] != stamp:
            token = None
            with suppress(LoLDUError):  # a damaged file is named when somebody asks for it
                token = self.facts(name).about.token
            self._tokens[name] = stamp, token
        return self._tokens[name][1]

    def _here(self, name: str) -> str:
        """Return the path of a file on this machine."""
        path, stamp = self._files[name]
        if self._is_here:
            return path
        with self._lock:
            if self._copies is None:
                self._copies = Path(tempfile.mkdtemp(prefix="loldu-concepts-"))
        copy = self._copies / f"{stamp}.safetensors"
        if not copy.exists():
            try:
                with drafted(copy) as draft:
                    self._system.get_file(path, str(draft))
            except OSError as error:
                raise LoLDUError(f"{name} cannot be read from {self.place}: {error}") from error
        return str(copy)

    def _refresh(self, fresh_s: float = 0.0) -> None:
        """List the folder, unless that was done within the last seconds; keep the list if it fails.

        A store that does not answer for a moment is no reason to forget its concepts.
        """
        with self._lock, suppress(OSError):
            if time.monotonic() - self._listed < fresh_s:
                return
            self._listed = time.monotonic()
            self._system.invalidate_cache()
            found: dict[str, tuple[str, str]] = {}
            for pattern in ("*.safetensors", f"*/{CONCEPT}"):
                listed: dict[str, Any] = self._system.glob(f"{self._root}/{pattern}", detail=True)
                for path, about in listed.items():
                    if (name := self._name(Path(path))) is not None:
                        own = f"{name} ({Path(path).parent.name})" if name in found else name
                        found[own] = path, _stamp(about)
            self._files = found

    def _name(self, path: Path) -> str | None:
        """Return the name of the concept in a file, or None if it is in the trash."""
        if path.parent == Path(self._root):
            return path.stem
        if self._is_here and (entry := path.with_name(ENTRY)).is_file():
            with suppress(LoLDUError):
                record = read_record(entry)
                return None if record.removed else record.name
        return path.parent.name


_SEE = "GET /v1/models lists the concepts"


def _stamp(about: dict[str, Any]) -> str:
    """Return a digest of what a file system says of a file: other contents, another digest."""
    return hashlib.sha256(json.dumps(about, default=str, sort_keys=True).encode()).hexdigest()[:24]
