"""Files and folders appear whole, or not at all."""

import errno
import os
from pathlib import Path

import pytest

from loldu.files import drafted, write_atomically


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    with drafted(target) as draft:
        draft.mkdir()
        (draft / "a").write_text("a")
        assert draft.parent == target.parent
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["folder"]
    assert (target / "a").read_text() == "a"
    with pytest.raises(OSError, match="not empty"), drafted(target) as draft:
        draft.mkdir()
    assert (target / "a").read_text() == "a"
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path, drafts = tmp_path / "file", tmp_path / "drafts"
    write_atomically(path, "é", drafts)
    assert path.read_bytes() == "é".encode()

    def fail() -> None:
        with drafted(path, drafts) as draft:
            draft.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == "é".encode()
    assert [*drafts.iterdir()] == []


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "file", "x")
    assert caught.value.filename == str(tmp_path / "file")
    assert [*tmp_path.iterdir()] == []

    def fill() -> None:
        with drafted(tmp_path / "a") as draft:
            draft.mkdir()
            write_atomically(draft / "b", "x")

    with pytest.raises(OSError, match="No space left") as caught:
        fill()
    assert caught.value.filename == str(tmp_path / "a" / "b")
    assert [*tmp_path.iterdir()] == []


def test_the_draft_of_a_process_killed_long_ago_is_deleted_at_the_next_write(
    tmp_path: Path,
) -> None:
    old, fresh, mine = (tmp_path / f".loldu-{name}" for name in ("0.draft", "1.draft", "mine"))
    for path in (old, mine):
        path.mkdir()
        (path / "half").touch()
        os.utime(path, (0, 0))
    fresh.touch()
    write_atomically(tmp_path / "file", "x")
    assert sorted(tmp_path.iterdir()) == sorted([fresh, mine, tmp_path / "file"])
