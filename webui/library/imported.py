"""Reads imported files: a concept file, or a zip that Export made; both may be hostile."""

import re
import shutil
import zipfile
import zlib
from pathlib import Path

from loldu.errors import LoLDUError
from loldu.files import save_png
from loldu.pictures.open import load_image
from trainer.methods.textual_inversion import LEARNED_WORD
from trainer.results.card import CARD
from trainer.results.places import METRICS, SAMPLES
from webui.library.entry import CONCEPT

MOST_BYTES = 16 * 2**20
"""Limit for an imported concept file; those of Stable Diffusion have tens of kilobytes."""
NAME_MARK = b"LoLDU: "
"""The comment of a zip of Export begins with it; the concept's name follows."""
_MOST_SAMPLES, _MOST_PIXELS = 40, 4096**2
_SAMPLE = re.compile(rf"{SAMPLES}/\d{{1,3}}-(base|concept)\.png")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


def is_zip(file: Path) -> bool:
    """Return whether a file is a zip, by its first bytes."""
    with file.open("rb") as opened:
        return opened.read(4) == b"PK\x03\x04"


def name_of(file: Path, name: str) -> str:
    """Return the name of a concept: the one in a zip of Export, or else that of the file."""
    if is_zip(file):
        try:
            with zipfile.ZipFile(file) as archive:
                if archive.comment.startswith(NAME_MARK):
                    return archive.comment.removeprefix(NAME_MARK).decode(errors="replace")
        except _DAMAGED:
            pass  # `unpack` reports it
    return re.sub(r"\.(safetensors|zip)$", "", Path(name).name, flags=re.IGNORECASE) or "concept"


def unpack(file: Path, name: str, folder: Path) -> None:
    """Copy the concept of a file or zip into a folder, with its card and samples.

    Args:
        file: The uploaded file.
        name: What messages call it.
        folder: The folder.

    Raises:
        LoLDUError: If it is too large, or a zip without a concept.
    """
    if not is_zip(file):
        if (size := file.stat().st_size) > MOST_BYTES:
            raise LoLDUError(_too_large(name, size))
        shutil.copyfile(file, folder / CONCEPT)
        return
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            if CONCEPT not in names:
                raise LoLDUError(f"{name} has no {CONCEPT}: import a zip that Export made.")
            samples = sorted(filter(_SAMPLE.fullmatch, names))[:_MOST_SAMPLES]
            kept = [each for each in (LEARNED_WORD, CARD, METRICS) if each in names]
            for each in (CONCEPT, *kept, *samples):
                with archive.open(each) as member:  # its stated size may be false
                    content = member.read(MOST_BYTES + 1)
                if len(content) > MOST_BYTES:
                    raise LoLDUError(_too_large(f"{each} of {name}", len(content)))
                (folder / each).parent.mkdir(exist_ok=True)
                (folder / each).write_bytes(content)
    except _DAMAGED as error:
        raise LoLDUError(f"{name} is not a zip that can be read: export it again.") from error
    for sample in (folder / SAMPLES).glob("*.png"):
        _redraw(sample)


def _redraw(sample: Path) -> None:
    """Keep the pixels of a picture alone, or nothing if it is damaged or huge."""
    try:
        image = load_image(sample, formats=("PNG",))
    except LoLDUError:
        sample.unlink()
        return
    if image.width * image.height > _MOST_PIXELS:
        sample.unlink()
    else:
        save_png(image, sample)


def _too_large(name: str, size: int) -> str:
    return (
        f"{name} has {size / 2**20:.0f} MB, so it is not a concept: concepts have at most some "
        "hundred kilobytes."
    )
