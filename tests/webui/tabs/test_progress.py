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
from tests.webui.engine.waiting import MakeDispatcher, has, ticking
from webui.backend import Backend, open_backend
from webui.engine.job import Job, Status
from webui.engine.jobs import Jobs
from webui.library.collection import Entry, Library
from webui.page import PLAY, Page
from webui.tabs.progress import ProgressHandlers, create_progress
from webui.watching import text
from webui.watching.watcher import REQUESTS, Look, Watcher, allowed

ANN, BOB = gr.Request(username="ann"), gr.Request(username="bob")
PARTS = ["on_screen", "list", "headline", "facts", *REQUESTS, "base", "adapted", "scrubber"]
PARTS += ["follow", "checkpoint", "keep", "note", "scores", "log", "restore", "name", "timer"]
PARTS += ["Loss chart", "DINO chart", "CLIP-I chart", "CLIP-T chart", "Drift chart"]
PARTS += ["empty", "full", "steps", "keeping", "cancel_all", "ask_one", "ask_all"]


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
    return jobs.submit(name, owner, options)


def running(jobs: Jobs, name: str = "toy", device: str = "cpu") -> Job:
    job = submit(jobs, name)
    assert jobs.begin(job, device)
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


def draw(job: Job, *names: str) -> None:
    folder = job.folder / "validation" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 4)).save(folder / f"{name}-00.png")


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
    assert sent(handlers.refresh(look, job.id, ANN)).keys() >= {"list", "base", "adapted", "facts"}
    assert sent(handlers.refresh(look, job.id, ANN)) == {}
    train(job, 30)
    assert sent(handlers.refresh(look, job.id, ANN)).keys() == {"list", "facts", "Loss chart"}
    draw(job, "000020")  # as a resumed run does
    assert sent(handlers.refresh(look, job.id, ANN)).keys() == {"adapted"}
    draw(job, "000030")
    new = sent(handlers.refresh(look, job.id, ANN))
    assert new.keys() == {"adapted", "scrubber", "note"}
    assert new["adapted"]["label"] == "Step 30"
    assert sent(handlers.enter(look, job.id, ANN)).keys() >= {"list", "base", "facts"}


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
    assert timer(look) == (True, 1)
    elsewhere = gr.SelectData(None, {"index": 2, "value": "Play"})
    assert handlers.leave(look, elsewhere)["active"] is False
    assert not timer(look)[0]  # of a tick that was on its way
    handlers.enter(look, None, ANN)
    assert look.open
    jobs.end(job, Status.FINISHED)
    assert timer(Look()) == (True, 5)


def test_names_and_metadata_are_escaped(jobs: Jobs, handlers: ProgressHandlers) -> None:
    job = running(jobs, "<img src=x onerror=alert(1)>")
    (job.folder / "control").rmdir()
    (job.folder / "log.txt").write_text("loading <script>alert(2)</script>\n")
    look = Look()
    look.log = True
    shown = sent(handlers.refresh(look, job.id, ANN))
    assert "loading &lt;script&gt;" in shown["facts"]
    assert "loading &lt;script&gt;" in shown["log"]
    assert "&lt;img src=x" in shown["headline"]
    jobs.end(job, Status.FAILED, "<b>no</b> pictures")
    shown |= sent(handlers.refresh(look, job.id, ANN))
    assert "&lt;b&gt;no&lt;/b&gt; pictures" in shown["headline"]
    for html in ("headline", "facts", "log", "note", "scores"):
        assert not re.search("<(img|script|b)[ >]", shown.get(html, "")), html


def test_jobs_of_others_are_only_counted(jobs: Jobs, handlers: ProgressHandlers) -> None:
    for name in ("secret 1", "secret 2"):
        submit(jobs, name, owner="bob")
    submit(jobs, "secret 3", owner="cid")
    first, second = submit(jobs, "mine 1"), submit(jobs, "mine 2")
    view = sent(handlers.refresh(Look(), first.id, ANN))
    assert "2 trainings of others are ahead of it." in view["headline"]  # bob's second comes later
    assert "3rd to start" in dict(map(reversed, view["list"]["choices"]))[first.id]
    assert view["cancel_all"]["value"] == "Cancel all queued (2)"
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
    assert view["remove"]["interactive"]


