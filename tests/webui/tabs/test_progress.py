"""Event handlers of the Progress tab: visible jobs, updates and confirmations."""

import asyncio
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gradio as gr
import pytest
from PIL import Image

from loldu.errors import LoLDUError
from tests.webui.concepts import write
from tests.webui.engine.waiting import MakeDispatcher, has, ticking
from webui.backend import Backend, open_backend
from webui.engine.job import Job, Status
from webui.engine.jobs import Jobs
from webui.library.collection import Entry, Library
from webui.page import PLAY, SCORE, Page
from webui.tabs.progress import ProgressHandlers, create_progress
from webui.watching import text
from webui.watching.watcher import REQUESTS, Look, Watcher, allowed

ANN, BOB = gr.Request(username="ann"), gr.Request(username="bob")
PARTS = [
    "on_screen",
    "removed",
    "waiting",
    "list",
    "headline",
    "facts",
    *REQUESTS,
    "film",
    "prompts",
    "pair",
    "keep",
]
PARTS += ["note", "curves", "scores", "machine", "log", "restore", "name", "timer"]
PARTS += ["Loss chart", "DINO chart", "CLIP-I chart", "CLIP-T chart", "Drift chart"]
PARTS += ["empty", "full", "clear"]


class Remembering(Library):
    """Record the checkpoints to keep."""

    kept: ClassVar[list[tuple[str, int, str]]] = []

    def keep(self, job: Job, step: int, name: str) -> Entry:
        self.kept.append((job.id, step, name))
        return Entry("kept", name, job.owner, job.folder, 0.0)

    def of_job(self, job: Job) -> Entry:
        if job.status is not Status.FINISHED:
            raise LoLDUError(f"{job.name} has no result yet.")
        return Entry("result", job.name, job.owner, job.folder, 0.0)


@pytest.fixture
def library(tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> Remembering:
    monkeypatch.setattr(Remembering, "kept", [])
    return Remembering(tmp_path / "library", tmp_path, jobs)


@pytest.fixture
def backend(tmp_path: Path, jobs: Jobs, library: Remembering) -> Backend:
    folders = {"studio": jobs.folder, "runs": tmp_path, "examples": tmp_path}
    backend = open_backend("base", devices=["cpu"], **folders)
    return dataclasses.replace(backend, jobs=jobs, library=library)


@pytest.fixture
def handlers(backend: Backend) -> ProgressHandlers:
    return ProgressHandlers(backend, PARTS)


@pytest.fixture(autouse=True)
def notices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(gr, "Info", lambda text, duration: messages.append(text))
    return messages


def submit(jobs: Jobs, name: str = "toy", owner: str = "ann", prompt: str = "a sks toy") -> Job:
    options = {"instance_data_dir": "pictures", "instance_prompt": prompt, "max_train_steps": 60}
    options |= {"validation_steps": 10, "validation_prompt": [prompt]}
    return jobs.submit(name, owner, options)


def running(jobs: Jobs, name: str = "toy", prompt: str = "a sks toy") -> Job:
    job = submit(jobs, name, prompt=prompt)
    assert jobs.begin(job, "cpu")
    (job.folder / "control").mkdir()
    return jobs.get(job.id)


def ended(jobs: Jobs, status: Status, message: str = "") -> Job:
    job = running(jobs)
    (job.folder / "control").rmdir()
    jobs.end(job, status, message)
    return jobs.get(job.id)


def train(job: Job, *steps: int) -> None:
    with (job.folder / "metrics.jsonl").open("a") as file:
        for step in steps:
            line = {"step": step, "loss": 1 / step, "seconds": step / 4, "peak_memory_mib": 64.0}
            file.write(json.dumps(line) + "\n")


def draw(job: Job, *names: str, colour: str = "teal") -> None:
    folder = job.folder / "validation" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 4), colour).save(folder / f"{name}-00.png")


def save(job: Job, *steps: int) -> None:
    for step in steps:
        folder = job.folder / f"checkpoint-{step:06d}"
        folder.mkdir()
        (folder / "state.json").touch()


def sent(updates: list[Any]) -> dict[str, Any]:
    """Return the updated parts of the page, and the job."""
    named = dict(zip([*PARTS, "job"], updates, strict=True))
    return {name: update for name, update in named.items() if update != gr.skip()}


# ------------------------------------------------------------------------------ what is shown


