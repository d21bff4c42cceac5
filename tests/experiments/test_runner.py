"""The runner with real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from experiments import results as results_module
from experiments import runner
from experiments.__main__ import main
from experiments.config import FOLDER, Experiment
from experiments.outcome import Outcome
from experiments.results import Results
from experiments.runner import jobs_of, run_missing
from loldu.errors import LoLDUError
from tests.experiments.results import write_many, write_result


class Inline:
    """A process pool that runs everything in this process."""

    def __init__(self, *_: object) -> None:
        pass

    def submit(self, function, *arguments):  # noqa: ANN001, ANN002, ANN201
        from concurrent.futures import Future

        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_: object) -> None:
        pass


@pytest.fixture
def performed(
    sample: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, str, int]]:
    """Record the performed runs; those of seed 1 on `two` fail."""
    calls: list[tuple[str, str, int]] = []

    def perform(kind: str, run, work: Path) -> Outcome:  # noqa: ANN001
        calls.append((run.row, run.data, run.seed))
        work.mkdir(parents=True)
        if (run.data, run.seed) == ("two", 1):
            raise LoLDUError("The disk is full.")
        return Outcome(score=10.0, scores={"accuracy": 10.0}, parameters=3)

    monkeypatch.setattr(runner, "perform", perform)
    monkeypatch.setattr(runner, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(runner, "WORK", tmp_path / "work")
    return calls


def test_only_missing_results_are_made(
    sample: Experiment,
    performed: list[tuple[str, str, int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = Results(tmp_path / "results")
    jobs = jobs_of([sample], "pocket", [], [])
    assert len(jobs) == 8  # three rows by two datasets by two seeds, one row twice
    write_result(tmp_path / "results", jobs[0][1], 5.0)
    failed = run_missing(jobs, results, processes=2, again=False)
    assert failed == 2
    assert len(performed) == 7
    assert "better on two, seed 1 failed: The disk is full." in capsys.readouterr().err
    record = results.read(jobs[1][1])
    assert record is not None
    assert record["score"] == 10.0
    assert {"commit", "versions", "machine", "settings", "parameters"} <= set(record)

    performed.clear()
    assert run_missing(jobs, results, processes=1, again=False) == 2
    assert len(performed) == 2  # those that failed, again
    # Work folders of failed runs are kept for a resume; those of finished runs are deleted.
    assert len(list((tmp_path / "work").rglob("two-1-*"))) == 2
    assert not list((tmp_path / "work").rglob("one-0-*"))


def test_a_run_with_other_settings_does_not_resume(
    sample: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[str]] = []

    def perform(kind: str, run, work: Path) -> Outcome:  # noqa: ANN001
        work.mkdir(parents=True, exist_ok=True)
        found.append([file.name for file in work.iterdir()])
        (work / "checkpoint").touch()
        raise LoLDUError("Killed.")

    monkeypatch.setattr(runner, "perform", perform)
    monkeypatch.setattr(runner, "WORK", tmp_path)
    run = jobs_of([sample], "pocket", [], [])[0][1]
    other = replace(run, recipe=replace(run.recipe, learning_rate=9.0))
    here, there = Results(tmp_path / "results"), Results(tmp_path / "others")
    for one, results in ((run, here), (run, here), (other, here), (run, there), (run, here)):
        with pytest.raises(LoLDUError, match="Killed"):
            runner._perform("vision", one, results, [])
    assert found == [[], ["checkpoint"], [], [], ["checkpoint"]]
    with pytest.raises(LoLDUError, match="Killed"):
        runner._perform("vision", run, here, [], again=True)
    assert found[-1] == []


KILLED = """
import os, sys
from pathlib import Path
from experiments import results as results_module
from experiments import runner
from experiments.config import read_experiment
from experiments.outcome import Outcome
from experiments.results import Results
from experiments.runner import jobs_of, run_missing

def perform(kind, run, work):
    if (run.data, run.seed) == ("striped_cat", 1) and not Path("spared").exists():
        os.kill(os.getpid(), 9)
    return Outcome(score=1.0, scores={}, parameters=1)

