"""Export of concepts: concept file, LoRA or zip, with portable file names."""

import re
import shutil
import unicodedata
import zipfile
from pathlib import Path

from loldu import export_lora, load_concept, read_concept
from loldu.base.open import load_pipeline
from loldu.base.record import base_options
from loldu.concept.format import BASE_DTYPES
from loldu.errors import LoLDUError
from trainer.methods.lora_file import DTYPES, LORA, lora_header
from trainer.methods.textual_inversion import LEARNED_WORD
from trainer.results.card import CARD
from trainer.results.places import METRICS, SAMPLES
from webui.library.about import about
from webui.library.entry import CONCEPT, Entry, named_errors
from webui.library.imported import NAME_MARK

_RESERVED = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10)),
}
"""Names that Windows refuses."""
_IN_ZIP = (CONCEPT, LEARNED_WORD, CARD, METRICS)


def file_name(name: str) -> str:
    """Return a name with dashes for the characters that file names of some system cannot have.

    An import takes the name of the file, so it keeps capitals, spaces and letters of any language.
    """
    plain = unicodedata.normalize("NFC", name)
    plain = "".join(c if c.isalnum() or c in " ._,-" else "-" for c in plain)
    plain = re.sub(r"-+", "-", plain).strip(" ._,-")[:60].rstrip(" ._,-")
    return f"concept {plain}".strip() if not plain or plain.upper() in _RESERVED else plain


def export_concept(entry: Entry, folder: Path) -> Path:
    """Copy the concept file into a folder.

    Raises:
        LoLDUError: If it is gone.
    """
    path = folder / f"{file_name(entry.name)}.safetensors"
    _copy(entry.path, path)
    return path


def export_as_lora(entry: Entry, base: str, trained: Path | None, folder: Path) -> Path:
    """Write a concept as a LoRA file for A1111, ComfyUI and diffusers.

    Args:
        entry: The concept.
        base: Its base model.
        trained: LoRA file of its training; exported anew if None or missing.
        folder: Folder to write to.

    Raises:
        LoLDUError: If the concept is gone, or the base cannot be loaded.
        ConceptError: If the concept was made for another base, or a LoRA cannot express it.
    """
    path = folder / f"{file_name(entry.name)}-lora.safetensors"
    if trained is not None and trained.is_file():
        _copy(trained, path)
        return path
    with named_errors(entry.path, entry.name):
        concept = read_concept(entry.path)
        dtype = BASE_DTYPES[concept.layers[0].base_dtype]  # so that an SVD comes out the same
        options = base_options(concept, entry.path, base)
        pipeline = load_pipeline(options, torch_dtype=dtype)
        load_concept(pipeline, entry.path)
        header = lora_header(pipeline, concept.metadata)
        return export_lora(pipeline, path, "kohya", dtype=DTYPES["fp16"], metadata=header)


def export_zip(entry: Entry, trained: Path | None, folder: Path) -> Path:
    """Pack a concept with its card, its samples and the LoRA of its training.

    Raises:
        LoLDUError: If the concept is gone.
        ConceptError: If the file is damaged.
    """
    path = folder / f"{file_name(entry.name)}.zip"
    about(entry.path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = NAME_MARK + entry.name.encode()
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
    """Return a model card from the metadata, for an imported concept."""
    known = about(entry.path)
    asked = f"Prompt: `{known.prompt}`." if known.prompt else ""
    steps = f"Trained for {known.steps} steps." if known.steps is not None else ""
    return "\n\n".join(
        part
        for part in (
            f"# {known.called or entry.name}",
            f"A concept for `{known.base}`. {steps} {asked}".strip(),
            f'With LoLDU installed: `load_concept(pipeline, "{CONCEPT}")`.\n',
        )
        if part
    )
