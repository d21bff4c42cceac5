"""Random clicks, uploads, reloads and restarts in several windows, against a model of the state."""

import contextlib
import re
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from webui.backend import Backend, open_backend
from webui.engine.job import Status
from webui.tabs.progress import ProgressHandlers
from webui.teaching.crops import Crop
from webui.teaching.draft import Draft
from webui.teaching.uploads import Upload
from webui.watching.watcher import REQUESTS, Look

PARTS = ["on_screen", "removed", "waiting", "list", "headline", *REQUESTS, "name", "restore"]
PARTS += ["clear", "timer", "empty", "full"]
PEOPLE = ("ann", "ann", "bob")
"""Who sits before each window."""
RUNS, ENDS = ("running", "stopping"), ("finished", "failed", "interrupted", "stopped")
OPTIONS = {"instance_data_dir": "x", "instance_prompt": "a sks toy", "max_train_steps": 20}
windows = st.integers(0, len(PEOPLE) - 1)


@dataclass
class Expected:
    """The expected state of a job."""

    owner: str
    name: str
    status: str = "queued"
    removed: bool = False
    goes: bool = False
    """Whether it is to be removed when it has ended."""


@dataclass
class Window:
    """A browser: what it shows, and answers that are still on their way."""

    person: str
    look: Look = field(default_factory=Look)
    job: str | None = None
    shows: dict[str, Any] = field(default_factory=dict)
    coming: deque[list[Any]] = field(default_factory=deque)

    @property
    def request(self) -> gr.Request:
        return gr.Request(username=self.person)

    def receive(self) -> None:
        """Apply the answers that have arrived, as a browser does."""
        while self.coming:
            for part, update in zip([*PARTS, "job"], self.coming.popleft(), strict=True):
                if not isinstance(update, dict):
                    update = {"value": update}
                self.shows.setdefault(part, {}).update(
                    {name: value for name, value in update.items() if name != "__type__"}
                )
                if part == "job" and "value" in update:
                    self.job = update["value"]

    def value(self, part: str) -> Any:  # noqa: ANN401
        return self.shows.get(part, {}).get("value")

    def has(self, part: str) -> bool:
        return bool(self.shows.get(part, {}).get("visible"))


