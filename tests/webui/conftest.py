"""A tiny base, two concepts of it in the folders of runs, and the state of trainings."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from loldu import LoLDUConfig, save_concept
from tests.trainer.conftest import base_folder as base_folder
from tests.trainer.conftest import tokenizer as tokenizer
from tests.webui.engine.server import STANDIN
from tests.webui.engine.waiting import MakeDispatcher, patiently
from trainer.base import load_pipeline
from webui.drawing import Studio
from webui.engine import process
from webui.engine.dispatcher import Dispatcher
from webui.engine.jobs import Jobs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


def teach(base: Path, path: Path, seed: int, prompt: str | None) -> None:
    """Save a random concept of a base."""
    pipeline = load_pipeline(str(base))
    pipeline.unet.add_adapter(LoLDUConfig(r=4, init_weights=False, seed=seed))
    save_concept(pipeline, path, metadata={"instance_prompt": prompt})


@pytest.fixture(scope="session")
def runs(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs; the one named `rabbit` tells its prompt and how it drew."""
    runs = tmp_path_factory.mktemp("runs")
    teach(base_folder, runs / "rabbit" / "concept.safetensors", 0, "a photo of a sks <b>toy</b>")
    teach(base_folder, runs / "house" / "concept.safetensors", 1, None)
    (runs / "rabbit" / "config.toml").write_text(
        "[run]\nnum_inference_steps = 7\nguidance_scale = 2.5\n"
    )
    (runs / "broken").mkdir()
    (runs / "broken" / "concept.safetensors").write_bytes(b"no concept")
    return runs


@pytest.fixture
def studio(runs: Path) -> Studio:
    return Studio(runs)


@pytest.fixture
def ticks() -> list[tuple[int, int]]:
    """What was reported of the passes through the UNet."""
    return []


@pytest.fixture
def report(ticks: list[tuple[int, int]]) -> Callable[[int, int], None]:
    return lambda done, total: ticks.append((done, total))


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
