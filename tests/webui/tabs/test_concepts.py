"""Event handlers of the Teach tab."""

import asyncio
import re
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from loldu.pictures.open import load_image
from webui.backend import Backend, open_backend
from webui.engine.options import asked
from webui.page import PROGRESS
from webui.tabs import concepts
from webui.tabs.concepts_handlers import ConceptsHandlers, Form, Pictures
from webui.teaching.crops import Crop
from webui.teaching.examples import cards
from webui.teaching.recipes import presets_for

ANN = gr.Request(username="ann")


@pytest.fixture
def backend(base_folder: Path, tmp_path: Path) -> Backend:
    for name in ("red_cat", "blue_dog"):
        (tmp_path / "examples" / name).mkdir(parents=True)
        for number in range(3):
            image = Image.effect_noise((60 + number, 50), 90).convert("RGB")
            image.save(tmp_path / "examples" / name / f"{number}.png")
    return open_backend(
        str(base_folder),
        studio=tmp_path / "studio",
        runs=tmp_path / "runs",
        examples=tmp_path / "examples",
        devices=["cpu"],
    )


@dataclass
class Tab:
    """Return the tab without a page, with its form filled in."""

    handlers: ConceptsHandlers
    p: Pictures
    f: Form
    filled: dict[Any, Any]


