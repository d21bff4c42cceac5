"""Logging to TensorBoard and Weights & Biases."""

import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from trainer.__main__ import run
from trainer.training import tracking

VALIDATION = ["--validation_prompt", "sks", "--validation_steps", "2"]


def test_tensorboard_gets_metrics_and_sheets(flags: list[str], tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flags = [*flags, *VALIDATION, "--report_to", "tensorboard", "--checkpointing_steps", "2"]
    assert run([*flags, "--max_train_steps", "3"]) == 0
    assert run([*flags, "--resume", "latest"]) == 0  # takes step 3 again
    folder = tmp_path / "run"
    written = events.EventAccumulator(str(folder / "tracking" / "tensorboard"))
    written.Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    tags = written.Tags()
    assert {*tags["scalars"], "step"} == lines[0].keys()
    for tag in tags["scalars"]:
        scalars = written.Scalars(tag)
        assert [event.step for event in scalars] == [1, 2, 3, 4]
        assert [event.value for event in scalars] == pytest.approx([line[tag] for line in lines])
    assert tags["images"] == ["validation"]
    last = written.Images("validation")[-1]
    with Image.open(folder / "validation" / "000004.png") as sheet:
        assert (last.step, last.width, last.height) == (4, *sheet.size)


def test_a_missing_library_gives_one_clear_error(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(tracking, "version", version)
    assert run([*flags, "--report_to", "wandb"]) == 2
    assert capsys.readouterr().err == (
        "--report_to wandb needs the library wandb, which is not installed: pip install wandb, or "
        "leave the option out.\n"
    )


def no_key(*_: object, **__: object) -> None:
    raise RuntimeError("No API key configured.\nMore about it")


def test_a_failed_login_gives_one_clear_error_before_anything_is_written(
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking, "version", lambda name: "1.0")
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(login=no_key))
    assert run([*flags, "--report_to", "wandb"]) == 2
    error = capsys.readouterr().err
    assert error == "--report_to wandb does not start: No API key configured.\n"
    assert not (tmp_path / "run").exists()


def test_a_failed_tracker_gives_one_clear_error(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logins: list[dict[str, bool]] = []
    known = SimpleNamespace(login=lambda **options: logins.append(options))
    monkeypatch.setattr(tracking, "version", lambda name: "1.0")
    monkeypatch.setitem(sys.modules, "wandb", known)
    monkeypatch.setattr(tracking.WandBTracker, "start", no_key)
    assert run([*flags, "--report_to", "wandb"]) == 2
    error = capsys.readouterr().err
    assert error.endswith("\n--report_to wandb does not start: No API key configured.\n")
    assert logins == [{"verify": True}]
