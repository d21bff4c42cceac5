"""A concept of the library as files to take elsewhere, under names that any system takes."""

import re
import shutil
import unicodedata
import zipfile
from pathlib import Path

from loldu import ConceptError, export_lora, load_concept, read_concept
from loldu.base.open import load_pipeline
from loldu.base.record import base_options
from loldu.concept.format import BASE_DTYPES
from loldu.errors import LoLDUError
from trainer.methods.lora_file import DTYPES, LORA, lora_header
from trainer.methods.textual_inversion import LEARNED_WORD
from trainer.results.card import CARD
from trainer.results.output_dir import METRICS, SAMPLES
from webui.library.about import about
from webui.library.entry import CONCEPT, Entry

_SHOWN_IN_LORA = ("token", "class_name", "instance_prompt", "license")
_IN_ZIP = (CONCEPT, LEARNED_WORD, CARD, METRICS)


def slug(name: str) -> str:
    """A name as letters, digits and dashes."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-")[:60].rstrip("-").lower() or "concept"


def export_concept(entry: Entry, folder: Path) -> Path:
    """Copy the concept file into a folder.

    Raises:
        LoLDUError: it is gone.
    """
    path = folder / f"{slug(entry.name)}.safetensors"
    _copy(entry.path, path)
    return path


def export_as_lora(entry: Entry, base: str, trained: Path | None, folder: Path) -> Path:
    """Write a concept as the LoRA that A1111, ComfyUI and diffusers all read.

    Args:
        entry: the concept.
        base: the model it changes.
        trained: the LoRA that its training left, if that is known; it is made anew if there is
            none.
        folder: where to write.

    Raises:
        LoLDUError: the concept is gone, or the base cannot be loaded.
        ConceptError: the concept was made for another base, or no LoRA can hold it.
    """
    path = folder / f"{slug(entry.name)}-lora.safetensors"
    if trained is not None and trained.is_file():
        _copy(trained, path)
        return path
    try:
        concept = read_concept(entry.path)
        dtype = BASE_DTYPES[concept.layers[0].base_dtype]  # in which an SVD is the same
        options = base_options(concept, entry.path, base)
        pipeline = load_pipeline(options, torch_dtype=dtype)
        load_concept(pipeline, entry.path)
        told = {
            name: value
            for name, value in concept.metadata.items()
            if name not in _SHOWN_IN_LORA or isinstance(value, str)
        }
        header = lora_header(pipeline, told)
        return export_lora(pipeline, path, "kohya", dtype=DTYPES["fp16"], metadata=header)
    except ConceptError as error:
        raise ConceptError(str(error).replace(str(entry.path), entry.name)) from error


def export_zip(entry: Entry, trained: Path | None, folder: Path) -> Path:
    """Pack a concept with its card, its samples, and the LoRA that its training left.

    Raises:
        LoLDUError: it is gone.
        ConceptError: it is not a sound concept.
    """
    path = folder / f"{slug(entry.name)}.zip"
    about(entry.path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in _IN_ZIP:
            if (entry.folder / name).is_file():
                archive.write(entry.folder / name, name)
        if trained is not None and trained.is_file():
            archive.write(trained, LORA)
        for sample in sorted((entry.folder / SAMPLES).glob("*.png")):
            archive.write(sample, f"{SAMPLES}/{sample.name}")
        if not (entry.folder / CARD).is_file():
            archive.writestr(CARD, _short_card(entry))
    return path


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise LoLDUError("The file of this concept is gone; reload the page.") from error


def _short_card(entry: Entry) -> str:
    """What the concept file tells, for one that came without a card."""
    told = about(entry.path)
    asked = f"Ask for it with `{told.prompt}`." if told.prompt else ""
    steps = f"Trained for {told.steps} steps." if told.steps is not None else ""
    return "\n\n".join(
        part
        for part in (
            f"# {told.called or entry.name}",
            f"A concept for `{told.base}`. {steps} {asked}".strip(),
            f'With LoLDU installed: `load_concept(pipeline, "{CONCEPT}")`.\n',
        )
        if part
    )
