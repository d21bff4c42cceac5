from pathlib import Path

import pytest

from webui.drawing.grid import steps_of
from webui.library.entry import Entry


def entry(step: int | None) -> Entry:
    return Entry("toy", "toy", None, Path(f"at-{step}"), 0.0)


@pytest.mark.parametrize(
    ("saved", "own", "rows"),
    [
        (range(30, 301, 30), 300, [30, 90, 150, 240, 300]),  # round(2.25) and so on, of ten
        (range(30, 301, 30), 210, [30, 90, 150, 210, 300]),  # its own step, not the one beside it
        (range(10, 31, 10), 30, [10, 20, 30]),
        ((20,), 20, [None]),
        ((), None, [None]),
    ],
)
def test_a_grid_has_five_steps_and_the_concept_s_own(
    saved: range, own: int | None, rows: list[int | None]
) -> None:
    steps = {step: entry(step) for step in saved}
    concept = steps.get(own or 0, entry(None))
    shown = steps_of(concept, steps)
    assert list(shown) == rows
    assert concept in shown.values()
