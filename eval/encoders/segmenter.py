"""Masks of the subject in generated pictures: a folder of them, or a model that makes them."""

from __future__ import annotations

import hashlib
import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from tqdm import tqdm

from eval.config import ModelsConfig
from eval.encoders.encoder import model_digest
from loldu.errors import LoLDUError
from loldu.files import save_png
from loldu.pictures.folder import MASK_ENDING, beside
from loldu.pictures.open import load_image

logger = logging.getLogger(__name__)

CHOICE = "1"
"""Version of `choose_mask`; raise it to make stored masks unused."""
DEPTH = 3
"""Folders above a picture that a folder of masks may repeat."""


class Segmenter(ABC):
    """A source of masks, as picture files: white is the subject.

    Attributes:
        identity: Name and weights, for result files.
    """

    identity: str

    @abstractmethod
    def masks(self, paths: Sequence[Path], class_name: str | None) -> dict[Path, Path]:
        """Return the mask of each picture; a picture without the subject has a black one.

        Raises:
            LoLDUError: If a mask is missing or cannot be made.
        """

    @abstractmethod
    def regions(self, classes: Mapping[str, str]) -> dict[str, Segmenter]:
        """Return the source of each subject's masks in pictures of several subjects.

        Args:
            classes: Class word of each subject.

        Raises:
            LoLDUError: If it cannot tell the subjects apart.
        """


class MaskFolder(Segmenter):
    """A folder of masks with the names of the pictures, as `dog.png` or `dog-masklabel.png`.

    It may repeat the folders above the pictures: `MASKS/cup/0.png` for `drawn/cup/0.png`.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder."""
        self.folder = folder
        self.identity = "a folder of masks"

    def masks(self, paths: Sequence[Path], class_name: str | None) -> dict[Path, Path]:
        """Return the mask of each picture.

        Raises:
            LoLDUError: If one is missing, or two pictures have the same mask.
        """
        found = {path: self._of(path) for path in dict.fromkeys(paths)}
        for mask, count in Counter(found.values()).items():
            if count > 1:
                both = [str(path) for path, own in found.items() if own == mask]
                raise LoLDUError(
                    f"{' and '.join(both[:2])} have the same mask {mask}; repeat their folders in "
                    f"--segmenter {self.folder}, such as {Path(*Path(both[0]).parts[-2:])}."
                )
        return found

    def regions(self, classes: Mapping[str, str]) -> dict[str, Segmenter]:
        """Return a folder for each subject, `MASKS/SUBJECT`."""
        return {name: MaskFolder(self.folder / name) for name in classes}

    def _of(self, path: Path) -> Path:
        above = path.absolute().parent.parts[1:]
        for depth in range(min(DEPTH, len(above)), -1, -1):
            place = self.folder.joinpath(*above[len(above) - depth :])
            for name in (path.stem + MASK_ENDING, f"{path.stem}.png"):
                if (place / name).is_file():
                    return place / name
        raise LoLDUError(
            f"--segmenter {self.folder} has no mask of {path}: neither {path.stem}{MASK_ENDING} "
            f"nor {path.stem}.png, also not in {path.parent.name}/; add it (black without a "
            "subject)."
        )