def test_the_running_job_is_shown_or_else_the_newest(
    jobs: Jobs, handlers: ProgressHandlers
) -> None:
    assert sent(handlers.refresh(Look(), None, ANN))["empty"]["visible"]
    old, newest = running(jobs, "old"), submit(jobs, "new")
    foreign = submit(jobs, "foreign", owner="bob")
    shown = sent(handlers.refresh(Look(), None, ANN))
    assert shown["job"] == old.id
    assert not shown["empty"]["visible"]
    assert shown["full"]["visible"]
    assert [choice[1] for choice in shown["list"]["choices"]] == [newest.id, old.id]
    assert shown["list"]["value"] == old.id
    assert sent(handlers.refresh(Look(), foreign.id, ANN))["job"] == old.id
    assert "job" not in sent(handlers.refresh(Look(), newest.id, ANN))
    jobs.end(old, Status.FINISHED)
    assert sent(handlers.refresh(Look(), None, ANN))["job"] == newest.id


def test_nothing_is_sent_when_nothing_changed(jobs: Jobs, handlers: ProgressHandlers) -> None:
    job, look = running(jobs), Look()
    train(job, 10, 20)
    draw(job, "base", "000010", "000020")
    save(job, 10)
    assert sent(handlers.refresh(look, job.id, ANN)).keys() >= {"list", "film", "pair", "facts"}
    assert sent(handlers.refresh(look, job.id, ANN)) == {}
    train(job, 30)
    assert sent(handlers.refresh(look, job.id, ANN)).keys() == {"list", "facts", "Loss chart"}
    draw(job, "000020", colour="red")  # as a resumed run does
    assert sent(handlers.refresh(look, job.id, ANN)).keys() == {"film", "pair"}
    draw(job, "000030", colour="blue")
    new = sent(handlers.refresh(look, job.id, ANN))
    assert new.keys() == {"film", "pair"}
    assert "<b>After</b> step 30" in new["pair"]
    assert sent(handlers.enter(look, job.id, ANN)).keys() >= {"list", "film", "facts"}


def test_the_open_tab_updates_while_something_changes(
    jobs: Jobs, handlers: ProgressHandlers
) -> None:
    def timer(look: Look) -> tuple[bool, Any]:
        update = sent(handlers.refresh(look, None, ANN))["timer"]
        return update["active"], update.get("value")

    assert timer(Look()) == (True, 5)  # a job may begin in another window
    job = submit(jobs)
    assert timer(Look()) == (True, 5)
    jobs.begin(job, "cpu")
    look = Look()
    assert timer(look) == (True, 2)
    elsewhere = gr.SelectData(None, {"index": 2, "value": "Play"})
    assert handlers.leave(look, elsewhere)["active"] is False
    assert not timer(look)[0]  # of a tick that was on its way
    handlers.enter(look, None, ANN)
    assert look.open
    jobs.end(job, Status.FINISHED)
    assert timer(Look()) == (True, 5)


def test_names_and_metadata_are_escaped(jobs: Jobs, handlers: ProgressHandlers) -> None:
    job = running(jobs, "<img src=x onerror=alert(1)>", prompt="a <b>sks</b> toy")
    (job.folder / "control").rmdir()
    (job.folder / "log.txt").write_text("loading <script>alert(2)</script>\n")
    look = Look()
    look.log = True
    draw(job, "base", "000010")
    shown = sent(handlers.refresh(look, job.id, ANN))
    assert "&lt;b&gt;sks" in shown["pair"]
    assert "loading &lt;script&gt;" in shown["log"]
    assert "&lt;img src=x" in shown["headline"]
    jobs.end(job, Status.FAILED, "<b>no</b> pictures")
    shown |= sent(handlers.refresh(look, job.id, ANN))
    assert "&lt;b&gt;no&lt;/b&gt; pictures" in shown["headline"]
    for html in ("headline", "facts", "log", "note", "scores"):
        assert not re.search("<(img|script|b)[ >]", shown.get(html, "")), html
    assert "<b>sks" not in shown["pair"]


def test_jobs_of_others_are_only_counted(jobs: Jobs, handlers: ProgressHandlers) -> None:
    for name in ("secret 1", "secret 2"):
        submit(jobs, name, owner="bob")
    submit(jobs, "secret 3", owner="cid")
    first, second = submit(jobs, "mine 1"), submit(jobs, "mine 2")
    view = sent(handlers.refresh(Look(), first.id, ANN))
    assert "2 trainings of others are ahead of it." in view["headline"]  # bob's second comes later
    assert "3rd to start" in dict(map(reversed, view["list"]["choices"]))[first.id]
    assert view["clear"]["value"] == "Remove the 2 that wait"
    later = sent(handlers.refresh(Look(), second.id, ANN))
    assert "1 training of yours and 3 trainings of others are ahead of it." in later["headline"]
    assert "secret" not in str(view) + str(later)


