"""Settings of a drawn picture, stored in its PNG."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from loldu import __version__
from loldu.base.config import BaseModelConfig
from loldu.base.record import public_base
from loldu.errors import LoLDUError

MAX_PROMPT = 2000
MAX_STRENGTH = 1.5
MAX_CONCEPTS = 4
SEEDS = (0, 2**32 - 1)
STEPS = (1, 200)
GUIDANCE = (1, 30)

_CHUNK = "loldu"
_NAME = "pretrained_model_name_or_path"
_SAMPLERS = {
    "DDIMScheduler": "DDIM",
    "PNDMScheduler": "PLMS",
    "EulerDiscreteScheduler": "Euler",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "LMSDiscreteScheduler": "LMS",
    "HeunDiscreteScheduler": "Heun",
    "UniPCMultistepScheduler": "UniPC",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
}
"""A1111's names of the samplers; others keep their own name."""


@dataclass(frozen=True)
class Used:
    """A concept in a picture.

    Attributes:
        name: Name in the library.
        digest: SHA-256 of its file, the first 16 digits.
        strength: Factor on the change of the weights.
        words: The words of the prompt that call it; None if it acts everywhere.
    """

    name: str
    digest: str
    strength: float
    words: str | None = None


@dataclass(frozen=True)
class Axes:
    """Axes of a grid of pictures.

    Attributes:
        strengths: Strengths of the first concept, one for each column.
        steps: Steps of its training, one for each row; none for one row of the concept as it is.
    """

    strengths: tuple[float, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """All settings that determine a picture.

    Attributes:
        prompt: Prompt, with placeholders filled in.
        negative_prompt: Negative prompt.
        seed: Seed of the noise.
        num_inference_steps: Denoising steps.
        guidance_scale: Weight of the prompt.
        width: Width in pixels.
        height: Height in pixels.
        noise_scheduler: Class name of the noise scheduler.
        base: Base options and the digest of its weights; paths are reduced to their last part.
        concepts: Concepts in the picture; none for the base alone.
        grid: Axes of a grid; None for a single picture.
    """

    prompt: str
    negative_prompt: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    width: int
    height: int
    noise_scheduler: str
    base: Mapping[str, str | int]
    concepts: tuple[Used, ...]
    grid: Axes | None = None

    @property
    def base_name(self) -> str:
        """Name of the base."""
        return str(self.base.get(_NAME, ""))

    def as_json(self) -> str:
        """Return the settings as JSON; equal settings give equal strings."""
        values = {"version": 1, **asdict(self)}
        if self.grid is None:
            del values["grid"]
        return json.dumps(values, sort_keys=True)


def base_name(base: str) -> str:
    """Return the name of a base as settings store it."""
    return str(public_base(BaseModelConfig(base))[_NAME])


def png_bytes(image: Image.Image, settings: Settings) -> bytes:
    """Return a PNG with its settings: in A1111's format for other tools, and in full for us."""
    info = PngInfo()
    info.add_text("parameters", parameters(settings))
    info.add_text(_CHUNK, settings.as_json())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def read_png(path: Path, name: str = "The file") -> Settings:
    """Read the settings in a PNG, which may be hostile; its pixels are not decoded.

    Args:
        path: The file.
        name: Its name in messages.

    Raises:
        LoLDUError: If it is not a PNG, or has no valid settings.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            text = image.info.get(_CHUNK)
    except (
        *(OSError, ValueError, SyntaxError),
        *(Image.DecompressionBombError, Image.DecompressionBombWarning),
    ) as error:
        raise LoLDUError(f"{name} is not a PNG that can be read: choose another.") from error
    if not isinstance(text, str):
        raise LoLDUError(
            f"{name} has no settings: choose an unedited PNG that was downloaded from this page."
        )
    try:
        return _settings(json.loads(text))
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise LoLDUError(f"{name} has damaged settings: choose another.") from error


def parameters(settings: Settings) -> str:
    """Return the settings in A1111's text format, which many tools read."""
    sampler = settings.noise_scheduler
    values = {
        "Steps": settings.num_inference_steps,
        "Sampler": _SAMPLERS.get(sampler, sampler.removesuffix("Scheduler")),
        "CFG scale": f"{settings.guidance_scale:g}",
        "Seed": settings.seed,
        "Size": f"{settings.width}x{settings.height}",
        "Model": settings.base_name,
    }
    if isinstance(skipped := settings.base.get("clip_skip"), int) and skipped:
        values["Clip skip"] = skipped + 1  # A1111 counts from 1
    if settings.concepts:
        values["LoLDU"] = ", ".join(f"{used.name}: {used.strength:g}" for used in settings.concepts)
    if axes := settings.grid:
        values |= {
            "Script": "X/Y/Z plot",
            "X Type": "Strength",
            "X Values": _listed(axes.strengths),
        }
        if axes.steps:
            values |= {"Y Type": "Training step", "Y Values": _listed(axes.steps)}
    values["Version"] = f"LoLDU {__version__}"
    lines = [settings.prompt]
    if settings.negative_prompt:
        lines.append(f"Negative prompt: {settings.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in values.items()))
    return "\n".join(lines)


def _listed(numbers: Sequence[float | int]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value


def _settings(values: dict[str, Any]) -> Settings:
    """Return settings after checking the type and range of every value.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: If a value is invalid.
    """
    if values["version"] != 1:
        raise ValueError("version")
    concepts = tuple(
        Used(
            _text(each["name"]),
            _text(each["digest"]),
            _number(each["strength"], 0, MAX_STRENGTH),
            # Pictures of earlier versions have no words: their concepts acted everywhere.
            None if (words := each.get("words")) is None else _text(words),
        )
        for each in values["concepts"]
    )
    if len(concepts) > MAX_CONCEPTS:
        raise ValueError("concepts")
    return Settings(
        prompt=_text(values["prompt"]),
        negative_prompt=_text(values["negative_prompt"]),
        seed=_whole(values["seed"], *SEEDS),
        num_inference_steps=_whole(values["num_inference_steps"], *STEPS),
        guidance_scale=_number(values["guidance_scale"], *GUIDANCE),
        width=_whole(values["width"], 1, 2**16),
        height=_whole(values["height"], 1, 2**16),
        noise_scheduler=_text(values["noise_scheduler"]),
        base={
            _text(name): value if type(value) is int else _text(value)
            for name, value in values["base"].items()
        },
        concepts=concepts,
        grid=None if (axes := values.get("grid")) is None else _axes(axes),
    )


def _axes(values: dict[str, Any]) -> Axes:
    return Axes(
        tuple(_number(each, 0, MAX_STRENGTH) for each in values["strengths"]),
        tuple(_whole(each, 0, 2**53) for each in values["steps"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_PROMPT:
        raise TypeError("text")
    return value


def _whole(value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError("whole number")
    return value


def _number(value: object, low: float | int, high: float | int) -> float:
    if not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError("number")
    return float(value)
