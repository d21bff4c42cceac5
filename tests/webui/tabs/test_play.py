"""Event handlers of the Play tab, without a browser."""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from tests.webui.concepts import entry_of, teach, write
from tests.webui.engine.waiting import patiently
from webui.backend import Backend, open_backend
from webui.drawing.asked import EACH, STRENGTHS, TOGETHER, Drawn
from webui.drawing.canvas import canvas
from webui.drawing.facts import describe, facts_of
from webui.drawing.settings import Axes, parameters, read_png
from webui.tabs.album import AlbumHandlers
from webui.tabs.grid import GridHandlers
from webui.tabs.play_handlers import INSERTS, PlayHandlers, next_seed

OWN = "a photo of a sks <b>toy</b>"
ASKED = {
    **{"concepts": [], "way": TOGETHER, "step": None, **dict.fromkeys(STRENGTHS, 1.0)},
    **{"prompt": "a sks toy", "negative_prompt": "", "seed": 5, "count": 2, "steps": 2},
    **{"guidance": 3, "placed": ([], TOGETHER), "suggested": "", "drawn": None},
}
PARTS = (*ASKED, "note", *INSERTS, "concept_row", "facts", "grid_about", "grid")


class Bar(gr.Progress):
    """Progress bar that passes its text to a function."""

    def __init__(self, look: Callable[[str], None] = lambda _: None) -> None:
        super().__init__()
        self.look = look

    def __call__(self, progress: object, desc: str = "", **_: object) -> None:
        self.look(desc)


def who(username: str | None = None, page: str = "page") -> gr.Request:
    return gr.Request(username=username, session_hash=page)


