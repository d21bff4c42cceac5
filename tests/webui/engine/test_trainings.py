"""Jobs of the real trainer, on the tiny base."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from loldu import read_concept
from tests.webui.engine.server import server
from tests.webui.engine.waiting import MakeDispatcher, has, patiently, ticking
from trainer.__main__ import run
from trainer.results.lock import locked
from webui.engine import process
from webui.engine.dispatcher import Dispatcher
from webui.engine.job import Status
from webui.engine.jobs import Jobs


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def options(base_folder: Path, pictures: Path) -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": base_folder,
        "instance_data_dir": pictures,
        "instance_prompt": "a photo of sks toy",
        "resolution": 16,
        "max_train_steps": 4,
        "rank": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "num_inference_steps": 2,
        "sample_at_end": False,
        "lora_file": "no",
    }


@pytest.fixture
def dispatcher(make_dispatcher: MakeDispatcher) -> Dispatcher:
    return make_dispatcher(command=process.COMMAND)


def deltas(folder: Path) -> torch.Tensor:
    return torch.cat([layer.delta for layer in read_concept(folder / "concept.safetensors").layers])


def test_a_killed_and_resumed_training_is_bit_identical(
    jobs: Jobs,
    dispatcher: Dispatcher,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    options |= {"max_train_steps": 120, "checkpointing_steps": 20, "lr_scheduler": "cosine"}
    job = jobs.submit("toy", "ann", options)
    ticking(dispatcher, lambda: jobs.progress(job.id).step > 0)
    jobs.add_frame(job.id)
    ticking(dispatcher, lambda: jobs.progress(job.id).checkpoints)
    ticking(dispatcher, lambda: jobs.progress(job.id).pictures)
    process.send(job.folder, signal.SIGKILL)
    ticking(dispatcher, has(jobs, job, Status.INTERRUPTED))
    before = jobs.progress(job.id)
    assert before.steps == 120
    assert 0 < before.step < 120
    assert before.seconds_left
    assert before.memory_mib
    assert before.base_pictures

    jobs.resume(job.id)
    ticking(dispatcher, has(jobs, job, Status.FINISHED, Status.FAILED))
    log = (job.folder / "log.txt").read_text()
    assert jobs.get(job.id).status is Status.FINISHED, log
    after = jobs.progress(job.id)
    assert [step for step, _ in after.losses] == [*range(1, 121)]
    assert after.seconds_left == 0
    assert f"Resuming after step {max(before.checkpoints)} from" in log

    whole = tmp_path / "whole"
    alone = ["--preset", str(job.folder / "options.toml"), "--output_dir", str(whole)]
    assert run([*alone, "--checkpointing_steps", "0"]) == 0
    assert torch.equal(deltas(whole), deltas(job.folder))


def test_a_job_refuses_a_folder_into_which_another_training_writes(
    options: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "job"
    names = ("pretrained_model_name_or_path", "instance_data_dir", "instance_prompt")
    flags = [f"--{name}={options[name]}" for name in (*names, "resolution", "max_train_steps")]
    with locked(folder):
        before = sorted(folder.rglob("*"))
        lock = os.open(folder / "process.lock", os.O_RDWR | os.O_CREAT)
        flags.append(f"--output_dir={folder}")
        assert process.main([str(folder), str(lock), "0", "train", *flags])
        os.close(lock)
        left = {path.name for path in set(folder.rglob("*")).difference(before)}
    assert left == {"process.lock", "ending.json"}
    ending = process.ending(folder)
    assert ending
    assert f"Another training (process {os.getpid()}) is writing into" in ending.sentence


@pytest.mark.slow
def test_an_error_of_the_trainer_is_shown(
    jobs: Jobs,
    dispatcher: Dispatcher,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    job = jobs.submit("toy", "ann", {**options, "instance_data_dir": tmp_path / "empty"})
    ticking(dispatcher, has(jobs, job, Status.FAILED, Status.FINISHED))
    message = jobs.get(job.id).message
    assert str(tmp_path / "empty") in message
    assert message == jobs.progress(job.id).last_line


@pytest.mark.slow
def test_ten_trainings(jobs: Jobs, dispatcher: Dispatcher, options: dict[str, Any]) -> None:
    """Remove one in the queue and one in training, and stop and resume one."""
    asked = [jobs.submit(f"toy {number}", "ann", options) for number in range(7)]
    options["max_train_steps"] = 10**6
    removed, stopped, queued = (jobs.submit("long", "bob", options) for _ in range(3))
    jobs.remove(queued.id)
    for job, end in ((removed, jobs.remove), (stopped, jobs.stop)):
        ticking(dispatcher, lambda job=job: jobs.progress(job.id).step > 2)
        end(job.id)
        ticking(dispatcher, has(jobs, job, Status.STOPPED))
    (checkpoint,) = jobs.progress(stopped.id).checkpoints
    jobs.resume(stopped.id)
    ticking(dispatcher, lambda: jobs.progress(stopped.id).step > checkpoint)
    (stopped.folder / "control" / "finish").touch()
    ticking(dispatcher, lambda: not jobs.queue() and has(jobs, stopped, Status.FINISHED)())
    ticking(dispatcher, has(jobs, asked[-1], Status.FINISHED))
    assert {jobs.get(job.id).status for job in (*asked, stopped)} == {Status.FINISHED}
    assert {job.id for job in jobs.list(removed=True)} == {removed.id, queued.id}
    turns = [jobs.get(job.id).turn for job in asked]
    assert turns == sorted(turns, key=lambda turn: turn or 0)
    whole = deltas(asked[0].folder)
    assert all(torch.equal(deltas(job.folder), whole) for job in asked[1:])


@pytest.mark.slow
def test_a_killed_server_leaves_the_real_trainer_at_work(
    jobs: Jobs,
    dispatcher: Dispatcher,
    options: dict[str, Any],
) -> None:
    job = jobs.submit("toy", "ann", {**options, "max_train_steps": 10**6})
    with server(jobs, "", "webui.engine.process") as killed:
        patiently(lambda: jobs.progress(job.id).step > 2)
        killed.kill()
        killed.wait()
    pid = int((job.folder / "process.lock").read_text())
    assert os.getsid(pid) == pid  # no terminal's or server's end is its own
    reached = jobs.progress(job.id).step
    ticking(dispatcher, lambda: jobs.progress(job.id).step > reached)
    jobs.stop(job.id)
    ticking(dispatcher, has(jobs, job, Status.STOPPED))
    assert max(jobs.progress(job.id).checkpoints) > reached
