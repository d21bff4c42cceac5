"""Event handlers of the Concepts tab."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from loldu.errors import LoLDUError
from loldu.pictures.folder import CaptionedImage, is_picture, min_side_px
from loldu.pictures.inspect import TrainingSetup, examine, look_alikes, warnings
from loldu.presets import Preset
from webui.backend import Backend, owner
from webui.engine.job import ENDED
from webui.page import PROGRESS, errors_on_page
from webui.teaching.crops import Crop, cropped, outlined
from webui.teaching.estimate import duration, estimated_seconds
from webui.teaching.recipes import Order, options_for, suggested_token
from webui.teaching.uploads import MAX_PICTURES, Upload, opened

_SHOWN_PX = 512

Picture = tuple[Upload, Crop]


@dataclass(frozen=True)
class Pictures:
    """Components of the left side: pictures and crops."""

    chosen: gr.State  # tuple[Picture, ...]
    index: gr.State  # of the picture whose crop is shown
    files: gr.File
    examples: gr.Dropdown
    crops: gr.Gallery
    cropping: gr.Column
    whole: gr.Image
    zoom: gr.Slider
    x: gr.Slider
    y: gr.Slider
    remove: gr.Button


@dataclass(frozen=True)
class Form:
    """Components of the right side: the form."""

    name: gr.Textbox
    class_name: gr.Textbox
    token: gr.Textbox
    recipe: gr.Radio
    about: gr.Markdown
    max_train_steps: gr.Number
    learning_rate: gr.Number
    rank: gr.Textbox
    resolution: gr.Number
    with_prior_preservation: gr.Checkbox
    train_text_encoder: gr.Checkbox
    random_flip: gr.Checkbox
    scored: gr.Checkbox
    previews: gr.Textbox
    seed: gr.Number
    doctor: gr.HTML
    estimate: gr.Markdown
    train: gr.Button

    def of_recipe(self) -> tuple[gr.Number | gr.Textbox | gr.Checkbox, ...]:
        """Return the fields that a preset fills in."""
        return (
            self.max_train_steps,
            self.learning_rate,
            self.rank,
            self.resolution,
            self.with_prior_preservation,
            self.train_text_encoder,
            self.random_flip,
        )


class ConceptsHandlers:
    """Event handlers of the Concepts tab."""

    def __init__(
        self, backend: Backend, known: Mapping[str, Preset], pictures: Pictures, form: Form
    ) -> None:
        """Handle the events of these components."""
        self._backend, self._recipes, self._p, self._f = backend, known, pictures, form
        self._measured: dict[tuple[int, int], float] = {}

    def begin(self, request: gr.Request) -> str:
        """Suggest a rare word."""
        return self._suggested(request)

    def choose(self, recipe: str) -> tuple[Any, ...]:
        """Fill in the values of a preset."""
        known = self._recipes.get(recipe)
        if known is None:
            raise gr.Error("There is no such preset.", print_exception=False)
        options = known.values
        return (
            known.about.partition(". ")[0].rstrip(".") + ".",
            options.get("max_train_steps", 1000),
            options.get("learning_rate", 5e-4),
            str(options.get("rank", 32)),
            options.get("resolution", 512),
            options.get("with_prior_preservation", False),
            options.get("train_text_encoder", False),
            options.get("random_flip", False),
        )

    def add(
        self,
        files: Sequence[str] | None,
        chosen: tuple[Picture, ...],
        resolution: float | int | None,
    ) -> tuple[Any, ...]:
        """Add the uploaded pictures that can be read, and warn about the others."""
        wrong: list[str] = []
        for file in files or ():
            path = Path(file)
            try:
                if len(chosen) >= MAX_PICTURES:
                    raise LoLDUError(f"At most {MAX_PICTURES} pictures: leave some out.")
                chosen = (*chosen, (self._backend.uploads.add(path, path.name), Crop()))
            except LoLDUError as error:
                wrong.append(str(error))
            finally:
                path.unlink(missing_ok=True)
        for sentence in dict.fromkeys(wrong):
            gr.Warning(escape(sentence), duration=20)
        return None, chosen, _gallery(chosen, resolution)

    def take(self, name: str | None, resolution: float | int | None) -> tuple[Any, ...]:
        """Replace the pictures by those of an example."""
        if name not in examples(self._backend.examples):
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        folder = self._backend.examples / name
        add = self._backend.uploads.add
        with errors_on_page():
            files = sorted(path for path in folder.iterdir() if is_picture(path))
            chosen = tuple((add(path, path.name), Crop()) for path in files[:MAX_PICTURES])
        title = name.replace("_", " ")
        return chosen, _gallery(chosen, resolution), title, title.split()[-1]

    def select(self, chosen: tuple[Picture, ...], event: gr.SelectData) -> tuple[Any, ...]:
        """Show a whole picture with its crop."""
        with errors_on_page():
            upload, crop = chosen[event.index]
            whole = outlined(opened(upload), crop, _SHOWN_PX)
        return event.index, gr.update(visible=True), whole, crop.zoom, crop.x, crop.y

    def crop(
        self,
        chosen: tuple[Picture, ...],
        resolution: float | int | None,
        index: int | None,
        zoom: float | int,
        x: float | int,
        y: float | int,
    ) -> tuple[Any, ...]:
        """Set the crop of the shown picture."""
        if index is None or index >= len(chosen):
            return gr.skip(), gr.skip(), gr.skip()
        upload, _ = chosen[index]
        crop = Crop(zoom, x, y)
        chosen = (*chosen[:index], (upload, crop), *chosen[index + 1 :])
        with errors_on_page():
            return chosen, outlined(opened(upload), crop, _SHOWN_PX), _gallery(chosen, resolution)

    def remove(
        self, chosen: tuple[Picture, ...], resolution: float | int | None, index: int | None
    ) -> tuple[Any, ...]:
        """Remove the shown picture."""
        if index is not None:
            chosen = (*chosen[:index], *chosen[index + 1 :])
        return chosen, None, gr.update(visible=False), _gallery(chosen, resolution)

    def judge(self, filled: Mapping[Any, Any]) -> tuple[str, str]:
        """Return warnings about the pictures and options, and the estimated time."""
        chosen: tuple[Picture, ...] = filled[self._p.chosen]
        if not chosen:
            return "", ""
        try:
            order = _order(self._f, filled)
            options = self._options(order, Path())
            seconds = estimated_seconds(options, self._backend.jobs.list(), self._measure)
            before = [job for job in self._backend.jobs.list() if job.status not in ENDED]
        except LoLDUError as error:
            return advice(chosen, None), escape(str(error))
        waits = f", after {len(before)} other{'s' * (len(before) > 1)}" if before else ""
        return advice(chosen, order), f"Takes **{duration(seconds)}**{waits}."

    def train(self, filled: Mapping[Any, Any], request: gr.Request) -> tuple[Any, ...]:
        """Queue the training and open Progress."""
        with errors_on_page():
            chosen: tuple[Picture, ...] = filled[self._p.chosen]
            if not chosen:
                raise LoLDUError("There are no pictures yet: add 3 to 5 of one thing.")
            order = _order(self._f, filled)
            name = filled[self._f.name].strip() or f"{order.token} {order.class_name}"
            self._options(order, Path())  # raises before anything is written
            _refuse_small(chosen, order.resolution)
            options = self._options(order, self._backend.uploads.store(chosen))
            job = self._backend.jobs.submit(name, owner(request), options)
            self._backend.dispatcher.wake()
        gr.Info(f"{escape(job.name)} is in the queue.")
        return job.id, gr.Tabs(selected=PROGRESS), self._suggested(request, order.token)

    def _measure(self, rows: int, side: int) -> float:
        if (rows, side) not in self._measured:
            self._measured[rows, side] = self._backend.studio.seconds_a_pass(rows, side)
        return self._measured[rows, side]

    def _options(self, order: Order, folder: Path) -> dict[str, Any]:
        backend = self._backend
        return options_for(
            order, backend.base, folder, backend.class_pictures, on_gpu=backend.trains_on_gpu
        )

    def _suggested(self, request: gr.Request, *used: str) -> str:
        backend = self._backend
        known = (entry.token for entry in backend.library.list(owner(request)))
        return suggested_token(backend.base, {*filter(None, known), *used})


def examples(folder: Path) -> list[str]:
    """Return the names of the example concepts in a folder, which may be missing."""
    if not folder.is_dir():
        return []
    return sorted(each.name for each in folder.iterdir() if each.is_dir())


def advice(chosen: Sequence[Picture], order: Order | None) -> str:
    """Return the warnings about the crops as HTML."""
    resolution = order.resolution if order else 512
    caption = f"a photo of {order.token} {order.class_name}" if order else "sks thing"
    findings = [
        examine(
            CaptionedImage(Path(f"picture {number}"), caption),
            resolution,
            cropped(opened(upload), crop),
        )
        for number, (upload, crop) in enumerate(chosen, 1)
    ]
    setup = TrainingSetup(
        resolution, instance_prompt=caption, token=order.token if order else "sks"
    )
    found = [text.replace("--", "") for text in warnings(findings, look_alikes(findings), setup)]
    if not found:
        return '<p class="advice good">These pictures look fine.</p>'
    lines = "".join(f"<li>{escape(text)}</li>" for text in found)
    return f'<ul class="advice" aria-label="Warnings about the pictures">{lines}</ul>'


def _gallery(chosen: Sequence[Picture], resolution: float | int | None) -> dict[str, Any]:
    side = int(resolution or _SHOWN_PX)
    shown: list[tuple[Image.Image, str]] = []
    with errors_on_page():
        for number, (upload, crop) in enumerate(chosen, 1):
            square = cropped(opened(upload), crop).resize((side, side), Image.Resampling.LANCZOS)
            shown.append((square, f"{number} · {upload.name}"))
    return gr.update(value=shown, visible=bool(shown), selected_index=None)


def _order(f: Form, filled: Mapping[Any, Any]) -> Order:
    numbers = (f.max_train_steps, f.learning_rate, f.resolution, f.seed)
    for number in numbers:
        if filled[number] is None:
            raise LoLDUError(f"{number.label} needs a number.")
    rank = filled[f.rank].strip()
    if not (rank == "full" or rank.isdecimal()):
        raise LoLDUError("Rank is a number, such as 32, or full.")
    lines = filled[f.previews].split("\n")
    return Order(
        class_name=filled[f.class_name],
        token=filled[f.token],
        recipe=filled[f.recipe],
        max_train_steps=int(filled[f.max_train_steps]),
        learning_rate=float(filled[f.learning_rate]),
        rank="full" if rank == "full" else int(rank),
        resolution=int(filled[f.resolution]),
        with_prior_preservation=filled[f.with_prior_preservation],
        train_text_encoder=filled[f.train_text_encoder],
        random_flip=filled[f.random_flip],
        seed=int(filled[f.seed]),
        previews=tuple(line.strip() for line in lines if line.strip()),
        scored=filled[f.scored],
    )


def _refuse_small(chosen: Sequence[Picture], resolution: int) -> None:
    for upload, crop in chosen:
        left, _, right, _ = crop.box(upload.size)
        if right - left < min_side_px(resolution):
            raise LoLDUError(
                f"The crop of {upload.name} is {right - left} pixels wide; it needs at least "
                f"{min_side_px(resolution)}: zoom out, or use a larger picture."
            )
