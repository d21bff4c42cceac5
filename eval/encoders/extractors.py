"""Feature extractors behind one interface: L2-normalised fp32 rows from pictures and texts."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPModel, ViTModel

from eval.encoders.preprocess import Preprocess, dino_preprocess, published_dino
from loldu.errors import LoLDUError

BATCH_SIZE = 32

Extractor = TypeVar("Extractor", bound="ImageExtractor")


@dataclass(frozen=True)
class Identity:
    """What decides a feature: scores compare where this is the same.

    Attributes:
        name: As it was asked for.
        library: What built the network, with its version.
        weights: The first 16 digits of the SHA-256 of names and values of all parameters.
        preprocess: What was done to pictures.
    """

    name: str
    library: str
    weights: str
    preprocess: Preprocess

    def as_json(self) -> dict[str, Any]:
        """For a result's file."""
        return asdict(self)


class ImageExtractor(ABC):
    """What a score of pictures against pictures needs.

    Attributes:
        name: As it was asked for.
        library: The distribution that builds the network.
        model: The network, in fp32.
        preprocess: What turns a picture into its input.
        device: Where the network is.
    """

    name: str
    library: str
    model: Any
    preprocess: Preprocess
    device: torch.device

    def to(self, device: torch.device | str) -> None:
        """Move the network, and what it will be given."""
        self.device = torch.device(device)
        self.model.to(self.device)

    @cached_property
    def identity(self) -> Identity:
        """What decides this extractor's features; reads every weight once."""
        library = f"{self.library} {version(self.library)}"
        return Identity(self.name, library, _digest(self.model), self.preprocess)

    def encode_images(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Return a unit fp32 row for each picture, on the CPU."""
        batches = [
            images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)
        ]
        return torch.cat([self.encode_pixels([*map(self.preprocess, batch)]) for batch in batches])

    @torch.inference_mode()
    def encode_pixels(self, pixels: Sequence[Float[Tensor, "3 size size"]]) -> Float[Tensor, "n d"]:
        """Return a unit fp32 row for each preprocessed picture of one batch, on the CPU."""
        return _unit(self._image_rows(torch.stack([*pixels]).to(self.device)))

    @abstractmethod
    def _image_rows(self, pixels: Tensor) -> Tensor:
        """Return the network's output for one batch."""


class ImageTextExtractor(ImageExtractor):
    """What a score of pictures against prompts needs too."""

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return a unit fp32 row for each text, on the CPU, comparable with those of pictures."""
        once = list(dict.fromkeys(texts))
        rows = torch.cat(
            [
                _unit(self._text_rows(once[start : start + BATCH_SIZE]))
                for start in range(0, len(once), BATCH_SIZE)
            ]
        )
        return rows[[once.index(text) for text in texts]]

    @abstractmethod
    def _text_rows(self, texts: list[str]) -> Tensor:
        """Return the network's output for one batch."""


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.float().cpu(), dim=-1)


def _digest(model: torch.nn.Module) -> str:
    whole = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        whole.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return whole.hexdigest()[:16]


def _whole(kind: Any, name_or_path: str, **options: bool) -> Any:  # noqa: ANN401
    """Load a transformers model of which no weight is missing, which it would fill at random."""
    model, told = kind.from_pretrained(
        name_or_path, dtype=torch.float32, output_loading_info=True, **options
    )
    if told["missing_keys"]:
        raise OSError(f"{min(told['missing_keys'])} is missing")
    return model.eval()


