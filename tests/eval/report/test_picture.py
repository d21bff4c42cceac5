"""The report's picture: everything is drawn, and in its place."""

import numpy as np
import pytest
from PIL import Image

from eval.report.picture import (
    AFTER,
    BEFORE,
    CELL_PX,
    MARGIN_PX,
    NAMES_PX,
    REAL,
    PictureRows,
    ScoreBar,
    draw_report,
)
from loldu.pictures.grid import GAP_PX, INK


def count(sheet: Image.Image, colour: str) -> int:
    pixels = np.asarray(sheet)
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((pixels == rgb).all(axis=-1).sum())


def field(colour: str) -> Image.Image:
    return Image.new("RGB", (64, 64), colour)


def draw(bars: list[ScoreBar], images: list[Image.Image]) -> Image.Image:
    section = PictureRows(
        "Heading", "Explanation", [("before", images)], ["a prompt"] * len(images)
    )
    return draw_report("Title", "Subtitle", [section], bars, "Footer")


def test_every_picture_fills_its_cell_in_order() -> None:
    colours = ["#ff0000", "#00ff00", "#0000ff"]
    sheet = draw([ScoreBar("DINO", "", 0.2, 0.4)], [field(colour) for colour in colours])
    pixels = np.asarray(sheet)
    for column, colour in enumerate(colours):
        assert count(sheet, colour) == CELL_PX**2
        left = MARGIN_PX + NAMES_PX + column * (CELL_PX + GAP_PX)
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        found = np.flatnonzero((pixels == rgb).all(axis=-1).any(axis=0))
        assert (found[0], found[-1]) == (left, left + CELL_PX - 1)


def test_oblong_pictures_keep_their_proportions() -> None:
    sheet = draw([ScoreBar("DINO", "", 0.2, 0.4)], [Image.new("RGB", (40, 20), "#ff0000")])
    assert count(sheet, "#ff0000") == CELL_PX * CELL_PX // 2


def test_bars_are_as_long_as_their_scores() -> None:
    """Two bars of one height have areas proportional to their scores, apart from the legend."""
    images = [field("#ff0000")]
    legend = 13 * 13
    areas = {
        score: count(draw([ScoreBar("DINO", "", 0.0, score)], images), AFTER) - legend
        for score in (0.25, 0.5)
    }
    assert areas[0.5] / areas[0.25] == pytest.approx(2, abs=0.02)


def test_scores_of_real_pictures_are_marked_if_known() -> None:
    images = [field("#ff0000")]
    without = count(draw([ScoreBar("CLIP-T", "", 0.2, 0.3)], images), REAL)
    marked = count(draw([ScoreBar("DINO", "", 0.2, 0.3, real=0.6)], images), REAL)
    assert marked > without


def test_no_mark_of_real_pictures_crosses_a_number() -> None:
    """A real score just above another one stood on that one's label."""
    shown = draw([ScoreBar("DINO", "", 0.91, 0.948, real=0.976)], [field("#ff0000")])
    pixels = np.asarray(shown)[-150:]
    rgb = [int(REAL[i : i + 2], 16) for i in (1, 3, 5)]
    (tall,) = np.flatnonzero((pixels == rgb).all(axis=-1).sum(axis=0) > 30).reshape(-1, 3)
    beside = pixels[:, tall[0] - 25 : tall[-1] + 25]
    ink = [int(INK[i : i + 2], 16) for i in (1, 3, 5)]
    assert not (beside == ink).all(axis=-1).any()


def test_a_negative_score_grows_to_the_left() -> None:
    pixels = np.asarray(draw([ScoreBar("DINO", "", -0.5, 0.5)], [field("#ff0000")]))
    rows = pixels[-160:]

    def columns(colour: str) -> np.ndarray:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return np.flatnonzero((rows == rgb).all(axis=-1).sum(axis=0) >= 16)

    before, after = columns(BEFORE), columns(AFTER)
    assert before.max() <= after.min()
    assert abs(len(before) - len(after)) <= 2
