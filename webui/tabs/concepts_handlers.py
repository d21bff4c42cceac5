"""Event handlers of the Teach tab."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from loldu.errors import LoLDUError
from loldu.options import options as known_options
from loldu.pictures.folder import CaptionedImage, is_picture, min_side_px
from loldu.pictures.inspect import TrainingSetup, examine, look_alikes, warnings
from loldu.presets import Preset
from trainer.options.config import Config
from trainer.options.preset import configure
from webui.backend import Backend, owner, visitor
from webui.engine.job import ENDED, Status
from webui.page import PROGRESS, errors_on_page
from webui.teaching.crops import Crop, cropped, cropper
from webui.teaching.draft import Draft
from webui.teaching.estimate import drawn_pictures, duration, estimated_seconds
from webui.teaching.examples import class_in_captions, examples
from webui.teaching.recipes import (
    Order,
    checked_class,
    checked_word,
    options_for,
    suggested_token,
)
from webui.teaching.scorers import lacking
from webui.teaching.uploads import MAX_PICTURES, Upload, opened

_SHOWN_PX, _CAPTION_LENGTH = 512, 300
_NOT_OF_RECIPE = ("validation_scores", "seed")
"""Options with a value of their own in the form, whatever the preset."""

Picture = tuple[Upload, Crop]


@dataclass(frozen=True)
class Pictures:
    """Components of the left side: pictures and crops."""

    chosen: gr.State  # tuple[Picture, ...]
    index: gr.State  # of the picture whose crop is shown
    files: gr.File
    examples: gr.HTML
    crops: gr.Gallery
    cropping: gr.Column
    whole: gr.HTML
    caption: gr.Textbox
    remove: gr.Button
    doctor: gr.HTML
    problem: gr.HTML


@dataclass(frozen=True)
class Form:
    """Components of the right side: the form."""

    name: gr.Textbox
    class_name: gr.Textbox
    token: gr.Textbox
    recipe: gr.Radio
    about: gr.Markdown
    of_trainer: Mapping[str, Any]  # fields by the trainer's names of their options
    previews: gr.Textbox
    called: gr.HTML
    words: gr.HTML
    problem: gr.HTML
    estimate: gr.Markdown
    train: gr.Button
    tried: gr.State

    @property
    def of_recipe(self) -> dict[str, Any]:
        """Fields that a preset fills in, by the names of their options."""
        return {name: each for name, each in self.of_trainer.items() if name not in _NOT_OF_RECIPE}


class ConceptsHandlers:
    """Event handlers of the Teach tab."""

    def __init__(
        self, backend: Backend, known: Mapping[str, Preset], pictures: Pictures, form: Form
    ) -> None:
        """Handle the events of these components."""
        self._backend, self._recipes, self._p, self._f = backend, known, pictures, form
        self._measured: dict[tuple[int, int], float] = {}

    def begin(self, request: gr.Request) -> tuple[Any, ...]:
        """Show the form as the person left it, and suggest a rare word."""
        draft = self._backend.drafts.load(visitor(request))
        first = next(iter(self._recipes.values()))
        side = first.values.get("resolution", _SHOWN_PX)
        free = self._suggested(request)
        token = draft.token if draft.token not in self._used(request) else free
        return (
            *(draft.pictures, _gallery(draft.pictures, side)),
            *(draft.name, draft.class_name, token or free),
        )

    def keep(
        self,
        chosen: tuple[Picture, ...],
        name: str | None,
        class_name: str | None,
        token: str | None,
        request: gr.Request,
    ) -> None:
        """Keep the form for a reload."""
        draft = Draft(chosen, name or "", class_name or "", token or "")
        self._backend.drafts.save(visitor(request), draft)

    def choose(self, recipe: str) -> tuple[Any, ...]:
        """Fill in the values of a preset."""
        known = self._recipes.get(recipe)
        if known is None:
            raise gr.Error("There is no such preset.", print_exception=False)
        values = {name: known_options(Config)[name].default for name in self._f.of_recipe}
        values |= {name: value for name, value in known.values.items() if name in values}
        values["rank"] = str(values["rank"])
        return known.about.partition(". ")[0].rstrip(".") + ".", *values.values()

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
            if not path.exists():  # the browser sent it again, beside an upload of that moment
                continue
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

    def take(self, resolution: float | int | None, event: gr.EventData) -> tuple[Any, ...]:
        """Replace the pictures, the name and the class by those of an example."""
        name: str = event.name
        if name not in examples(self._backend.examples):
            return (gr.skip(),) * 5
        folder = self._backend.examples / name
        add = self._backend.uploads.add
        with errors_on_page():
            files = sorted(path for path in folder.iterdir() if is_picture(path))
            chosen = tuple((add(path, path.name), Crop()) for path in files[:MAX_PICTURES])
            said = class_in_captions(folder)
        title = name.replace("_", " ")
        hidden = gr.update(visible=False)
        return chosen, _gallery(chosen, resolution), hidden, title, said or title.split()[-1]

    def select(self, chosen: tuple[Picture, ...], event: gr.SelectData) -> tuple[Any, ...]:
        """Show a whole picture with its crop and its caption."""
        with errors_on_page():
            upload, crop = chosen[event.index]
            whole = cropper(opened(upload), crop, event.index)
        return event.index, gr.update(visible=True), whole, upload.caption

    def crop(
        self,
        chosen: tuple[Picture, ...],
        resolution: float | int | None,
        index: int | None,
        event: gr.EventData,
    ) -> tuple[Any, ...]:
        """Set the crop of the shown picture to where a person moved it."""
        place = (event.zoom, event.x, event.y)
        if index is None or index >= len(chosen) or index != event.index:
            return gr.skip(), gr.skip()
        if not all(type(each) in (int, float) and math.isfinite(each) for each in place):
            return gr.skip(), gr.skip()
        chosen = (*chosen[:index], (chosen[index][0], Crop(*place)), *chosen[index + 1 :])
        return chosen, _gallery(chosen, resolution)

    def caption(
        self, chosen: tuple[Picture, ...], index: int | None, text: str | None
    ) -> tuple[Picture, ...]:
        """Set the caption of the shown picture."""
        if index is None or index >= len(chosen):
            return chosen
        upload, crop = chosen[index]
        said = replace(upload, caption=" ".join((text or "").split())[:_CAPTION_LENGTH])
        return (*chosen[:index], (said, crop), *chosen[index + 1 :])

    def remove(
        self, chosen: tuple[Picture, ...], resolution: float | int | None, index: int | None
    ) -> tuple[Any, ...]:
        """Remove the shown picture."""
        if index is not None:
            chosen = (*chosen[:index], *chosen[index + 1 :])
        return chosen, None, gr.update(visible=False), _gallery(chosen, resolution)

    def check(self, filled: Mapping[Any, Any]) -> tuple[str, ...]:
        """Return what must be corrected; an empty form hears nothing before Teach is pressed."""
        problems = self._problems(filled)
        if not filled[self._f.tried]:
            problems["pictures"] *= bool(filled[self._p.chosen])
            problems["words"] *= bool(filled[self._f.class_name])
        return tuple(map(problem, problems.values()))

    def judge(self, filled: Mapping[Any, Any]) -> tuple[str, str]:
        """Return warnings about the pictures, and the estimated time."""
        chosen: tuple[Picture, ...] = filled[self._p.chosen]
        if not chosen:
            return "", ""
        side, order = filled[self._f.of_trainer["resolution"]], None
        try:
            order = _order(self._f, filled)
            options = self._options(order, Path())
            jobs = self._backend.jobs.list()
            seconds = estimated_seconds(options, jobs, self._measure)
            finished = [job for job in jobs if job.status is Status.FINISHED]
        except LoLDUError:
            return advice(chosen, side, order), ""
        before = len([job for job in jobs if job.status not in ENDED])
        waits = f", after {before} other{'s' * (before > 1)}" if before else ""
        counted = (
            f"{options['max_train_steps']:,} steps and {drawn_pictures(options, finished)} pictures"
        )
        sentence = f"Takes **{duration(seconds)}**{waits}, for {counted}."
        if away := lacking(options):
            sentence += (
                f" It will have **no scores**: {' and '.join(away)} cannot be found on this "
                "machine or downloaded. The training is the same without them."
            )
        return advice(chosen, side, order), sentence

    def train(self, filled: Mapping[Any, Any], request: gr.Request) -> tuple[Any, ...]:
        """Queue the training and open Progress, or say beside the fields what must be corrected."""
        problems, said = self._problems(filled), gr.skip()
        if not any(problems.values()):
            try:
                return *self._queued(filled, request), False, said, "", "", ""
            except LoLDUError as error:
                said = problem(str(error))
        skip = gr.skip()
        return skip, skip, skip, True, said, *map(problem, problems.values())

    def _queued(self, filled: Mapping[Any, Any], request: gr.Request) -> tuple[Any, ...]:
        order = _order(self._f, filled)
        name = filled[self._f.name].strip() or f"{order.token} {order.class_name}"
        pictures = self._backend.uploads.store(filled[self._p.chosen])
        job = self._backend.jobs.submit(name, owner(request), self._options(order, pictures))
        self._backend.dispatcher.wake()
        gr.Info(f"{escape(job.name)} is in the queue.")
        return job.id, gr.Tabs(selected=PROGRESS), self._suggested(request, order.token)

    def _problems(self, filled: Mapping[Any, Any]) -> dict[str, str]:
        """Return a sentence for each part of the form that must be corrected, or else ""."""
        f, chosen = self._f, filled[self._p.chosen]

        def words() -> None:
            word = filled[f.token] or ""
            checked_class(filled[f.class_name] or "", word)
            checked_word(word, "rare word")

        def options() -> None:
            order = replace(_order(f, filled), class_name="thing", token="sks")
            configure({**self._options(order, Path()), "output_dir": Path()})

        def pictures() -> None:
            if not chosen:
                raise LoLDUError("There are no pictures yet: add 3 to 5 of one thing.")
            if side := filled[f.of_trainer["resolution"]]:
                _refuse_small(chosen, int(side))

        found: dict[str, str] = {}
        for place, check in (("pictures", pictures), ("words", words), ("options", options)):
            found[place] = ""
            try:
                check()
            except LoLDUError as error:
                found[place] = str(error).replace("--", "")
        return found

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
        return suggested_token(self._backend.base, {*self._used(request), *used})

    def _used(self, request: gr.Request) -> set[str]:
        """Return the rare words of the person's concepts."""
        entries = self._backend.library.list(owner(request))
        return {entry.token for entry in entries if entry.token}


