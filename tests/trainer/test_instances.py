import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.config import InstanceConfig
from trainer.errors import TrainerError
from trainer.images import load_image
from trainer.instances import find_instances, list_images

RED = (255, 0, 0)


def test_listing_is_sorted_and_names_what_it_ignores(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b.JPG", "a.png", "d.webp", "c.bmp", "e.jpeg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a caption")
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    with caplog.at_level(logging.INFO, logger="trainer"):
        names = [path.name for path in list_images(tmp_path)]
    assert names == ["a.png", "b.JPG", "c.bmp", "d.webp", "e.jpeg"]
    (line,) = caplog.messages
    assert "notes.md" in line
    assert not any(name in line for name in ("a.txt", ".ipynb_checkpoints"))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10))
    image.paste(RED, (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    upright = load_image(tmp_path / "a.png")
    assert upright.size == (10, 20)
    assert upright.getpixel((5, 2)) == RED
    assert upright.getpixel((5, 17)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "png", (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 255)), "webp", RED),
        (Image.new("LA", (8, 8), (0, 0)), "png", (255, 255, 255)),
        (Image.new("L", (8, 8), 128), "png", (128, 128, 128)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpg", RED),
        (Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)), "png", (128, 128, 128)),
        (Image.new("1", (8, 8), 1), "bmp", (255, 255, 255)),
    ],
    ids=["clear", "opaque", "gray-alpha", "gray", "cmyk", "gray-16-bit", "bilevel"],
)
def test_every_mode_becomes_rgb(
    image: Image.Image, suffix: str, expected: tuple[int, int, int], tmp_path: Path
) -> None:
    image.save(tmp_path / f"a.{suffix}", quality=100)
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert loaded.mode == "RGB"
    pixel = np.asarray(loaded)[4, 4]
    np.testing.assert_allclose(pixel, expected, atol=3)  # JPEG and WebP round


def test_palette_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("P", (8, 8), 0).save(tmp_path / "a.png", transparency=0)
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_sidecar_overrides_the_instance_prompt(pictures: Path) -> None:
    (pictures / "b.txt").write_text("  a sks toy in the snow \n")
    found = find_instances(InstanceConfig(pictures, "a photo of a sks toy", resolution=16))
    assert [(image.path.name, image.caption) for image in found] == [
        ("a.png", "a photo of a sks toy"),
        ("b.png", "a sks toy in the snow"),
        ("c.png", "a photo of a sks toy"),
    ]


def test_what_cannot_be_used_is_named(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"no folder .*nowhere"):
        find_instances(InstanceConfig(tmp_path / "nowhere", "sks"))
    with pytest.raises(TrainerError, match=r"a\.png has no caption: give --instance_prompt"):
        find_instances(InstanceConfig(pictures))
    with pytest.raises(TrainerError, match=r"a\.png is too small: 20 x 24 .* at least 128"):
        find_instances(InstanceConfig(pictures, "sks", resolution=512))
    (pictures / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(TrainerError, match=r"a\.txt is not UTF-8"):
        find_instances(InstanceConfig(pictures, "sks"))
    (pictures / "a.txt").unlink()
    (pictures / "b.png").write_bytes((pictures / "b.png").read_bytes()[:200])
    with pytest.raises(TrainerError, match=r"b\.png cannot be read"):
        find_instances(InstanceConfig(pictures, "sks", resolution=16))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainerError, match=r"no pictures in .*empty"):
        find_instances(InstanceConfig(tmp_path / "empty", "sks"))


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
        return torch.stack([view for _, view in found])

    torch.testing.assert_close(views(1), views(1), rtol=0, atol=0)
    assert not torch.equal(views(1), views(2))
