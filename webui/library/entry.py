"""A concept of the library: its folder, and how that is filled."""

import shutil
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loldu import Concept, ConceptError
from loldu.base.record import CONFIG, SUMMARY
from loldu.errors import LoLDUError
from loldu.files import save_png
from loldu.pictures.folder import list_images
from loldu.pictures.open import load_image
from trainer.methods.loldu import CONCEPT
from trainer.methods.textual_inversion import LEARNED_WORD
from trainer.results.card import CARD
from trainer.results.output_dir import METRICS, SAMPLES
from webui.library.about import about

PICTURES = "pictures"
_TAKEN = (CONCEPT, CONFIG, SUMMARY, METRICS, CARD, LEARNED_WORD)
_PICTURE_PX, _MOST_PICTURES = 256, 5


@dataclass(frozen=True)
class Entry:
    """A concept of the library.

    Attributes:
        id: What it is asked for by; never a path.
        name: Shown, and nothing else.
        owner: Whose it is; None for everyone's, which nobody changes.
        folder: Its concept file lies here, beside what else its run left.
        created: In seconds since 1970.
        job: Id of its training, if that was one of the studio's.
        step: Of that training, where it is not its end.
    """

    id: str
    name: str
    owner: str | None
    folder: Path
    created: float
    job: str | None = None
    step: int | None = None

    @property
    def path(self) -> Path:
        """The concept file."""
        return self.folder / CONCEPT

    @property
    def token(self) -> str | None:
        """The rare token, if the file tells one."""
        with suppress(ConceptError, LoLDUError):
            return about(self.path).token
        return None

    @property
    def samples(self) -> list[Path]:
        """Pictures that were drawn with it."""
        return sorted((self.folder / SAMPLES).glob("*-concept.png"))

    @property
    def pictures(self) -> list[Path]:
        """Some of those it was taught with, small."""
        return sorted((self.folder / PICTURES).glob("*.png"))


def take(source: Path, folder: Path) -> None:
    """Copy what a run or a checkpoint holds of a concept.

    Raises:
        OSError: it cannot be read or written.
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
    """Small copies of some pictures it was taught with, which may be gone."""
    if not (folder / CONFIG).is_file():
        return
    options = tomllib.loads((folder / CONFIG).read_text(encoding="utf-8"))
    taught_with = options.get("instance", {}).get("instance_data_dir")
    with suppress(LoLDUError):
        images = list_images(Path(taught_with))[:_MOST_PICTURES] if taught_with else []
        for number, path in enumerate(images):
            image = load_image(path)
            image.thumbnail((_PICTURE_PX, _PICTURE_PX))
            (folder / PICTURES).mkdir(exist_ok=True)
            save_png(image, folder / PICTURES / f"{number}.png")


def take_validation(run: Path, step: int, folder: Path) -> None:
    """The validation pictures of a step, as a result has its samples."""
    drawn = run / "validation" / "pictures"
    for kind, name in ((f"{step:06d}", "concept"), ("base", "base")):
        for path in drawn.glob(f"{kind}-[0-9][0-9].png"):
            (folder / SAMPLES).mkdir(exist_ok=True)
            number = int(path.stem.rpartition("-")[2])
            shutil.copyfile(path, folder / SAMPLES / f"{number}-{name}.png")


def base_as_told(concept: Concept) -> dict[str, str | int]:
    """How the base is to be read, as far as that names no place: the file may be anybody's.

    Beside the file it is what counts, and a place that the file names is not looked at.
    """
    told = concept.metadata.get("base")
    told = told if isinstance(told, dict) else {}
    base: dict[str, str | int] = {"pretrained_model_name_or_path": concept.base}
    if told.get("prediction_type") in ("epsilon", "v_prediction"):
        base["prediction_type"] = told["prediction_type"]
    if type(told.get("clip_skip")) is int and told["clip_skip"] > 0:
        base["clip_skip"] = told["clip_skip"]
    return base
