"""Shipped presets: their order, and the files that they name."""

from pathlib import Path

import pytest

from loldu import presets
from loldu.base.config import BaseModelConfig
from loldu.errors import LoLDUError
from loldu.options import options
from loldu.presets import preset_values, shipped_presets

BASE = "pretrained_model_name_or_path"
KNOWN = options(BaseModelConfig)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the preset folder of packages installed in `there`; the working folder is `here`."""
    for name in ("here", "there/pocket/base", "presets"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(presets, "_PACKAGES", tmp_path / "there")
    monkeypatch.chdir(tmp_path / "here")
    shipped = tmp_path / "presets"
    (shipped / "pocket.toml").write_text(f"[base]\n{BASE} = './pocket/base'\n[preset]\norder = 2")
    (shipped / "hub.toml").write_text(f"{BASE} = 'pocket/base'\n[preset]\nabout = 'A base.'")
    (shipped / "a.toml").write_text(f"{BASE} = 'somebody/base'")
    (shipped / "z.toml").write_text("[preset]\norder = 1\n[base]\nvae = './pocket/vae'")
    return shipped


def test_presets_without_an_order_come_last_by_name(folder: Path) -> None:
    assert list(shipped_presets(folder)) == ["z", "pocket", "a", "hub"]
    assert shipped_presets(folder)["hub"].about == "A base."


def test_a_shipped_preset_names_files_beside_the_packages(folder: Path, tmp_path: Path) -> None:
    there = str(tmp_path / "there" / "pocket" / "base")
    assert preset_values(["--preset", "pocket"], folder, KNOWN) == {BASE: there}
    assert preset_values(["--preset=hub"], folder, KNOWN) == {BASE: there}
    assert preset_values(["--preset", "a"], folder, KNOWN) == {BASE: "somebody/base"}


def test_files_in_the_working_folder_win(folder: Path) -> None:
    Path("pocket/base").mkdir(parents=True)
    assert preset_values(["--preset", "pocket"], folder, KNOWN) == {BASE: "./pocket/base"}


def test_a_preset_of_the_user_is_read_unchanged(folder: Path) -> None:
    own = ["--preset", str(folder / "pocket.toml")]
    assert preset_values(own, folder, KNOWN) == {BASE: "./pocket/base"}


def test_missing_files_of_a_preset_give_one_clear_error(folder: Path) -> None:
    with pytest.raises(LoLDUError, match=r"preset z needs \./pocket/vae, .* or give another --vae"):
        preset_values(["--preset", "z"], folder, KNOWN)
    assert preset_values(["--preset", "z", "--vae=b"], folder, KNOWN)["vae"] == "./pocket/vae"


def test_the_table_preset_describes_a_preset(folder: Path) -> None:
    (folder / "a.toml").write_text("preset = 'b'")
    with pytest.raises(LoLDUError, match="preset must be a table"):
        shipped_presets(folder)
