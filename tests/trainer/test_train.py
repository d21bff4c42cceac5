"""The command from end to end, on a tiny base."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from loldu import load_concept, read_concept
from loldu.base.config import BaseModelConfig
from loldu.base.open import load_pipeline
from trainer.__main__ import run
from trainer.methods.trained import Trained
from trainer.options.preset import parse
from trainer.training.cache import build_cache
from trainer.training.instances import find_instances
from trainer.training.objective import Denoiser, DreamBooth, Objective

ROOT = Path(__file__).resolve().parents[2]
PRIOR = ["--with_prior_preservation", "--class_prompt", "a toy", "--num_class_images", "2"]


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def deltas(path: Path) -> torch.Tensor:
    return torch.cat([layer.delta for layer in read_concept(path).layers])


def without(flags: list[str], flag: str) -> list[str]:
    index = flags.index(flag)
    return flags[:index] + flags[index + 2 :]


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_a_run_writes_all_documented_files(flags: list[str], output_dir: Path) -> None:
    validation = ["--validation_prompt", "sks", "a toy", "--validation_steps", "2"]
    checkpoints = ["--checkpointing_steps", "1", "--checkpoints_total_limit", "2"]
    assert run([*flags, *PRIOR, *validation, *checkpoints]) == 0
    summary = json.loads((output_dir / "summary.json").read_text())
    concept = read_concept(output_dir / "concept.safetensors")
    assert concept.metadata["instance_prompt"] == "a photo of sks toy"
    assert concept.metadata["steps"] == 4
    assert summary["concept_bytes"] == (output_dir / "concept.safetensors").stat().st_size
    assert summary["trainable_parameters"] == len(concept.layers) * (4 + 1)
    assert summary["train_steps"] == 4
    assert summary["train_seconds"] > 0
    assert summary["peak_memory_mib"] > 0
    metrics = lines(output_dir / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    for line in metrics:
        assert line["loss"] == pytest.approx(line["instance_loss"] + line["prior_loss"])
        assert line["lr"] == 1e-2
        assert line["delta_norm"] > 0
        assert 0 < line["peak_memory_mib"] <= summary["peak_memory_mib"]
    assert sorted(path.name for path in output_dir.glob("checkpoint-*")) == [
        "checkpoint-000003",
        "checkpoint-000004",
    ]
    config = (output_dir / "config.toml").read_text()
    assert tomllib.loads(config)["adapter"]["rank"] == 4
    assert (output_dir / "checkpoint-000003" / "config.toml").read_text() == config
    sheets = sorted(path.name for path in (output_dir / "validation").glob("*.png"))
    assert sheets == ["000000.png", "000002.png", "000004.png", "progress.png"]
    assert not list(output_dir.rglob("*.tmp"))
    assert " in A1111 --no-half." in (output_dir / "README.md").read_text()
    assert not (output_dir / "control").exists()
    assert not (output_dir / "tracking").exists()


@pytest.mark.parametrize("method", ["loldu", "svfit"])
def test_training_lowers_the_loss_on_noise_it_has_not_seen(
    method: str, flags: list[str], output_dir: Path, base_folder: Path
) -> None:
    more = ["--max_train_steps", "40", "--train_batch_size", "4", "--rank", "full"]
    argv = [*flags, *more, "--method", method]
    assert run(argv) == 0
    config = parse(argv)
    pipeline = load_pipeline(str(base_folder))
    images = find_instances(config.instance)
    cache = build_cache(pipeline, images, [], config.instance, seed=0)
    concept = DreamBooth(pipeline, cache, config)
    objective = Objective([concept], Trained(("default",), {}), config)
    denoiser = Denoiser(pipeline)

    def loss() -> float:
        with torch.no_grad():
            losses = [
                objective.losses(denoiser, objective.draw(index))[0].total
                for index in range(1000, 1010)
            ]
        return torch.stack(losses).mean().item()

    before = loss()
    load_concept(pipeline, output_dir / "concept.safetensors")
    assert loss() < 0.95 * before


@pytest.mark.parametrize("method", ["loldu", "lora"])
def test_only_the_adapter_changes(
    method: str, flags: list[str], base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipelines = []

    def keep(base: BaseModelConfig, **options: Any) -> DiffusionPipeline:  # noqa: ANN401
        pipelines.append(load_pipeline(base, **options))
        return pipelines[-1]

    monkeypatch.setattr("trainer.training.base.load_pipeline", keep)
    assert run([*flags, "--method", method]) == 0
    fresh = load_pipeline(str(base_folder))
    for part in ("unet", "vae", "text_encoder"):
        trained = {
            name.replace(".base_layer", ""): parameter
            for name, parameter in getattr(pipelines[0], part).named_parameters()
        }
        for name, parameter in getattr(fresh, part).named_parameters():
            assert torch.equal(trained[name], parameter), name


def test_accumulation_and_projection(flags: list[str], output_dir: Path) -> None:
    more = ["--gradient_accumulation_steps", "2", "--max_delta_norm", "1e-3"]
    assert run([*flags, *more]) == 0
    norms = [line["delta_norm"] for line in lines(output_dir / "metrics.jsonl")]
    layers = len(read_concept(output_dir / "concept.safetensors").layers)
    assert max(norms) <= 1e-3 * layers**0.5 * (1 + 1e-4)


def test_bf16(flags: list[str], output_dir: Path) -> None:
    more = ["--mixed_precision", "bf16", "--prior_target", "base"]
    assert run([*flags, *PRIOR, *more]) == 0
    first, *_, last = lines(output_dir / "metrics.jsonl")
    assert first["prior_loss"] == 0
    assert last["prior_loss"] > 0
    assert deltas(output_dir / "concept.safetensors").abs().max() > 0


def test_killed_and_resumed_is_bit_identical(flags: list[str], tmp_path: Path) -> None:
    """A process killed by SIGKILL and resumed, against one that ran undisturbed."""
    common = [
        *without(flags, "--output_dir"),
        *("--max_train_steps", "50", "--random_flip", "--lr_scheduler", "cosine"),
        *("--checkpointing_steps", "3", "--logging_steps", "10"),
        *PRIOR,
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run([*common, "--output_dir", str(whole)]) == 0
    with subprocess.Popen(
        [sys.executable, "-m", "trainer", *common, "--output_dir", str(killed)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and not list(killed.glob("checkpoint-*")):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "concept.safetensors").exists()
    half = killed / ".loldu" / ".loldu-0123456789abcdef.draft"  # as if it came during a save
    half.mkdir()
    (half / "trained.safetensors").write_bytes(b"half")
    (killed / "checkpoint-000049").mkdir()  # an earlier version was killed while it deleted that
    assert run([*common, "--output_dir", str(killed), "--resume", "latest"]) == 0
    assert torch.equal(
        deltas(whole / "concept.safetensors"), deltas(killed / "concept.safetensors")
    )
    assert [line["step"] for line in lines(killed / "metrics.jsonl")] == list(range(10, 51, 10))
    assert not half.exists()
    assert not (killed / "checkpoint-000049").exists()


@pytest.mark.parametrize("method", ["svfit", "lora"])
def test_resuming_from_a_path_is_bit_identical(
    method: str, flags: list[str], tmp_path: Path
) -> None:
    common = [*without(flags, "--output_dir"), "--method", method, "--checkpointing_steps", "2"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run([*common, "--output_dir", str(whole)]) == 0
    checkpoint = str(whole / "checkpoint-000002")
    assert run([*common, "--output_dir", str(resumed), "--resume", checkpoint]) == 0
    names = ["checkpoint-000004/trained.safetensors"]
    for name in names:
        ours, theirs = load_file(whole / name), load_file(resumed / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_latest_without_a_checkpoint_starts_anew(flags: list[str], output_dir: Path) -> None:
    assert run([*flags, "--resume", "latest"]) == 0
    assert (output_dir / "concept.safetensors").exists()


def test_the_folder_of_another_run_is_not_changed(
    flags: list[str], output_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*flags, "--max_train_steps", "1"]) == 0
    before = (output_dir / "concept.safetensors").read_bytes()
    (output_dir / "mine.txt").write_text("a person's own file")
    capsys.readouterr()
    assert run(flags) == 2
    error = capsys.readouterr().err
    assert "holds another run; replace it with --overwrite, or name another folder" in error
    assert error.count("\n") == 1
    assert run([*flags, "--resume", "latest"]) == 2  # finished, and without a checkpoint
    assert (output_dir / "concept.safetensors").read_bytes() == before
    assert run([*flags, "--overwrite"]) == 0
    assert (output_dir / "concept.safetensors").read_bytes() != before
    assert (output_dir / "mine.txt").read_text() == "a person's own file"


def test_resume_refuses_options_that_change_the_run(
    flags: list[str], output_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*flags, "--checkpointing_steps", "2"]) == 0
    capsys.readouterr()
    assert run(flags) == 2
    assert "continue it with --resume latest, replace it with --overwr" in capsys.readouterr().err
    for more, message in (
        (["--resume", "latest", "--seed", "7"], "--seed is 7 but was 42"),
        (["--resume", "latest", "--guidance_scale", "2"], "--guidance_scale is 2.0 but was 7.5"),
        (["--resume", str(output_dir / "nowhere")], "is not a checkpoint folder"),
    ):
        capsys.readouterr()
        assert run([*flags, *more]) == 2
        assert message in capsys.readouterr().err
    state = output_dir / "checkpoint-000004" / "optimizer.pt"
    state.write_bytes(state.read_bytes()[:100])
    capsys.readouterr()
    assert run([*flags, "--resume", "latest"]) == 2
    error = capsys.readouterr().err
    assert f"{state} would be replaced or deleted, but this trainer did not write it, or" in error
    elsewhere = ["--output_dir", f"{output_dir}-2", "--resume", str(state.parent)]
    assert run([*flags, *elsewhere]) == 2
    assert "checkpoint-000004 is damaged; delete it" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["The base", "A picture or caption"])
def test_resume_notices_changed_pictures_and_bases(
    changed: str,
    flags: list[str],
    pictures: Path,
    base_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([*flags, "--checkpointing_steps", "2"]) == 0
    if changed == "The base":
        other = load_pipeline(str(base_folder))
        other.vae.post_quant_conv.weight.data += 0.01
        other.save_pretrained(tmp_path / "other")
        flags = [*flags, "--pretrained_model_name_or_path", str(tmp_path / "other")]
    else:
        (pictures / "a.txt").write_text("another caption")
    capsys.readouterr()
    assert run([*flags, "--resume", "latest"]) == 2
    error = capsys.readouterr().err
    assert f"{changed} has changed since" in error
    assert "checkpoint-000004 was made; resume with what it was" in error


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--instance_data_dir", "nowhere", "There is no folder nowhere"),
        ("--pretrained_model_name_or_path", "./nowhere", "./nowhere does not exist"),
        ("--target_modules", "query", "--target_modules query matches no layer"),
        pytest.param(
            "--mixed_precision",
            "fp16",
            "fp16 needs a CUDA GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_a_mistake_gives_one_clear_error_and_exit_status_2(
    flag: str,
    value: str,
    message: str,
    flags: list[str],
    output_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([*flags, flag, value]) == 2
    error = capsys.readouterr().err.split("These pictures look fine.\n")[-1]
    assert message in error
    assert "Traceback" not in error
    assert error.count("\n") == 1
    assert not (output_dir / "config.toml").exists()


def test_a_folder_that_cannot_be_created_gives_one_clear_error(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert run([*flags, "--output_dir", str(tmp_path / "file" / "run")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"{tmp_path}/file/run cannot be read or written: Not a directory."


def test_the_script_runs_by_its_path(tmp_path: Path) -> None:
    script = ROOT / "trainer" / "train_dreambooth_loldu.py"
    finished = subprocess.run(
        [sys.executable, str(script), "--instance_data_dir", "nowhere", "--output_dir", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 2
    # Quantization libraries write lines of their own whenever they are installed.
    last = finished.stderr.splitlines()[-1]
    assert last == "There is no folder nowhere; give one with the pictures."