# ------------------------------------------------------------------------------- the scrubber


def test_the_scrubber_follows_until_it_is_touched_and_then_stays(
    jobs: Jobs, handlers: ProgressHandlers
) -> None:
    job, look = running(jobs), Look()
    draw(job, "base", "000010", "000020")
    scrubber = sent(handlers.refresh(look, job.id, ANN))["scrubber"]
    assert (scrubber["maximum"], scrubber["value"]) == (2, 2)
    draw(job, "000030")
    assert sent(handlers.refresh(look, job.id, ANN))["scrubber"]["value"] == 3

    moved = sent(handlers.scrub(1, look, job.id, ANN))
    assert moved["adapted"]["label"] == "Step 10"
    assert moved["follow"] is False
    assert moved["scrubber"]["label"] == "Pictures of step 10, 1 of 3"
    assert "value" not in moved["scrubber"]  # it is under the person's finger
    draw(job, "000040")
    later = sent(handlers.refresh(look, job.id, ANN))
    assert later["scrubber"]["maximum"] == 4
    assert "value" not in later["scrubber"]
    assert "adapted" not in later

    again = sent(handlers.follow(True, look, job.id, ANN))
    assert again["adapted"]["label"] == "Step 40"
    assert again["scrubber"]["value"] == 4
    sent(handlers.follow(False, look, job.id, ANN))
    draw(job, "000050")
    assert "adapted" not in sent(handlers.refresh(look, job.id, ANN))
    other = submit(jobs)
    handlers.choose(other.id, look, job.id, ANN)
    handlers.choose(job.id, look, other.id, ANN)
    assert look.step is None


def test_a_choice_sends_the_whole_view_and_its_id_at_once(
    jobs: Jobs, handlers: ProgressHandlers
) -> None:
    first, second, look = submit(jobs, "one"), submit(jobs, "two"), Look()
    handlers.refresh(look, first.id, ANN)
    view = sent(handlers.choose(second.id, look, first.id, ANN))
    assert view.keys() >= {"on_screen", "headline", "facts", "adapted", "Loss chart", "remove"}
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


def test_the_checkpoint_is_the_nearest_to_the_shown_step_or_the_chosen_one(
    jobs: Jobs, handlers: ProgressHandlers, library: Remembering
) -> None:
    job, look = running(jobs), Look()
    draw(job, "000010", "000020", "000030")
    assert sent(handlers.refresh(look, job.id, ANN))["keeping"]["visible"] is False
    save(job, 10, 19)
    shown = sent(handlers.refresh(look, job.id, ANN))
    assert shown["checkpoint"]["choices"] == [("step 10", 10), ("step 19", 19)]
    assert shown["keep"] == "Keep step 19"
    assert "pictures are of step 30" in shown["note"]
    moved = sent(handlers.scrub(1, look, job.id, ANN))
    assert (moved["checkpoint"]["value"], moved["note"]) == (10, "")
    assert sent(handlers.choose_checkpoint(19, look, job.id, ANN))["keep"] == "Keep step 19"
    save(job, 30)
    handlers.refresh(look, job.id, ANN)
    assert look.checkpoint == 19
    train(job, 60)
    draw(job, "000060")
    handlers.follow(True, look, job.id, ANN)
    jobs.end(job, Status.FINISHED)
    note = sent(handlers.enter(look, job.id, ANN))["note"]
    assert note == "Step 60 is the result; the Library has it already."
    assert handlers.keep(19, job.id, ANN) == "kept"
    assert library.kept == [(job.id, 19, "toy, step 19")]
    with pytest.raises(gr.Error, match="No checkpoint is chosen"):
        handlers.keep(None, job.id, ANN)


# -------------------------------------------------------------------------------- the buttons


@pytest.mark.parametrize(
    ("make", "able"),
    [
        (submit, "stop cancel"),
        (running, "stop cancel finish save sample"),
        (lambda jobs: ended(jobs, Status.FINISHED), "play remove"),
        (lambda jobs: ended(jobs, Status.STOPPED), "resume remove"),
        (lambda jobs: ended(jobs, Status.INTERRUPTED), "resume remove"),
        (lambda jobs: ended(jobs, Status.FAILED), "resume remove"),
        (lambda jobs: ended(jobs, Status.CANCELLED), "remove"),
    ],
)
def test_buttons_in_each_state(
    make: Callable[[Jobs], Job], able: str, jobs: Jobs, handlers: ProgressHandlers
) -> None:
    view = sent(handlers.refresh(Look(), make(jobs).id, ANN))
    assert {name for name in REQUESTS if view[name]["interactive"]} == set(able.split())


