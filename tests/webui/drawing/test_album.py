from dataclasses import replace
from pathlib import Path

import pytest

from loldu.errors import LoLDUError
from tests.webui.drawing.reference import SETTINGS
from webui.drawing.album import Album


def seeds(*wanted: int) -> list[tuple]:
    return [(replace(SETTINGS, seed=seed), b"picture %d" % seed) for seed in wanted]


def contents(album: Album, owner: str) -> list[bytes]:
    return [kept.path.read_bytes() for kept in album.list(owner)]


def test_the_newest_are_kept_each_once(tmp_path: Path) -> None:
    album = Album(tmp_path / "album", limit=4)
    assert album.list("ada") == ()
    album.keep("ada", seeds(1, 2))
    album.keep("ada", seeds(3, 4))
    assert contents(album, "ada") == [b"picture 3", b"picture 4", b"picture 1", b"picture 2"]
    album.keep("ada", seeds(1))
    assert contents(album, "ada") == [b"picture 1", b"picture 3", b"picture 4", b"picture 2"]
    album.keep("ada", seeds(5))
    assert contents(album, "ada") == [b"picture 5", b"picture 1", b"picture 3", b"picture 4"]


def test_everyone_has_an_album_of_their_own(tmp_path: Path) -> None:
    album = Album(tmp_path / "album")
    for owner in ("ada", "", "../../bob"):
        album.keep(owner, seeds(1))
    assert {path.parent.name for path in tmp_path.rglob("*") if path.is_dir()} == {
        tmp_path.name,
        "album",
    }
    album.keep("ada", seeds(2))
    (newest, same) = album.list("ada")
    for asked, asker in ((newest.id, ""), (newest.id, "bob"), (None, "ada"), ("../x", "ada")):
        with pytest.raises(LoLDUError, match="gone"):
            album.delete(asked, asker)
    assert album.get(newest.id, "ada") == newest
    album.delete(newest.id, "ada")
    assert album.list("ada") == (same,)
    assert len(album.list("")) == len(album.list("../../bob")) == 1


def test_an_unwritable_album_gives_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "album").write_bytes(b"a file is in the way")
    with pytest.raises(LoLDUError, match=r"^The pictures cannot be saved \("):
        Album(tmp_path / "album").keep("ada", seeds(1))
