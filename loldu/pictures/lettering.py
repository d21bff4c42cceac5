"""Text on pictures: Pillow's own font, and line breaks that fit a width."""

from PIL import ImageFont


def font(size_px: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, which is the same on every machine."""
    loaded = ImageFont.load_default(size_px)
    assert isinstance(loaded, ImageFont.FreeTypeFont)
    return loaded


def wrapped(text: str, size_px: int, width_px: int) -> list[str]:
    """Break a text into lines no wider than `width_px`, between words if possible."""
    face = font(size_px)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and face.getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines += _pieces(word, face, width_px)
    return lines


def _pieces(word: str, face: ImageFont.FreeTypeFont, width_px: int) -> list[str]:
    """Return the pieces of a word, which is cut only if it is wider than the line."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and face.getlength(pieces[-1] + letter) > width_px:
            pieces.append("")
        pieces[-1] += letter
    return pieces
