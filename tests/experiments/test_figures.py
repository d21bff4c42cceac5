"""Figures of the shipped results."""

from pathlib import Path

import pytest
from PIL import Image

from experiments.config import read_experiment
from experiments.figures import FIGURES, _taught, draw_figures
from experiments.results import Results
from loldu.errors import LoLDUError


def test_every_figure_is_drawn(tmp_path: Path) -> None:
    drawn = draw_figures("pocket", Results(), tmp_path)
    assert [file.name for file in drawn] == [
        f"{name}-pocket.png" for name in FIGURES if name != "sheet"
    ]
    for file in drawn:
        with Image.open(file) as picture:
            shades = picture.convert("L").getextrema()
        assert shades[0] < 60 < 200 < shades[1], file.name  # neither blank nor black


def test_a_strip_has_the_concept_and_every_step() -> None:
    for data in read_experiment("personalization").at("pocket").data:
        for taught in _taught("pocket", Results(), data):
            height, width, _ = taught.strip.shape
            assert width == height * (1 + len(taught.steps))


def test_missing_results_are_reported(tmp_path: Path) -> None:
    with pytest.raises(LoLDUError, match="no results at pocket scale"):
        draw_figures("pocket", Results(tmp_path / "none"), tmp_path)