class ModelSegmenter(Segmenter):
    """A model of transformers for image segmentation or mask generation; masks are stored."""

    def __init__(self, pipeline: Any, folder: Path) -> None:  # noqa: ANN401
        """Use a pipeline; put the masks into a folder."""
        self.pipeline, self.folder = pipeline, folder
        self.identity = f"{model_digest(pipeline.model)}, choice {CHOICE}"

    def masks(self, paths: Sequence[Path], class_name: str | None) -> dict[Path, Path]:
        """Return the mask of each picture; one that is stored is not made again.

        Raises:
            LoLDUError: If a picture cannot be read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        found = {path: self._place(path, class_name) for path in dict.fromkeys(paths)}
        missing = [path for path, place in found.items() if not place.exists()]
        for path in tqdm(missing, desc="masking", unit="picture", disable=None):
            image = load_image(path, to_srgb=False)
            mask = choose_mask(self._candidates(image), class_name, self._labels())
            if mask is None:
                logger.info("Found no %s in %s", class_name or "subject", path)
                mask = np.zeros((image.height, image.width), dtype=bool)
            save_png(Image.fromarray(mask.astype(np.uint8) * 255), found[path])
        return found

    def regions(self, classes: Mapping[str, str]) -> dict[str, Segmenter]:
        """Return this model for each subject; it finds them by their class words.

        Raises:
            LoLDUError: If two subjects have one class, or the model has no label for a class.
        """
        labels = [*self._labels()]
        for name, own in classes.items():
            alike = [other for other, theirs in classes.items() if theirs.lower() == own.lower()]
            if len(alike) > 1 or not any(_class(own).search(label.lower()) for label in labels):
                raise LoLDUError(
                    f"The model of --segmenter cannot tell {name} ({own}) from the other subjects "
                    "of a picture: its labels must have the class words, and these must differ; "
                    f"give a folder of masks, with those of {name} in {name}/."
                )
        return dict.fromkeys(classes, self)

    def _place(self, path: Path, class_name: str | None) -> Path:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise LoLDUError(f"The picture {path} cannot be read ({error.strerror}).") from error
        key = f"{self.identity} {class_name} {hashlib.sha256(content).hexdigest()}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.png"

    def _labels(self) -> Iterable[str]:
        return self.pipeline.model.config.id2label.values() if self._has_labels() else ()

    def _has_labels(self) -> bool:
        return self.pipeline.task == "image-segmentation"

    def _candidates(self, image: Image.Image) -> list[tuple[str | None, Bool[np.ndarray, "h w"]]]:
        """Return the masks in a picture with their labels, which mask generation does not have."""
        with torch.inference_mode():
            found = self.pipeline(image)
        if self._has_labels():
            return [(one["label"], np.asarray(one["mask"]) > 127) for one in found]
        return [(None, np.asarray(mask, dtype=bool)) for mask in found["masks"]]


def choose_mask(
    candidates: Sequence[tuple[str | None, Bool[np.ndarray, "h w"]]],
    class_name: str | None,
    labels: Iterable[str] = (),
) -> Bool[np.ndarray, "h w"] | None:
    """Return the mask of the subject, or None if it is not in the picture.

    If the model knows a label with the class word, these masks together are the subject. Otherwise
    it is the mask that covers most of the middle of the picture and least of its border; a mask
    that is called the background is none.
    """
    if class_name:
        word = _class(class_name)
        if any(word.search(label.lower()) for label in labels):
            own = [mask for label, mask in candidates if label and word.search(label.lower())]
            whole = np.logical_or.reduce(own) if own else None
            return whole if whole is not None and whole.any() else None
    shown = [
        mask
        for label, mask in candidates
        if mask.any() and (label or "").lower() not in ("background", "bg")
    ]
    return max(shown, key=_in_the_middle, default=None)


def _class(name: str) -> re.Pattern[str]:
    """Return the pattern that finds a class word in a label in lower case."""
    return re.compile(rf"\b{re.escape(name.lower())}\b")


def _in_the_middle(mask: Bool[np.ndarray, "h w"]) -> float:
    """Return the covered share of the middle, half as high and wide, less that of the border."""
    height, width = mask.shape
    middle = mask[height // 4 : height - height // 4, width // 4 : width - width // 4]
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return float(middle.mean() - border.mean())


_FOLDERS: list[TemporaryDirectory[str]] = []
"""Folders of masks that end with the process."""


def load_segmenter(models: ModelsConfig, device: torch.device | str) -> Segmenter | None:
    """Return the segmenter of `--segmenter`, or None without the option.

    A folder with a config.json, and anything that is not a folder, is a model.

    Raises:
        LoLDUError: If it cannot be loaded.
    """
    if models.segmenter is None:
        return None
    folder = Path(models.segmenter)
    if folder.is_dir() and not (folder / "config.json").is_file():
        return MaskFolder(folder)
    if models.cache:
        place = models.cache_file.parent / "masks"
    else:
        _FOLDERS.append(TemporaryDirectory(prefix="loldu-masks-"))
        place = Path(_FOLDERS[-1].name)
    return ModelSegmenter(_pipeline(models.segmenter, device), place)


def _pipeline(name_or_path: str, device: torch.device | str) -> Any:  # noqa: ANN401
    from transformers import AutoConfig, pipeline
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASK_GENERATION_MAPPING_NAMES

    try:
        kind = AutoConfig.from_pretrained(name_or_path).model_type
        generates = kind in MODEL_FOR_MASK_GENERATION_MAPPING_NAMES
        task: Any = "mask-generation" if generates else "image-segmentation"
        loaded = pipeline(task, model=name_or_path, device=device, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise LoLDUError(
            f"--segmenter {name_or_path} is neither a folder of masks nor a model that "
            "transformers can open for image segmentation or mask generation: give a folder, or a "
            "hub id such as facebook/sam-vit-base."
        ) from error
    loaded.model.eval()
    return loaded


def find_masks(
    segmenter: Segmenter, drawn: Sequence[Path], real: Sequence[Path], class_name: str | None
) -> dict[Path, Path]:
    """Return the masks of one subject's pictures: those beside the real ones, or the segmenter's.

    Raises:
        LoLDUError: If a mask is missing or cannot be made.
    """
    found: dict[Path, Path] = {}
    for folder in {path.parent for path in real}:
        found |= beside([path for path in real if path.parent == folder], MASK_ENDING)
    without = [path for path in real if path not in found]
    if without and isinstance(segmenter, MaskFolder):
        raise LoLDUError(
            f"{without[0]} has no mask, which --segmenter needs: paint "
            f"{without[0].stem}{MASK_ENDING} beside it, or give --segmenter a model."
        )
    return {**found, **segmenter.masks([*drawn, *without], class_name)}
