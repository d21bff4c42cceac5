"""The predictor file, and the concepts that it reads off pictures.

A predictor is a .safetensors with the tensors of a concept file and those of the network. Its
"concept" is the frame of every prediction: layers, pivots and fingerprints of the base, and for
every direction its unit, that is, the change of the diagonal that the number 1 stands for.
"""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from loldu.adapter.components import adapted_layers, components
from loldu.concept.format import Concept, concept_in, reason_of, write_concept
from loldu.concept.metadata import shown
from loldu.concept.reader import PREDICTOR, read_file, sound_content
from loldu.concept.save import concept_of
from loldu.concept.verify import verified_parts
from loldu.errors import ConceptError
from loldu.pictures.crop import square_crops
from loldu.pictures.open import load_image
from loldu.predict.reader import PictureReader, ReaderConfig

_READER = "reader"
"""Prefix of the network's tensors, and the key of its sizes in the metadata."""


@dataclass(frozen=True)
class Predictor:
    """A network that reads concepts of one base off pictures.

    Attributes:
        frame: The layers of every prediction; `delta` holds the unit of each direction, and
            `metadata` the base, the token, the prompt and what the network was trained on.
        reader: The network.
    """

    frame: Concept
    reader: PictureReader

    @torch.no_grad()
    def read(
        self,
        pictures: Sequence[str | os.PathLike[str] | Image.Image],
        *,
        class_name: str | None = None,
        token: str | None = None,
        seed: int | None = None,
    ) -> Concept:
        """Return the concept that pictures show.

        Args:
            pictures: Pictures of one thing, or their files; the middle square of each is read.
            class_name: Word for the kind of thing, such as "toy"; it is only recorded.
            token: Word that calls the concept; by default that of the training.
            seed: Seed of a draw from the spread; the most likely concept without it.

        Raises:
            ConceptError: If there is no picture, or the network has no spread to draw from.
            LoLDUError: If a picture cannot be read.
        """
        if not pictures:
            raise ConceptError("a concept is read off pictures, and there is none: give at least 1")
        pixels = torch.stack([pixels_of(picture, self.reader.config) for picture in pictures])
        noise, config = None, self.reader.config
        if seed is not None:
            if not config.spread:
                raise ConceptError(
                    "this predictor has no spread, so every seed gives one concept: leave it out"
                )
            noise = torch.randn(1, config.embedding, generator=torch.Generator().manual_seed(seed))
        device = self.reader.queries.device
        noise = None if noise is None else noise.to(device)
        numbers = self.reader.eval()(pixels[None].to(device), noise).numbers[0].cpu()
        parts = numbers.split([layer.delta.numel() for layer in self.frame.layers])
        layers = [
            replace(layer, delta=layer.delta * part)
            for layer, part in zip(self.frame.layers, parts, strict=True)
        ]
        about = _about(self.frame.metadata, len(pictures), class_name, token)
        return replace(self.frame, layers=tuple(layers), metadata=about)


@torch.no_grad()
def frame_of(
    model_or_pipeline: Any,  # noqa: ANN401
    adapter_name: str,
    metadata: Mapping[str, Any],
) -> Concept:
    """Return the frame of predictions for the layers of an adapter, which is at its start.

    Args:
        model_or_pipeline: The base with the adapter.
        adapter_name: The adapter.
        metadata: The base, the token, the prompt and what the network is trained on.

    Raises:
        ConceptError: If a concept cannot hold such an adapter.
    """
    diagonals = [
        layer.diagonal(adapter_name)
        for layer in adapted_layers(model_or_pipeline)
        if adapter_name in layer.r
    ]
    for diagonal in diagonals:
        diagonal.dz.fill_(1)
    frame = concept_of(model_or_pipeline, adapter_name, metadata)
    for diagonal in diagonals:
        diagonal.dz.zero_()
    return frame


