"""A tiny base, two concepts of it in the folders of runs, and the state of trainings."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.webui.browser import (
    NEWER,
    OLDER,
    PATIENCE_MS,
    ROOT,
    TAKEN,
    Server,
    installed_browser,
    served,
)
from tests.webui.concepts import MakeUse, entry_of, teach, write
from tests.webui.engine.server import STANDIN
from tests.webui.engine.waiting import MakeDispatcher, patiently
from webui.drawing.model import Use
from webui.drawing.studio import Studio, Watch
from webui.engine import process
from webui.engine.dispatcher import Dispatcher
from webui.engine.job import Status
from webui.engine.jobs import Jobs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def runs(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two runs; `rabbit` has its prompt and drawing settings."""
    runs = tmp_path_factory.mktemp("runs")
    teach(
        base_folder,
        runs / "rabbit" / "concept.safetensors",
        0,
        "a photo of a sks <b>toy</b>",
        token="sks",
        class_name="<b>toy</b>",
    )
    teach(base_folder, runs / "house" / "concept.safetensors", 1, None)
    (runs / "rabbit" / "config.toml").write_text(
        "[run]\nnum_inference_steps = 7\nguidance_scale = 2.5\n"
    )
    (runs / "broken").mkdir()
    (runs / "broken" / "concept.safetensors").write_bytes(b"no concept")
    return runs


@pytest.fixture
def studio(base_folder: Path) -> Studio:
    return Studio(str(base_folder))


@pytest.fixture
def use(runs: Path) -> MakeUse:
    """Return a function that chooses a concept at a strength, by its run or folder."""
    return lambda name, strength=1.0, where=runs: Use(entry_of(where / name), strength)


@pytest.fixture
def ticks() -> list[tuple[int, int]]:
    """Record the reported passes through the UNet."""
    return []


@pytest.fixture
def watch(ticks: list[tuple[int, int]]) -> Watch:
    return Watch(lambda done, total: ticks.append((done, total)), lambda _: None)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """Return an empty job store; afterwards no process is left."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    jobs = Jobs(tmp_path / "studio")
    yield jobs
    for job in jobs.list(removed=None):
        process.send(job.folder, signal.SIGKILL)
        patiently(lambda folder=job.folder: not process.is_running(folder))


@pytest.fixture
def dispatcher(make_dispatcher: MakeDispatcher) -> Dispatcher:
    return make_dispatcher()


@pytest.fixture
def make_dispatcher(jobs: Jobs) -> Iterator[MakeDispatcher]:
    made: list[Dispatcher] = []

    def make(devices: tuple[str, ...] = ("cpu",), **options: Any) -> Dispatcher:  # noqa: ANN401
        made.append(Dispatcher(jobs, devices, **{"command": STANDIN, "niceness": 0} | options))
        return made[-1]

    yield make
    for dispatcher in made:
        dispatcher.close()


@pytest.fixture(scope="module")  # until then its event loop is in the way of others
def browser() -> Iterator["Browser"]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: make install")
    path = installed_browser()
    if path is None:
        pytest.skip("needs a browser: install chromium, such as with apt install chromium")
    with sync_api.sync_playwright() as playwright:
        sync_api.expect.set_options(timeout=PATIENCE_MS)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a studio that the tests of a module share: servers are slow to start."""
    folder = tmp_path_factory.mktemp("served")
    if not TAKEN:
        end_trainings(Jobs(folder / "studio"))
        words = {"token": "dax", "instance_prompt": "a photo of a dax toy"}
        # No base can draw it.
        write(folder / "runs" / "dotty" / "concept.safetensors", **words)
    runs = ROOT / "runs" if TAKEN else folder / "runs"  # where `make demo` left a second concept
    with served(folder / "studio", "--runs", str(runs)) as server:
        yield server


@pytest.fixture(scope="module")
def page(browser: "Browser", server: Server) -> Iterator["Page"]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url)
    yield page
    assert not errors
    page.close()


def end_trainings(jobs: Jobs) -> None:
    """Put a failed training into a studio, and a stopped one with pictures of two steps."""
    for name in (OLDER, NEWER):
        options = {"instance_data_dir": "x", "instance_prompt": "a sks toy", "max_train_steps": 20}
        job = jobs.submit(name, "", options)
        jobs.begin(job, "cpu")
        if name == NEWER:
            pictures = job.folder / "validation" / "pictures"
            pictures.mkdir(parents=True)
            for picture in ("base", "000010", "000020"):
                Image.new("RGB", (64, 64), "teal").save(pictures / f"{picture}-00.png")
            jobs.end(job, Status.STOPPED)
        else:
            jobs.end(job, Status.FAILED, "The training failed (out of memory); see its log.txt.")