def test_a_missing_folder_is_reported_and_can_be_removed(
    jobs: Jobs, backend: Backend, handlers: ProgressHandlers
) -> None:
    job = ended(jobs, Status.FINISHED)
    shutil.rmtree(job.folder)
    view = sent(handlers.refresh(Look(), job.id, ANN))
    assert "The folder of toy is gone" in view["facts"]
    assert view["remove"]["visible"]


# -------------------------------------------------------------------------------- the filmstrip


def picked(**given: str | None) -> gr.EventData:
    return gr.EventData(None, {"step": None, "prompt": None, **given})


def large(updates: dict[str, Any]) -> str:
    """Return the step that is shown beside the base."""
    return re.findall("<b>After</b> step (.+?)<", updates["pair"])[0]


def test_the_newest_frame_is_shown_until_another_is_picked(
    jobs: Jobs, handlers: ProgressHandlers
) -> None:
    job, look = running(jobs), Look()
    draw(job, "base")
    first = sent(handlers.refresh(look, job.id, ANN))
    assert first["film"].count('class="frame to-come"') == 6  # 10, 20, ... of 60 steps
    assert "After" not in first["pair"]
    draw(job, "000010", "000020")
    shown = sent(handlers.refresh(look, job.id, ANN))
    assert large(shown) == "20"
    assert re.findall('data-step="([^"]+)" aria-pressed="true"', shown["film"]) == ["20"]
    assert shown["film"].count('class="frame to-come"') == 4

    assert large(sent(handlers.pick(look, job.id, ANN, picked(step="10")))) == "10"
    draw(job, "000030")
    later = sent(handlers.refresh(look, job.id, ANN))
    assert "film" in later
    assert "pair" not in later  # it stays where the person put it
    assert large(sent(handlers.pick(look, job.id, ANN, picked(step="30")))) == "30"
    draw(job, "000040")
    assert large(sent(handlers.refresh(look, job.id, ANN))) == "40"  # the newest is followed again
    handlers.pick(look, job.id, ANN, picked(step="<x>", prompt="-1"))  # of no page of ours
    assert (look.step, look.prompt) == (None, 0)
    other = submit(jobs)
    handlers.pick(look, job.id, ANN, picked(step="10"))
    handlers.choose(other.id, look, job.id, ANN)
    handlers.pick(look, job.id, ANN, picked(step="10"))  # it was on its way
    handlers.choose(job.id, look, other.id, ANN)
    assert look.step is None


def test_a_prompt_is_chosen_for_all_frames(jobs: Jobs, handlers: ProgressHandlers) -> None:
    options = {"instance_data_dir": "pictures", "instance_prompt": "a sks toy"}
    job = jobs.submit("toy", "ann", {**options, "validation_prompt": ["a sks toy", "a sks car"]})
    draw(job, "base", "000010")
    folder = job.folder / "validation" / "pictures"
    for name in ("base", "000010"):
        Image.new("RGB", (4, 4), "red").save(folder / f"{name}-01.png")
    look = Look()
    first = sent(handlers.refresh(look, job.id, ANN))
    second = sent(handlers.pick(look, job.id, ANN, picked(prompt="1")))
    assert 'alt="a sks toy, step 10"' in first["pair"]
    assert 'alt="a sks car, step 10"' in second["pair"]
    sources = [set(re.findall('src="(.+?)"', each["film"])) for each in (first, second)]
    assert len(sources[0]) == len(sources[1]) == 1  # base and step have the same colour here
    assert sources[0] != sources[1]


