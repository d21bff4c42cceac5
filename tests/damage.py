"""Files as people have them: odd PNG chunks, EXIF blocks and profiles, and a seeded mutator."""

import io
import random
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pillow_heif
from PIL import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:  # noqa: ANN401
    """A picture in a file format, as Pillow writes it."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def heic(image: Image.Image, **options: Any) -> bytes:  # noqa: ANN401
    """A picture as HEIC; Pillow learns nothing of the format, so the code under test must."""
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, chroma=444, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    """A PNG chunk; a checksum that is given may be wrong."""
    right = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", right)


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and data of every chunk of a sound PNG."""
    found, at = [], len(PNG_MAGIC)
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        found.append((kind, png[at + 8 : at + 8 + length]))
        at += length + 12
    return found


def with_chunk(png: bytes, extra: bytes, before: bytes = b"IDAT") -> bytes:
    """A PNG with one more chunk before the first one of a kind."""
    kinds = [chunk(kind, data) for kind, data in chunks(png)]
    place = next(at for at, one in enumerate(kinds) if one[4:8] == before)
    return PNG_MAGIC + b"".join([*kinds[:place], extra, *kinds[place:]])


def gray_png(depth: int, rows: Sequence[Sequence[int]], *more: bytes, channels: int = 1) -> bytes:
    """A PNG of 1 to 16 bits, gray or RGB, with more chunks before its pixels."""
    packed = b""
    for row in rows:
        bits = "".join(f"{value:0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        packed += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    colour = 0 if channels == 1 else 2
    header = struct.pack(">IIBBBBB", len(rows[0]) // channels, len(rows), depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(packed))]
    return PNG_MAGIC + b"".join([*parts, chunk(b"IEND", b"")])


def exif_block(*entries: tuple[int, int, int, int], more: bytes = b"") -> bytes:
    """An EXIF block, big-endian: tag, type, count and the value or its offset, for each entry."""
    directory = b"".join(
        struct.pack(">HHII", tag, kind, count, value & 0xFFFFFFFF)
        for tag, kind, count, value in entries
    )
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries)) + directory + bytes(4) + more


def with_exif(jpeg: bytes, block: bytes) -> bytes:
    """A JPEG with an EXIF block in front."""
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


def fixed(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(number * 2**16) for number in numbers))


def icc(space: bytes, gamma: float, **colorants: tuple[float, float, float]) -> bytes:
    """A colour profile (ICC.1:2001) with the same gamma for every channel."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 2**8)) + bytes(2)
    points = {"wtpt": D50, **{f"{name}XYZ": point for name, point in colorants.items()}}
    tags = {name.encode(): b"XYZ " + bytes(4) + fixed(*point) for name, point in points.items()}
    tags |= {f"{name}TRC".encode(): curve for name in colorants or "k"}
    at = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(data), len(content))
        data += content
    header = bytes(4) + bytes([2, 0x40, 0, 0]) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    header += bytes(28) + fixed(*D50) + bytes(48)
    return struct.pack(">I", at + len(data)) + header + table + data


D50 = (0.9642, 1.0, 0.8249)
ADOBE_GAMMA = 563 / 256
# The colorants of Adobe RGB (1998) and of sRGB, adapted to D50: B. Lindbloom, RGB/XYZ Matrices.
ADOBE = {
    "r": (0.6097559, 0.3111242, 0.0194811),
    "g": (0.2052401, 0.6256560, 0.0608902),
    "b": (0.1492240, 0.0632197, 0.7448387),
}
SRGB = {
    "r": (0.4360747, 0.2225045, 0.0139322),
    "g": (0.3850649, 0.7168786, 0.0971045),
    "b": (0.1430804, 0.0606169, 0.7141733),
}
ADOBE_RGB, LINEAR_GRAY = icc(b"RGB ", ADOBE_GAMMA, **ADOBE), icc(b"GRAY", 1.0)


def mutated(whole: bytes, rng: random.Random, most: int = 4) -> bytes:
    """A file after one to `most` accidents: bytes changed, cut, lost, repeated or inserted.

    Half of the accidents strike the first 200 bytes. Half of the PNGs have an accident with a whole
    chunk instead, and of the others half have their checksums mended, or nearly every change would
    end there.
    """
    if whole.startswith(PNG_MAGIC) and rng.random() < 0.5:
        return _with_another_chunk(whole, rng)
    content = bytearray(whole)
    for _ in range(rng.randint(1, most)):
        reach = min(len(content), 200) if rng.random() < 0.5 else len(content)
        at = rng.randrange(reach + 1)
        span = rng.choice((1, 1, 2, 4, 16, 256))
        match rng.randrange(7):
            case 0 | 1:
                content[at : at + 1] = bytes([rng.randrange(256)])
            case 2:
                content[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"))
            case 3:
                del content[at : at + span]
            case 4:
                content[at:at] = content[at : at + span]
            case 5:
                content[at:at] = rng.randbytes(span)
            case _:
                if rng.random() < 0.4:
                    del content[at:]
    if content.startswith(PNG_MAGIC) and rng.random() < 0.5:
        content = _with_checksums(content)
    return bytes(content)


def _with_another_chunk(png: bytes, rng: random.Random) -> bytes:
    """A PNG with a chunk lost, repeated, moved, renamed or changed; its checksum may be wrong."""
    parts = chunks(png)
    kind, data = parts.pop(rng.randrange(1, len(parts)))
    match rng.randrange(5):
        case 0 | 1:
            data = mutated(data, rng, most=2)
        case 2:
            kind = rng.choice(
                b"tRNS eXIf iCCP zTXt iTXt tEXt pHYs gAMA sRGB acTL fcTL fdAT".split()
            )
        case 3:
            parts.insert(rng.randrange(1, len(parts) + 1), (kind, data))
        case _:
            pass
    whole = [chunk(*one) for one in parts]
    changed = chunk(kind, data, None if rng.random() < 0.7 else rng.randrange(2**32))
    if rng.random() < 0.9:
        whole.insert(rng.randrange(1, len(whole) + 1), changed)
    return PNG_MAGIC + b"".join(whole)


def _with_checksums(png: bytearray) -> bytearray:
    at = len(PNG_MAGIC)
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        if at + 12 + length > len(png):
            break
        struct.pack_into(">I", png, at + 8 + length, zlib.crc32(png[at + 4 : at + 8 + length]))
        at += 12 + length
    return png


def mutated_text(text: str, rng: random.Random, values: Sequence[str]) -> bytes:
    """A text of which a line has another value after its last `=` or `:`, or accidents of bytes."""
    if rng.random() < 0.5:
        return mutated(text.encode(), rng, most=1)
    lines = text.split("\n")
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(lines))
        sign = max(lines[at].rfind("="), lines[at].rfind(":"))
        lines[at] = lines[at][: sign + 1] + rng.choice(values) if sign > 0 else rng.choice(values)
    return "\n".join(lines).encode()


def snapshot(folder: Path) -> dict[str, bytes]:
    """The content of every file of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
