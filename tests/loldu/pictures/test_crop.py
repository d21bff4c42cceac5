from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loldu.errors import LoLDUError
from loldu.pictures.crop import RANDOM_CROPS, load_views, square_crops
from loldu.pictures.folder import CaptionedImage
from trainer.options.config import InstanceConfig
from trainer.training.instances import find_instances

RED = (255, 0, 0)


def test_centre_crop_takes_the_middle() -> None:
    image = Image.new("RGB", (48, 16))
    image.paste(RED, (16, 0, 32, 16))
    rng = np.random.default_rng(0)
    (view,) = square_crops(image, 16, center_crop=True, random_flip=False, rng=rng)
    expected = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, 16, 16)
    torch.testing.assert_close(view, expected)


def test_random_crops_and_mirror_images() -> None:
    gradient = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (16, 64, 3))
    image = Image.fromarray(np.ascontiguousarray(gradient))
    rng = np.random.default_rng(0)
    views = list(square_crops(image, 16, center_crop=False, random_flip=True, rng=rng))
    assert len(views) == 2 * RANDOM_CROPS
    assert len({view[0, 0, 0].item() for view in views[::2]}) > 1
    for plain, mirrored in zip(views[::2], views[1::2], strict=True):
        torch.testing.assert_close(mirrored, plain.flip(2))
    square = Image.new("RGB", (16, 16))
    assert len(list(square_crops(square, 16, center_crop=False, random_flip=False, rng=rng))) == 1


def test_views_depend_on_the_seed_alone(pictures: Path) -> None:
    images = find_instances(InstanceConfig(pictures, "sks", resolution=16))

    def views(seed: int) -> torch.Tensor:
        found = load_views(images, 16, center_crop=False, random_flip=False, seed=seed)
        return torch.stack([view.pixels for view in found])

    torch.testing.assert_close(views(1), views(1), rtol=0, atol=0)
    assert not torch.equal(views(1), views(2))


@pytest.mark.parametrize("center_crop", [True, False])
@pytest.mark.parametrize("size", [(61, 33), (20, 47), (32, 32)])
def test_a_mask_is_cropped_like_its_picture(
    size: tuple[int, int], center_crop: bool, tmp_path: Path
) -> None:
    """A mask equal to the red channel must equal the red channel of every view."""
    red = np.random.default_rng(0).integers(1, 256, size[::-1], dtype=np.uint8)
    picture, mask = tmp_path / "a.png", tmp_path / "a-masklabel.png"
    Image.fromarray(np.stack([red, red // 2, red // 3], axis=-1)).save(picture)
    Image.fromarray(red).save(mask)
    pictures = [CaptionedImage(tmp_path / "a.png", "x"), CaptionedImage(picture, "sks", 1, mask)]
    found = list(load_views(pictures, 24, center_crop=center_crop, random_flip=True, seed=3))
    assert {view.index for view in found if view.mask is None} == {0}
    shown = [(view.pixels, view.mask) for view in found if view.index == 1]
    assert len(shown) == 2 * (1 if center_crop or size == (32, 32) else RANDOM_CROPS)
    for view, mask in shown:
        assert mask is not None
        torch.testing.assert_close(mask[0], (view[0] + 1) / 2)


def test_a_mask_that_no_crop_shows_gives_one_clear_error(tmp_path: Path) -> None:
    Image.new("RGB", (48, 16)).save(tmp_path / "a.png")
    marked = Image.new("L", (48, 16))
    marked.paste(255, (0, 0, 10, 16))
    marked.save(tmp_path / "a-masklabel.png")
    pictures = [CaptionedImage(tmp_path / "a.png", "sks", 1, tmp_path / "a-masklabel.png")]
    with pytest.raises(LoLDUError, match=r"cuts away all that .*a-masklabel\.png marks; crop"):
        list(load_views(pictures, 16, center_crop=True, random_flip=False, seed=0))