def test_the_pictures_of_the_person_stand_above_the_film(
    jobs: Jobs, handlers: ProgressHandlers, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    for number in range(3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "own" / f"{number}.png")
    options = {"instance_data_dir": str(tmp_path / "own"), "instance_prompt": "a sks toy"}
    job = jobs.submit("toy", "ann", options)
    film = sent(handlers.refresh(Look(), job.id, ANN))["film"]
    assert film.index("Your pictures") < film.index("<img")
    assert film.count("<img") == 3
    assert str(tmp_path / "own") not in film  # only copies are served
    shutil.rmtree(tmp_path / "own")
    assert "Your pictures" not in sent(handlers.refresh(Look(), job.id, ANN))["film"]


def test_preparation_has_a_count_and_a_bar_from_the_first_second(
    jobs: Jobs, handlers: ProgressHandlers
) -> None:
    job = running(jobs)
    (job.folder / "control").rmdir()
    log = job.folder / "log.txt"

    def facts() -> str:
        return sent(handlers.refresh(Look(), job.id, ANN))["facts"]

    assert '<progress aria-label="Preparation"></progress>' in facts()
    assert "<dt>Now</dt><dd>Starting</dd>" in facts()
    log.write_text("Loading the base.\nDrawing class pictures: 12 of 96.\nsome warning\n")
    assert 'max="96" value="12"' in facts()
    assert "<dt>Drawing class pictures</dt><dd>12 of 96</dd>" in facts()
    assert "warning" not in facts()
    (job.folder / "control").mkdir()
    train(job, 10)
    assert "<dt>Steps</dt><dd>10 of 60</dd>" in facts()
    (job.folder / "control").rmdir()  # killed, and resumed
    log.write_text("Starting.\nLoading the base.\nDrawing class pictures: 12 of 96.\n")
    assert '<progress aria-label="Steps" max="60" value="10"></progress>' in facts()
    assert "<dt>Steps</dt><dd>10 of 60</dd>" in facts()
    assert "<dt>Now</dt><dd>Drawing class pictures 12 of 96</dd>" in facts()


def test_a_choice_sends_the_whole_view_and_its_id_at_once(
    jobs: Jobs, handlers: ProgressHandlers
) -> None:
    first, second, look = submit(jobs, "one"), submit(jobs, "two"), Look()
    handlers.refresh(look, first.id, ANN)
    view = sent(handlers.choose(second.id, look, first.id, ANN))
    assert view.keys() >= {"on_screen", "headline", "facts", "film", "Loss chart", "remove"}
    assert "<h2>two" in view["headline"]
    assert view["on_screen"] == view["job"] == second.id


def test_a_tick_heals_a_page_on_which_an_older_answer_arrived_last(
    jobs: Jobs, handlers: ProgressHandlers
) -> None:
    first, second, look = submit(jobs, "one"), submit(jobs, "two"), Look()
    handlers.refresh(look, second.id, ANN)
    assert sent(handlers.tick(look, second.id, second.id, ANN)) == {}
    view = sent(handlers.tick(look, second.id, first.id, ANN))
    assert view["on_screen"] == second.id
    assert "<h2>two" in view["headline"]


def test_keep_saves_the_step_on_its_button(
    jobs: Jobs, handlers: ProgressHandlers, library: Remembering
) -> None:
    job, look = running(jobs), Look()
    draw(job, "000010", "000020", "000030")
    assert not sent(handlers.refresh(look, job.id, ANN))["keep"]["visible"]
    with pytest.raises(gr.Error, match="No step is saved yet"):
        handlers.keep("", job.id, ANN)
    save(job, 10, 19)
    shown = sent(handlers.refresh(look, job.id, ANN))
    assert shown["keep"] == gr.update(value="Keep step 19", visible=True)
    assert shown["note"] == "Step 19 is the nearest that is saved."
    moved = sent(handlers.pick(look, job.id, ANN, picked(step="10")))
    assert (moved["keep"]["value"], moved["note"]) == ("Keep step 10", "")
    train(job, 60)
    draw(job, "000060")
    jobs.end(job, Status.FINISHED)
    result = sent(handlers.pick(look, job.id, ANN, picked(step="60")))
    assert result["note"] == "Step 60 is the result. Your Library has it."
    assert not result["keep"]["visible"]
    assert handlers.keep("Keep step 19", job.id, ANN) == "kept"
    assert library.kept == [(job.id, 19, "toy, step 19")]


# -------------------------------------------------------------------------------- the buttons


@pytest.mark.parametrize(
    ("make", "able"),
    [
        (submit, "stop remove"),
        (running, "stop frame remove"),
        (lambda jobs: ended(jobs, Status.FINISHED), "play remove"),
        (lambda jobs: ended(jobs, Status.STOPPED), "resume remove"),
        (lambda jobs: ended(jobs, Status.INTERRUPTED), "resume remove"),
        (lambda jobs: ended(jobs, Status.FAILED), "resume remove"),
    ],
)
def test_buttons_in_each_state(
    make: Callable[[Jobs], Job], able: str, jobs: Jobs, handlers: ProgressHandlers
) -> None:
    view = sent(handlers.refresh(Look(), make(jobs).id, ANN))
    assert {name for name in REQUESTS if view[name]["visible"]} == set(able.split())
    main = {"stop", "play", "resume", "report"}
    assert len(main & set(able.split())) == 1  # each state has one main button


def test_loading_jobs_add_no_frame_and_stopping_ones_are_only_removed(jobs: Jobs) -> None:
    job = running(jobs)
    (job.folder / "control").rmdir()
    assert text.state(jobs.get(job.id)) == "Preparing"
    assert allowed(job) == {"stop", "remove"}
    (job.folder / "process.lock").touch()
    (job.folder / "config.toml").touch()
    assert text.state(job) == "Writing the result"
    (job.folder / "control").mkdir()
    assert text.state(job) == "Training"
    jobs.stop(job.id)
    assert allowed(jobs.get(job.id)) == {"remove"}


def test_a_running_job_is_removed_when_it_has_stopped_and_can_be_resumed(
    jobs: Jobs, handlers: ProgressHandlers, notices: list[str]
) -> None:
    job, look = running(jobs), Look()
    handlers.ask("remove")(look, job.id, ANN)
    assert (
        "It is removed when it has stopped" in sent(handlers.refresh(look, job.id, ANN))["headline"]
    )
    jobs.end(jobs.get(job.id), Status.STOPPED)
    view = sent(handlers.refresh(look, job.id, ANN))
    assert view["empty"]["visible"]
    assert view["restore"]["value"] == "Bring back “toy”"
    handlers.restore(look, view["removed"], ANN)
    assert sent(handlers.refresh(look, job.id, ANN))["resume"]["visible"]
    assert notices == ["Stopping, then removed; Bring back undoes it."]


def test_removing_all_that_wait_leaves_jobs_of_others(
    jobs: Jobs, handlers: ProgressHandlers, notices: list[str]
) -> None:
    runs, *queued = running(jobs), submit(jobs), submit(jobs)
    foreign, look = submit(jobs, owner="bob"), Look()
    waiting = sent(handlers.refresh(look, runs.id, ANN))["waiting"]
    later = submit(jobs)  # in another window, so this one does not show it yet
    with pytest.raises(gr.Error):
        handlers.clear(look, f"{waiting} {foreign.id}", ANN)
    handlers.clear(look, waiting, ANN)
    assert jobs.get(later.id).status is Status.QUEUED
    assert {job.id for job in jobs.list(removed=True)} == {job.id for job in queued}
    assert jobs.get(foreign.id).status is Status.QUEUED
    assert jobs.get(runs.id).status is Status.RUNNING
    assert not sent(handlers.refresh(look, None, ANN))["clear"]["visible"]
    assert notices == ["Removed: 2. Bring back undoes it."]


def test_a_scoring_is_a_row_too(jobs: Jobs, handlers: ProgressHandlers, tmp_path: Path) -> None:
    files = write(tmp_path / "files" / "concept.safetensors").parent
    scored = {"prompts": ["a"], "other_prompts": ["b"], "seeds": [0, 1]}
    job = jobs.submit_score("toy", "ann", "an id", files, scored)
    jobs.begin(job, "cpu")
    pictures = job.folder / "pictures" / "base" / "concept"
    pictures.mkdir(parents=True)
    (pictures / "000-0.png").touch()
    view = sent(handlers.refresh(Look(), None, ANN))
    assert "<h2>Scores of toy</h2><p><strong>Scoring.</strong>" in view["headline"]
    assert "<dd>1 of 8</dd>" in view["facts"]
    assert view["list"]["choices"][0][0].startswith("Scores of toy · Scoring · 1 of 8 pictures")
    jobs.end(job, Status.FINISHED)
    assert sent(handlers.refresh(Look(), None, ANN))["report"]["visible"]
    concept, tabs, _ = handlers.report(Look(), job.id, ANN)
    assert (concept, tabs.selected) == ("an id", SCORE)


def test_a_removed_job_is_brought_back(jobs: Jobs, handlers: ProgressHandlers) -> None:
    job, look = ended(jobs, Status.FINISHED), Look()
    assert not sent(handlers.refresh(look, job.id, ANN))["restore"]["visible"]
    handlers.ask("remove")(look, job.id, ANN)
    view = sent(handlers.refresh(look, job.id, ANN))
    assert view["empty"]["visible"]
    assert view["restore"]["value"] == "Bring back “toy”"
    with pytest.raises(gr.Error, match="There is no such training"):
        handlers.restore(look, view["removed"], BOB)
    assert jobs.get(job.id).removed
    handlers.restore(look, view["removed"], ANN)
    assert jobs.list("ann") == (job,)
    assert sent(handlers.refresh(look, None, ANN))["job"] == job.id


def test_a_name_is_stored_by_the_engine(jobs: Jobs, handlers: ProgressHandlers) -> None:
    job, look = submit(jobs), Look()
    handlers.refresh(look, job.id, ANN)
    handlers.rename(" my \n toy ", look, job.id, ANN)
    assert sent(handlers.refresh(look, job.id, ANN))["name"] == "my toy"
    with pytest.raises(gr.Error, match="The name is empty"):
        handlers.rename(" ", look, job.id, ANN)


def test_the_result_opens_in_play(jobs: Jobs, handlers: ProgressHandlers) -> None:
    job, look = ended(jobs, Status.FINISHED), Look()
    concept, tabs, timer = handlers.play(look, job.id, ANN)
    assert concept == "result"
    assert tabs.selected == PLAY
    assert timer["active"] is False
    assert not look.open
    with pytest.raises(gr.Error, match="no result yet"):
        handlers.play(look, submit(jobs).id, ANN)


def test_jobs_of_others_are_refused(
    jobs: Jobs, handlers: ProgressHandlers, library: Remembering
) -> None:
    job, look = running(jobs), Look()
    draw(job, "000010", "000020")
    save(job, 10)
    asks: list[Callable[[], object]] = [
        *(lambda name=name: handlers.ask(name)(look, job.id, BOB) for name in REQUESTS[:-1]),
        lambda: handlers.choose(job.id, look, None, BOB),
        lambda: handlers.rename("his", look, job.id, BOB),
        lambda: handlers.pick(look, job.id, BOB, picked(step="10")),
        lambda: handlers.keep("Keep step 10", job.id, BOB),
        lambda: handlers.report(look, job.id, BOB),
        lambda: handlers.play(look, job.id, BOB),
    ]
    for ask in asks:
        with pytest.raises(gr.Error, match="There is no such training"):
            ask()
    assert jobs.get(job.id) == job
    assert not library.kept
    assert sent(handlers.refresh(look, job.id, BOB))["empty"]["visible"]


def test_a_training_is_stopped_and_resumed_from_the_tab(
    jobs: Jobs, handlers: ProgressHandlers, make_dispatcher: MakeDispatcher, notices: list[str]
) -> None:
    dispatcher, look = make_dispatcher(), Look()
    job = jobs.submit(
        "toy",
        "ann",
        {"instance_data_dir": "x", "instance_prompt": "trains", "max_train_steps": 10**6},
    )
    ticking(dispatcher, lambda: jobs.progress(job.id).step > 1)
    handlers.ask("frame")(look, job.id, ANN)
    ticking(dispatcher, lambda: jobs.progress(job.id).pictures)
    (framed,) = jobs.progress(job.id).checkpoints
    handlers.ask("stop")(look, job.id, ANN)
    ticking(dispatcher, has(jobs, job, Status.STOPPED))
    saved = max(jobs.progress(job.id).checkpoints)
    assert saved > framed
    headline = Watcher(handlers._backend).view(jobs.get(job.id), "ann", Look())["headline"]
    assert f"Resume continues after step {saved}." in headline
    handlers.ask("resume")(look, job.id, ANN)
    ticking(dispatcher, has(jobs, job, Status.RUNNING))
    assert notices == [
        "Drawing and saving after this step…",
        "Stopping after this step…",
        "Back in the queue.",
    ]


def test_the_tab_is_laid_out_with_labels(backend: Backend) -> None:
    async def build() -> gr.Blocks:
        with gr.Blocks() as demo:
            tabs = gr.Tabs()
            page = Page(demo, tabs, job=gr.State(), concept=gr.State())
            with tabs, gr.Tab("Progress", id="progress") as tab:
                create_progress(backend, page, tab)
        return demo

    demo = asyncio.run(build())  # outside of a loop gradio makes several and closes none
    functions = list(demo.fns.values())
    assert len(functions) > 15
    assert all(function.api_visibility == "private" for function in functions)
    ticks = [function for function in functions if function.targets[0][1] == "tick"]
    assert len(ticks) == 1
    assert not ticks[0].queue
    assert ticks[0].show_progress == "hidden"
