"""Concepts: pictures, their crops, a name, and a training of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from trainer.config import InstanceConfig, PriorConfig
from trainer.doctor import examine, look_alikes, warnings
from trainer.errors import TrainerError
from trainer.instances import CaptionedImage, is_picture, min_side_px
from webui.backend import Backend, owner
from webui.crops import MAX_ZOOM, Crop, cropped, outlined
from webui.engine.job import ENDED
from webui.estimate import duration, estimated_seconds
from webui.page import PROGRESS, Page, told
from webui.recipes import Order, Recipe, options_for, recipes, suggested_token
from webui.uploads import MAX_PICTURES, Upload, opened

_SHOWN_PX = 512
_PREVIEWS = "a {token} {class} in the snow"

Picture = tuple[Upload, Crop]


@dataclass(frozen=True)
class Pictures:
    """The left side."""

    chosen: gr.State  # tuple[Picture, ...]
    index: gr.State  # of the one whose crop is set
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
    """The right side."""

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
        """What a preset fills in."""
        return (
            self.max_train_steps,
            self.learning_rate,
            self.rank,
            self.resolution,
            self.with_prior_preservation,
            self.train_text_encoder,
            self.random_flip,
        )


def create_concepts(backend: Backend, page: Page, tab: gr.Tab) -> None:
    """Lay out the tab, and connect it."""
    known = recipes(backend.base)
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            pictures = _pictures(examples(backend.examples))
        with gr.Column(scale=1, min_width=320):
            form = _form(known)
    _connect(page, tab, Handlers(backend, known, pictures, form), pictures, form)


def _pictures(examples: Sequence[str]) -> Pictures:
    chosen, index = gr.State(()), gr.State(None)
    files = gr.File(
        label="3 to 5 pictures of one thing",
        file_count="multiple",
        file_types=[".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"],
        height=150,
        elem_id="files",
    )
    dropdown = gr.Dropdown(
        list(examples),
        value=None,
        label="Or try it with pictures that come with LoLDU",
        visible=bool(examples),
    )
    crops = gr.Gallery(
        label="As trained on; choose one to set its crop",
        columns=5,
        height="auto",
        allow_preview=False,
        interactive=False,
        format="png",
        elem_classes="pictures",
        buttons=[],
        visible=False,
    )
    with gr.Column(visible=False) as cropping:
        whole = gr.Image(label="Crop", interactive=False, format="png", height=320, buttons=[])
        with gr.Row():
            zoom = gr.Slider(1, MAX_ZOOM, 1, step=0.05, label="Zoom", min_width=100)
            x = gr.Slider(0, 1, 0.5, step=0.01, label="Left to right", min_width=100)
            y = gr.Slider(0, 1, 0.5, step=0.01, label="Top to bottom", min_width=100)
        remove = gr.Button("Remove this picture", size="sm")
    return Pictures(chosen, index, files, dropdown, crops, cropping, whole, zoom, x, y, remove)


def _form(known: Mapping[str, Recipe]) -> Form:
    first = next(iter(known.values()))
    name = gr.Textbox(label="Name", placeholder="Milo", info="What you call it.")
    with gr.Row():
        class_name = gr.Textbox(
            label="Class", placeholder="dog", info="What kind of thing it is.", min_width=140
        )
        token = gr.Textbox(
            label="Rare word", info="Stands for it in prompts; best no real word.", min_width=140
        )
    recipe = gr.Radio([(each.replace("_", " "), each) for each in known], label="Preset")
    about = gr.Markdown()
    with gr.Accordion("Advanced", open=False):
        advanced = _advanced()
    doctor = gr.HTML()
    estimate = gr.Markdown()
    train = gr.Button("Train", variant="primary", elem_id="train")
    recipe.value = first.name
    return Form(
        name,
        class_name,
        token,
        recipe,
        about,
        *advanced,
        doctor=doctor,
        estimate=estimate,
        train=train,
    )


def _advanced() -> tuple[Any, ...]:
    with gr.Row():
        steps = gr.Number(label="Steps", precision=0, minimum=1, maximum=20_000, min_width=100)
        rate = gr.Number(label="Learning rate", minimum=0, maximum=10, min_width=100)
        rank = gr.Textbox(label="Rank", info="A number, or full.", max_lines=1, min_width=100)
        side = gr.Number(
            label="Resolution", precision=0, minimum=64, maximum=1024, step=64, min_width=100
        )
    prior = gr.Checkbox(label="Keep the class what it is", info="Up to twice the time a step.")
    text = gr.Checkbox(
        label="Train the text encoder too", info="Learns faster what the word stands for."
    )
    flip = gr.Checkbox(
        label="Mirrored pictures too", info="Not for lettering, nor for what has a left and right."
    )
    scored = gr.Checkbox(
        True, label="Score it on the way", info="DINO and CLIP curves, from two more models."
    )
    previews = gr.Textbox(
        _PREVIEWS,
        lines=2,
        label="Draw while it trains",
        info="A prompt a line, beside a plain photo; {token} and {class} are filled in.",
    )
    seed = gr.Number(42, label="Seed", precision=0, minimum=0, maximum=2**32 - 1)
    return steps, rate, rank, side, prior, text, flip, scored, previews, seed


def _connect(page: Page, tab: gr.Tab, h: "Handlers", p: Pictures, f: Form) -> None:
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    crop = [p.zoom, p.x, p.y]
    filled = {p.chosen, *(c for c in vars(f).values() if c not in (f.about, f.doctor, f.train))}
    filled -= {f.estimate}
    page.demo.load(h.begin, None, [f.token], **quiet)
    gr.on([page.demo.load, f.recipe.change], h.choose, f.recipe, [f.about, *f.of_recipe()], **quiet)
    p.files.upload(
        h.add,
        [p.files, p.chosen, f.resolution],
        [p.files, p.chosen, p.crops],
        api_visibility="private",
    )
    p.examples.input(
        h.take, [p.examples, f.resolution], [p.chosen, p.crops, f.name, f.class_name], **quiet
    )
    p.crops.select(h.select, p.chosen, [p.index, p.cropping, p.whole, *crop], **quiet)
    gr.on(
        [slider.input for slider in (p.zoom, p.x, p.y)],
        h.crop,
        [p.chosen, f.resolution, p.index, *crop],
        [p.chosen, p.whole, p.crops],
        trigger_mode="always_last",
        **quiet,
    )
    p.remove.click(
        h.remove,
        [p.chosen, f.resolution, p.index],
        [p.chosen, p.index, p.cropping, p.crops],
        **quiet,
    )
    changes = [p.chosen.change, f.class_name.blur, f.token.blur, tab.select]
    changes += [component.change for component in f.of_recipe()]
    gr.on(changes, h.judge, filled, [f.doctor, f.estimate], trigger_mode="always_last", **quiet)
    f.train.click(h.train, filled, [page.job, page.tabs, f.token], api_visibility="private")


class Handlers:
    """What the tab does with what a person does."""

    def __init__(
        self, backend: Backend, known: Mapping[str, Recipe], pictures: Pictures, form: Form
    ) -> None:
        """Answer for a server; what is filled in comes by the components of the tab."""
        self._backend, self._recipes, self._p, self._f = backend, known, pictures, form
        self._measured: dict[tuple[int, int], float] = {}

    def begin(self, request: gr.Request) -> str:
        """Suggest a rare word."""
        return self._suggested(request)

    def choose(self, recipe: str) -> tuple[Any, ...]:
        """Fill in what a preset says."""
        known = self._recipes.get(recipe)
        if known is None:
            raise gr.Error("There is no such preset.", print_exception=False)
        told = known.options
        return (
            known.about.partition(". ")[0].rstrip(".") + ".",
            told.get("max_train_steps", 1000),
            told.get("learning_rate", 5e-4),
            str(told.get("rank", 32)),
            told.get("resolution", 512),
            told.get("with_prior_preservation", False),
            told.get("train_text_encoder", False),
            told.get("random_flip", False),
        )

    def add(
        self,
        files: Sequence[str] | None,
        chosen: tuple[Picture, ...],
        resolution: float | int | None,
    ) -> tuple[Any, ...]:
        """Check pictures that were sent; the good ones are taken, whatever the others are."""
        wrong: list[str] = []
        for file in files or ():
            path = Path(file)
            try:
                if len(chosen) >= MAX_PICTURES:
                    raise TrainerError(f"{MAX_PICTURES} pictures are the most; leave some out.")
                chosen = (*chosen, (self._backend.uploads.add(path, path.name), Crop()))
            except TrainerError as error:
                wrong.append(str(error))
            finally:
                path.unlink(missing_ok=True)
        for sentence in dict.fromkeys(wrong):
            gr.Warning(escape(sentence), duration=20)
        return None, chosen, _gallery(chosen, resolution)

    def take(self, name: str | None, resolution: float | int | None) -> tuple[Any, ...]:
        """Take the pictures of an example in place of those there are."""
        if name not in examples(self._backend.examples):
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        folder = self._backend.examples / name
        add = self._backend.uploads.add
        with told():
            files = sorted(path for path in folder.iterdir() if is_picture(path))
            chosen = tuple((add(path, path.name), Crop()) for path in files[:MAX_PICTURES])
        title = name.replace("_", " ")
        return chosen, _gallery(chosen, resolution), title, title.split()[-1]

    def select(self, chosen: tuple[Picture, ...], event: gr.SelectData) -> tuple[Any, ...]:
        """Show a picture whole, with its crop."""
        with told():
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
        """Set the crop of the picture that is shown."""
        if index is None or index >= len(chosen):
            return gr.skip(), gr.skip(), gr.skip()
        upload, _ = chosen[index]
        crop = Crop(zoom, x, y)
        chosen = (*chosen[:index], (upload, crop), *chosen[index + 1 :])
        with told():
            return chosen, outlined(opened(upload), crop, _SHOWN_PX), _gallery(chosen, resolution)

    def remove(
        self, chosen: tuple[Picture, ...], resolution: float | int | None, index: int | None
    ) -> tuple[Any, ...]:
        """Leave out the picture that is shown."""
        if index is not None:
            chosen = (*chosen[:index], *chosen[index + 1 :])
        return chosen, None, gr.update(visible=False), _gallery(chosen, resolution)

    def judge(self, filled: Mapping[Any, Any]) -> tuple[str, str]:
        """Say what may spoil the training, and how long it will take."""
        chosen: tuple[Picture, ...] = filled[self._p.chosen]
        if not chosen:
            return "", ""
        try:
            order = _order(self._f, filled)
            options = self._options(order, Path())
            seconds = estimated_seconds(options, self._backend.jobs.list(), self._measure)
            before = [job for job in self._backend.jobs.list() if job.status not in ENDED]
        except TrainerError as error:
            return advice(chosen, None), escape(str(error))
        waits = f", after {len(before)} other{'s' * (len(before) > 1)}" if before else ""
        return advice(chosen, order), f"Takes **{duration(seconds)}**{waits}."

    def train(self, filled: Mapping[Any, Any], request: gr.Request) -> tuple[Any, ...]:
        """Ask for the training, and show its progress."""
        with told():
            chosen: tuple[Picture, ...] = filled[self._p.chosen]
            if not chosen:
                raise TrainerError("There are no pictures yet: add 3 to 5 of one thing.")
            order = _order(self._f, filled)
            name = filled[self._f.name].strip() or f"{order.token} {order.class_name}"
            self._options(order, Path())  # a wrong word is told before anything is written
            _refuse_small(chosen, order.resolution)
            options = self._options(order, self._backend.uploads.store(chosen))
            job = self._backend.jobs.submit(name, owner(request), options)
            self._backend.dispatcher.look()
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
    """The names of the concepts whose pictures come with the project, if they are there."""
    if not folder.is_dir():
        return []
    return sorted(each.name for each in folder.iterdir() if each.is_dir())


def advice(chosen: Sequence[Picture], order: Order | None) -> str:
    """What the doctor says of the crops, as HTML."""
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
    instance = InstanceConfig(
        instance_prompt=caption, token=order.token if order else "sks", resolution=resolution
    )
    found = [
        text.replace("--", "")
        for text in warnings(findings, look_alikes(findings), instance, PriorConfig())
    ]
    if not found:
        return '<p class="advice good">Nothing speaks against these pictures.</p>'
    lines = "".join(f"<li>{escape(text)}</li>" for text in found)
    return f'<ul class="advice" aria-label="What may spoil the training">{lines}</ul>'


def _gallery(chosen: Sequence[Picture], resolution: float | int | None) -> dict[str, Any]:
    side = int(resolution or _SHOWN_PX)
    shown: list[tuple[Image.Image, str]] = []
    with told():
        for number, (upload, crop) in enumerate(chosen, 1):
            square = cropped(opened(upload), crop).resize((side, side), Image.Resampling.LANCZOS)
            shown.append((square, f"{number} · {upload.name}"))
    return gr.update(value=shown, visible=bool(shown), selected_index=None)


def _order(f: Form, filled: Mapping[Any, Any]) -> Order:
    numbers = (f.max_train_steps, f.learning_rate, f.resolution, f.seed)
    for number in numbers:
        if filled[number] is None:
            raise TrainerError(f"{number.label} needs a number.")
    rank = filled[f.rank].strip()
    if not (rank == "full" or rank.isdecimal()):
        raise TrainerError("Rank is a number, such as 32, or full.")
    lines = filled[f.previews].splitlines()
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
            raise TrainerError(
                f"The crop of {upload.name} has {right - left} pixels a side, and needs at least "
                f"{min_side_px(resolution)}: zoom out, or take a larger picture."
            )