class ClipExtractor(ImageTextExtractor):
    """A transformers ``CLIPModel`` with its tokenizer, from a folder or the hub."""

    library = "transformers"

    def __init__(self, name_or_path: str, device: torch.device | str = "cpu") -> None:
        """Load the model in fp32."""
        self.name = name_or_path
        self.model = _whole(CLIPModel, name_or_path)
        self.to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        self.preprocess = Preprocess.from_pretrained(name_or_path)

    def _image_rows(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def _text_rows(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return self.model.get_text_features(**tokens.to(self.device)).pooler_output


class OpenClipExtractor(ImageTextExtractor):
    """An open_clip model: ``architecture/pretrained``, where the latter is a tag or a file."""

    library = "open_clip_torch"

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """Load the model in fp32."""
        import open_clip

        self.name = f"open_clip:{name}"
        architecture, _, pretrained = name.partition("/")
        loaded: Any = open_clip.create_model(architecture, pretrained=pretrained or None)
        self.model = loaded.eval()
        self.to(device)
        asked: Any = open_clip.get_model_preprocess_cfg(loaded)
        size = asked["size"] if isinstance(asked["size"], int) else asked["size"][0]
        crop = size if asked["resize_mode"] == "shortest" else None
        self.preprocess = Preprocess(size, crop, tuple(asked["mean"]), tuple(asked["std"]))
        self.tokenizer = open_clip.get_tokenizer(architecture)

    def _image_rows(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    def _text_rows(self, texts: list[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(texts).to(self.device))


class TransformersDino(ImageExtractor):
    """A ``ViTModel`` or ``Dinov2Model``: the last layer's CLS token, before any head or pooler."""

    library = "transformers"

    def __init__(self, name_or_path: str, device: torch.device | str = "cpu") -> None:
        """Load the model in fp32."""
        self.name = name_or_path
        vit = AutoConfig.from_pretrained(name_or_path).model_type == "vit"
        # A ViTModel's pooler is in no published checkpoint: it would be random, and is not read.
        self.model = (
            _whole(ViTModel, name_or_path, add_pooling_layer=False)
            if vit
            else _whole(AutoModel, name_or_path)
        )
        self.to(device)
        self.preprocess = dino_preprocess(name_or_path, self.model.config.image_size)

    def _image_rows(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]


class TimmDino(ImageExtractor):
    """A timm vision transformer, ``architecture.tag`` or ``architecture/file``: its CLS token.

    timm's own transform resizes to 248; here the published one is used.
    """

    library = "timm"

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """Load the model in fp32."""
        import timm

        self.name = f"timm:{name}"
        architecture, _, file = name.partition("/")
        loaded: Any = timm.create_model(
            architecture,
            pretrained=not file,
            num_classes=0,
            checkpoint_path=file,
        )
        self.model = loaded.eval()
        self.to(device)
        self.preprocess = published_dino(loaded.patch_embed.img_size[0])

    def _image_rows(self, pixels: Tensor) -> Tensor:
        return self.model.forward_features(pixels)[:, 0]


def _load(
    flag: str,
    asked: str,
    device: torch.device | str,
    kinds: Mapping[str, Callable[[str, torch.device | str], Extractor]],
    of_transformers: Callable[[str, torch.device | str], Extractor],
) -> Extractor:
    """Make an extractor, and turn the many ways weights can be missing into one sentence."""
    kind, _, name = asked.partition(":")
    make = kinds.get(kind, of_transformers)
    if kind not in kinds:
        if name and not Path(asked).exists():
            raise LoLDUError(
                f"{flag} {asked} is of no known kind: give {' or '.join(kinds)}:NAME, or a "
                "transformers folder or hub id."
            )
        name = asked
    try:
        return make(name, device)
    except ModuleNotFoundError as error:
        raise LoLDUError(
            f"{flag} {asked} needs the package {error.name}: pip install 'loldu[eval]', or pass "
            f"{flag} a folder with a transformers model."
        ) from error
    # ValueError to KeyError: a folder or an architecture that is no such network.
    except (OSError, RuntimeError, SafetensorError, ValueError, AttributeError, KeyError) as error:
        if Path(asked).is_dir():
            raise LoLDUError(
                f"{flag} {asked} has no usable weights: the folder needs a transformers model of "
                "this kind, whole, with preprocessor_config.json and, for --clip, the tokenizer."
            ) from error
        raise LoLDUError(
            f"{flag} {asked} has no usable weights here: {_cure(flag, asked)}"
        ) from error


def _cure(flag: str, asked: str) -> str:
    """Which file to put where."""
    kind, _, name = asked.partition(":")
    architecture = name.partition("/")[0].partition(".")[0]
    if kind == "timm":
        page = f"huggingface.co/timm/{name.partition('/')[0]}"
        place = f"{flag} timm:{architecture}/PATH"
    elif kind == "open_clip":
        page, place = "where open_clip tells", f"{flag} open_clip:{name.partition('/')[0]}/PATH"
        if name == "ViT-B-32-quickgelu/openai":
            page = "huggingface.co/timm/vit_base_patch32_clip_224.openai"
    else:
        page, place = f"huggingface.co/{asked}", f"{flag} FOLDER, with config.json beside it"
        if Path(asked).is_absolute() or asked.startswith("."):
            page = "its source"
    return (
        f"run once with a network, which keeps them in {HF_HUB_CACHE}, or fetch the weights from "
        f"{page} and give {place}."
    )


def load_clip(name_or_path: str, device: torch.device | str = "cpu") -> ImageTextExtractor:
    """Load CLIP: a transformers folder or hub id, or ``open_clip:architecture/pretrained``.

    Raises:
        LoLDUError: If the weights are not there, with what to do.
    """
    kinds = {"open_clip": OpenClipExtractor}
    return _load("--clip", name_or_path, device, kinds, ClipExtractor)


def load_dino(name_or_path: str, device: torch.device | str = "cpu") -> ImageExtractor:
    """Load DINO: ``timm:architecture.tag``, or a transformers folder or hub id.

    Raises:
        LoLDUError: If the weights are not there, with what to do.
    """
    return _load("--dino", name_or_path, device, {"timm": TimmDino}, TransformersDino)
