"""The prompts and models that the Score tab takes for a base."""

from pathlib import Path

import pytest

from loldu.presets import installed_path
from webui.library.scoring import preset_of, presets


def test_the_embedded_base_has_its_preset_and_encoders_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert preset_of(installed_path("pocket/base")) == "pocket"
    assert Path(presets()["pocket"]["clip"], "config.json").is_file()
