"""A concept of the library: its folder, and the files copied into it."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loldu import Concept, ConceptError
from loldu.base.record import CONFIG, SUMMARY, read_as
from loldu.errors import LoLDUError
from loldu.files import read_toml, save_png
from loldu.pictures.folder import list_images
from loldu.pictures.open import load_image
from loldu.presets import flat
from trainer.methods.loldu import CONCEPT
from trainer.methods.textual_inversion import LEARNED_WORD
from trainer.results.card import CARD
from trainer.results.places import METRICS, SAMPLES
from webui.library.about import about

PICTURES = "pictures"
_TAKEN = (CONCEPT, CONFIG, SUMMARY, METRICS, CARD, LEARNED_WORD)
_PICTURE_PX, _MOST_PICTURES = 256, 5


@dataclass(frozen=True)
class Entry:
    """A concept of the library.

    Attributes:
        id: Identifies it in requests; never used as a path.
        name: Display name.
        owner: Username; None for concepts that everybody shares and nobody changes.
        folder: Folder of the concept file and other files of its run.
        created: Seconds since 1970.
        job: Id of its training, if the studio trained it.
        step: Step of the checkpoint; None for the end of the training.
        file: Name of the concept file in the folder.
    """

    id: str
    name: str
    owner: str | None
    folder: Path
    created: float
    job: str | None = None
    step: int | None = None
    file: str = CONCEPT

    @property
    def path(self) -> Path:
        """The concept file."""
        return self.folder / self.file

    @property
    def token(self) -> str | None:
        """The rare token, or None."""
        with suppress(LoLDUError):
            return about(self.path).token
        return None

    @property
    def run(self) -> dict[str, Any]:
        """Options of its training by name; {} without a file of them that can be read."""
        with suppress(LoLDUError):
            return flat(read_toml(self.folder / CONFIG, "The options"))
        return {}

    @property
    def samples(self) -> list[Path]:
        """Pictures drawn with the concept."""
        return sorted((self.folder / SAMPLES).glob("*-concept.png"))

    @property
    def pictures(self) -> list[Path]:
        """Small copies of some training pictures."""
        return sorted((self.folder / PICTURES).glob("*.png"))


@contextmanager
def named_errors(path: Path, name: str) -> Generator[None]:
    """Replace the path of a concept file in error messages by the concept's name."""
    try:
        yield
    except ConceptError as error:
        raise ConceptError(str(error).replace(str(path), name)) from error


def take(source: Path, folder: Path) -> None:
    """Copy a concept and its files from a run or a checkpoint.

    Raises:
        OSError: If a file cannot be read or written.
    """
    for name in _TAKEN:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if not (folder / CONCEPT).is_file():
        raise FileNotFoundError(source / CONCEPT)
    if (source / SAMPLES).is_dir():
        shutil.copytree(source / SAMPLES, folder / SAMPLES)
    _take_pictures(folder)


def _take_pictures(folder: Path) -> None:
    """Save small copies of some training pictures, if those still exist and can be read."""
    with suppress(LoLDUError):
        options = flat(read_toml(folder / CONFIG, "The options"))
        pictures = options.get("instance_data_dir")
        images = list_images(Path(pictures))[:_MOST_PICTURES] if isinstance(pictures, str) else []
        for number, path in enumerate(images):
            image = load_image(path)
            image.thumbnail((_PICTURE_PX, _PICTURE_PX))
            (folder / PICTURES).mkdir(exist_ok=True)
            save_png(image, folder / PICTURES / f"{number}.png")


def take_validation(run: Path, step: int, folder: Path) -> None:
    """Copy the validation pictures of a step as samples."""
    drawn = run / "validation" / "pictures"
    for kind, name in ((f"{step:06d}", "concept"), ("base", "base")):
        for path in drawn.glob(f"{kind}-[0-9][0-9].png"):
            (folder / SAMPLES).mkdir(exist_ok=True)
            number = int(path.stem.rpartition("-")[2])
            shutil.copyfile(path, folder / SAMPLES / f"{number}-{name}.png")


def base_without_paths(concept: Concept) -> dict[str, str | int]:
    """Return the base options of a concept file, without paths, as the file may be hostile."""
    return {"pretrained_model_name_or_path": concept.base, **read_as(concept)}
