"""Reading a run while it is written."""

import dataclasses
import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from loldu.errors import LoLDUError
from webui.engine.dispatcher import Dispatcher
from webui.engine.job import Status
from webui.engine.jobs import Jobs
from webui.engine.options import GONE, asked
from webui.engine.progress import RunReader
from webui.teaching.estimate import estimated_seconds
from webui.watching.charts import charts, table_of_step
from webui.watching.text import headline
from webui.watching.watcher import allowed

MINIMAL = {"pretrained_model_name_or_path": "base", "resolution": 64, "max_train_steps": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "options.toml").write_text("[optimization]\nmax_train_steps = 100\n")
    return tmp_path


def line(step: int, seconds: float = 0.0) -> str:
    record = {"step": step, "loss": step / 8, "seconds": seconds, "peak_memory_mib": 512.5 + step}
    return json.dumps(record) + "\n"


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def replace(path: Path, text: str) -> None:
    """Write a file under another name and rename it, like the trainer."""
    (path.parent / "new").write_text(text)
    (path.parent / "new").replace(path)


def test_a_run_without_files_yet(folder: Path) -> None:
    progress = RunReader(folder).read()
    assert (progress.step, progress.steps, progress.losses) == (0, 100, ())
    assert progress.seconds_left is progress.steps_per_s is progress.memory_mib is None
    assert not progress.pictures
    assert not progress.checkpoints
    assert progress.last_line == ""


def test_metrics_grow_line_by_line(folder: Path) -> None:
    metrics, reader = folder / "metrics.jsonl", RunReader(folder)
    append(metrics, line(10, 20.0))
    progress = reader.read()
    assert progress.losses == ((10, 1.25),)
    assert progress.steps_per_s == pytest.approx(0.5)
    assert progress.seconds_left == pytest.approx(180)
    assert progress.memory_mib == 522.5
    half = line(20, 25.0)
    append(metrics, half[:17])
    assert reader.read() == progress
    append(metrics, half[17:] + line(30, 30.0))
    progress = reader.read()
    assert [step for step, _ in progress.losses] == [10, 20, 30]
    assert progress.step == 30
    assert progress.steps_per_s == pytest.approx(2)  # since step 10: loading counts once
    assert progress.seconds_left == pytest.approx(35)


def test_the_speed_comes_from_the_last_lines(folder: Path) -> None:
    append(folder / "metrics.jsonl", "".join(line(step, step * 10.0) for step in range(1, 31)))
    append(folder / "metrics.jsonl", "".join(line(30 + n, 300 + n) for n in range(1, 11)))
    assert RunReader(folder).read().steps_per_s == pytest.approx(1)


def test_only_new_lines_are_read(folder: Path) -> None:
    metrics, reader = folder / "metrics.jsonl", RunReader(folder)
    append(metrics, line(10) + line(20))
    before = reader.read()
    with metrics.open("r+") as file:  # in place, and as long
        file.write("x" * len(line(10)))
    append(metrics, line(30))
    assert reader.read().losses == (*before.losses, (30, 3.75))


def test_a_resumed_run_takes_steps_back(folder: Path) -> None:
    metrics, reader = folder / "metrics.jsonl", RunReader(folder)
    append(metrics, line(10) + line(20) + line(30) + line(40)[:9])
    assert reader.read().step == 30
    replace(metrics, line(10))
    append(metrics, line(12) + line(14) + line(16) + line(18) + line(20))
    assert [step for step, _ in reader.read().losses] == [10, 12, 14, 16, 18, 20]
    replace(metrics, "")
    assert reader.read().losses == ()


def test_scores_pictures_and_checkpoints_by_step(folder: Path) -> None:
    reader = RunReader(folder)
    replace(folder / "validation.jsonl", '{"step": 0, "dino": 0.1}\n{"step": 50, "dino": 0.5}\n')
    pictures = folder / "validation" / "pictures"
    pictures.mkdir(parents=True)
    names = ["base-00", "base-01", "000050-00", "000050-01", "000005-00", ".000060-00.png.7.tmp"]
    for name in [*names, "notes"]:
        (pictures / f"{name}.png").touch()
    for name in ("checkpoint-000050", "checkpoint-1000000", ".checkpoint-000060.tmp"):
        (folder / name).mkdir()
        (folder / name / "state.json").touch()
    (folder / "checkpoint-000070").mkdir()  # half removed
    progress = reader.read()
    assert progress.scores == {0: {"dino": 0.1}, 50: {"dino": 0.5}}
    assert [path.name for path in progress.base_pictures] == ["base-00.png", "base-01.png"]
    assert {step: [path.name for path in paths] for step, paths in progress.pictures.items()} == {
        5: ["000005-00.png"],
        50: ["000050-00.png", "000050-01.png"],
    }
    assert progress.checkpoints == {
        50: folder / "checkpoint-000050",
        1000000: folder / "checkpoint-1000000",
    }


