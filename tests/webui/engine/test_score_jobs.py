"""Scorings in the queue of trainings; eval is a stand-in here."""

import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import parse
from loldu.errors import LoLDUError
from tests.webui.engine.waiting import has, starts, ticking
from tests.webui.engine.waiting import submit as submit_training
from webui.engine import process
from webui.engine.dispatcher import Dispatcher
from webui.engine.job import Job, Kind, Status
from webui.engine.jobs import Jobs
from webui.engine.options import flags

OPTIONS = {"prompts": ("scores",), "other_prompts": ("a car",), "seeds": (0, 1)}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "rabbit"
    folder.mkdir()
    (folder / "concept.safetensors").write_bytes(b"concept")
    (folder / "config.toml").write_text("[base]\n")
    (folder / "README.md").write_text("not needed")
    return folder


def submit(jobs: Jobs, files: Path, does: str = "scores", **options: Any) -> Job:  # noqa: ANN401
    return jobs.submit_score(
        "rabbit", "ann", "an id", files, OPTIONS | {"prompts": [does]} | options
    )


def test_a_scoring_job_is_queued_and_found_again(
    jobs: Jobs, dispatcher: Dispatcher, files: Path
) -> None:
    training = submit_training(jobs)
    job = submit(jobs, files)
    (files / "concept.safetensors").unlink()  # what is scored was taken along
    assert Jobs(jobs.folder).list() == (training, job)
    assert (training.kind, training.concept) == (Kind.TRAIN, None)
    assert (job.kind, job.concept) == (Kind.SCORE, "an id")
    assert {path.name for path in (job.folder / "concept").iterdir()} == {
        "concept.safetensors",
        "config.toml",
    }
    ticking(dispatcher, has(jobs, job, Status.FINISHED))
    first, second = jobs.get(training.id), jobs.get(job.id)
    assert first.ended is not None
    assert second.started is not None
    assert first.ended <= second.started
    assert (job.folder / "report.png").exists()
    assert jobs.progress(job.id).steps == 0


def test_states_of_a_finished_scoring_job(jobs: Jobs, dispatcher: Dispatcher, files: Path) -> None:
    failed = submit(jobs, files, "fails")
    ticking(dispatcher, has(jobs, failed, Status.FAILED))
    assert jobs.get(failed.id).message == "--prompts is wrong: give others."
    assert jobs.progress(failed.id).last_line == "--prompts is wrong: give others."

    job = submit(jobs, files, "draws")
    ticking(dispatcher, lambda: len(starts(job)) == 1)
    jobs.stop(job.id)
    ticking(dispatcher, has(jobs, job, Status.STOPPED))
    jobs.resume(job.id)
    ticking(dispatcher, lambda: len(starts(job)) == 2)
    jobs.remove(job.id)
    ticking(dispatcher, lambda: jobs.get(job.id).removed)


@pytest.mark.parametrize(
    ("does", "becomes"), [("draws", Status.INTERRUPTED), ("tells", Status.FINISHED)]
)
def test_a_killed_scoring_job_is_judged_by_its_report(
    does: str, becomes: Status, jobs: Jobs, dispatcher: Dispatcher, files: Path
) -> None:
    job = submit(jobs, files, does)
    picture = "report.png" if does == "tells" else "pictures/base/concept/000-0.png"
    ticking(dispatcher, lambda: (job.folder / picture).exists())
    process.send(job.folder, signal.SIGKILL)
    ticking(dispatcher, has(jobs, job, Status.INTERRUPTED, Status.FINISHED))
    assert jobs.get(job.id).status is becomes


def test_options_are_those_of_eval(jobs: Jobs, files: Path) -> None:
    job = submit(jobs, files, clip=Path("clip"), num_inference_steps=3, token=None)
    assert tomllib.loads((job.folder / "options.toml").read_text()) == {
        "prompts": ["scores"],
        "other_prompts": ["a car"],
        "seeds": [0, 1],
        "clip": "clip",
        "num_inference_steps": 3,
    }


def test_a_token_that_looks_like_a_flag_is_a_token(jobs: Jobs, files: Path) -> None:
    job = submit(jobs, files, token="--redraw", class_name="--concept")
    config = parse(flags(job.folder, Kind.SCORE))
    assert (config.token, config.class_name) == ("--redraw", "--concept")
    assert config.concept == job.folder / "concept" / "concept.safetensors"


@pytest.mark.parametrize(
    ("options", "error_text"),
    [
        ({"clp": "x"}, "perhaps you meant clip"),
        ({"output_dir": "/tmp"}, "The job sets the option output_dir itself"),
        ({"concept": "/etc/passwd"}, "The job sets the option concept itself"),
        ({"num_inference_steps": 0}, "--num_inference_steps is 0; it must be at least 1"),
        ({"seeds": ["many"]}, r"seeds is \['many'\]; it must be a list, each a whole number"),
    ],
)
def test_options_that_cannot_work_are_refused_and_leave_nothing(
    options: dict[str, Any], error_text: str, jobs: Jobs, files: Path
) -> None:
    with pytest.raises(LoLDUError, match=error_text):
        submit(jobs, files, **options)
    assert not list((jobs.folder / "runs").iterdir())
    assert jobs.list() == ()


def test_a_scoring_takes_a_place_in_the_queue(tmp_path: Path, files: Path) -> None:
    jobs = Jobs(tmp_path / "studio", max_queued=1)
    submit(jobs, files)
    with pytest.raises(LoLDUError, match="in the queue, which is the limit"):
        submit_training(jobs)
