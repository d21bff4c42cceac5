"""Drawing with the base and with concepts, one request at a time."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from eval.protocols.score import pick_device
from loldu.base.config import BaseModelConfig
from loldu.base.draw import sample_images
from loldu.base.families import family_of, network_of
from loldu.errors import LoLDUError
from webui.drawing.model import Model, Use, options_for
from webui.drawing.queue import Cancelled, DrawingQueue
from webui.drawing.safety import hidden
from webui.drawing.settings import Settings
from webui.teaching.estimate import measured_pass

BATCH_SIZE = 4
_MAX_ROWS = 4


@dataclass(frozen=True)
class Task:
    """Pictures to draw: `prompts[i]` from the noise of `seeds[i]`, in a size or in the base's."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    resolution: int | None = None

    def part(self, pictures: slice) -> "Task":
        """Return some of the pictures."""
        return replace(self, prompts=self.prompts[pictures], seeds=self.seeds[pictures])


@dataclass(frozen=True)
class Picture:
    """A drawn picture and its settings; blurred if the safety checker objects to it."""

    image: Image.Image
    settings: Settings
    is_hidden: bool


@dataclass(frozen=True)
class Watch:
    """Callbacks of a drawing, and the event that stops it.

    Attributes:
        passes: Called after every pass through the network with the passes done and in total.
        waiting: Called with the number of drawings ahead of this one, whenever it changes.
        stop: Ends the drawing before the next pass when it is set.
    """

    passes: Callable[[int, int], None]
    waiting: Callable[[int], None]
    stop: threading.Event = field(default_factory=threading.Event)


class Studio:
    """The model in use, its queue, and a cache of the base's last pictures."""

    def __init__(self, base: str, before_loading: Callable[[], None] = lambda: None) -> None:
        """Draw with `base`; it is loaded when it is first needed.

        Args:
            base: Folder, file or hub id of the base.
            before_loading: Raises LoLDUError if the base cannot be loaded now.
        """
        self._before_loading = before_loading
        self.device = pick_device(None)
        self._base = base
        self._queue = DrawingQueue()
        self._model: Model | None = None
        self._rows: OrderedDict[tuple[BaseModelConfig, Task], list[Picture]] = OrderedDict()

    def draw_base(self, task: Task, uses: Sequence[Use], watch: Watch) -> list[Picture]:
        """Draw without concepts, with the base options of `uses`.

        Raises:
            LoLDUError: If the base does not exist, or the concepts differ in its options.
            ConceptError: If a concept is damaged.
            Cancelled: If it was stopped.
        """
        options = options_for(self._base, uses)
        key = options, task
        with self._queue.turn(watch.stop, watch.waiting):
            if key not in self._rows:
                model = self._loaded(options)
                self._rows[key] = _draw(model, task, [()] * len(task.seeds), watch)
            self._rows.move_to_end(key)
            while len(self._rows) > _MAX_ROWS:
                self._rows.popitem(last=False)
            return self._rows[key]

    def draw_concepts(
        self, task: Task, rows: Sequence[Sequence[Use]], watch: Watch
    ) -> list[Picture]:
        """Draw with concepts, from the same noise as the base.

        Pictures with different concepts or strengths are drawn in one pass.

        Args:
            task: Prompts, seeds and sampling options.
            rows: The concepts of each picture.
            watch: Callbacks, and the stop event.

        Raises:
            LoLDUError: If the base does not exist, or the concepts differ in its options.
            ConceptError: If a concept is damaged, or was made for another base.
            Cancelled: If it was stopped.
        """
        uses = {use.entry.path: use for row in rows for use in row}
        options = options_for(self._base, [*uses.values()])
        with self._queue.turn(watch.stop, watch.waiting):
            model = self._loaded(options)
            model.apply(rows)  # a refused concept is named before anything is drawn
            return _draw(model, task, rows, watch)

    def seconds_a_pass(self, rows: int, side: int) -> float:
        """Return the seconds of a forward pass of `rows` pictures of `side` pixels.

        Raises:
            LoLDUError: If the base does not exist.
        """
        with self._queue.turn(threading.Event(), lambda _: None):
            model = self._loaded(
                self._model.options if self._model else options_for(self._base, ())
            )
            model.apply([])
            return measured_pass(model.pipeline, rows, side)

    def _loaded(self, options: BaseModelConfig) -> Model:
        if self._model is None or self._model.options != options:
            self._before_loading()
            self._model = None  # free the memory first
            self._model = Model(options, self.device)
        return self._model


def _passes(pipeline: DiffusionPipeline, task: Task) -> int:
    """Return the passes through the network that a task needs."""
    batches = -(-len(task.seeds) // BATCH_SIZE)
    a_step = family_of(pipeline).passes_a_step(pipeline, task.guidance_scale)
    return batches * task.num_inference_steps * a_step


def _draw(model: Model, task: Task, rows: Sequence[Sequence[Use]], watch: Watch) -> list[Picture]:
    """Draw in batches, whose pictures may have different concepts."""
    drawn = list[Picture]()
    with _watched(model.pipeline, task, watch):
        for start in range(0, len(task.seeds), BATCH_SIZE):
            batch = slice(start, start + BATCH_SIZE)
            drawn += draw_batch(model, task.part(batch), rows[batch])
    return drawn


def draw_batch(
    model: Model,
    task: Task,
    rows: Sequence[Sequence[Use]],
    negative_prompts: Sequence[str] | None = None,
) -> list[Picture]:
    """Draw all pictures of a task in one pass of the base.

    Args:
        model: The base and its concepts.
        task: Prompts, seeds and sampling options.
        rows: The concepts of each picture.
        negative_prompts: One per picture; the task's by default.

    Raises:
        LoLDUError: If the memory is too small.
        ConceptError: If a concept is damaged, or was made for another base.
    """
    pipeline, applied = model.pipeline, model.apply(rows)
    negatives = negative_prompts or [task.negative_prompt] * len(task.seeds)
    try:
        images = sample_images(
            pipeline,
            task.prompts,
            task.seeds,
            negative_prompts=negatives,
            num_inference_steps=task.num_inference_steps,
            guidance_scale=task.guidance_scale,
            batch_size=len(task.seeds),
            resolution=task.resolution,
            progress=False,
        )
        objections = model.safety.objections(images)
    except torch.OutOfMemoryError as error:
        raise LoLDUError(
            "Not enough memory to draw: draw fewer pictures, or wait until a training has ended."
        ) from error
    return [
        Picture(
            hidden(image) if objection else image,
            Settings(
                prompt=prompt,
                negative_prompt=negative,
                seed=seed,
                num_inference_steps=task.num_inference_steps,
                guidance_scale=task.guidance_scale,
                width=image.width,
                height=image.height,
                noise_scheduler=type(pipeline.scheduler).__name__,
                base=model.base,
                concepts=concepts,
            ),
            objection,
        )
        for image, objection, prompt, negative, seed, concepts in zip(
            images, objections, task.prompts, negatives, task.seeds, applied, strict=True
        )
    ]


@contextmanager
def _watched(pipeline: DiffusionPipeline, task: Task, watch: Watch) -> Generator[None]:
    """Report every pass of the network; a scheduler may make one or two more than its steps."""
    passes, total = itertools.count(1), _passes(pipeline, task)

    def count(*_: object) -> None:
        watch.passes(min(next(passes), total), total)
        if watch.stop.is_set():
            raise Cancelled

    handle = network_of(pipeline).register_forward_hook(count)
    try:
        yield
    finally:
        handle.remove()
