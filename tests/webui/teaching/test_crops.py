import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loldu.pictures.open import load_image
from webui.teaching.crops import Crop, cropped, cropper

places = st.floats(-1, 2)


@pytest.mark.parametrize(
    ("crop", "box"),
    [
        (Crop(), (10, 0, 30, 20)),
        (Crop(1, 0, 0), (0, 0, 20, 20)),
        (Crop(1, 1, 1), (20, 0, 40, 20)),
        (Crop(2, 0.5, 0.5), (15, 5, 25, 15)),
        (Crop(2, 1, 1), (30, 10, 40, 20)),
    ],
)
def test_boxes(crop: Crop, box: tuple[int, int, int, int]) -> None:
    assert crop.box((40, 20)) == box


@given(st.floats(0, 99), places, places, st.integers(1, 5000), st.integers(1, 5000))
def test_a_box_is_a_square_inside(zoom: float, x: float, y: float, width: int, height: int) -> None:
    left, top, right, bottom = Crop(zoom, x, y).box((width, height))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert right - left == bottom - top


def test_the_cropper_has_the_whole_picture_and_sliders_of_its_crop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    image = Image.new("RGB", (400, 200), "white")
    html = cropper(image, Crop(2, 0, 0.25), 3)
    assert 'data-index="3" data-width="400" data-height="200"' in html
    values = dict(re.findall('data-of="(.+?)".+? value="(.+?)"', html))
    assert values == {"zoom": "2", "x": "0", "y": "0.25"}
    (file,) = tmp_path.rglob("*.webp")
    assert load_image(file).size == (400, 200)
    assert cropped(image, Crop()).size == (200, 200)
