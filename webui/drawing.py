"""What the page draws with: one base, kept, and at most one concept on it."""

import itertools
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from eval.score import pick_device
from loldu import ConceptError, load_concept, read_concept
from trainer.base import load_pipeline
from trainer.base_record import base_options
from trainer.checkpoint import CONFIG
from trainer.config import BaseModelConfig
from trainer.errors import TrainerError
from trainer.methods import FILE_NAMES
from trainer.sampling import sample_images
from webui.estimate import measured_pass

BATCH_SIZE = 4

Report = Callable[[int, int], None]
"""Called after every pass through the UNet with how many are done, and of how many."""


@dataclass(frozen=True)
class Request:
    """What to draw. Picture i comes from the noise of `seed + i`."""

    prompt: str
    seed: int
    count: int
    num_inference_steps: int
    guidance_scale: float


@dataclass(frozen=True)
class Facts:
    """What a concept file says of itself, and how its own run drew; None for what is not known."""

    base: str
    prompt: str | None
    layers: int
    numbers: int
    bytes: int
    num_inference_steps: int | None
    guidance_scale: float | int | None


class Studio:
    """The pipeline, the concept on it, the concepts to choose from, and the base's last pictures.

    A base is loaded once. A concept is an adapter on it: another strength is a number, another
    concept another diagonal, and the base's weights are never written to.
    """

    def __init__(self, runs: Path) -> None:
        """Look for concepts in the folders of `runs`."""
        self.device = pick_device(None)
        self._runs = runs
        self._opened: dict[str, Path] = {}
        # Pages draw at the same time, but there is one pipeline.
        self._lock = threading.Lock()
        self._pipeline: StableDiffusionPipeline | None = None
        self._base = BaseModelConfig()
        self._drawn: tuple[Request, list[Image.Image]] | None = None
        self._concept: tuple[Path, int] | None = None
        self._adapter = ""
        self._names = (f"concept-{number}" for number in itertools.count())

    def concepts(self) -> dict[str, Path]:
        """Return the concept files by name: those opened here, then those of runs, newest first."""
        found = sorted(
            self._runs.glob(f"*/{FILE_NAMES['loldu']}"),
            key=lambda path: path.stat().st_mtime,
            reverse=True,
        )
        return {**self._opened, **{path.parent.name: path for path in found}}

    def open(self, path: Path) -> str:
        """Add a concept file from elsewhere and return the name it goes by.

        Raises:
            ConceptError: It is not a sound concept.
        """
        with _called(path.name, path):
            read_concept(path)
        name = f"{path.stem} (file {len(self._opened) + 1})"
        self._opened[name] = path
        return name

    def facts(self, name: str | None) -> Facts:
        """Read what a concept file says.

        Raises:
            TrainerError: There is no such concept.
            ConceptError: It is not a sound one.
        """
        path = self._path(name)
        with _called(name, path):
            concept = read_concept(path)
        drawn = _run_section(path.with_name(CONFIG))
        return Facts(
            base=concept.base,
            prompt=concept.metadata.get("instance_prompt"),
            layers=len(concept.layers),
            numbers=sum(layer.delta.numel() for layer in concept.layers),
            bytes=path.stat().st_size,
            num_inference_steps=drawn.get("num_inference_steps"),
            guidance_scale=drawn.get("guidance_scale"),
        )

    def draw_base(
        self, base: str, request: Request, report: Report, name: str | None = None
    ) -> list[Image.Image]:
        """Draw without a concept, on the base as one was trained on it; the last drawing is kept.

        Raises:
            TrainerError: There is no such base or no such concept.
            ConceptError: The concept is damaged.
        """
        path = self._path(name) if name else None
        with self._lock:
            pipeline = self._load(base, name, path)
            if self._drawn is None or self._drawn[0] != request:
                pipeline.disable_lora()
                self._drawn = request, _draw(pipeline, request, report)
            return self._drawn[1]

    def draw_concept(
        self, base: str, name: str | None, strength: float | int, request: Request, report: Report
    ) -> list[Image.Image]:
        """Draw with a concept at a strength, from the same noise as the base.

        Raises:
            TrainerError: There is no such base or no such concept.
            ConceptError: The concept is damaged, or was made for another base.
        """
        path = self._path(name)
        with self._lock:
            pipeline = self._load(base, name, path)
            with _called(name, path):
                self._put_on(pipeline, path)
            pipeline.enable_lora()
            pipeline.set_adapters(self._adapter, float(strength))
            return _draw(pipeline, request, report)

    def seconds_a_pass(self, base: str, rows: int, side: int) -> float:
        """The time of a forward pass of `rows` pictures of `side` pixels through the base's UNet.

        Raises:
            TrainerError: There is no such base.
        """
        with self._lock:
            pipeline = self._load(base, None, None)
            pipeline.disable_lora()
            return measured_pass(pipeline, rows, side)

    def _path(self, name: str | None) -> Path:
        if not name:
            raise TrainerError(
                f"No concept is chosen: open a concept file, or train one into {self._runs} (make "
                "demo does) and reload the page."
            )
        if name not in (concepts := self.concepts()):
            raise TrainerError(f"The concept {name} is gone: reload the page and choose another.")
        return concepts[name]

    def _load(self, base: str, name: str | None, path: Path | None) -> StableDiffusionPipeline:
        options = BaseModelConfig(base)
        if path is not None:
            with _called(name, path):
                options = base_options(read_concept(path), path, base)
        if self._pipeline is None or options != self._base:
            dtype = torch.float16 if self.device == "cuda" else torch.float32
            self._pipeline = load_pipeline(**asdict(options), torch_dtype=dtype, device=self.device)
            self._base, self._drawn, self._concept, self._adapter = options, None, None, ""
        return self._pipeline

    def _put_on(self, pipeline: StableDiffusionPipeline, path: Path) -> None:
        """Replace the concept on the pipeline, unless it is this one and was not trained again.

        The old one leaves last: a refused file changes nothing, and the factors stay shared.
        """
        concept = path, path.stat().st_mtime_ns
        if concept == self._concept:
            return
        adapter = next(self._names)
        load_concept(pipeline, path, adapter_name=adapter)
        if self._adapter:
            pipeline.delete_adapters(self._adapter)
        self._concept, self._adapter = concept, adapter


@contextmanager
def _called(name: str | None, path: Path) -> Iterator[None]:
    """Let errors call a file what the page calls it: an upload lies at a path of no meaning."""
    try:
        yield
    except ConceptError as error:
        raise ConceptError(str(error).replace(str(path), str(name))) from error


def _draw(pipeline: StableDiffusionPipeline, request: Request, report: Report) -> list[Image.Image]:
    batches = -(-request.count // BATCH_SIZE)
    with _passes_reported(pipeline, batches * request.num_inference_steps, report):
        return sample_images(
            pipeline,
            [request.prompt] * request.count,
            [request.seed + index for index in range(request.count)],
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            batch_size=BATCH_SIZE,
            progress=False,
        )


@contextmanager
def _passes_reported(
    pipeline: StableDiffusionPipeline, total: int, report: Report
) -> Iterator[None]:
    """Report every pass through the UNet; a scheduler may make one or two more than its steps."""
    passes = itertools.count(1)

    def count(*_: object) -> None:
        report(min(next(passes), total), total)

    handle = pipeline.unet.register_forward_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _run_section(config: Path) -> dict[str, Any]:
    """Return how the run drew whose folder a concept still lies in."""
    if not config.is_file():
        return {}
    return tomllib.loads(config.read_text(encoding="utf-8")).get("run", {})
