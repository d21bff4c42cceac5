"""Presets become flags, and typed flags win."""

from math import isfinite
from pathlib import Path

import pytest

from eval.__main__ import PRESETS, parse
from eval.config import AdapterConfig
from eval.protocols.prompts import fill
from loldu.errors import LoLDUError
from loldu.presets import shipped_presets

REQUIRED = ["adapter", "--concept", "c.safetensors", "--output_dir", "out"]


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_presets_parse(path: Path) -> None:
    config = parse([*REQUIRED, "--preset", path.stem])
    assert isinstance(config, AdapterConfig)
    preset = shipped_presets(PRESETS)[path.stem]
    assert preset.about
    assert isfinite(preset.order)
    asked = fill([*config.prompts, *config.other_prompts], "sks", "toy")
    assert len(set(asked)) == len(asked)
    assert all("sks toy" in prompt for prompt in fill(config.prompts, "sks", "toy"))
    assert not any("sks" in prompt for prompt in fill(config.other_prompts, "sks", "toy"))


def test_the_dreambooth_preset_is_25_prompts_with_4_pictures_each() -> None:
    config = parse([*REQUIRED, "--preset", "dreambooth"])
    assert isinstance(config, AdapterConfig)
    assert (len(config.prompts), len(config.drawing.seeds)) == (25, 4)


@pytest.mark.parametrize("preset", [["--preset", "pocket"], ["--preset=pocket"]])
def test_flags_override_the_preset_in_any_position(preset: list[str]) -> None:
    for argv in (
        ["adapter", "--seeds", "9", *preset, *REQUIRED[1:]],
        [*REQUIRED, *preset, "--seeds", "9"],
    ):
        config = parse(argv)
        assert isinstance(config, AdapterConfig)
        assert config.drawing.seeds == (9,)
        assert config.drawing.guidance_scale == 3.0


def test_an_unknown_key_gets_the_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("seed = [1]\n", encoding="utf-8")
    with pytest.raises(LoLDUError, match="perhaps you meant seeds"):
        parse([*REQUIRED, "--preset", str(path)])


@pytest.mark.parametrize("content", [None, "seeds = ["])
def test_a_file_that_is_no_preset_is_reported(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    if content:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(LoLDUError, match="cannot be read as TOML"):
        parse([*REQUIRED, "--preset", str(path)])