class Clicks(RuleBasedStateMachine):
    """People click, servers restart and trainings end, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.jobs: dict[str, Expected] = {}
        self.gone: list[str] = []  # removed jobs, in this order
        self.named: dict[str, str] = {}  # jobs by every name that they had
        self.drafts = {person: Draft() for person in PEOPLE}
        self.windows = [Window(person) for person in PEOPLE]
        self.backend = self.opened()
        self.handlers = ProgressHandlers(self.backend, PARTS)
        for window in self.windows:
            self.load(window)

    def teardown(self) -> None:
        self.folder.cleanup()

    def opened(self) -> Backend:
        root = Path(self.folder.name)
        folders = {"studio": root / "studio", "runs": root / "runs", "examples": root}
        return open_backend("base", devices=["cpu"], **folders)

    def load(self, window: Window) -> None:
        window.look, window.job, window.shows = Look(), None, {}
        window.coming = deque([self.handlers.enter(window.look, None, window.request)])
        window.receive()

    @contextlib.contextmanager
    def answered(self, window: Window) -> Iterator[None]:
        """Send what a click changes, whether it was allowed or not."""
        with contextlib.suppress(gr.Error):
            yield
        window.coming.append(self.handlers.refresh(window.look, window.job, window.request))

    def read(self, pattern: str, text: str) -> str:
        """Return the job whose name a person reads in a text."""
        found = re.search(pattern, text)
        assert found is not None
        return self.named[found[1]]

    # ---------------------------------------------------------------------------- people

    @rule(at=windows, in_time=st.booleans())
    def teach(self, at: int, in_time: bool) -> None:
        window = self.windows[at]
        if sum(job.status == "queued" for job in self.jobs.values()) >= 6:
            return
        name = f"toy {len(self.jobs)}"
        job = self.backend.jobs.submit(name, window.person, OPTIONS)
        self.jobs[job.id] = Expected(window.person, name)
        self.named[name] = job.id
        window.job = job.id
        window.coming.append(self.handlers.enter(window.look, job.id, window.request))
        if in_time:
            window.receive()

    @rule(at=windows, text=st.text(max_size=5))
    def fill_in(self, at: int, text: str) -> None:
        person = self.windows[at].person
        sent = self.backend.uploads.sent / f"{len(self.drafts[person].pictures)}-{person}.png"
        sent.touch()
        picture = Upload(sent, "toy.png", (64, 64), text), Crop(1.0, 0.5, 0.5)
        self.drafts[person] = Draft((*self.drafts[person].pictures, picture), text, "toy", "sks")
        self.backend.drafts.save(person, self.drafts[person])

    @rule(at=windows)
    def reload(self, at: int) -> None:
        self.load(self.windows[at])

    @rule(at=windows)
    def time_passes(self, at: int) -> None:
        window = self.windows[at]
        shown = window.look, window.job, window.value("on_screen"), window.request
        window.coming.append(self.handlers.tick(*shown))

    @rule(at=windows)
    def answers_arrive(self, at: int) -> None:
        self.windows[at].receive()

    @rule(at=windows, place=st.integers(0, 5))
    def choose(self, at: int, place: int) -> None:
        window = self.windows[at]
        offered = window.shows.get("list", {}).get("choices", [])
        if place < len(offered):
            window.shows["list"]["value"] = chosen = offered[place][1]
            seen = chosen, window.look, window.value("on_screen"), window.request
            with contextlib.suppress(gr.Error):
                window.coming.append(self.handlers.choose(*seen))

    @rule(at=windows, button=st.sampled_from(["stop", "frame", "resume", "remove"]))
    def click(self, at: int, button: str) -> None:
        window = self.windows[at]
        if not window.has("full") or not window.has(button):
            return
        job_id = self.read("<h2>(.*)</h2>", window.value("headline"))
        job = self.jobs[job_id]
        assert job.owner == window.person
        with self.answered(window):
            self.handlers.ask(button)(window.look, window.value("on_screen"), window.request)
        if button == "stop" and job.status == "queued":
            job.status = "stopped"
        elif button == "stop" and job.status == "running":
            job.status = "stopping"
        elif button == "resume" and job.status in ENDS[1:] and not job.removed:
            job.status = "queued"
        elif button == "remove" and not job.removed:
            if job.status in RUNS:
                job.status, job.goes = "stopping", True
            else:
                job.status = "stopped" if job.status == "queued" else job.status
                self.removed(job_id)

    @rule(at=windows)
    def bring_back(self, at: int) -> None:
        window = self.windows[at]
        if not window.has("restore"):
            return
        job_id = self.read("“(.*)”", window.value("restore"))
        job = self.jobs[job_id]
        with self.answered(window):
            self.handlers.restore(window.look, window.value("removed"), window.request)
        if job.removed:
            job.removed = False
            self.gone.remove(job_id)

    @rule(at=windows)
    def clear_the_queue(self, at: int) -> None:
        window = self.windows[at]
        if not window.has("full") or not window.has("clear"):
            return
        # The jobs that the list shows as waiting, on this screen.
        waits = [k for label, k in window.shows["list"]["choices"] if "queued" in label.lower()]
        assert window.value("clear") == f"Remove the {len(waits)} that wait"
        with self.answered(window):
            self.handlers.clear(window.look, window.value("waiting"), window.request)
        for job_id in waits[::-1]:  # the oldest first
            if self.jobs[job_id].status == "queued":
                self.jobs[job_id].status = "stopped"
                self.removed(job_id)

    @rule(at=windows, name=st.integers(0, 10**6))
    def rename(self, at: int, name: int) -> None:
        window = self.windows[at]
        text = f"renamed {name}"
        if not window.has("full") or text in self.named:
            return
        job_id = self.read("<h2>(.*)</h2>", window.value("headline"))
        seen = window.look, window.value("on_screen"), window.request
        with self.answered(window):
            self.handlers.rename(text, *seen)
        self.jobs[job_id].name, self.named[text] = text, job_id

    # --------------------------------------------------------------------------- machine

    @precondition(lambda self: not any(job.status in RUNS for job in self.jobs.values()))
    @rule()
    def the_next_begins(self) -> None:
        for job in self.backend.jobs.queue()[:1]:
            assert self.backend.jobs.begin(job, "cpu")
            (job.folder / "control").mkdir(exist_ok=True)
            self.jobs[job.id].status = "running"

    @rule(how=st.sampled_from(ENDS))
    def it_ends(self, how: str) -> None:
        for job_id, job in self.jobs.items():
            if job.status in RUNS:
                self.backend.jobs.end(self.backend.jobs.get(job_id), Status(how))
                asked = job.status == "stopping"
                if asked and how != "finished" and (how != "failed" or job.goes):
                    how = "stopped"
                job.status = how
                if job.goes:
                    job.goes = False
                    self.removed(job_id)
                return

    @rule()
    def the_server_restarts(self) -> None:
        self.backend = self.opened()
        self.handlers = ProgressHandlers(self.backend, PARTS)
        for window in self.windows:  # its states are lost, and what a browser shows is not
            window.look, window.job = Look(), None
            window.coming.clear()

    def removed(self, job_id: str) -> None:
        self.jobs[job_id].removed = True
        self.gone.append(job_id)

    # --------------------------------------------------------------------------- the truth

    @invariant()
    def no_job_is_lost_or_changed_unseen(self) -> None:
        found = {
            job.id: Expected(
                job.owner, job.name, str(job.status), bool(job.removed), job.wanted == "cancelled"
            )
            for job in self.backend.jobs.list(removed=None)
        }
        assert found == self.jobs
        assert all(job.folder.is_dir() for job in self.backend.jobs.list(removed=None))

    @invariant()
    def drafts_stay(self) -> None:
        for person, draft in self.drafts.items():
            assert self.backend.drafts.load(person) == draft

    @rule(at=windows)
    def the_screen_tells_the_truth(self, at: int) -> None:
        window = self.windows[at]
        for _ in range(2):  # the first may tell of a newer job to show
            self.time_passes(at)
            window.receive()
        own = {k: job for k, job in self.jobs.items() if job.owner == window.person}
        there = [k for k, job in own.items() if not job.removed]
        assert window.has("full") == bool(there)
        gone = [job_id for job_id in self.gone if job_id in own]
        assert window.has("restore") == bool(gone)
        if gone:
            assert window.value("restore") == f"Bring back “{own[gone[-1]].name}”"
        if not there:
            return
        shown = own[window.value("on_screen")]
        assert not shown.removed
        assert f"<h2>{shown.name}</h2>" in window.value("headline")
        assert {k for _, k in window.shows["list"]["choices"]} == set(there)
        able = {"remove"}
        able |= {"stop"} if shown.status in ("queued", "running") else set()
        able |= {"frame"} if shown.status == "running" else set()
        able |= {"resume"} if shown.status in ENDS[1:] else set()
        able |= {"play"} if shown.status == "finished" else set()
        assert {name for name in REQUESTS if window.has(name)} == able


PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking takes minutes
CHECKED = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@pytest.fixture(autouse=True)
def _no_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gr, "Info", lambda *_, **__: None)


@pytest.mark.parametrize(
    ("sequences", "steps"), [(12, 25), pytest.param(100, 50, marks=pytest.mark.slow)]
)
def test_no_job_is_lost_and_none_is_acted_on_that_was_not_shown(sequences: int, steps: int) -> None:
    Clicks.TestCase.settings = settings(
        max_examples=sequences,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=CHECKED,
        print_blob=False,
        phases=PHASES,
    )
    Clicks.TestCase().runTest()