def problem(sentence: str) -> str:
    """Return what must be corrected as HTML, or ""."""
    return f'<p class="problem" role="alert">{escape(sentence)}</p>' if sentence else ""


def advice(chosen: Sequence[Picture], side: float | int | None, order: Order | None) -> str:
    """Return the warnings about the crops at a resolution of `side` pixels as HTML."""
    resolution = int(side or _SHOWN_PX)
    token, thing = (order.token, order.class_name) if order else ("", "")
    token, thing = token.strip() or "sks", thing.strip() or "thing"
    caption = f"a photo of {token} {thing}"
    findings = [
        examine(
            CaptionedImage(Path(f"picture {number}"), upload.caption or caption),
            resolution,
            cropped(opened(upload), crop),
        )
        for number, (upload, crop) in enumerate(chosen, 1)
    ]
    setup = TrainingSetup(resolution, instance_prompt=caption, token=token)
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
    options = {name: filled[each] for name, each in f.of_trainer.items()}
    for name, value in options.items():
        if value is None:
            raise LoLDUError(f"{f.of_trainer[name].label} needs a number.")
    rank = options["rank"].strip()
    if not (rank == "full" or rank.isdecimal()):
        raise LoLDUError("Rank is a number, such as 32, or full.")
    options["rank"] = "full" if rank == "full" else int(rank)
    options["learning_rate"] = float(options["learning_rate"])
    previews = tuple(filter(None, map(str.strip, filled[f.previews].split("\n"))))
    return Order(
        filled[f.class_name] or "", filled[f.token] or "", filled[f.recipe], previews, options
    )


def _refuse_small(chosen: Sequence[Picture], resolution: int) -> None:
    for upload, crop in chosen:
        left, _, right, _ = crop.box(upload.size)
        if right - left < min_side_px(resolution):
            raise LoLDUError(
                f"The crop of {upload.name} is {right - left} pixels wide; it needs at least "
                f"{min_side_px(resolution)}: zoom out, or use a larger picture."
            )
