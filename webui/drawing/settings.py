"""What decides a picture, kept inside its PNG and read back."""

import io
import json
from collections.abc import Mapping
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
"""As A1111 calls them; another is told by its own name."""


@dataclass(frozen=True)
class Used:
    """A concept as it was in a picture; `digest` is the SHA-256 of its file."""

    name: str
    digest: str
    strength: float


@dataclass(frozen=True)
class Settings:
    """All that decides a picture.

    Attributes:
        prompt: As it was drawn.
        negative_prompt: What guidance led away from.
        seed: Of the noise.
        num_inference_steps: Denoising steps.
        guidance_scale: Weight of the prompt.
        width: In pixels.
        height: In pixels.
        noise_scheduler: The class of it.
        base: How the base was read, and its fingerprint; of a place on a disk only the last name.
        concepts: Together in the picture; none for the base alone.
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

    @property
    def base_name(self) -> str:
        """What the base is called."""
        return str(self.base.get(_NAME, ""))

    def as_json(self) -> str:
        """The same settings are the same text."""
        return json.dumps({"version": 1, **asdict(self)}, sort_keys=True)


def base_name(base: str) -> str:
    """What settings call a base."""
    return str(public_base(BaseModelConfig(base))[_NAME])


def png_bytes(image: Image.Image, settings: Settings) -> bytes:
    """A PNG that tells how it was drawn: to other tools as A1111 does, and to this one in full."""
    info = PngInfo()
    info.add_text("parameters", parameters(settings))
    info.add_text(_CHUNK, settings.as_json())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def read_png(path: Path, name: str = "The file") -> Settings:
    """The settings inside a PNG from anywhere; no pixel of it is decoded.

    Args:
        path: where it lies.
        name: what a message calls it.

    Raises:
        LoLDUError: it is no PNG, or tells no settings.
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
            f"{name} does not tell how it was drawn: choose a PNG downloaded from this page, as "
            "it was."
        )
    try:
        return _settings(json.loads(text))
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise LoLDUError(f"{name} tells settings that are damaged: choose another.") from (error)


def parameters(settings: Settings) -> str:
    """The settings as A1111 writes them, for the many tools that read that."""
    sampler = settings.noise_scheduler
    told = {
        "Steps": settings.num_inference_steps,
        "Sampler": _SAMPLERS.get(sampler, sampler.removesuffix("Scheduler")),
        "CFG scale": f"{settings.guidance_scale:g}",
        "Seed": settings.seed,
        "Size": f"{settings.width}x{settings.height}",
        "Model": settings.base_name,
    }
    if skipped := settings.base.get("clip_skip"):
        told["Clip skip"] = int(skipped) + 1  # A1111 counts from 1
    if settings.concepts:
        told["LoLDU"] = ", ".join(f"{used.name}: {used.strength:g}" for used in settings.concepts)
    told["Version"] = f"LoLDU {__version__}"
    lines = [settings.prompt]
    if settings.negative_prompt:
        lines.append(f"Negative prompt: {settings.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in told.items()))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value


def _settings(told: dict[str, Any]) -> Settings:
    """Settings of which every value is of its kind and in its range.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: one is not.
    """
    if told["version"] != 1:
        raise ValueError("version")
    concepts = tuple(
        Used(_text(each["name"]), _text(each["digest"]), _number(each["strength"], 0, MAX_STRENGTH))
        for each in told["concepts"]
    )
    if len(concepts) > MAX_CONCEPTS:
        raise ValueError("concepts")
    return Settings(
        prompt=_text(told["prompt"]),
        negative_prompt=_text(told["negative_prompt"]),
        seed=_whole(told["seed"], *SEEDS),
        num_inference_steps=_whole(told["num_inference_steps"], *STEPS),
        guidance_scale=_number(told["guidance_scale"], *GUIDANCE),
        width=_whole(told["width"], 1, 2**16),
        height=_whole(told["height"], 1, 2**16),
        noise_scheduler=_text(told["noise_scheduler"]),
        base={
            _text(name): value if type(value) is int else _text(value)
            for name, value in told["base"].items()
        },
        concepts=concepts,
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