runner.perform = perform
if __name__ == "__main__":
    jobs = jobs_of([read_experiment("personalization")], "pocket", ["loldu-r32"], [])
    failed = run_missing(jobs, Results(Path("results")), processes=1, again=False)
    print(failed, len(jobs))
"""


def test_the_queue_continues_after_a_killed_process(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(KILLED)

    def run() -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(tmp_path), str(FOLDER.parent)])
        return subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )

    def kept() -> int:
        return len((tmp_path / "results" / "personalization.jsonl").read_text().splitlines())

    first = run()
    failed, jobs = map(int, first.stdout.split())
    assert failed == 1
    assert (
        "personalization: loldu-r32 on striped_cat, seed 1 failed: a process was killed"
        in first.stderr
    )
    assert kept() == jobs - 1
    (tmp_path / "spared").touch()
    assert run().stdout.split()[0] == "0"
    assert kept() == jobs


@pytest.mark.parametrize(
    ("rows", "data", "message"),
    [(["plane"], [], "no row plane: choose from"), ([], ["three"], "no dataset three")],
)
def test_unknown_parts_are_reported(
    sample: Experiment, rows: list[str], data: list[str], message: str
) -> None:
    with pytest.raises(LoLDUError, match=message):
        jobs_of([sample], "pocket", rows, data)


def test_unknown_method_is_reported(sample: Experiment) -> None:
    object.__setattr__(sample.row("better"), "method", "lodlu")
    with pytest.raises(LoLDUError, match="no method lodlu; perhaps you meant loldu"):
        jobs_of([sample], "pocket", [], [])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "gleu"], "no experiment gleu; perhaps you meant"),
        (["table", "x"], "choose from"),
        (["run", "personalization", "--rows", "nobody"], "no row nobody"),
        (["run", "--processes", "0"], "--processes must be 1 or more, not 0"),
    ],
)
def test_the_command_reports_mistakes(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_outside_a_checkout_results_need_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results_module, "SHIPPED", tmp_path / "none")
    assert main(["table", "vision"]) == 2
    error = capsys.readouterr().err
    assert "come with a checkout" in error
    assert error.count("\n") == 1
    assert main(["table", "vision", "--results", str(tmp_path)]) == 0
    assert "Not run." in capsys.readouterr().out


def test_help_imports_no_library_of_models() -> None:
    """`--help` must answer in under a second."""
    code = (
        "import sys, experiments.__main__ as command\n"
        "try: command.main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_several_processes_write_into_one_file(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        list(pool.map(write_many, [str(tmp_path)] * 3, ["a", "b", "c"]))
    records = [json.loads(line) for line in (tmp_path / "sample.jsonl").read_text().splitlines()]
    keys = [(record["row"], record["seed"]) for record in records]
    assert keys == [(row, seed) for row in "abc" for seed in range(20)]


def test_a_killed_write_leaves_the_old_result(
    sample: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = jobs_of([sample], "pocket", [], [])[0][1]
    results = Results(tmp_path)
    results.write(run, Outcome(score=1 / 3, scores={}, parameters=1), ["run"])
    assert json.loads(results.file("sample").read_text())["score"] == 0.333333
    assert [file.name for file in tmp_path.glob("*.json*")] == ["sample.jsonl"]
    monkeypatch.setattr(Path, "replace", lambda *_: pytest.fail("Killed."))
    with pytest.raises(pytest.fail.Exception, match="Killed"):
        results.write(run, Outcome(score=9.0, scores={}, parameters=1), ["run"])
    assert json.loads(results.file("sample").read_text())["score"] == 0.333333


def test_workers_end_with_a_killed_command(tmp_path: Path) -> None:
    """Workers of a killed command end."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(300):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("The worker goes on without its parent.")


PARENT = """
import os
import time

from experiments import results as results_module
from experiments import runner

if __name__ == "__main__":
    with runner._pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""
