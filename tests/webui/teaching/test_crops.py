import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from webui.teaching.crops import Crop, cropped, outlined

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


def test_the_picture_is_dark_outside_of_the_crop() -> None:
    image = Image.new("RGB", (400, 200), "white")
    shown = outlined(image, Crop(), 200)
    assert shown.size == (200, 100)
    assert shown.getpixel((100, 50)) == (255, 255, 255)
    assert max(shown.getpixel((10, 50))) < 128  # type: ignore[arg-type,type-var]
    assert cropped(image, Crop()).size == (200, 200)