def predict_concept(
    model_or_pipeline: Any,  # noqa: ANN401
    pictures: Sequence[str | os.PathLike[str] | Image.Image],
    predictor: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    class_name: str | None = None,
    token: str | None = None,
    seed: int | None = None,
    overwrite: bool = False,
) -> Concept:
    """Read a concept off pictures, without training, and write its concept file.

    The file is like that of a trained concept: `load_concept` routes it by its token, and
    `verify_concept` compares it with a base.

    Args:
        model_or_pipeline: The base, with which the predictor is compared first.
        pictures: Pictures of one thing, or their files.
        predictor: The predictor file.
        path: The concept file to write.
        class_name: Word for the kind of thing, such as "toy"; it is only recorded.
        token: Word that calls the concept; by default that of the predictor's training.
        seed: Seed of a draw from the predictor's spread; the most likely concept without it.
        overwrite: Whether an existing file may be replaced.

    Raises:
        ConceptError: If the predictor is unsound or for another base, or the file exists.
        LoLDUError: If a picture cannot be read.
    """
    found = read_predictor(predictor)
    verified_parts(found.frame, components(model_or_pipeline), predictor)
    concept = found.read(pictures, class_name=class_name, token=token, seed=seed)
    write_concept(concept, Path(path), overwrite=overwrite)
    return concept


def save_predictor(
    predictor: Predictor,
    path: Path,
    *,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
) -> None:
    """Write a predictor file, atomically.

    Raises:
        ConceptError: If the file exists and `overwrite` is False.
    """
    frame, reader = predictor.frame, predictor.reader
    weights = {
        f"{_READER}.{name}": tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in reader.state_dict().items()
    }
    about = frame.metadata | {_READER: asdict(reader.config)}
    write_concept(
        replace(frame, metadata=about), path, overwrite=overwrite, kind=PREDICTOR, more=weights
    )


def read_predictor(path: str | os.PathLike[str]) -> Predictor:
    """Read a predictor file; nothing in it is executed or trusted.

    Raises:
        ConceptError: If the file is missing, damaged, or not a predictor.
    """
    path = Path(path)
    file = read_file(path, PREDICTOR)
    frame = concept_in(file, path, PREDICTOR)
    weights = {
        name.removeprefix(f"{_READER}."): torch.from_numpy(array).float()
        for name, array in file.arrays.items()
        if name.startswith(f"{_READER}.")
    }
    about = dict(frame.metadata)
    with sound_content(path, PREDICTOR):
        sizes = about.pop(_READER)
        channels = {name: tuple(sizes[name]) for name in ("mean", "std")}  # lists in JSON
        config = ReaderConfig(**sizes | channels)
        if config.numbers != sum(layer.delta.numel() for layer in frame.layers):
            raise ValueError("numbers")
        if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
            raise ValueError(_READER)
        if config.backbone["num_hidden_layers"] > len(weights):
            raise ValueError("num_hidden_layers")
        try:
            with torch.device("meta"):  # sizes in a file may ask for any amount of memory
                reader = PictureReader(config)
            reader.load_state_dict(weights, assign=True)
        except Exception as error:  # transformers refuses sizes with errors of its own
            raise ValueError(f"{_READER}: {shown(reason_of(error), 100)}") from error
    return Predictor(replace(frame, metadata=about), reader.eval().requires_grad_(False))


def pixels_of(
    picture: str | os.PathLike[str] | Image.Image, config: ReaderConfig
) -> Float[Tensor, "3 px px"]:
    """Return the middle square of a picture as a reader sees it, in [-1, 1].

    Raises:
        LoLDUError: If the file cannot be read.
    """
    image = picture if isinstance(picture, Image.Image) else load_image(Path(picture))
    rng = np.random.default_rng(0)  # nothing is drawn for a crop of the middle
    px = config.picture_px
    how = {"center_crop": True, "random_flip": False}
    return next(iter(square_crops(image.convert("RGB"), px, rng=rng, **how)))


def _about(
    trained: dict[str, Any], pictures: int, class_name: str | None, token: str | None
) -> dict[str, Any]:
    """Return the metadata of a prediction: the names of a trained concept, and where it is from."""
    about = {name: trained[name] for name in ("base", "license", "versions") if name in trained}
    token = token or trained.get("token")
    names = {"method": "loldu", "token": token, "class_name": class_name}
    if class_name and token and isinstance(prompt := trained.get("prompt"), str):
        named = prompt.replace("{token}", token).replace("{class_name}", class_name)
        names["instance_prompt"] = named
    known = {name: value for name, value in names.items() if value is not None}
    return {**known, **about, "pictures": pictures, "steps": 0, "predicted": True}
