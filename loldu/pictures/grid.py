"""Rows of pictures under their captions, each row with its name: reports and validation sheets."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from loldu.pictures.lettering import font, wrapped

PAPER, INK, FAINT = "#ffffff", "#1b1f27", "#667085"
GAP_PX = 10


def picture_grid(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    captions: Sequence[str] = (),
    *,
    cell_px: int,
    names_px: int | None = None,
) -> Image.Image:
    """Return rows of pictures in square cells, with a caption above each column.

    Args:
        rows: Name and pictures of each row.
        captions: Captions of the columns, wrapped to the width of a cell.
        cell_px: Side of a cell; pictures keep their proportions inside it.
        names_px: Width of the column of names; as wide as the longest name if None.
    """
    text_px = max(13, cell_px // 24)
    line_px, face = round(text_px * 1.3), font(text_px + 3)
    if names_px is None:
        names_px = math.ceil(max(face.getlength(name) for name, _ in rows)) + GAP_PX
    columns, step = max(len(images) for _, images in rows), cell_px + GAP_PX
    lines = [wrapped(caption, text_px, cell_px) for caption in captions]
    top = line_px * max(map(len, lines), default=0)
    top += 6 if top else 0
    size = (names_px + columns * step - GAP_PX, top + len(rows) * step - GAP_PX)
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    for column, caption in enumerate(lines):
        x, y = names_px + column * step + cell_px // 2, top - 6 - line_px * len(caption)
        for index, line in enumerate(caption):
            place = (x, y + index * line_px)
            draw.text(place, line, font=font(text_px), fill=FAINT, anchor="ma")
    for row, (name, images) in enumerate(rows):
        y = top + row * step
        draw.text((0, y + cell_px // 2), name, font=face, fill=INK, anchor="lm")
        for column, image in enumerate(images):
            page.paste(_cell(image, cell_px), (names_px + column * step, y))
    return page


def _cell(image: Image.Image, cell_px: int) -> Image.Image:
    """Return a picture in a square; tiny ones whose size divides the square keep sharp pixels."""
    scale = cell_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resampling = Image.Resampling.NEAREST if scale.is_integer() else Image.Resampling.LANCZOS
    cell = Image.new("RGB", (cell_px, cell_px), PAPER)
    place = ((cell_px - size[0]) // 2, (cell_px - size[1]) // 2)
    cell.paste(image.convert("RGB").resize(size, resampling), place)
    return cell
