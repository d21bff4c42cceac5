"""Open a PNG that Pillow refuses because of a chunk that no pixel depends on."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any, cast

from PIL import Image

_MAGIC = b"\x89PNG\r\n\x1a\n"
_MOST_INFLATED = 32 * 2**20
"""Most bytes of a colour profile; real ones have up to 2 MB."""
_ANCILLARY = 0x20
"""Bit of a chunk's first letter that says that a decoder may skip the chunk."""
_EXIF, _XMP = b"Raw profile type exif\0", b"XML:com.adobe.xmp\0\0"
"""Beginnings of texts that may hold the orientation."""


def open_without_extras(path: Path) -> Image.Image | None:
    """Open a PNG without its texts, its wrong checksums and other extra chunks.

    Transparency, orientation and the colour profile are kept. Pillow would refuse the file for a
    text that is larger than 1 MB, such as the workflow that drawing programs embed, and for the
    wrong checksum of a chunk that it does not need. Its limits are global, so they stay untouched.

    Returns:
        The picture, not decoded yet, or None if the file is not a PNG.

    Raises:
        OSError: If the file cannot be read, or Pillow finds no picture in it.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return None
        content = memoryview(_MAGIC + file.read())
    kept: list[bytes | memoryview] = [_MAGIC]
    wanted = {b"iCCP", b"tRNS", b"eXIf", _EXIF, _XMP}
    profile, at = None, len(_MAGIC)
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        body, end = content[at + 8 : at + 8 + length], at + length + 12
        name = next((name for name in (_EXIF, _XMP) if bytes(body[:32]).startswith(name)), kind)
        if not kind[0] & _ANCILLARY:
            kept.append(content[at:end])
        elif name in wanted:
            wanted.remove(name)  # a thousand profiles would take long to inflate
            if kind == b"iCCP":
                profile = _inflated(bytes(body).partition(b"\0")[2][1:])
            else:
                kept.append(_plain_chunk(kind, bytes(body)))
        if kind == b"IEND":
            break
        at = end
    image = Image.open(io.BytesIO(b"".join(kept)), formats=["PNG"])
    if profile is not None:
        image.info["icc_profile"] = profile
    return image


def pixel_depth(image: Image.Image) -> object:
    """Return Pillow's name of the depth in the file if it is a PNG that is not decoded yet."""
    tiles: list[tuple[Any, ...]] = getattr(image, "tile", []) if image.format == "PNG" else []
    return tiles[0][3] if tiles else None


def scale_transparency(image: Image.Image, depth: object) -> None:
    """Give the transparent colour of a decoded PNG the depth of Pillow's pixels.

    Pillow makes 8 bits of 2, 4 and, in colour, 16 bits, but leaves the transparent colour as it is
    in the file, so that no pixel is transparent, or another one is. In 16-bit colour, the upper 8
    bits decide.

    Args:
        image: The picture.
        depth: Its depth in the file, from `pixel_depth`.
    """
    clear = image.info.get("transparency")
    if isinstance(clear, int) and depth in ("L;2", "L;4"):
        most = 2 ** int(str(depth)[-1]) - 1
        image.info["transparency"] = (clear & most) * 255 // most
    elif isinstance(clear, tuple) and depth == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in cast("tuple[int, ...]", clear))


def _plain_chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk with the right checksum, and without compression if it is an EXIF text."""
    if kind == b"zTXt":
        kind, body = b"tEXt", _EXIF + (_inflated(body[len(_EXIF) + 1 :]) or b"")
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _inflated(data: bytes) -> bytes | None:
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, _MOST_INFLATED)
    except zlib.error:
        return None
    return None if inflater.unconsumed_tail else plain
