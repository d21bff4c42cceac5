"""A tiny base, two concepts of it in the folders of runs, and the state of trainings."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from loldu import LoLDUConfig, save_concept
from loldu.base.open import load_pipeline
from tests.webui.engine.server import STANDIN
from tests.webui.engine.waiting import MakeDispatcher, patiently
from webui.drawing.model import Use
from webui.drawing.studio import Studio, Watch
from webui.engine import process
from webui.engine.dispatcher import Dispatcher
from webui.engine.jobs import Jobs
from webui.library.entry import Entry

MakeUse = Callable[..., Use]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


def teach(folder: Path, path: Path, seed: int, prompt: str | None, **metadata: object) -> None:
    """Save a random concept of a base."""
    pipeline = load_pipeline(str(folder))
    pipeline.unet.add_adapter(LoLDUConfig(r=4, init_weights=False, seed=seed))
    save_concept(pipeline, path, metadata={"instance_prompt": prompt, **metadata})


@pytest.fixture(scope="session")
def runs(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs; the one named `rabbit` tells its prompt and how it drew."""
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
    """A concept at a strength: by the name of its run, or of a folder of another place."""
    return lambda name, strength=1.0, where=runs: Use(entry_of(where / name), strength)


def entry_of(folder: Path) -> Entry:
    return Entry(folder.name, folder.name, None, folder, 0.0)


@pytest.fixture
def ticks() -> list[tuple[int, int]]:
    """What was reported of the passes through the UNet."""
    return []


@pytest.fixture
def watch(ticks: list[tuple[int, int]]) -> Watch:
    return Watch(lambda done, total: ticks.append((done, total)), lambda _: None)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """No jobs yet; in the end, no process is left."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    jobs = Jobs(tmp_path / "studio")
    yield jobs
    for job in jobs.list(removed=None):
        process.send(job.folder, signal.SIGKILL)
        patiently(lambda folder=job.folder: not process.is_running(folder))


@pytest.fixture
def make_dispatcher(jobs: Jobs) -> Iterator[MakeDispatcher]:
    made: list[Dispatcher] = []

    def make(devices: tuple[str, ...] = ("cpu",), **options: Any) -> Dispatcher:  # noqa: ANN401
        made.append(Dispatcher(jobs, devices, **{"command": STANDIN, "niceness": 0} | options))
        return made[-1]

    yield make
    for dispatcher in made:
        dispatcher.close()
