"""The concepts there are to draw with: those of runs, and those of the studio."""

from dataclasses import dataclass
from pathlib import Path

from trainer.errors import TrainerError
from trainer.methods import FILE_NAMES


@dataclass(frozen=True)
class Entry:
    """A concept of the library.

    Attributes:
        id: What it is asked for by; never a path.
        name: Shown, and nothing else.
        owner: Whose it is; None for everyone's.
        folder: Its concept file lies here, beside what else its run left.
        created: In seconds since 1970.
    """

    id: str
    name: str
    owner: str | None
    folder: Path
    created: float
    token: str | None = None

    @property
    def path(self) -> Path:
        """The concept file."""
        return self.folder / FILE_NAMES["loldu"]


class Library:
    """The concepts in the folders of runs."""

    def __init__(self, runs: Path) -> None:
        """Look for concepts in the folders of `runs`."""
        self._runs = runs

    def list(self, owner: str) -> tuple[Entry, ...]:
        """The concepts that an owner may use, newest first."""
        entries = [
            Entry(path.parent.name, path.parent.name, None, path.parent, path.stat().st_mtime)
            for path in self._runs.glob(f"*/{FILE_NAMES['loldu']}")
        ]
        return tuple(sorted(entries, key=lambda entry: entry.created, reverse=True))

    def get(self, entry_id: str | None, owner: str) -> Entry:
        """A concept that an owner may use.

        Raises:
            TrainerError: there is none of that id for them.
        """
        for entry in self.list(owner):
            if entry.id == entry_id:
                return entry
        raise TrainerError("There is no such concept; reload the page and choose another.")
