"""Event handlers of the Play tab, without a browser."""

import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from tests.webui.concepts import entry_of
from tests.webui.engine.waiting import patiently
from webui.backend import Backend, open_backend
from webui.drawing.canvas import canvas
from webui.drawing.facts import describe, facts_of
from webui.drawing.settings import MAX_CONCEPTS, read_png
from webui.tabs.album import AlbumHandlers
from webui.tabs.play_handlers import EACH, TOGETHER, Drawn, PlayHandlers, next_seed

OWN = "a photo of a sks <b>toy</b>"
SLIDERS = slice(0, MAX_CONCEPTS)


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
    return PlayHandlers(backend)


@pytest.fixture
def draw(handlers: PlayHandlers) -> Callable[..., list[Any]]:
    """Draw with mostly default settings, and return the successive updates of the page."""

    def ask(*chosen: str, **other: Any) -> list[Any]:  # noqa: ANN401
        asked = {
            "way": TOGETHER,
            **{"first": 1.0, "second": 1.0, "third": 1.0, "fourth": 1.0},
            **{"prompt": "a sks toy", "negative_prompt": "", "seed": 5, "count": 2},
            **{"steps": 2, "guidance": 3, "request": who(), "progress": Bar()},
        }
        return list(handlers.draw(list(chosen), **asked | other))

    return ask


def pictures(row: list[tuple[str, str]]) -> list[bytes]:
    return [Image.open(path).tobytes() for path, _ in row]


def test_the_base_is_shown_first_and_the_album_keeps_both(
    draw: Callable[..., list[Any]], backend: Backend
) -> None:
    first, second = draw("rabbit", first=0.5)
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
        others = (1.0, 1.0, 1.0)
        return list(handlers.redraw(drawn, chosen, way, strength, *others, who(), Bar()))

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
    def choose(chosen: list[str], way: str, placed: tuple, *rest: Any) -> list[Any]:  # noqa: ANN401
        return handlers.choose(chosen, way, placed, *rest, request=who())

    nothing = ([], TOGETHER)
    out = choose(["rabbit"], TOGETHER, nothing, "", "", 0.3, 1.0, 1.0, 1.0)
    facts = describe([facts_of(entry_of(runs / "rabbit"))])
    assert out[-6:] == [facts, (["rabbit"], TOGETHER), OWN, OWN, 7, 2.5]
    assert [update["visible"] for update in out[SLIDERS]] == [True, False, False, False]

    both = ["house", "rabbit"]
    out = choose(both, TOGETHER, (["rabbit"], TOGETHER), "my own", OWN, 0.3, 1.0, 1.0, 1.0)
    assert [update.get("value") for update in out[SLIDERS]] == [1.0, 0.3, None, None]
    assert out[-4] == "my own and a sks <b>toy</b>"
    left = choose([], TOGETHER, (["rabbit"], TOGETHER), "my sks <b>toy</b>", OWN, *[1.0] * 4)
    assert left[-4] == "my <b>toy</b>"
    again = choose(both, TOGETHER, (both, TOGETHER), "", "", 0.3, 1.0, 1.0, 1.0)
    assert again == [gr.skip()] * len(out)


def test_words_that_the_prompt_lacks_are_offered(handlers: PlayHandlers) -> None:
    def note(prompt: str, way: str = TOGETHER) -> list[Any]:
        return handlers.note(prompt, ["rabbit", "house"], way, who())

    said, *buttons = note("a <b>toy</b> at night")
    assert "“sks &lt;b&gt;toy&lt;/b&gt;” is not in your prompt, so it is not drawn." in said
    assert [button["visible"] for button in buttons] == [True, False, False, False]
    assert buttons[0]["value"] == "Add sks <b>toy</b>"
    put = handlers.insert(0)("a <b>toy</b> at night", ["rabbit", "house"], TOGETHER, who())
    assert put == "a sks <b>toy</b> at night"
    for asked in (put, "", "a {token} at night"):
        said, *buttons = note(asked, EACH)
        assert "not in your prompt" not in said
        assert not any(button["visible"] for button in buttons)
    assert handlers.insert(3)("as it is", ["rabbit"], TOGETHER, who()) == "as it is"


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
    draw("house", "rabbit", first=0.4, second=1.2, negative_prompt="dark", count=1)
    newest = backend.album.list("")[0]
    for out in (
        handlers.reuse(newest.id, who()),
        handlers.reuse_file(str(newest.path), who()),
    ):
        assert out[0]["value"] == ["house", "rabbit"]
        assert [update.get("value") for update in out[1:3]] == [0.4, 1.2]
        assert out[-6:] == [(["house", "rabbit"], TOGETHER), "a sks toy", "dark", 5, 2, 3.0]
    assert warned == []
    with pytest.raises(gr.Error, match=r"^'That picture is gone"):
        handlers.reuse(newest.id, who("ada"))

    only = entry_of(backend.library.get("rabbit", "").folder)
    monkeypatch.setattr(type(backend.library), "list", lambda *_: (only,))
    monkeypatch.setattr(PlayHandlers, "look", lambda *_: ({"choices": []}, None))
    assert handlers.reuse(newest.id, who())[0]["value"] == ["rabbit"]
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
