"""Trainings as processes: their order, one per device, and every kind of kill.

The trainer is a stand-in here, so that many can be started; test_trainings.py has the real one.
"""

import json
import os
import signal
import subprocess
import time

import pytest

from loldu.errors import LoLDUError
from tests.webui.engine.server import server
from tests.webui.engine.waiting import (
    PATIENCE_S,
    MakeDispatcher,
    has,
    patiently,
    starts,
    steps,
    submit,
    ticking,
)
from webui.engine import process
from webui.engine.dispatcher import Dispatcher
from webui.engine.job import ACTIVE, Status
from webui.engine.jobs import Jobs

ENDLESS = 10**6


def test_ten_at_once_run_in_order_and_none_is_lost(jobs: Jobs, dispatcher: Dispatcher) -> None:
    asked = [submit(jobs) for _ in range(10)]
    jobs.remove(asked[6].id)
    most = 0

    def over() -> bool:
        nonlocal most
        now = jobs.list()
        most = max(most, sum(job.status in ACTIVE for job in now))
        return not any(job.status in ACTIVE | {Status.QUEUED} for job in now)

    ticking(dispatcher, over)
    ended = jobs.list(removed=None)
    assert [job.id for job in ended] == [job.id for job in asked]
    assert most == 1
    removed = ended[6]
    assert removed.removed
    assert not starts(removed)
    others = [job for job in ended if job is not removed]
    assert {job.status for job in others} == {Status.FINISHED}
    assert [job.turn for job in others] == [*range(1, 10)]
    assert all(len(starts(job)) == 1 for job in others)