def test_loading_jobs_take_no_requests_and_stopping_ones_only_a_cancel(jobs: Jobs) -> None:
    job = running(jobs)
    (job.folder / "control").rmdir()
    assert text.state(jobs.get(job.id)) == "Preparing"
    assert allowed(job) == {"stop", "cancel"}
    (job.folder / "process.lock").touch()
    (job.folder / "config.toml").touch()
    assert text.state(job) == "Writing the result"
    (job.folder / "control").mkdir()
    assert text.state(job) == "Training"
    jobs.stop(job.id)
    assert allowed(jobs.get(job.id)) == {"cancel"}


def test_cancel_asks_first(jobs: Jobs, handlers: ProgressHandlers, notices: list[str]) -> None:
    first, second, look = running(jobs), submit(jobs, "two"), Look()
    asked = sent(handlers.question("one")(look, first.id, ANN))
    assert asked["ask_one"]["visible"]
    assert not sent(handlers.question(None)(look, first.id, ANN))["ask_one"]["visible"]
    handlers.question("one")(look, first.id, ANN)
    assert not sent(handlers.choose(second.id, look, first.id, ANN))["ask_one"]["visible"]
    handlers.ask("cancel")(look, first.id, ANN)
    assert jobs.get(first.id).wanted is Status.CANCELLED
    assert notices == ["Ending after this step…"]


def test_cancelling_all_leaves_jobs_of_others(
    jobs: Jobs, handlers: ProgressHandlers, notices: list[str]
) -> None:
    runs, *queued = running(jobs), submit(jobs), submit(jobs)
    foreign, look = submit(jobs, owner="bob"), Look()
    assert sent(handlers.question("all")(look, None, ANN))["ask_all"]["visible"]
    handlers.cancel_all(look, None, ANN)
    assert {jobs.get(job.id).status for job in queued} == {Status.CANCELLED}
    assert jobs.get(foreign.id).status is Status.QUEUED
    assert jobs.get(runs.id).status is Status.RUNNING
    assert not sent(handlers.refresh(look, None, ANN))["ask_all"]["visible"]
    assert notices == ["Cancelled: 2."]


def test_a_removed_job_is_brought_back(jobs: Jobs, handlers: ProgressHandlers) -> None:
    job, look = ended(jobs, Status.FINISHED), Look()
    assert not sent(handlers.refresh(look, job.id, ANN))["restore"]["visible"]
    handlers.ask("remove")(look, job.id, ANN)
    view = sent(handlers.refresh(look, job.id, ANN))
    assert view["empty"]["visible"]
    assert view["restore"]["value"] == "Bring back “toy”"
    handlers.restore(look, None, BOB)
    assert jobs.get(job.id).removed
    handlers.restore(look, None, ANN)
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
        lambda: handlers.scrub(1, look, job.id, BOB),
        lambda: handlers.follow(False, look, job.id, BOB),
        lambda: handlers.keep(10, job.id, BOB),
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
    handlers.ask("sample")(look, job.id, ANN)
    ticking(dispatcher, lambda: jobs.progress(job.id).pictures)
    handlers.ask("stop")(look, job.id, ANN)
    ticking(dispatcher, has(jobs, job, Status.STOPPED))
    (saved,) = jobs.progress(job.id).checkpoints
    headline = Watcher(handlers._backend).view(jobs.get(job.id), "ann", Look())["headline"]
    assert f"Resume continues after step {saved}." in headline
    handlers.ask("resume")(look, job.id, ANN)
    ticking(dispatcher, has(jobs, job, Status.RUNNING))
    assert notices == [
        "Drawing pictures after this step…",
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
    assert len(functions) > 20
    assert all(function.api_visibility == "private" for function in functions)
    ticks = [function for function in functions if function.targets[0][1] == "tick"]
    assert len(ticks) == 1
    assert not ticks[0].queue
    assert ticks[0].show_progress == "hidden"
