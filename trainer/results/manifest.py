"""The record of what a run wrote into a folder; it deletes and replaces these files and no others.

`.loldu/written.jsonl` has a line for every file: its path and a fingerprint of its content. The
line is written before the file appears, so a kill at any moment leaves no file without its line.
`.loldu` also has the drafts of files that are being written; a kill leaves them there.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from loldu.files import DRAFTS, draft_in, drafted, named_in_errors, remove, write_atomically

logger = logging.getLogger(__name__)

OWN, WRITTEN = ".loldu", "written.jsonl"
_WHOLE = 8 * 2**20
"""Of a larger file the fingerprint covers the first and last half of this. The end of a checkpoint
has the checksums of its tensors, or the last tensors themselves."""

Marks = Mapping[str, set[str]]


class Manifest:
    """The files that runs wrote into one folder; several objects of a process may share it."""

    def __init__(self, folder: Path) -> None:
        """Use the record of a folder, or begin one with the first file that is written."""
        self.folder = folder
        self._own = folder / OWN
        self._path = self._own / WRITTEN

    @property
    def exists(self) -> bool:
        """Whether a run of this version has written into the folder."""
        return self._path.is_file()

    # ---------------------------------------------------------------------------------- writing

    def write(self, path: Path, content: bytes | str) -> None:
        """Write a whole file, text as UTF-8."""
        data = content.encode() if isinstance(content, str) else content
        self._record({path: _fingerprint_of(data)})
        write_atomically(path, data, self._own)

    def append(self, path: Path, line: str) -> None:
        """Append a JSON line to a log, which is known by its first line."""
        data = line.encode()
        with named_in_errors(path):
            if not path.exists() or not path.stat().st_size:
                self._record({path: f"{len(data)}+{hashlib.sha256(data).hexdigest()}"})
            with path.open("ab") as file:
                file.write(data)

    @contextmanager
    def drafted(self, target: Path) -> Generator[Path]:
        """Yield an empty folder; after the block, it replaces the folder or file at `target`.

        Raises:
            OSError: If it cannot be written; the error names the target.
        """
        with drafted(target, self._own, finish=partial(self._make_way, target)) as draft:
            draft.mkdir()
            yield draft

    @contextmanager
    def collected(self) -> Generator[Path]:
        """Yield an empty folder; after the block, every file or folder in it gets its place."""
        self._own.mkdir(parents=True, exist_ok=True)
        prefix, suffix = DRAFTS.split("*")
        with (
            tempfile.TemporaryDirectory(suffix, prefix, self._own) as name,
            named_in_errors(self.folder, Path(name)),
        ):
            yield Path(name)
            for entry in sorted(Path(name).iterdir()):
                target = self.folder / entry.name
                with drafted(target, self._own, finish=partial(self._make_way, target)) as draft:
                    entry.rename(draft)

    def set_aside(self, path: Path) -> Path:
        """Rename a folder to `later-NAME`, with a number if that is taken; return the new path."""
        free = path.with_name(f"later-{path.name}")
        number = 1
        while free.exists():
            number += 1
            free = path.with_name(f"later-{path.name}-{number}")
        known = self._read()
        files = [file for file in _files(path) if self._is_known(file, known)]
        self._record({free / file.relative_to(path): _fingerprint(file) for file in files})
        path.rename(free)
        return free

    def adopt(self, paths: Iterable[Path]) -> None:
        """Record files that an earlier version wrote."""
        self._record({path: _fingerprint(path) for path in paths})

    # --------------------------------------------------------------------- checking and deleting

    def strangers(self, paths: Iterable[Path]) -> list[Path]:
        """Return the files that no run wrote, or that have changed since."""
        known = self._read()
        return [path for path in paths if not self._is_known(path, known)]

    def remove(self, path: Path) -> None:
        """Delete a file or folder of a run; files in it that no run wrote stay, with a warning."""
        files = _files(path)
        foreign = self.strangers(files)
        if not foreign:
            draft = draft_in(self._own)
            path.rename(draft)  # so that a kill leaves the whole folder or none of it
            remove(draft)
            return
        for file in set(files).difference(foreign):
            file.unlink()
            with suppress(OSError):  # not empty
                file.parent.rmdir()
        logger.warning("Kept %s: this trainer did not write it, or it was changed.", foreign[0])

    def clear(self) -> None:
        """Delete everything that is recorded; class pictures are not."""
        for top in sorted({Path(name).parts[0] for name in self._read()}):
            if (self.folder / top).exists():
                self.remove(self.folder / top)
        self._path.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Finish or delete the drafts of a killed run, and forget files that no longer exist."""
        if not self._own.is_dir():
            return
        for draft, target in self._moves():
            if draft.exists() and not target.exists():
                draft.rename(target)
        for draft in self._own.glob(DRAFTS):
            remove(draft)
        if not self.exists:
            return
        kept = {
            name: {mark for mark in marks if _matches(self.folder / name, mark)}
            for name, marks in self._read().items()
        }
        lines = [_line(name, mark) for name, marks in kept.items() for mark in sorted(marks)]
        write_atomically(self._path, "".join(f"{line}\n" for line in lines), self._own)

    def _make_way(self, target: Path, draft: Path) -> None:
        """Record a complete draft, and move the folder away that it replaces."""
        files = _files(draft)
        self._record({target / file.relative_to(draft): _fingerprint(file) for file in files})
        if target.is_dir():
            self._write_lines([json.dumps({"draft": draft.name, "becomes": self._name(target)})])
            self.remove(target)
            if target.exists():  # with files of somebody else
                logger.warning("Moved the rest of %s to %s.", target, self.set_aside(target))

    # ---------------------------------------------------------------------------------- the record

    def _record(self, files: Mapping[Path, str]) -> None:
        self._write_lines([_line(self._name(path), mark) for path, mark in files.items()])

    def _write_lines(self, lines: Iterable[str]) -> None:
        self._own.mkdir(parents=True, exist_ok=True)
        with named_in_errors(self._path), self._path.open("ab") as file:
            # A kill may have cut the last line short.
            file.write("".join(f"\n{line}" for line in lines).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _lines(self) -> Iterator[dict[str, str]]:
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return
        for line in text.splitlines():
            with suppress(ValueError):  # a line that was cut short
                yield dict(json.loads(line))

    def _read(self) -> Marks:
        known: dict[str, set[str]] = {}
        for line in self._lines():
            if "file" in line and ".." not in Path(line["file"]).parts:
                known.setdefault(line["file"], set()).add(line["is"])
        return known

    def _moves(self) -> Iterator[tuple[Path, Path]]:
        for line in self._lines():
            if "draft" in line:
                yield self._own / Path(line["draft"]).name, self.folder / Path(line["becomes"]).name

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _is_known(self, path: Path, known: Marks) -> bool:
        return any(_matches(path, mark) for mark in known.get(self._name(path), ()))


def _files(path: Path) -> list[Path]:
    """Return a file or link, or all files and links in a folder."""
    if path.is_symlink() or not path.is_dir():
        return [path]
    return [file for file in path.rglob("*") if file.is_symlink() or not file.is_dir()]


def _line(name: str, mark: str) -> str:
    return json.dumps({"file": name, "is": mark})


def _fingerprint_of(data: bytes) -> str:
    """Return the size and a SHA-256 of some content."""
    half = _WHOLE // 2
    seen = data if len(data) <= _WHOLE else data[:half] + data[-half:]
    return f"{len(data)}-{hashlib.sha256(seen).hexdigest()}"


def _fingerprint(path: Path) -> str:
    """Return the fingerprint of a file, without reading the middle of a large one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            return _fingerprint_of(file.read())
        digest = hashlib.sha256(file.read(_WHOLE // 2))
        file.seek(-(_WHOLE // 2), os.SEEK_END)
        digest.update(file.read())
    return f"{size}-{digest.hexdigest()}"


def _matches(path: Path, mark: str) -> bool:
    """Tell whether a file has the recorded content, or is the log that began so."""
    if path.is_symlink() or not path.is_file():
        return False
    size, is_log, digest = mark.partition("+")
    if not is_log:
        return mark.startswith(f"{path.stat().st_size}-") and _fingerprint(path) == mark
    content = path.read_bytes()
    begun = hashlib.sha256(content[: int(size)]).hexdigest() == digest
    return begun and all(map(_is_log_line, content.split(b"\n")[:-1]))  # the last may be cut short


def _is_log_line(line: bytes) -> bool:
    try:
        return "step" in json.loads(line)
    except (ValueError, TypeError):
        return False
