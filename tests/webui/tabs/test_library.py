"""Event handlers of the Library and Score tabs, and their owners."""

import json
import shutil
import tomllib
from html import unescape
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from tests.webui.browser import ROOT
from tests.webui.concepts import teach, write
from tests.webui.engine.waiting import has, ticking
from webui.backend import Backend, open_backend
from webui.engine.dispatcher import Dispatcher
from webui.engine.job import Kind, Status
from webui.library import scoring
from webui.page import PLAY
from webui.tabs.library import LibraryHandlers
from webui.tabs.play_handlers import PlayHandlers
from webui.tabs.score import ScoreHandlers, estimate

ANN, BOB = gr.Request(username="ann"), gr.Request(username="bob")
LIBRARY = ["shown", "chosen", "removed", "empty", "undo", "cards", "details", "about", "name"]
LIBRARY += ["delete", "samples", "pictures", "file"]
SCORE = ["timer", "status", "stop", "resume", "verdict", "table", "picture", "all", "page"]
SCORE += ["concept"]
SCORE += ["needs", "token", "class_name", "real", "steps", "score"]


@pytest.fixture
def backend(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folders = {name: tmp_path / name for name in ("studio", "runs", "examples")}
    return open_backend(str(base_folder), **folders, devices=["cpu"])


@pytest.fixture
def tab(backend: Backend) -> LibraryHandlers:
    return LibraryHandlers(backend, LIBRARY)


@pytest.fixture
def file(base_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "upload" / "my <b>toy.safetensors"
    return write(path, of=base_folder.name, token="<i>sks")


def view(updates: list[Any], parts: list[str] = LIBRARY) -> dict[str, Any]:
    return dict(zip(parts, updates, strict=True))


def test_import_rename_delete_undo(tab: LibraryHandlers, backend: Backend, file: Path) -> None:
    assert view(tab.refresh(None, None, "", ANN))["empty"]["visible"]
    seen = view(tab.add(str(file), "", ANN))
    entry_id = seen["chosen"]
    (card,) = seen["cards"]["value"]
    assert card[1] == "my <b>toy · <i>sks toy · step 300"
    assert "<b>" not in seen["about"]
    assert "my &lt;b&gt;toy" in seen["about"]
    assert "&lt;i&gt;sks toy" in seen["about"]
    assert "DINO 0.500, CLIP-I 0.750" in seen["about"]
    assert not view(tab.refresh(None, None, "", BOB))["shown"]

    assert view(tab.rename(entry_id, "hare", "", ANN))["name"]["value"] == "hare"
    gone = view(tab.delete(entry_id, "", ANN))
    assert (gone["shown"], gone["chosen"], gone["removed"]) == ((), None, entry_id)
    assert gone["undo"] == gr.update(value="“hare” is deleted. Undo", visible=True)
    kept = view(tab.refresh(None, gone["removed"], "x", ANN))  # searching is no action
    assert (kept["removed"], kept["undo"]["visible"]) == (entry_id, True)
    with pytest.raises(gr.Error, match="no longer in the trash"):
        tab.undo(entry_id, "", BOB)
    back = view(tab.undo(entry_id, "", ANN))
    assert (back["shown"], back["chosen"], back["undo"]["visible"]) == (
        (entry_id,),
        entry_id,
        False,
    )


def test_concepts_of_others_cannot_be_changed(tab: LibraryHandlers, file: Path) -> None:
    entry_id = view(tab.add(str(file), "", ANN))["chosen"]
    for asks in (
        lambda: tab.rename(entry_id, "mine", "", BOB),
        lambda: tab.delete(entry_id, "", BOB),
        lambda: tab.use(PLAY)(entry_id, BOB),
        lambda: next(tab.export("concept")(entry_id, BOB)),
    ):
        with pytest.raises(gr.Error, match="There is no such concept"):
            asks()
    assert tab.use(PLAY)(entry_id, ANN)[0] == entry_id


def test_search_looks_at_names_tokens_and_bases(tab: LibraryHandlers, tmp_path: Path) -> None:
    for name, metadata in {"Rabbit": {"token": "zwx"}, "House": {"of": "sd-v1-5"}}.items():
        path = write(tmp_path / f"{name}.safetensors", **{"of": "<i>tiny", **metadata})
        with pytest.warns(UserWarning, match="which is not this server's base"):
            seen = view(tab.add(str(path), "", ANN))
    assert seen["cards"]["value"][0][1].endswith(" · for another base")
    runs = write(tmp_path / "runs" / "demo" / "concept.safetensors").parent
    (runs.parent / "broken").mkdir()
    (runs.parent / "broken" / "concept.safetensors").write_bytes(b"no concept")
    for search, count in {"": 4, "rabb": 1, "ZWX toy": 1, "v1-5": 1, "demo": 1, "no": 0}.items():
        found = view(tab.refresh(None, None, search, ANN))
        assert len(found["shown"]) == len(found["cards"]["value"]) == count, search
    broken = view(tab.choose(("broken",), "", gr.SelectData(None, {"index": 0, "value": 0}), ANN))
    assert "not a readable .safetensors file" in unescape(broken["about"])
    assert not broken["delete"]["visible"]


@pytest.mark.parametrize(
    "hostile",
    [
        {"scores": {"dino": 10**400}},
        {"scores": {"dino": 1e308, "clip_i": 5}, "steps": 1.5},
        {"steps": -(10**400), "token": ["sks"], "class_prompt": {"a": 1}},
        {"scores": json.loads("[" * 30 + "]" * 30)},
        {"scores": {"dino": "0.5", "clip_i": True, "drift": {}}, "steps": "many", "method": None},
        {"steps": 2**64, "scores": {"dino": -1e308}, "base": {}, "class_prompt": [""] * 100},
    ],
)
def test_one_hostile_file_does_not_take_the_library_down(
    hostile: dict[str, Any],
    tab: LibraryHandlers,
    backend: Backend,
    file: Path,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry_id = view(tab.add(str(file), "", ANN))["chosen"]
    with monkeypatch.context() as patch:  # with a valid checksum, as a hostile writer makes it
        patch.setattr("loldu.concept.format.check_metadata", lambda _: None)
        bad = write(tmp_path / "bad.safetensors", of=base_folder.name, **hostile)
    shutil.copyfile(bad, backend.library.get(entry_id, "ann").path)
    (backend.library.get(entry_id, "ann").folder / "samples").mkdir()
    (backend.library.get(entry_id, "ann").folder / "samples" / "0-concept.png").write_text("no")
    sound = write(tmp_path / "good.safetensors", of=base_folder.name)
    good = view(tab.add(str(sound), "", ANN))["chosen"]
    seen = view(tab.refresh(entry_id, None, "", ANN))
    assert set(seen["shown"]) == {entry_id, good}
    assert len(seen["cards"]["value"]) == 2
    assert seen["delete"]["visible"]
    assert view(tab.refresh(None, None, "good", ANN))["shown"] == (good,)
    play = PlayHandlers(backend, {})
    choices, _ = play.look([], ANN)
    assert len(choices["choices"]) == 2
    ScoreHandlers(backend, SCORE).enter(entry_id, ANN)
    assert view(tab.delete(entry_id, "", ANN))["shown"] == (good,)


def test_an_unforeseen_error_is_of_one_concept(
    tab: LibraryHandlers, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_id = view(tab.add(str(file), "", ANN))["chosen"]
    monkeypatch.setattr("webui.tabs.library.about", lambda _: 10**400 / 2)
    seen = view(tab.refresh(entry_id, None, "", ANN))
    assert seen["shown"] == (entry_id,)
    assert "cannot be read" in seen["about"]
    assert seen["delete"]["visible"]


def test_an_export_is_deleted_after_its_download(tab: LibraryHandlers, file: Path) -> None:
    entry_id = view(tab.add(str(file), "", ANN))["chosen"]
    offers = tab.export("concept")(entry_id, ANN)
    path = Path(next(offers)["value"])
    assert path.name == "my -b-toy.safetensors"
    assert path.read_bytes() == file.read_bytes()
    assert next(offers, None) is None
    assert not path.exists()


# --------------------------------------------------------------------------------- scoring


@pytest.fixture
def scores(backend: Backend) -> ScoreHandlers:
    return ScoreHandlers(backend, SCORE)


@pytest.fixture
def rabbit(backend: Backend, base_folder: Path, tmp_path: Path) -> str:
    path = tmp_path / "rabbit.safetensors"
    teach(base_folder, path, 0, "a photo of a sks toy")
    return backend.library.add(path, "<b>rabbit", "ann").id


def ask(scores: ScoreHandlers, concept: str, request: gr.Request, *real: Path) -> list[Any]:
    paths = [str(path) for path in real]
    return scores.score(concept, "pocket", 1, 1, " sks ", "toy", paths, request)


def test_missing_metadata_is_asked_for(scores: ScoreHandlers, rabbit: str) -> None:
    seen = view(scores.enter(rabbit, ANN), SCORE)
    assert seen["concept"]["value"] == rabbit
    assert [seen[name]["visible"] for name in ("needs", "token", "class_name", "real")] == [
        True
    ] * 4
    assert "&lt;b&gt;rabbit" in seen["status"]
    nothing = view(scores.enter(rabbit, BOB), SCORE)
    assert nothing["concept"] == gr.update(choices=[], value=None)
    with pytest.raises(gr.Error, match="There is no such concept"):
        ask(scores, rabbit, BOB)
    with pytest.raises(gr.Error, match="add 1 to 5 real pictures"):
        ask(scores, rabbit, ANN)


def test_a_file_that_is_no_picture_is_refused(
    scores: ScoreHandlers, rabbit: str, backend: Backend, tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_text("text")
    with pytest.raises(gr.Error, match="is not a picture that can be read"):
        ask(scores, rabbit, ANN, tmp_path / "x.png")
    assert not backend.jobs.list()


@pytest.mark.slow
def test_a_concept_is_scored(
    scores: ScoreHandlers,
    rabbit: str,
    backend: Backend,
    tmp_path: Path,
    clip_folder: Path,
    dino_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Score with eval, on the tiny base."""
    prompts = {"prompts": ["a {token} {class_name}"], "other_prompts": ["a {class_name}"]}
    models = {"clip": str(clip_folder), "dino": str(dino_folder)}
    monkeypatch.setattr(scoring, "presets", lambda: {"pocket": prompts | models})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.effect_noise((20, 20), 90).convert("RGB").save(tmp_path / "1.png")
    queued = view(ask(scores, rabbit, ANN, tmp_path / "1.png"), SCORE)
    assert "Number 1 in the queue" in queued["status"]
    assert queued["timer"]["active"]
    (job,) = backend.jobs.list("ann", Kind.SCORE)
    options = tomllib.loads((job.folder / "options.toml").read_text())
    assert options["token"] == "sks"
    assert [path.name for path in Path(options["real"]).iterdir()] == ["0.png"]

    dispatcher = Dispatcher(backend.jobs, ["cpu"], niceness=0)
    ticking(dispatcher, has(backend.jobs, job, Status.FINISHED, Status.FAILED))
    dispatcher.close()
    assert backend.jobs.get(job.id).message == ""
    assert scoring.drawn(job) == (4, 4)
    seen = view(scores.refresh(rabbit, ANN), SCORE)
    assert '<th scope="row">DINO</th>' in seen["table"]
    assert seen["verdict"].count("<dt>") == 3
    assert seen["picture"]["value"].size[0] > 400
    assert seen["page"].startswith('<iframe class="report" sandbox title="Report" srcdoc="&lt;!')
    assert not seen["timer"]["active"]
    with pytest.raises(gr.Error, match="There is no such concept"):
        scores.stop(rabbit, BOB)
    with pytest.raises(gr.Error, match="cannot be stopped: it is finished"):
        scores.stop(rabbit, ANN)
    (job.folder / "report.json").unlink()
    assert (
        "The report cannot be read; score the concept again."
        in view(scores.refresh(rabbit, ANN), SCORE)["verdict"]
    )
    shutil.rmtree(backend.library.get(rabbit, "ann").folder)
    with pytest.raises(gr.Error, match="There is no such concept"):
        scores.refresh(rabbit, ANN)


def test_the_prompts_are_those_of_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert scoring.preset_of("pocket/base") == "pocket"
    assert scoring.preset_of("stable-diffusion-v1-5/stable-diffusion-v1-5") == "dreambooth"
    assert estimate("pocket", 1).startswith("32 pictures: 8 prompts of the concept and 8")
