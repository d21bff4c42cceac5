"""The points of the curves, and the scores of a step beside the base's."""

import asyncio
import dataclasses
import xml.etree.ElementTree as ET

import gradio as gr
import pytest

from webui.engine.progress import Progress
from webui.watching.charts import (
    LOSS,
    MEASURED,
    SMOOTHED,
    Chart,
    charts,
    plots,
    smoothed,
    table_of_step,
)

EMPTY = Progress(0, 60, (), {}, None, None, None, (), {}, {}, None, "")
NAMES = ["dino", "clip_i", "clip_t", "drift"]
TITLES = [LOSS, "DINO", "CLIP-I", "CLIP-T", "Drift"]


def drawn(**known: object) -> dict[str, Chart]:
    shown = charts(dataclasses.replace(EMPTY, **known))
    return {chart.title: chart for chart in shown.values()}


def test_a_chart_without_points_is_hidden() -> None:
    assert list(drawn()) == TITLES
    for chart in (*drawn().values(), drawn(losses=((1, 0.5),))[LOSS]):
        assert chart.update() == gr.update(value=None, visible=False)


def test_smoothing_forgets_slowly_and_starts_at_the_first_value() -> None:
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smoothed([1.0, 0.0])[1] == pytest.approx(0.09 / 0.19)
    assert smoothed([1.0, *[0.0] * 100])[-1] < 1e-4


def test_losses_raw_and_smoothed_share_one_chart() -> None:
    losses = ((10, 1.0), (20, 0.0), (30, 1.0))
    update = drawn(losses=losses)[LOSS].update()
    assert update["visible"]
    data = update["value"]
    measured, mean = (data[data["Curve"] == name] for name in (MEASURED, SMOOTHED))
    assert [*zip(measured["Step"], measured[LOSS], strict=True)] == [*losses]
    assert [*mean["Step"]] == [10, 20, 30]
    assert [*mean[LOSS]] == pytest.approx(smoothed([1.0, 0.0, 1.0]))


def test_every_score_has_a_chart_of_its_finite_values() -> None:
    scores = {step: dict.fromkeys(NAMES, step / 100) for step in (20, 0, 10)}
    scores[30] = {"dino": float("nan")}
    shown = drawn(scores=scores)
    assert not shown[LOSS].update()["visible"]
    for title in TITLES[1:]:
        data = shown[title].update()["value"]
        assert [*zip(data["Step"], data[title], strict=True)] == [(0, 0.0), (10, 0.1), (20, 0.2)]


def test_the_plots_draw_the_columns_of_the_charts() -> None:
    async def build() -> dict[str, gr.LinePlot]:
        with gr.Blocks():
            return plots()

    made = asyncio.run(build())  # outside of a loop gradio makes several and closes none
    progress = dataclasses.replace(
        EMPTY,
        losses=((1, 0.5), (2, 0.25)),
        scores={1: dict.fromkeys(NAMES, 0.5), 2: dict.fromkeys(NAMES, 0.75)},
    )
    shown = charts(progress)
    assert made.keys() == shown.keys()
    for name, plot in made.items():
        sent = plot.postprocess(shown[name].update()["value"])
        assert {plot.x, plot.y} <= set(sent.columns)
        assert [sent.datatypes[column] for column in (plot.x, plot.y)] == ["quantitative"] * 2
        assert plot.label == plot.y == shown[name].title
        assert plot.caption


def test_a_long_run_is_thinned_and_keeps_its_last_step() -> None:
    long = tuple((step, float(step)) for step in range(1, 10_001))
    for _, points in drawn(losses=long)[LOSS].curves:
        assert 150 < len(points) <= 300
        assert points[-1][0] == 10_000


def test_scores_of_a_step_beside_the_base() -> None:
    scores = {0: {"dino": 0.25, "drift": 0.0}, 10: {"dino": 0.5, "drift": 0.125, "<b>": 1.0}}
    rows = [
        [cell.text for cell in row] for row in ET.fromstring(table_of_step(scores, 10)).iter("tr")
    ]
    assert rows == [
        [None, "base", "step 10"],
        ["DINO", "0.250", "0.500"],
        ["Drift", "0.000", "0.125"],
    ]
    assert table_of_step(scores, 15) == table_of_step(scores, None) == ""
    assert "<td></td><td>0.500</td>" in table_of_step({10: {"dino": 0.5}}, 10)