@pytest.mark.parametrize(
    ("log", "last"),
    [
        ("Loading\nstep 1/9, ‖delta_W‖ 3\n\n", "step 1/9, ‖delta_W‖ 3"),
        ("download:  10%\rdownload:  90%\r", "download:  90%"),
        ("é" * 10_000 + "\nlast", "last"),
        ("", ""),
    ],
)
def test_the_last_line_of_the_log(log: str, last: str, folder: Path) -> None:
    (folder / "log.txt").write_text(log, newline="")
    assert RunReader(folder).read().last_line == last


def test_values_that_no_chart_can_show_are_left_out(folder: Path) -> None:
    append(folder / "metrics.jsonl", line(1, 1.0))
    for text in (
        *("3", "null", '"x"', "[]", "{", "[" * 100_000, '{"step": "2"}', '{"step": 1.5}', "{}"),
        *('{"step": NaN, "loss": 1}', '{"step": 1' + "0" * 400 + "}", '{"step": null}'),
        '{"step": 2, "loss": NaN, "seconds": "x", "peak_memory_mib": 1e999}',
        '{"step": 3, "loss": -1' + "0" * 400 + "}",
    ):
        append(folder / "metrics.jsonl", text + "\n")
    scores = '{"step": 2, "dino": "high", "clip_i": 0.5, "drift": Infinity, "clip_t": []}\n7\n{}\n'
    append(folder / "validation.jsonl", scores)
    progress = RunReader(folder).read()
    assert (progress.step, progress.losses, progress.memory_mib) == (3, ((1, 0.125),), None)
    assert progress.steps_per_s == pytest.approx(1)
    assert progress.scores == {2: {"clip_i": 0.5}}
    assert all(len(chart.curves) <= 2 for chart in charts(progress).values())
    assert "0.500" in table_of_step(progress.scores, 2)


@pytest.mark.parametrize(
    "content", ["no toml [", "max_train_steps = 'x'", "optimization = 5", f"max = {10**400}", None]
)
def test_damaged_files_of_a_job_are_of_this_job_alone(
    content: str | None, jobs: Jobs, dispatcher: Dispatcher
) -> None:
    options = {"instance_data_dir": "pictures", "instance_prompt": "a sks toy"}
    bad, good = (jobs.submit(name, "ann", options) for name in ("bad", "good"))
    assert jobs.begin(bad, "cpu")
    (bad.folder / "process.lock").write_text("1")
    (bad.folder / "ending.json").write_text('{"status": []}')
    if content is None:
        (bad.folder / "options.toml").unlink()
    else:
        (bad.folder / "options.toml").write_text(content)
    with suppress(LoLDUError):  # one sentence, and nothing else
        assert jobs.progress(bad.id).steps == 0
    assert asked(bad.folder).prompts in ((), ("",))
    finished = dataclasses.replace(bad, status=Status.FINISHED)
    assert estimated_seconds(MINIMAL, [finished], lambda *_: 1.0) > 0
    dispatcher.tick()
    assert jobs.get(bad.id).status is Status.INTERRUPTED
    assert jobs.get(good.id).status is Status.RUNNING


@pytest.mark.parametrize("scored", [True, False])
def test_a_training_without_the_models_of_its_scores_says_so(scored: bool, jobs: Jobs) -> None:
    options = {
        "instance_data_dir": "pictures",
        "instance_prompt": "a sks toy",
        "validation_prompt": ["a sks toy"],
        "validation_steps": 10,
        "validation_scores": scored,
    }
    job = jobs.submit("toy", "ann", options)
    assert "has no scores" not in headline(job, {}, "")
    written = (job.folder / "options.toml").read_text()
    for measured in (True, False):
        text = written.replace(f"validation_scores = {scored}".lower(), "validation_scores = false")
        (job.folder / "config.toml").write_text(written if measured else text)
        assert ("has no scores" in headline(job, {}, "")) == (scored and not measured)


@pytest.mark.parametrize("gone", ["", "options.toml"])
def test_a_job_without_its_files_can_be_removed_but_not_resumed(
    gone: str, jobs: Jobs, dispatcher: Dispatcher
) -> None:
    options = {"instance_data_dir": "pictures", "instance_prompt": "a sks toy"}
    job = jobs.submit("toy", "ann", options)
    assert jobs.begin(job, "cpu")
    if gone:
        (job.folder / gone).unlink()
        jobs.end(job, Status.STOPPED)
    else:
        shutil.rmtree(job.folder)  # while it trains
        dispatcher.tick()
        assert jobs.get(job.id).message == GONE
    ended = jobs.get(job.id)
    with pytest.raises(LoLDUError, match=r"^toy cannot be resumed\. Its folder is gone or damaged"):
        jobs.resume(job.id)
    assert GONE in headline(ended, {}, "")
    assert "remove" in allowed(ended)
    assert "resume" not in allowed(ended)
    jobs.remove(job.id)
    assert jobs.list() == ()


def test_a_folder_that_is_gone_before_the_start(jobs: Jobs, dispatcher: Dispatcher) -> None:
    options = {"instance_data_dir": "pictures", "instance_prompt": "a sks toy"}
    job = jobs.submit("toy", "ann", options)
    shutil.rmtree(job.folder)
    dispatcher.tick()
    assert (jobs.get(job.id).status, jobs.get(job.id).message) == (Status.FAILED, GONE)