def test_owners_take_turns_and_devices_one_job_each(
    jobs: Jobs, make_dispatcher: MakeDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    dispatcher = make_dispatcher(("cuda:0", "cuda:1"))
    of = [submit(jobs, steps=ENDLESS, owner=owner) for owner in ("ann", "ann", "ann", "bob")]
    assert jobs.queue() == (of[0], of[3], of[1], of[2])
    dispatcher.tick()
    assert [jobs.get(job.id).device for job in of] == ["cuda:0", None, None, "cuda:1"]
    assert jobs.queue() == (of[1], of[2])
    ticking(dispatcher, lambda: steps(of[0]) and steps(of[3]))
    jobs.stop(of[3].id)
    ticking(dispatcher, has(jobs, of[3], Status.STOPPED))
    ticking(dispatcher, lambda: steps(of[1]))
    assert jobs.get(of[1].id).device == "cuda:1"
    known = json.loads((of[1].folder / "environment.json").read_text())
    assert known["CUDA_VISIBLE_DEVICES"] == "7"
    assert known["HF_HUB_OFFLINE"] == "1"
    assert not {"HF_TOKEN", "WORLD_SIZE"} & known.keys()


def test_a_killed_server_leaves_the_job_and_the_next_one_finds_it(
    jobs: Jobs, dispatcher: Dispatcher
) -> None:
    job = submit(jobs, steps=ENDLESS)
    with server(jobs) as killed:
        patiently(lambda: steps(job))
        killed.kill()
        killed.wait()
    reached = steps(job)[-1]
    patiently(lambda: steps(job)[-1] > reached)
    ticking(dispatcher, has(jobs, job, Status.RUNNING))
    (job.folder / "control" / "finish").touch()
    ticking(dispatcher, has(jobs, job, Status.FINISHED))
    assert len(starts(job)) == 1


def test_jobs_that_ended_without_a_server_are_found(
    jobs: Jobs, make_dispatcher: MakeDispatcher
) -> None:
    """With and without a report of the process, which is killed just before its end."""
    failed, pushed = submit(jobs, "fails"), submit(jobs, "pushes")
    first = make_dispatcher(("cpu", "cuda"))
    first.tick()
    first.close()
    patiently(lambda: (pushed.folder / "README.md").exists())
    process.send(pushed.folder, signal.SIGKILL)
    patiently(lambda: not process.is_running(pushed.folder))
    patiently(lambda: not process.is_running(failed.folder))
    assert jobs.get(failed.id).status is Status.RUNNING
    make_dispatcher().tick()
    record = jobs.get(failed.id)
    assert record.status is Status.FAILED
    assert record.message == "--instance_data_dir pictures is empty: put 3-5 pictures there."
    assert jobs.get(pushed.id).status is Status.FINISHED


@pytest.mark.parametrize(
    ("point", "is_left"),
    [
        ("before it is written down", Status.QUEUED),
        ("before the process starts", Status.RUNNING),
        ("before its pid is known", Status.RUNNING),
        ("after the start", Status.RUNNING),
    ],
)
def test_a_server_killed_at_any_moment_starts_nothing_twice(
    point: str, is_left: Status, jobs: Jobs, dispatcher: Dispatcher
) -> None:
    job = submit(jobs, steps=50)
    with server(jobs, point) as killed:
        assert killed.wait(PATIENCE_S) == -signal.SIGKILL
    assert jobs.get(job.id).status is is_left
    ticking(dispatcher, has(jobs, job, Status.FINISHED))
    assert len(starts(job)) == 1
    assert steps(job) == [*range(1, 51)]


def test_a_killed_training_can_be_resumed(jobs: Jobs, dispatcher: Dispatcher) -> None:
    job = submit(jobs, steps=ENDLESS)
    ticking(dispatcher, lambda: (job.folder / "control").exists())
    jobs.add_frame(job.id)
    patiently(lambda: jobs.progress(job.id).checkpoints)
    (saved,) = jobs.progress(job.id).checkpoints
    os.kill(starts(job)[0], signal.SIGKILL)
    ticking(dispatcher, has(jobs, job, Status.INTERRUPTED))
    assert jobs.get(job.id).message == "Its process was killed, or the computer was turned off."
    seen = len(steps(job))
    jobs.resume(job.id)
    ticking(dispatcher, lambda: len(steps(job)) > seen)
    assert steps(job)[seen] == saved + 1
    (job.folder / "control" / "finish").touch()
    ticking(dispatcher, has(jobs, job, Status.FINISHED))
    assert jobs.get(job.id).message == ""
    with pytest.raises(LoLDUError, match="cannot be resumed: it is finished"):
        jobs.resume(job.id)


def test_a_frame_is_added_and_stop_and_resume(jobs: Jobs, dispatcher: Dispatcher) -> None:
    job = submit(jobs, steps=ENDLESS)
    with pytest.raises(LoLDUError, match="is not training: it is queued"):
        jobs.add_frame(job.id)
    ticking(dispatcher, lambda: (job.folder / "control").exists())
    jobs.add_frame(job.id)
    patiently(lambda: jobs.progress(job.id).pictures)
    jobs.stop(job.id)
    assert jobs.get(job.id).status is Status.STOPPING
    ticking(dispatcher, has(jobs, job, Status.STOPPED))
    framed, last = jobs.progress(job.id).checkpoints
    assert framed < last == steps(job)[-1]
    jobs.resume(job.id)
    jobs.stop(job.id)  # out of the queue
    assert jobs.get(job.id).status is Status.STOPPED
    dispatcher.tick()
    assert len(starts(job)) == 1


@pytest.mark.parametrize("end", ["stop", "remove"])
def test_a_loading_training_stops_at_once(end: str, jobs: Jobs, dispatcher: Dispatcher) -> None:
    job = submit(jobs, "loads")
    ticking(dispatcher, lambda: starts(job))
    with pytest.raises(LoLDUError, match="takes no steps at this moment"):
        jobs.add_frame(job.id)
    getattr(jobs, end)(job.id)
    ticking(dispatcher, has(jobs, job, Status.STOPPED))
    assert bool(jobs.get(job.id).removed) == (end == "remove")
    if end == "stop":
        (job.folder / "config.toml").touch()  # as if this had been later in its life
        (job.folder / "control").mkdir()
        (job.folder / "loaded").touch()
        jobs.resume(job.id)
        ticking(dispatcher, has(jobs, job, Status.FINISHED))


def test_a_stop_that_comes_too_late_lets_the_result_be_written(
    jobs: Jobs, dispatcher: Dispatcher
) -> None:
    job = submit(jobs, "writes")
    ticking(dispatcher, lambda: steps(job) and not (job.folder / "control").exists())
    jobs.stop(job.id)
    for _ in range(5):
        dispatcher.tick()
        time.sleep(0.01)
    (job.folder / "written").touch()
    ticking(dispatcher, has(jobs, job, Status.FINISHED))


def test_removing_twice_kills_an_unresponsive_training(jobs: Jobs, dispatcher: Dispatcher) -> None:
    job = submit(jobs, "deaf", ENDLESS)
    ticking(dispatcher, lambda: (job.folder / "control").exists())
    jobs.stop(job.id)
    jobs.remove(job.id)
    for _ in range(5):
        dispatcher.tick()
    assert jobs.get(job.id).status is Status.STOPPING
    assert process.is_running(job.folder)
    jobs.stop(job.id)  # does not take it back
    jobs.remove(job.id)
    ticking(dispatcher, has(jobs, job, Status.STOPPED))
    (removed,) = jobs.list(removed=True)
    assert removed.folder.is_dir()
    assert not job.folder.exists()
    jobs.restore(job.id)
    jobs.resume(job.id)
    assert jobs.get(job.id).status is Status.QUEUED


def test_a_recycled_pid_is_not_taken_for_the_training(jobs: Jobs, dispatcher: Dispatcher) -> None:
    job = submit(jobs, "deaf", ENDLESS)
    ticking(dispatcher, lambda: starts(job))
    os.kill(starts(job)[0], signal.SIGKILL)
    patiently(lambda: not process.is_running(job.folder))
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        (job.folder / "process.lock").write_text(str(stranger.pid))
        jobs.remove(job.id)
        jobs.remove(job.id)  # would kill
        process.send(job.folder, signal.SIGKILL)
        assert stranger.poll() is None
        dispatcher.tick()
        assert jobs.get(job.id).removed
        stranger.send_signal(signal.SIGTERM)
        assert stranger.wait() == -signal.SIGTERM


def test_a_second_server_is_refused(jobs: Jobs, make_dispatcher: MakeDispatcher) -> None:
    first, second = make_dispatcher(), make_dispatcher()
    first.tick()
    job = submit(jobs)
    for act in (second.tick, second.start):
        with pytest.raises(LoLDUError, match=r"Another server uses the folder .*: stop it, or"):
            act()
    assert jobs.get(job.id).status is Status.QUEUED
    first.close()
    ticking(second, has(jobs, job, Status.FINISHED))
    assert len(starts(job)) == 1


def test_the_dispatching_thread_survives_an_exception(
    jobs: Jobs, make_dispatcher: MakeDispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher = make_dispatcher(every_s=0.01)
    whole = jobs.folder.with_name("elsewhere")
    dispatcher.start()
    jobs.folder.rename(whole)
    patiently(lambda: caplog.records)
    whole.rename(jobs.folder)
    job = submit(jobs)
    patiently(has(jobs, job, Status.FINISHED))


def test_failures_are_reported(jobs: Jobs, make_dispatcher: MakeDispatcher) -> None:
    job = submit(jobs, "breaks")
    dispatcher = make_dispatcher()
    ticking(dispatcher, has(jobs, job, Status.FAILED))
    assert jobs.get(job.id).message == "The training failed (no kernel); see its log.txt."
    assert "Traceback" in (job.folder / "log.txt").read_text()
    dispatcher.close()

    absent = submit(jobs)
    make_dispatcher(command=("/no/such/program",)).tick()
    record = jobs.get(absent.id)
    assert record.status is Status.FAILED
    assert record.message.startswith("The job could not be started: No such file or directory")


@pytest.mark.parametrize("device", ["gpu", "cuda:2"])
def test_a_missing_device_is_reported(
    device: str, make_dispatcher: MakeDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with pytest.raises(LoLDUError, match=f"There is no device {device}"):
        make_dispatcher((device,))