@pytest.fixture
def tab(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Tab:
    async def build() -> tuple[Pictures, Form]:
        with gr.Blocks():
            return concepts._pictures(backend.examples), concepts._form(known)

    known = presets_for(backend.base)
    pictures, form = asyncio.run(build())  # outside of a loop gradio makes several, closing none
    monkeypatch.setattr(backend.studio, "seconds_a_pass", lambda *_: 0.1, raising=False)
    handlers = ConceptsHandlers(backend, known, pictures, form)
    chosen, *_ = handlers.take(64, gr.EventData(None, {"name": "red_cat"}))
    filled = {
        pictures.chosen: chosen,
        form.name: "Milo <b>",
        form.class_name: "cat",
        form.token: "sks",
        form.recipe: "fast",
        form.previews: "a {token} {class} in the snow\n\n",
        form.tried: False,
    }
    options = {"max_train_steps": 20, "learning_rate": 1e-2, "rank": "full", "resolution": 64}
    options |= {"with_prior_preservation": False, "train_text_encoder": False, "seed": 1}
    options |= {"random_flip": True, "validation_scores": False}
    filled |= {form.of_trainer[name]: value for name, value in options.items()}
    return Tab(handlers, pictures, form, filled)


def test_the_form_becomes_a_training(tab: Tab, backend: Backend) -> None:
    upload, _ = tab.filled[tab.p.chosen][0]
    chosen = ((upload, Crop(2, 0, 0)), *tab.filled[tab.p.chosen][1:])
    job_id, tabs, token, *said = tab.handlers.train(tab.filled | {tab.p.chosen: chosen}, ANN)
    (job,) = backend.jobs.list("ann")
    assert said == [False, gr.skip(), "", "", ""]
    assert (job.id, job.name, tabs.selected, token) == (job_id, "Milo <b>", PROGRESS, "ohwx")
    options = tomllib.loads((job.folder / "options.toml").read_text())
    message = {name: table[name] for table in options.values() for name in table}
    assert message["instance_prompt"] == "a photo of a sks cat"
    assert message["rank"] == "full"
    assert message["random_flip"] is True
    assert message["mixed_precision"] == "no"
    assert message["pretrained_model_name_or_path"] == backend.base
    assert message["validation_prompt"][1] == "a sks cat in the snow"
    folder = Path(message["instance_data_dir"])
    assert folder.is_relative_to(backend.jobs.folder)
    sizes = [load_image(path).size for path in sorted(folder.iterdir())]
    assert sizes == [(25, 25), (50, 50), (50, 50)]


def test_a_preset_fills_in_its_values_and_the_trainer_s_defaults(tab: Tab) -> None:
    fields = ["max_train_steps", "learning_rate", "rank", "resolution", "with_prior_preservation"]
    assert list(tab.f.of_recipe) == [*fields, "train_text_encoder", "random_flip"]
    about, *values = tab.handlers.choose("fast")
    assert about == "A concept on SD v1.5 in 400 steps on a CUDA GPU."
    assert values == [400, 1e-3, "128", 512, False, False, False]


@pytest.mark.parametrize(
    ("field", "value", "place", "message"),
    [
        ("class_name", "", "words", "what kind of thing"),
        ("class_name", "<b>", "words", "what kind of thing"),
        ("token", "a b", "words", "must be one word"),
        ("token", "cat", "words", "The rare word is part of the class"),
        ("rank", "many", "options", "Rank is a number"),
        ("max_train_steps", None, "options", "Steps needs a number"),
        ("resolution", 100, "options", "must be .* a multiple of 8"),
        ("resolution", 512, "pictures", "The crop of 0.png is 50 pixels wide"),
        ("recipe", "another", "options", "There is no preset"),
        ("learning_rate", 0, "options", "learning_rate is 0.0; it must be above 0"),
    ],
)
def test_a_mistake_stands_beside_its_field_until_it_is_corrected(
    tab: Tab, backend: Backend, field: str, value: object, place: str, message: str
) -> None:
    wrong = tab.filled | {tab.f.of_trainer.get(field) or getattr(tab.f, field): value}
    *unchanged, tried, said = tab.handlers.train(wrong, ANN)[:5]
    assert unchanged == [gr.skip()] * 3  # no field loses its value
    assert (tried, said) == (True, gr.skip())
    for answer in (tab.handlers.train(wrong, ANN), tab.handlers.check(wrong | {tab.f.tried: True})):
        problems = dict(zip(("pictures", "words", "options"), answer[-3:], strict=True))
        assert re.search(message, problems.pop(place))
        assert set(problems.values()) == {""}
    assert tab.handlers.check(tab.filled | {tab.f.tried: True}) == ("", "", "")
    assert not backend.jobs.list()
    assert not [*(backend.jobs.folder / "runs").iterdir()]


def test_an_empty_form_hears_nothing_until_teach_is_pressed(tab: Tab, backend: Backend) -> None:
    empty = tab.filled | {tab.p.chosen: (), tab.f.class_name: None, tab.f.name: None}
    assert tab.handlers.judge(empty) == ("", "")
    assert tab.handlers.check(empty) == ("", "", "")
    pictures, words, options = tab.handlers.train(empty, ANN)[-3:]
    assert "There are no pictures yet" in pictures
    assert "what kind of thing" in words
    assert options == ""


def test_a_full_queue_is_said_in_the_bar(tab: Tab, backend: Backend) -> None:
    for _ in range(10):
        tab.handlers.train(tab.filled, ANN)
    *_, tried, said, pictures, words, options = tab.handlers.train(tab.filled, ANN)
    assert 'role="alert"' in said
    assert (tried, pictures, words, options) == (True, "", "", "")
    assert len(backend.jobs.list()) == 10


def test_valid_pictures_of_an_upload_are_kept(
    tab: Tab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda sentence, **_: said.append(sentence))
    (tmp_path / "sent").mkdir()
    good = shutil.copy(tmp_path / "examples" / "red_cat" / "0.png", tmp_path / "sent")
    bad = tmp_path / "sent" / "<b>.png"
    bad.write_text("text")
    empty, chosen, gallery = tab.handlers.add([str(bad), good], (), 64)
    assert empty is None
    assert [upload.name for upload, _ in chosen] == ["0.png"]
    assert [image.size for image, _ in gallery["value"]] == [(64, 64)]
    assert len(said) == 1
    assert said[0].startswith("&lt;b&gt;.png is not a picture")
    assert not [*(tmp_path / "sent").iterdir()]

    many = tab.filled[tab.p.chosen] * 6 + tab.filled[tab.p.chosen][:2]
    shutil.copy(tmp_path / "examples" / "red_cat" / "0.png", good)
    _, kept, _ = tab.handlers.add([good], many, 64)
    assert len(kept) == 20
    assert said[1].startswith("At most 20 pictures")


def test_a_crop_is_seen_at_once(tab: Tab) -> None:
    chosen = tab.filled[tab.p.chosen]
    index, _, whole, caption = tab.handlers.select(
        chosen, gr.SelectData(None, {"index": 1, "value": None})
    )
    assert (index, caption) == (1, "")
    assert 'data-index="1"' in whole

    def moved(index: int, **place: object) -> gr.EventData:
        return gr.EventData(None, {"index": index, "zoom": 3, "x": 0, "y": 1, **place})

    changed, gallery = tab.handlers.crop(chosen, 64, 1, moved(1))
    assert [crop for _, crop in changed] == [Crop(), Crop(3, 0, 1), Crop()]
    assert len(gallery["value"]) == 3
    for late in (moved(0), moved(1, zoom="3"), moved(1, x=float("nan"))):  # or of no page of ours
        assert tab.handlers.crop(chosen, 64, 1, late) == (gr.skip(), gr.skip())
    left, index, _, gallery = tab.handlers.remove(changed, 64, 1)
    assert [crop for _, crop in left] == [Crop(), Crop()]
    assert index is None
    assert len(gallery["value"]) == 2


def test_a_caption_is_of_its_picture_alone(tab: Tab, backend: Backend) -> None:
    chosen = tab.filled[tab.p.chosen]
    said = tab.handlers.caption(chosen, 1, "  a sks cat \n on grass ")
    assert [upload.caption for upload, _ in said] == ["", "a sks cat on grass", ""]
    tab.handlers.keep(said, "Milo", "cat", "sks", ANN)
    assert tab.handlers.begin(ANN)[0] == said
    tab.handlers.train(tab.filled | {tab.p.chosen: said}, ANN)
    (job,) = backend.jobs.list("ann")
    folder = Path(asked(job.folder).pictures or "")
    assert [path.name for path in sorted(folder.glob("*.txt"))] == ["picture-2.txt"]
    assert (folder / "picture-2.txt").read_text() == "a sks cat on grass"


def test_warnings_and_the_estimate_come_before_training(tab: Tab) -> None:
    said, time = tab.handlers.judge(tab.filled)
    assert "Nearly the same picture" not in said
    # 20 steps of one picture and 26 pictures in 25 steps with guidance
    assert "Takes **about 2 minutes**, for 20 steps and 26 pictures." in time
    chosen = tab.filled[tab.p.chosen]
    said, time = tab.handlers.judge(tab.filled | {tab.p.chosen: (chosen[0], chosen[0])})
    assert "Only 2 pictures" in said
    assert "picture 1 = picture 2" in said


def test_pictures_are_judged_at_the_resolution_of_the_form_from_the_start(tab: Tab) -> None:
    nameless = tab.filled | {tab.f.class_name: ""}
    assert "Blurred" not in tab.handlers.judge(nameless)[0]
    assert (
        "Blurred at 512 pixels"
        in tab.handlers.judge(nameless | {tab.f.of_trainer["resolution"]: 512})[0]
    )


def test_an_example_is_a_name_in_the_folder_and_no_path(tab: Tab, backend: Backend) -> None:
    path, name = ({"name": each} for each in ("../examples/red_cat", "blue_dog"))
    assert tab.handlers.take(64, gr.EventData(None, path)) == (gr.skip(),) * 5
    chosen, _, _, title, class_name = tab.handlers.take(64, gr.EventData(None, name))
    assert (len(chosen), title, class_name) == (3, "blue dog", "dog")
    assert cards(backend.examples).count("<img") == 2


def test_a_form_is_kept_over_a_reload_for_its_owner_alone(tab: Tab, backend: Backend) -> None:
    upload, _ = tab.filled[tab.p.chosen][0]
    chosen = ((upload, Crop(2, 0, 0.25)), *tab.filled[tab.p.chosen][1:])
    tab.handlers.keep(chosen, "Milo", "cat", "zwx", ANN)
    kept, gallery, *texts = tab.handlers.begin(ANN)
    assert (kept, texts) == (chosen, ["Milo", "cat", "zwx"])
    assert len(gallery["value"]) == 3
    assert tab.handlers.begin(gr.Request(username="bob"))[0] == ()
    upload.path.unlink()
    assert tab.handlers.begin(ANN)[0] == chosen[1:]
    (file,) = (backend.jobs.folder / "drafts").iterdir()
    for damaged in (b"{", b"[]", b'{"pictures": [{"file": 1}]}', b"\xff"):
        file.write_bytes(damaged)
        assert tab.handlers.begin(ANN)[2:4] == ("", "")
