"""The folder of a run: what is somebody else's stays, and no two runs share one."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from loldu.errors import LoLDUError
from trainer.__main__ import run
from trainer.options.config import Config
from trainer.results.lock import locked
from trainer.results.manifest import Manifest
from trainer.results.output_dir import open_output_dir, refuse_another_run

FAST = ["--max_train_steps", "2", "--no_sample_at_end", "--lora_file", "no"]


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("a person's own")


@pytest.mark.parametrize(
    "name",
    [
        *("config.toml", "metrics.jsonl", "summary.json", "README.md", "validation.jsonl"),
        *("concept.safetensors", "pytorch_lora_weights.safetensors", "pipeline/unet/config.json"),
        *("validation/000200.png", "validation/pictures/base-00.png", "samples/0-base.png"),
        *("best/model.bin", "checkpoint-000500/pytorch_model.bin", "validation", "control"),
    ],
)
def test_a_file_of_somebody_else_in_the_way_is_refused(
    name: str, flags: list[str], output_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(output_dir, name, "notes.txt")
    before = tree(output_dir)
    for more in (["--resume", "latest"], ["--overwrite"], []):
        assert run([*flags, *FAST, *more]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"{output_dir / name} would be replaced or deleted, but this trainer" in error
        assert error.endswith("move it away, or name another --output_dir.")
        assert tree(output_dir) == before


def test_files_of_somebody_else_stay_through_a_run_and_the_next(
    flags: list[str], output_dir: Path
) -> None:
    names = ["checkpoint-500/pytorch_model.bin", "checkpoint-final.zip", "validation/holiday.png"]
    names += ["samples/mine.png", "concepts/cat.safetensors", "concepts/cat/config.toml"]
    names += ["checkpoint-old/state.json", "tracking/mine", ".best.tmp/scores.json", "best.txt"]
    put(output_dir, *names)
    for more in (["--resume", "latest"], ["--overwrite", "--checkpointing_steps", "1"]):
        assert run([*flags, *FAST, *more]) == 0
    put(output_dir, "checkpoint-000001/notes.txt")
    assert run([*flags, *FAST, "--overwrite"]) == 2
    shutil.rmtree(output_dir / "checkpoint-000001")
    assert run([*flags, *FAST, "--overwrite", "--checkpointing_steps", "0"]) == 0
    assert not list(output_dir.glob("checkpoint-00*"))
    found = tree(output_dir)
    assert {found[name] for name in names} == {b"a person's own"}


def test_a_changed_file_is_refused_and_a_longer_log_is_not(
    make_config: Callable[..., Config], output_dir: Path
) -> None:
    config = make_config("--overwrite")
    concepts = {"default": config}
    open_output_dir(config, concepts, None, 0)
    log, manifest = output_dir / "metrics.jsonl", Manifest(output_dir)
    for step in range(3):
        manifest.append(log, json.dumps({"step": step}) + "\n")
    with log.open("ab") as file:
        file.write(b'{"step": 3, "lo')  # a kill cut it short
    refuse_another_run(config, concepts, None)
    with log.open("ab") as file:
        file.write(b"my notes\nmore notes\n")
    with pytest.raises(LoLDUError, match=r"metrics\.jsonl would be replaced"):
        refuse_another_run(config, concepts, None)
    log.unlink()
    link = output_dir / "elsewhere"
    (output_dir / "config.toml").rename(link)
    (output_dir / "config.toml").symlink_to(link)
    with pytest.raises(LoLDUError, match=r"config\.toml would be replaced"):
        refuse_another_run(config, concepts, None)


def test_a_manifest_cannot_reach_out_of_its_folder(output_dir: Path, tmp_path: Path) -> None:
    manifest = Manifest(output_dir)
    manifest.write(output_dir / "config.toml", "x")
    put(tmp_path, "mine.txt")
    manifest.adopt([output_dir / "config.toml"])
    record = output_dir / ".loldu" / "written.jsonl"
    record.write_text(record.read_text().replace('"config.toml"', '"../mine.txt"'))
    manifest.clear()
    assert (tmp_path / "mine.txt").exists()


# ------------------------------------------------------------------------------------- the lock


def test_a_second_run_is_refused(
    flags: list[str], output_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(output_dir):
        for more in ([], ["--overwrite"], ["--resume", "latest"]):
            assert run([*flags, *FAST, *more]) == 2
            error = capsys.readouterr().err.splitlines()[-1]
            assert f"Another training (process {os.getpid()}) is writing into --output_" in error
    assert not output_dir.exists()  # nothing was written


@pytest.mark.skipif(sys.platform == "win32", reason="it forks")
def test_a_killed_process_frees_its_lock(output_dir: Path) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        with locked(output_dir):
            os.write(writer, b"x")
            signal.pause()
    os.read(reader, 1)
    with pytest.raises(LoLDUError, match=f"process {pid}"), locked(output_dir):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with locked(output_dir):
        pass


# -------------------------------------------------------------------- going back, older versions


def test_going_back_keeps_the_later_checkpoints_under_another_name(
    flags: list[str],
    output_dir: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    every = [*flags, "--no_sample_at_end", "--lora_file", "no", "--checkpointing_steps", "1"]
    assert run(every) == 0
    before = tree(output_dir)
    for number, end in ((1, ""), (2, "-2")):
        back = ["--resume", str(output_dir / "checkpoint-000002")]
        back += ["--checkpoints_total_limit", "3"] if number == 2 else []
        caplog.clear()
        assert run([*every, *back]) == 0
        kept = output_dir / f"later-checkpoint-000003{end}"
        line = f"{output_dir / 'checkpoint-000003'} is kept as {kept.name}."
        assert f"Going back to step 2: {line}" in caplog.text
        optimizer = before["checkpoint-000003/optimizer.pt"]
        assert (kept / "optimizer.pt").read_bytes() == optimizer
        assert (output_dir / "checkpoint-000003" / "optimizer.pt").read_bytes() == optimizer
    assert sorted(path.name for path in output_dir.glob("checkpoint-*")) == [
        f"checkpoint-00000{step}" for step in (2, 3, 4)
    ]
    capsys.readouterr()
    for more in (["latest"], [str(output_dir / "later-checkpoint-000003")]):
        assert run([*every, "--max_train_steps", "2", "--resume", *more]) == 2
        assert "beyond --max_train_steps 2; name an earlier" in capsys.readouterr().err
    assert run([*every, "--overwrite", "--max_train_steps", "1"]) == 0
    assert not list(output_dir.glob("later-*"))


def test_a_folder_of_an_earlier_version_goes_on(
    flags: list[str],
    output_dir: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    drawn = ["--validation_prompt", "sks", "--validation_steps", "2", "--no_sample_at_end"]
    every = [*flags, *drawn, "--checkpointing_steps", "2"]
    assert run(every) == 0
    expected = tree(output_dir)
    for name in (".checkpoint-000003.tmp/optimizer.pt", ".concept.safetensors.123.tmp"):
        put(output_dir, name)
    shutil.rmtree(output_dir / ".loldu")
    put(output_dir, "checkpoint-000004/theirs.bin")
    assert run([*every, "--resume", "latest"]) == 2
    assert "checkpoint-000004/theirs.bin would be replaced" in capsys.readouterr().err
    (output_dir / "checkpoint-000004/theirs.bin").unlink()
    assert run([*every, "--resume", "latest"]) == 0
    assert f"An earlier version wrote {output_dir}: its" in caplog.text
    found = tree(output_dir)
    names = {name for name in expected if not name.startswith(".loldu/written")}
    assert {name for name in found if not name.startswith(".loldu/written")} == names
    for path in [output_dir / ".loldu", *output_dir.glob("checkpoint-*")]:
        shutil.rmtree(path)
    assert run([*every, "--overwrite", "--max_train_steps", "1", "--lora_file", "no"]) == 0
    assert not (output_dir / "pytorch_lora_weights.safetensors").exists()
    assert not (output_dir / "validation" / "000004.png").exists()


# ---------------------------------------------------------------------------------- a full disk


def test_a_save_that_cannot_fit_is_not_begun(
    flags: list[str],
    output_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    free = SimpleNamespace(free=2**20 + 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    assert run([*flags, *FAST, "--checkpointing_steps", "1"]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"There is no room for {output_dir / 'checkpoint-000001'}: it needs 1 M"
    )
    assert error.endswith("continue from the checkpoint before with --resume latest.")
    assert {path.name for path in (output_dir / ".loldu").iterdir()} == {"lock", "written.jsonl"}


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize(
    ("limit", "file"), [(1000, "config.toml"), (18_000, "checkpoint-000001"), (40_000, "checkpo")]
)
def test_a_write_that_fails_is_one_sentence_and_leaves_no_draft(
    limit: int, file: str, flags: list[str], output_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The system refuses larger files, as it does on a full disk: safetensors', then torch's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        status = run([*flags, *FAST, "--checkpointing_steps", "1"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    assert status == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert str(output_dir / file) in error
    assert "--resume latest" in error
    assert "inline_container" not in error
    assert not list(output_dir.rglob(".loldu-*"))
    assert not list(output_dir.glob("checkpoint-*"))


# ------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "locale", "message"),
    [
        (b"r\xc3\xa9n", "C", "cannot be read as UTF-8; start the command with LC_ALL=C.UTF-8"),
        (b"r\xff", "C.UTF-8", "cannot be read as UTF-8; rename the file or folder."),
    ],
)
def test_a_name_that_cannot_be_written_is_refused_at_the_start(
    name: bytes, locale: str, message: str, flags: list[str], tmp_path: Path
) -> None:
    at = flags.index("--output_dir") + 1
    argv = [*map(os.fsencode, flags[:at]), os.fsencode(tmp_path) + b"/" + name, *flags[at + 1 :]]
    finished = subprocess.run(
        [sys.executable, "-m", "trainer", *argv],
        env={**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert finished.returncode == 2
    assert message in finished.stderr.decode()
    assert finished.stderr.count(b"\n") == 1
