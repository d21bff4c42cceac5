"""A tiny base, two concepts of it in the folders of runs, and the state of trainings."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.webui.browser import ROOT
from tests.webui.concepts import MakeUse, entry_of, teach
from tests.webui.engine.server import STANDIN
from tests.webui.engine.waiting import MakeDispatcher, patiently
from webui.drawing.model import Use
from webui.drawing.studio import Studio, Watch
from webui.engine import process
from webui.engine.dispatcher import Dispatcher
from webui.engine.jobs import Jobs


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
