"""Fine-tunes a vision transformer on labelled pictures, and measures its accuracy.

Rows have the columns `image` and `label`. Training crops every picture at random (Szegedy et al.,
"Going Deeper with Convolutions", 2015) and mirrors some, as the recipe says. The test resizes
pictures to the model's input size.
"""

# torchvision and Hugging Face datasets are typed in part only.
# pyright: reportArgumentType=false, reportCallIssue=false

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from PIL import Image
from sklearn.metrics import accuracy_score
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from transformers import AutoImageProcessor, ViTForImageClassification
from transformers.trainer_utils import EvalPrediction

from experiments.config import Run
from experiments.data import data_facts, load_data
from experiments.kinds.classify import classify
from experiments.outcome import Outcome
from experiments.pretrained import fetching
from experiments.recipe import Recipe
from loldu.errors import LoLDUError

KEPT_PICTURES_BYTES = 2**30
"""Datasets up to this size stay decoded in memory; larger ones are decoded picture by picture."""


class Pictures(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows as transformed uint8 pictures with labels."""

    def __init__(
        self, rows: Dataset, decoded: list[Tensor] | None, transform: v2.Transform
    ) -> None:
        """Use pictures that are decoded already, if given."""
        self._rows, self._decoded, self._transform = rows, decoded, transform
        self._labels: list[int] = rows["label"][:]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one picture (3, size, size), uint8, and its label."""
        kept = self._decoded
        picture = kept[index] if kept is not None else _decode(self._rows[index]["image"])
        return {"picture": self._transform(picture), "label": self._labels[index]}


def run(run: Run, work: Path) -> Outcome:
    """Fine-tune on the train split, from the last checkpoint in `work` if there is one, and test.

    Raises:
        LoLDUError: If the base or the data is unavailable, or an option is invalid.
    """
    data, recipe = load_data(run.data), run.recipe
    labels, tested = (data[split].features["label"] for split in ("train", "test"))
    if not isinstance(labels, ClassLabel):
        raise LoLDUError(f"The column label of {run.data} does not hold classes: see its entry.")
    if labels != tested:
        raise LoLDUError(
            f"The classes of {run.data} are others, or in another order, in its train and test "
            "splits: see its entry."
        )
    splits = {
        name: Pictures(
            data[name],
            _decode_all(run.data, name),
            transform(recipe, training=name == "train"),
        )
        for name in ("train", "test")
    }
    return classify(
        run,
        work,
        ViTForImageClassification,
        splits,
        num_labels=len(labels.names),
        facts={**data_facts(data), "classes": len(labels.names)},
        collate=_collator(run.model),
        score=_accuracy,
        metric="accuracy",
    )


def transform(recipe: Recipe, *, training: bool) -> v2.Transform:
    """Return the transform of a uint8 picture before normalization."""
    size = (recipe.image_size_px, recipe.image_size_px)
    bilinear = InterpolationMode.BILINEAR
    steps: list[nn.Module] = [v2.Resize(size, bilinear, antialias=True)]
    if training and recipe.crop_scale_min < 1:
        scale = (recipe.crop_scale_min, 1.0)
        steps = [v2.RandomResizedCrop(size, scale, interpolation=bilinear, antialias=True)]
    if training and recipe.flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose(steps)


def _collator(model: str) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """Return a function that makes rows a batch, normalized for the model."""
    with fetching(model):
        processor = AutoImageProcessor.from_pretrained(model)
    mean, std = (
        255 * torch.tensor(values).view(3, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        pictures = torch.stack([row["picture"] for row in rows]).to(torch.float32)
        return {
            "pixel_values": (pictures - mean) / std,
            "labels": torch.tensor([row["label"] for row in rows]),
        }

    return collate


def _accuracy(predicted: EvalPrediction) -> Mapping[str, float]:
    classes = np.asarray(predicted.predictions).argmax(-1)
    return {"accuracy": 100.0 * float(accuracy_score(predicted.label_ids, classes))}


def _decode(picture: Image.Image) -> Tensor:
    return v2.functional.pil_to_tensor(picture.convert("RGB"))


@cache
def _decode_all(data: str, split: str) -> list[Tensor] | None:
    """Decode all pictures of a split once a process; None if they need too much memory."""
    rows = load_data(data)[split]
    width, height = rows[0]["image"].size
    if 3 * width * height * len(rows) > KEPT_PICTURES_BYTES:
        return None
    return [_decode(picture) for picture in rows["image"]]
