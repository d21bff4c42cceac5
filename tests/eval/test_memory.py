"""A few pictures are in memory at a time, however many there are: they are counted, not timed."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from eval.config import DrawingConfig
from eval.encoders import features
from eval.encoders.encoder import Thumbnail
from eval.protocols import drawing
from eval.protocols.prompts import plan_pictures
from eval.report import page
from eval.report.page import Section, Shot, render
from tests.eval.noise import save_noise

COUNT, BATCH = 60, 2


class Alive:
    """Counts the objects that exist, and the most at one time."""

    def __init__(self) -> None:
        self.made = self.now = self.most = 0

    def add(self, one: object) -> None:
        self.made += 1
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(one, self._gone)

    def counted(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that also counts what `make` returns."""

        def call(*given: Any, **options: Any) -> Any:  # noqa: ANN401
            found = make(*given, **options)
            for one in found if isinstance(found, list) else [found]:
                self.add(one)
            return found

        return call

    def _gone(self) -> None:
        self.now -= 1


def test_encoding_holds_a_few_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, read = Alive(), Alive()

    class Read(features._Read):
        def __init__(self, *given: Any, **more: Any) -> None:  # noqa: ANN401
            super().__init__(*given, **more)
            read.add(self)

    monkeypatch.setattr(features, "BATCH_SIZE", BATCH)
    monkeypatch.setattr(features, "_Read", Read)
    monkeypatch.setattr(features, "load_image", images.counted(features.load_image))
    paths = save_noise(tmp_path, [f"{number}.png" for number in range(COUNT)])
    found = features.compute_features(paths, {"thumbnail": Thumbnail(4)}, None, progress=False)
    assert len(found.rows["thumbnail"]) == images.made == read.made == COUNT
    assert images.most <= features.THREADS + 1
    assert read.most <= 4 * BATCH + features.THREADS + 1  # two wait, one is encoded, one was


def test_drawing_holds_two_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Alive()

    def sample(pipeline: object, prompts: list[str], *rest: Any, **options: Any) -> list:  # noqa: ANN401
        return [Image.new("RGB", (4, 4)) for _ in prompts]

    monkeypatch.setattr(drawing, "sample_images", drawn.counted(sample))
    planned = plan_pictures(tmp_path, ["a", "b"], range(COUNT // 2))
    drawing.draw(Mock(), planned, DrawingConfig(batch_size=BATCH), {"base": "", "concept": None})
    assert drawn.made == len([*tmp_path.iterdir()]) == COUNT
    assert drawn.most <= 2 * BATCH


def test_a_page_holds_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Alive()
    monkeypatch.setattr(page, "load_image", shown.counted(page.load_image))
    paths = save_noise(tmp_path, [f"{number}.png" for number in range(COUNT)])
    shots = [Shot([("drawn", path)]) for path in paths]
    render("Page", tables=[], sections=[Section("All", "", shots)])
    assert shown.made == COUNT
    assert shown.most <= 2
