"""Curves as SVG, and the scores of a step beside the base's."""

import dataclasses
import re
import xml.etree.ElementTree as ET

import pytest

from webui.engine.progress import Progress
from webui.watching.charts import SCORES, draw_curves, score_table, smoothed

EMPTY = Progress(0, 60, (), {}, None, None, None, (), {}, {}, "")


def drawn(shown: int | None = None, **known: object) -> ET.Element:
    return ET.fromstring(draw_curves(dataclasses.replace(EMPTY, **known), shown))


def points(figure: ET.Element, line: int = -1) -> list[list[float]]:
    found = figure.findall(".//polyline")[line].attrib["points"]
    return [[float(number) for number in pair.split(",")] for pair in found.split()]


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw_curves(EMPTY, None) == ""
    assert draw_curves(dataclasses.replace(EMPTY, losses=((1, 0.5),)), None) == ""


def test_smoothing_forgets_slowly_and_starts_at_the_first_value() -> None:
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smoothed([1.0, 0.0])[1] == pytest.approx(0.09 / 0.19)
    assert smoothed([1.0, *[0.0] * 100])[-1] < 1e-4


def test_losses_raw_and_smoothed_share_one_drawing() -> None:
    page = drawn(losses=((10, 1.0), (20, 0.0), (30, 1.0)))
    (figure,) = page.findall("figure")
    raw, smooth = points(figure, 0), points(figure, 1)
    assert [x for x, _ in raw] == [x for x, _ in smooth]
    assert raw[0][0] < raw[1][0] < raw[2][0]
    assert raw[0][1] == raw[2][1] < raw[1][1]  # down the page is less
    assert raw[0][1] < smooth[1][1] < raw[1][1]
    expected = smoothed([1.0, 0.0, 1.0])[-1]
    label = figure.find("svg").attrib["aria-label"]
    assert "Steps 10 to 30" in label
    assert f"measured 1.000, smoothed {expected:.3f}" in label
    assert f"{expected:.3f}" in [text.text for text in figure.iter("text")]


def test_every_score_has_its_own_axes_and_the_shown_step_is_marked() -> None:
    scores = {step: dict.fromkeys(SCORES, step / 100) for step in (0, 10, 20)}
    scores[30] = {"dino": float("nan")}
    figures = drawn(10, scores=scores).findall("figure")
    titles = [figure.find("figcaption").text.split(":")[0] for figure in figures]
    assert titles == ["DINO", "CLIP-I", "CLIP-T", "Drift"]
    for figure in figures:
        where = points(figure)
        assert len(where) == 3
        (mark,) = [dot for dot in figure.iter("circle") if dot.attrib["r"] == "5"]
        assert [float(mark.attrib["cx"]), float(mark.attrib["cy"])] == where[1]
        assert figure.find("svg").attrib["aria-label"].endswith("at the last: 0.200")
    assert not re.search('r="5"', draw_curves(dataclasses.replace(EMPTY, scores=scores), 15))


def test_a_long_run_is_thinned_and_keeps_its_last_step() -> None:
    long = tuple((step, float(step)) for step in range(1, 10_001))
    page = drawn(losses=long)
    assert 150 < len(points(page, 0)) <= 300
    assert points(page, 0)[-1][0] == 340 - 46
    assert not list(page.iter("circle"))


def test_scores_of_a_step_beside_the_base() -> None:
    scores = {0: {"dino": 0.25, "drift": 0.0}, 10: {"dino": 0.5, "drift": 0.125, "<b>": 1.0}}
    rows = [
        [cell.text for cell in row] for row in ET.fromstring(score_table(scores, 10)).iter("tr")
    ]
    assert rows == [
        [None, "base", "step 10"],
        ["DINO", "0.250", "0.500"],
        ["Drift", "0.000", "0.125"],
    ]
    assert score_table(scores, 15) == score_table(scores, None) == ""
    assert "<td></td><td>0.500</td>" in score_table({10: {"dino": 0.5}}, 10)
