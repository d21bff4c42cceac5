"""The state of trainings: stored, refused and restored jobs, without any process."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from loldu.errors import LoLDUError
from trainer.options.preset import parse
from webui.engine.job import Job, Kind, Status
from webui.engine.jobs import Jobs
from webui.engine.options import flags

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = {"instance_data_dir": "pictures", "instance_prompt": "a photo of sks toy"}


def submit(
    jobs: Jobs, name: str = "rabbit", owner: str = "ann", options: Mapping[str, Any] = OPTIONS
) -> Job:
    return jobs.submit(name, owner, options)


def ended(jobs: Jobs, status: Status = Status.FINISHED) -> Job:
    job = submit(jobs)
    assert jobs.begin(job, "cpu")
    jobs.end(job, status)
    return jobs.get(job.id)


def test_a_job_is_found_again_by_another_server(jobs: Jobs) -> None:
    job = submit(jobs)
    other = submit(jobs, owner="bob")
    again = Jobs(jobs.folder)
    assert again.list() == (job, other)
    assert again.list("bob") == (other,)
    assert again.get(job.id) == job
    assert job.status is Status.QUEUED
    assert job.folder.parent == jobs.folder / "runs"


@pytest.mark.parametrize(
    ("name", "is_kept"),
    [
        ("../../etc/passwd", "../../etc/passwd"),
        ("/abs\x00\n\u202ename", "/abs name"),
        ("<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)>"),
        ("'); DROP TABLE jobs; --", "'); DROP TABLE jobs; --"),
        ("\ud800 Häschen", "Häschen"),
        ("x" * 1000, "x" * 100),
    ],
)
def test_a_name_is_text_and_nothing_else(
    name: str, is_kept: str, jobs: Jobs, tmp_path: Path
) -> None:
    job = submit(jobs, name, owner=f"../{is_kept}")
    assert job.name == is_kept
    assert [path.name for path in tmp_path.iterdir()] == ["studio"]
    assert [path.name for path in (jobs.folder / "runs").iterdir()] == [job.id]
    assert job.id.isalnum()
    jobs.rename(job.id, f"{is_kept[:90]} 2")
    assert jobs.get(job.id).name == f"{is_kept[:90]} 2"
    with pytest.raises(LoLDUError, match="The name is empty"):
        jobs.rename(job.id, " \t")


@pytest.mark.parametrize("stranger", ["", "../studio.sqlite", "x' OR '1'='1"])
def test_an_id_is_looked_up_and_never_a_path(stranger: str, jobs: Jobs) -> None:
    submit(jobs)
    for ask in (jobs.get, jobs.stop, jobs.add_frame, jobs.remove, jobs.restore, jobs.progress):
        with pytest.raises(LoLDUError, match="There is no such training"):
            ask(stranger)


def test_all_options_are_written_down_once(jobs: Jobs) -> None:
    """Options of the preset are stored too, because the preset may change before a resume."""
    chosen = {**OPTIONS, "instance_data_dir": Path("pictures"), "rank": 4, "vae": None}
    own = {"class_prompt": ("a toy", "a car")}
    job = jobs.submit("rabbit", "ann", {"instance": chosen, "prior": own}, preset="pocket")
    written = tomllib.loads((job.folder / "options.toml").read_text())
    assert written["instance"]["instance_data_dir"] == "pictures"
    assert written["adapter"]["rank"] == 4  # the preset's is full
    assert written["prior"]["class_prompt"] == ["a toy", "a car"]
    assert written["optimization"]["max_train_steps"] == 150  # the preset's
    assert written["run"]["logging_steps"] == 10  # the default
    assert written["run"]["output_dir"] == str(job.folder)


def test_a_prompt_that_looks_like_a_flag_is_a_prompt(jobs: Jobs) -> None:
    own = {"instance_prompt": "--push_to_hub", "class_prompt": ["a toy", "--overwrite"]}
    config = parse(flags(submit(jobs, options={**OPTIONS, **own}).folder, Kind.TRAIN))
    assert config.instance.instance_prompt == "--push_to_hub"
    assert config.prior.class_prompt == ("a toy", "--overwrite")
    assert not config.result.push_to_hub
    assert not config.run.overwrite


@pytest.mark.parametrize(
    ("options", "error_text"),
    [
        ({"instance_promt": "x"}, "perhaps you meant instance_prompt"),
        ({"output_dir": "/tmp"}, "The job sets the option output_dir itself"),
        ({"run": {"overwrite": True}}, "The job sets the option overwrite itself"),
        ({"rank": 0}, "--rank is 0; it must be at least 1"),
        ({"max_train_steps": "many"}, "max_train_steps is 'many'; it must be a whole number"),
        ({"instance_prompt": "\ud800"}, "cannot be read as UTF-8"),
        ({"rank": object()}, "rank is .*; it must be a whole number or full"),
    ],
)
def test_options_that_cannot_work_are_refused_and_leave_nothing(
    options: dict[str, Any], error_text: str, jobs: Jobs
) -> None:
    with pytest.raises(LoLDUError, match=error_text):
        submit(jobs, options={**OPTIONS, **options})
    with pytest.raises(LoLDUError, match=r"There is no preset \.\./pocket; known are"):
        jobs.submit("rabbit", "ann", OPTIONS, preset="../pocket")
    assert not list((jobs.folder / "runs").iterdir())
    assert jobs.list() == ()


def test_an_owner_has_a_limit_of_queued_jobs(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, max_queued=2)
    first, second = submit(jobs), submit(jobs)
    with pytest.raises(LoLDUError, match="You have 2 jobs in the queue, which is the limit"):
        submit(jobs)
    assert len(list((tmp_path / "runs").iterdir())) == 2
    submit(jobs, owner="bob")
    assert jobs.begin(first, "cpu")
    submit(jobs)
    jobs.stop(second.id)
    submit(jobs)
    with pytest.raises(LoLDUError, match="2 jobs in the queue"):
        jobs.resume(second.id)


def test_owners_take_turns(jobs: Jobs) -> None:
    of_ann = [submit(jobs) for _ in range(3)]
    of_bob = [submit(jobs, owner="bob") for _ in range(2)]
    of_cid = submit(jobs, owner="cid")
    order = [of_ann[0], of_bob[0], of_cid, of_ann[1], of_bob[1], of_ann[2]]
    assert jobs.queue() == tuple(order)
    started = []
    while queue := jobs.queue():
        started.append(queue[0])
        assert jobs.begin(queue[0], "cpu")
        jobs.end(queue[0], Status.FINISHED)
    assert started == order  # each start changes nothing of what was shown
    early, late = submit(jobs), submit(jobs, owner="bob")
    assert jobs.queue() == (late, early)  # ann had the last turn


def test_a_resumed_job_goes_to_the_end_of_the_queue(jobs: Jobs) -> None:
    job, other = ended(jobs, Status.INTERRUPTED), submit(jobs)
    jobs.resume(job.id)
    assert [each.id for each in jobs.queue()] == [other.id, job.id]
    assert jobs.get(job.id).ended is None
    with pytest.raises(LoLDUError, match="cannot be resumed: it is finished"):
        jobs.resume(ended(jobs, Status.FINISHED).id)


def test_a_starting_job_cannot_be_dequeued(jobs: Jobs) -> None:
    """Whether dispatcher or page writes first, the first one counts."""
    removed, started = submit(jobs), submit(jobs)
    jobs.remove(removed.id)
    assert not jobs.begin(removed, "cpu")
    assert jobs.begin(started, "cpu")
    jobs.remove(started.id)
    assert jobs.get(started.id).status is Status.STOPPING
    with pytest.raises(sqlite3.IntegrityError):
        jobs.begin(submit(jobs), "cpu")  # a device has one job


@pytest.mark.parametrize(
    ("wanted", "comes", "becomes"),
    [
        ("stop", Status.STOPPED, Status.STOPPED),
        ("stop", Status.INTERRUPTED, Status.STOPPED),
        ("stop", Status.QUEUED, Status.STOPPED),
        ("stop", Status.FAILED, Status.FAILED),
        ("stop", Status.FINISHED, Status.FINISHED),
        ("remove", Status.STOPPED, Status.STOPPED),
        ("remove", Status.FAILED, Status.STOPPED),
        ("remove", Status.FINISHED, Status.FINISHED),
    ],
)
def test_states_of_a_job_that_was_asked_to_stop(
    wanted: str, comes: Status, becomes: Status, jobs: Jobs
) -> None:
    job = submit(jobs)
    jobs.begin(job, "cpu")
    getattr(jobs, wanted)(job.id)
    jobs.end(job, comes, "why")
    now = jobs.get(job.id)
    assert now.status is becomes
    assert bool(now.removed) == (wanted == "remove")
    assert now.message == ("why" if comes is becomes and comes is not Status.STOPPED else "")
    state = "in the trash" if now.removed else becomes
    with pytest.raises(LoLDUError, match=f"cannot be stopped: it is {state}"):
        jobs.stop(job.id)


def test_a_removed_job_can_be_restored(jobs: Jobs) -> None:
    running, job = submit(jobs), ended(jobs)
    (job.folder / "concept.safetensors").write_bytes(b"concept")
    jobs.remove(job.id)
    assert jobs.list() == (jobs.get(running.id),)
    (removed,) = jobs.list(removed=True)
    assert removed.folder == jobs.folder / "trash" / job.id
    assert (removed.folder / "concept.safetensors").read_bytes() == b"concept"
    assert not job.folder.exists()
    with pytest.raises(LoLDUError, match="it is in the trash"):
        jobs.remove(job.id)
    jobs.restore(job.id)
    assert jobs.get(job.id) == job
    assert (job.folder / "concept.safetensors").exists()
    with pytest.raises(LoLDUError, match="is not in the trash"):
        jobs.restore(job.id)
    jobs.remove(running.id)
    jobs.restore(running.id)
    assert jobs.get(running.id).status is Status.STOPPED  # it can be resumed


@pytest.mark.parametrize("ask", ["remove", "restore"])
def test_a_killed_server_finishes_moving_to_the_trash(
    ask: str, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ended(jobs)
    if ask == "restore":
        jobs.remove(job.id)
    monkeypatch.setattr(jobs, "_put_in_place", lambda job: None)
    getattr(jobs, ask)(job.id)
    assert job.folder.exists() == (ask == "remove")
    folder = Jobs(jobs.folder).get(job.id).folder
    assert (folder / "options.toml").exists()


def test_a_deleted_folder_is_reported(jobs: Jobs) -> None:
    job = submit(jobs)
    shutil.rmtree(job.folder)
    with pytest.raises(LoLDUError, match="The folder of rabbit is gone"):
        jobs.progress(job.id)


def test_a_kill_in_a_transaction_changes_nothing(jobs: Jobs) -> None:
    job = ended(jobs, Status.STOPPED)
    resume_and_die = (
        "import os, sys; from pathlib import Path; from webui.engine import jobs\n"
        "update = jobs._update\n"
        "def die(*given, **values):\n"
        "    update(*given, **values)\n"
        "    os.kill(os.getpid(), 9)\n"
        "jobs._update = die\n"
        "jobs.Jobs(Path(sys.argv[1])).resume(sys.argv[2])\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", resume_and_die, jobs.folder, job.id],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert Jobs(jobs.folder).get(job.id) == job


def test_a_folder_of_another_version_is_refused(jobs: Jobs) -> None:
    connection = sqlite3.connect(jobs.folder / "studio.sqlite")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(LoLDUError, match="Another version of the studio wrote"):
        Jobs(jobs.folder)