@pytest.fixture
def backend(
    base_folder: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Backend:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    return open_backend(str(base_folder), studio=tmp_path / "studio", runs=runs, examples=tmp_path)


@pytest.fixture
def handlers(backend: Backend) -> PlayHandlers:
    return PlayHandlers(backend, {name: name for name in PARTS})


@pytest.fixture
def draw(handlers: PlayHandlers) -> Callable[..., list[Any]]:
    """Draw with mostly default settings, and return the successive updates of the page."""

    def ask(*chosen: str, **other: Any) -> list[Any]:  # noqa: ANN401
        how = {"request": who(), "progress": Bar(), "concepts": list(chosen)}
        return list(handlers.draw(**ASKED | how | other))

    return ask


def pictures(row: list[tuple[str, str]]) -> list[bytes]:
    return [Image.open(path).tobytes() for path, _ in row]


def test_the_base_is_shown_first_and_the_album_keeps_both(
    draw: Callable[..., list[Any]], backend: Backend
) -> None:
    first, second = draw("rabbit", strength_1=0.5)
    base, adapted, drawn = second
    assert first == (base, [], drawn)
    assert [caption for _, caption in base] == ["seed 5", "seed 6"]
    shown = [read_png(Path(path)) for path, _ in (*adapted, *base)]
    assert [settings.seed for settings in shown] == [5, 6, 5, 6]
    assert [len(settings.concepts) for settings in shown] == [1, 1, 0, 0]
    assert shown[0].concepts[0].strength == 0.5
    kept = backend.album.list("")
    assert [read_png(picture.path) for picture in kept] == shown
    assert backend.album.list("ada") == ()


def test_without_a_concept_the_base_draws_alone(draw: Callable[..., list[Any]]) -> None:
    ((base, adapted, drawn),) = draw()
    assert (len(base), adapted, drawn) == (2, [], None)


def test_one_concept_in_each_picture(draw: Callable[..., list[Any]]) -> None:
    *_, (base, adapted, _) = draw("rabbit", "house", way=EACH, count=2)
    assert [caption for _, caption in adapted] == ["rabbit", "house"] * 2
    assert [read_png(Path(path)).seed for path, _ in base] == [5, 5, 6, 6]


def test_concept_words_fill_the_prompt(draw: Callable[..., list[Any]]) -> None:
    *_, (base, _, _) = draw("rabbit", prompt="a {token} at night", count=1)
    assert read_png(Path(base[0][0])).prompt == "a sks at night"
    with pytest.raises(gr.Error, match=r"^'house has no word for"):
        draw("rabbit", "house", way=EACH, prompt="a {token}")


def test_moving_a_slider_draws_the_concepts_alone(
    draw: Callable[..., list[Any]], handlers: PlayHandlers
) -> None:
    *_, (base, adapted, drawn) = draw("rabbit")

    def redraw(drawn: Drawn | None, chosen: list[str], way: str, strength: float) -> list[Any]:
        asked = {"drawn": drawn, "concepts": chosen, "way": way, "strength_1": strength}
        return list(handlers.redraw(who(), Bar(), **ASKED | asked))

    ((half),) = redraw(drawn, ["rabbit"], TOGETHER, 0.5)
    ((none),) = redraw(drawn, ["rabbit"], TOGETHER, 0.0)
    assert pictures(none) == pictures(base) != pictures(half) != pictures(adapted)
    assert redraw(None, ["rabbit"], TOGETHER, 0.5) == []
    assert redraw(drawn, ["house"], TOGETHER, 0.5) == []


def test_stopping_keeps_finished_pictures(
    draw: Callable[..., list[Any]], handlers: PlayHandlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gr, "Info", lambda *_, **__: None)
    seen: list[str] = []

    def stop_the_concept(desc: str) -> None:
        seen.append(desc)
        handlers.stop(who(page="another page"))
        if seen.count("rabbit") == 2:
            handlers.stop(who())

    ((base, adapted, _),) = draw("rabbit", steps=9, progress=Bar(stop_the_concept))
    assert (len(base), adapted) == (2, [])
    assert seen == ["Base"] * 9 + ["rabbit"] * 2
    assert len(draw("rabbit")) == 2


def test_two_people_wait_for_each_other(draw: Callable[..., list[Any]], backend: Backend) -> None:
    messages: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def hold(_: str) -> None:
        begun.set()
        go_on.wait()

    rows: dict[str, list[Any]] = {}

    def person(name: str, **other: Any) -> threading.Thread:  # noqa: ANN401
        asks = who(name, name)
        thread = threading.Thread(target=lambda: rows.update({name: draw(request=asks, **other)}))
        thread.start()
        return thread

    ada = person("ada", prompt="one", progress=Bar(hold))
    patiently(begun.is_set)
    bob = person("bob", prompt="other", progress=Bar(messages.append))
    patiently(lambda: messages)
    assert messages == ["Waiting: 1 ahead of you"]
    go_on.set()
    ada.join()
    bob.join()
    for name, prompt in (("ada", "one"), ("bob", "other")):
        kept = [read_png(picture.path).prompt for picture in backend.album.list(name)]
        assert kept == [prompt] * 2
        ((base, _, _),) = rows[name]
        assert {read_png(Path(path)).prompt for path, _ in base} == {prompt}


def test_mistakes_give_one_sentence(draw: Callable[..., list[Any]]) -> None:
    for chosen, other, error_text in (
        (["broken"], {}, "^'broken is not a readable"),
        (["nowhere"], {}, "^'There is no such concept"),
        ([], {"steps": None}, "each need a number"),
        ([], {"prompt": "x" * 2001}, "more than 2000 characters"),
        ([], {"prompt": " "}, "The prompt is empty"),
        ([], {"prompt": "{token}"}, "stands for the word of one concept"),
    ):
        with pytest.raises(gr.Error, match=error_text):
            draw(*chosen, **other)


def test_choosing_a_concept_fills_in_its_settings(handlers: PlayHandlers, runs: Path) -> None:
    def choose(**asked: Any) -> dict[str, Any]:  # noqa: ANN401
        return handlers.choose(who(), **ASKED | asked)

    def seen(out: dict[str, Any], what: str) -> list[Any]:
        return [out[name].get(what) for name in STRENGTHS]

    out = choose(concepts=["rabbit"], prompt="", strength_1=0.3)
    facts = describe([facts_of(entry_of(runs / "rabbit"))])
    expected = {"facts": facts, "placed": (["rabbit"], TOGETHER), "prompt": OWN, "suggested": OWN}
    assert out | expected | {"steps": 7, "guidance": 2.5} == out
    assert seen(out, "visible") == [True, False, False, False]

    both, before = ["house", "rabbit"], {"placed": (["rabbit"], TOGETHER), "suggested": OWN}
    out = choose(concepts=both, prompt="my own", strength_1=0.3, **before)
    assert seen(out, "value") == [1.0, 0.3, None, None]
    assert out["prompt"] == "my own and a sks <b>toy</b>"
    assert "steps" not in out  # the house does not say them
    left = choose(concepts=[], prompt="my sks <b>toy</b>", **before)
    assert left["prompt"] == "my <b>toy</b>"
    assert choose(concepts=both, placed=(both, TOGETHER)) == gr.skip()


def test_words_that_the_prompt_lacks_are_offered(handlers: PlayHandlers) -> None:
    def asked(prompt: str, way: str = TOGETHER, *chosen: str) -> dict[str, Any]:
        return ASKED | {
            "prompt": prompt,
            "concepts": [*(chosen or ("rabbit", "house"))],
            "way": way,
        }

    said = handlers.note(who(), **asked("a <b>toy</b> at night"))
    assert "“sks &lt;b&gt;toy&lt;/b&gt;” is not in your prompt, so it is not drawn." in said["note"]
    assert [said[name]["visible"] for name in INSERTS] == [True, False, False, False]
    assert said["insert_1"]["value"] == "Add sks <b>toy</b>"
    put = handlers.insert(0)(who(), **asked("a <b>toy</b> at night"))
    assert put == "a sks <b>toy</b> at night"
    for prompt in (put, "", "a {token} at night"):
        said = handlers.note(who(), **asked(prompt, EACH))
        assert "not in your prompt" not in said["note"]
        assert not any(said[name]["visible"] for name in INSERTS)
    assert handlers.insert(3)(who(), **asked("as it is", TOGETHER, "rabbit")) == "as it is"


def test_a_failure_is_said_beside_the_prompt_once(
    draw: Callable[..., list[Any]], handlers: PlayHandlers
) -> None:
    with pytest.raises(gr.Error):
        draw(prompt="<i>{class}")
    assert "&lt;i&gt;" not in handlers.why(who(page="another"))
    said = handlers.why(who())
    assert said.startswith('<p class="problem">')
    assert "{class}" in said


def test_offered_concepts(handlers: PlayHandlers, backend: Backend, monkeypatch: Any) -> None:  # noqa: ANN401
    newest = backend.library.list("")[0].id
    choices, hint = handlers.arrive(who())
    assert (choices["value"], hint["visible"]) == ([newest], False)
    assert {each for _, each in choices["choices"]} == {"rabbit", "house", "broken"}
    assert "value" not in handlers.look(["rabbit"], who())[0]
    assert handlers.look(["rabbit", "gone"], who())[0]["value"] == ["rabbit"]
    assert handlers.take("house", who())[0]["value"] == ["house"]
    monkeypatch.setattr(type(backend.library), "list", lambda *_: ())
    assert handlers.arrive(who())[1]["visible"]


def test_reusing_settings(
    draw: Callable[..., list[Any]],
    handlers: PlayHandlers,
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(gr, "Warning", warned.append)
    draw("house", "rabbit", strength_1=0.4, strength_2=1.2, negative_prompt="dark", count=1)
    newest = backend.album.list("")[0]
    for out in (
        handlers.reuse(newest.id, who()),
        handlers.reuse_file(str(newest.path), who()),
    ):
        assert out["concepts"]["value"] == ["house", "rabbit"]
        assert [out[name]["value"] for name in STRENGTHS[:2]] == [0.4, 1.2]
        expected = {"placed": (["house", "rabbit"], TOGETHER), "prompt": "a sks toy", "seed": 5}
        expected |= {"negative_prompt": "dark", "steps": 2, "guidance": 3.0}
        assert out | expected == out
    assert warned == []
    with pytest.raises(gr.Error, match=r"^'That picture is gone"):
        handlers.reuse(newest.id, who("ada"))

    only = entry_of(backend.library.get("rabbit", "").folder)
    monkeypatch.setattr(type(backend.library), "list", lambda *_: (only,))
    monkeypatch.setattr(PlayHandlers, "look", lambda *_: ({"choices": []}, None))
    assert handlers.reuse(newest.id, who())["concepts"]["value"] == ["rabbit"]
    assert warned[0].startswith("Your library does not have house as used in the picture")
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(gr.Error, match="is not a PNG"):
        handlers.reuse_file(str(tmp_path / "x.png"), who())


def test_the_album_of_a_page(draw: Callable[..., list[Any]], backend: Backend) -> None:
    album = AlbumHandlers(backend.album)
    draw(prompt="<b>a toy</b>", count=2)
    gallery, ids, more, chosen, *_ = album.show(1, None, who())
    assert (len(gallery["value"]), len(ids), more["visible"], chosen) == (1, 1, True, None)
    event = gr.SelectData(None, {"index": 0, "value": None})
    chosen, details, *_ = album.choose(ids, who(), event)
    assert chosen == ids[0]
    assert "&lt;b&gt;a toy&lt;/b&gt;\nSteps: 2, Sampler: DDIM, CFG scale: 3, Seed: 5" in details
    draw(prompt="another", count=1)
    gallery, ids, *_ = album.show(9, chosen, who())
    assert (gallery["selected_index"], ids.index(chosen)) == (1, 1)
    with pytest.raises(gr.Error, match=r"^'That picture is gone"):
        album.delete(chosen, 9, who("ada"))
    gallery, ids, *_ = album.delete(chosen, 9, who())
    assert (len(gallery["value"]), chosen in ids) == (2, False)


@pytest.fixture
def growing(base_folder: Path, runs: Path) -> Iterator[str]:
    """Add a run of 20 steps that has kept its step 10."""
    folder = runs / "growing"
    for place, steps in (("checkpoint-000010", 10), (".", 20)):
        file = folder / place / "concept.safetensors"
        teach(base_folder, file, steps, "a sks toy", token="sks", steps=steps)
    (folder / "checkpoint-000010" / "state.json").touch()
    yield folder.name
    shutil.rmtree(folder)


def test_a_grid_is_drawn_row_by_row_and_kept_as_one_picture(
    draw: Callable[..., list[Any]], handlers: PlayHandlers, backend: Backend, growing: str
) -> None:
    said: list[str] = []
    grid = GridHandlers(backend, handlers)
    shown = list(grid.draw(who(), Bar(said.append), **ASKED | {"concepts": [growing]}))
    assert [html.count("<img") for html in shown] == [0, 4, 8]
    assert [*dict.fromkeys(said)] == ["Row 1 of 2", "Row 2 of 2"]
    assert re.findall('<th scope="row">(.+?)</th>', shown[-1]) == ["step 10", "step 20"]
    (kept,) = backend.album.list("")
    settings = read_png(kept.path)
    assert settings.grid == Axes((0.4, 0.7, 1.0, 1.3), (10, 20))
    assert 'X Type: Strength, X Values: "0.4, 0.7, 1, 1.3"' in parameters(settings)
    again = handlers.reuse(kept.id, who())
    assert (again["step"]["value"], again["strength_1"]["value"]) == (20, 1.0)

    cell = gr.EventData(None, {"strength": 0.7, "step": 10})
    strength, step = grid.pick(cell)
    *_, (_, adapted, _) = draw(growing, strength_1=strength, step=step, count=1)
    with Image.open(kept.path) as whole, Image.open(adapted[0][0]) as alone:
        left, top = whole.width - 3 * 160 - 2 * 10, whole.height - 2 * 160 - 10
        small = whole.crop((left, top, left + 160, top + 160)).resize((16, 16), 0)
        levels = np.asarray(small).astype(int) - np.asarray(alone)
    assert abs(levels).max() <= 1  # a batch may round to a neighbouring level
    newest = backend.album.list("")[0]
    assert read_png(newest.path).concepts[0].name == "growing, step 10"
    again = handlers.reuse(newest.id, who())
    assert (again["concepts"]["value"], again["step"]["value"]) == ([growing], 10)
    forged = gr.EventData(None, {"strength": 0.7, "step": "../x"})
    assert grid.pick(forged) == (gr.skip(), gr.skip())


def test_a_grid_without_kept_steps_is_one_row_and_says_so(
    handlers: PlayHandlers, backend: Backend, growing: str
) -> None:
    about = handlers.choose(who(), **ASKED | {"concepts": ["rabbit"]})["grid_about"]
    assert "in one row: this concept has no other saved steps" in about
    *_, last = GridHandlers(backend, handlers).draw(
        who(), Bar(), **ASKED | {"concepts": ["rabbit"]}
    )
    assert re.findall('<th scope="row">(.+?)</th>', last) == ["as taught"]
    assert last.count("<img") == 4
    chosen = handlers.choose(who(), **ASKED | {"concepts": [growing]})
    assert "2 of its 2 saved steps down" in chosen["grid_about"]
    assert [step for _, step in chosen["step"]["choices"]] == [10, 20]
    assert (chosen["step"]["value"], chosen["step"]["visible"]) == (20, True)


def test_a_file_with_a_step_that_no_browser_can_show(handlers: PlayHandlers, runs: Path) -> None:
    write(runs / "huge" / "concept.safetensors", steps=10**19)
    chosen = handlers.choose(who(), **ASKED | {"concepts": ["huge"]})
    shutil.rmtree(runs / "huge")
    assert (chosen["step"]["choices"], chosen["step"]["value"]) == ([], None)


def test_a_grid_that_cannot_be_drawn_or_is_stopped(
    draw: Callable[..., list[Any]],
    handlers: PlayHandlers,
    backend: Backend,
    growing: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gr, "Info", lambda *_, **__: None)
    grid = GridHandlers(backend, handlers)
    for asked, sentence in (
        ({}, "The grid shows a concept: choose one"),
        ({"concepts": [growing], "prompt": "a car"}, "“sks” is not in your prompt"),
    ):
        with pytest.raises(gr.Error, match=sentence):
            list(grid.draw(who(), Bar(), **ASKED | asked))

    def stop(desc: str) -> None:
        if desc == "Row 2 of 2":
            handlers.stop(who())

    shown = list(grid.draw(who(), Bar(stop), **ASKED | {"concepts": [growing], "steps": 9}))
    assert [html.count("<img") for html in shown] == [0, 4]
    assert backend.album.list("") == ()
    shutil.rmtree(runs / growing / "checkpoint-000010")
    with pytest.raises(gr.Error, match="Step 10 of growing is gone"):
        draw(growing, step=10)


def test_next_seeds_follow_the_drawn_ones() -> None:
    assert next_seed(4, 4) == 8
    assert next_seed(2**32 - 1, 2) == 1
    assert next_seed(None, 4) == 4


def test_the_canvas_has_a_divider_between_the_pictures_of_one_seed() -> None:
    base, concept = [("/c/a.png", "seed 5"), ("/c/b <.png", "seed 6")], [("/c/d.png", "seed 5")]
    assert "<img" not in canvas(None, None, 0)
    both = canvas(base, concept, 0)
    assert re.findall('src="(.+?)"', both) == [f"gradio_api/file=/c/{name}.png" for name in "ad"]
    assert 'type="range"' in both
    alone = canvas(base, concept, 7)  # fewer pictures than before
    assert re.findall('src="(.+?)"', alone) == ["gradio_api/file=/c/b%20%3C.png"]
    assert 'type="range"' not in alone


def test_chips_have_the_pictures_of_their_concepts(
    backend: Backend, handlers: PlayHandlers, runs: Path
) -> None:
    assert "url(" not in handlers.faces(who())  # without pictures
    names = [entry.name for entry in backend.library.list("")]
    (runs / "house" / "samples").mkdir()
    Image.new("RGB", (4, 4), "red").save(runs / "house" / "samples" / "0-concept.png")
    (number,) = re.findall(r"nth-of-type\((\d)\)", handlers.faces(who()))
    shutil.rmtree(runs / "house" / "samples")
    assert names[int(number) - 1] == "house"
