"""Peak memory, and passes of a UNet that run out of memory."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from loldu import read_concept
from loldu.errors import LoLDUError
from trainer.__main__ import run
from trainer.options.config import Config
from trainer.training import memory
from trainer.training.memory import out_of_memory_in_one_sentence, peak_memory_mib

CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.64 GiB of "
    "which 1.20 GiB is free. Including non-PyTorch memory, this process has 22.43 GiB memory in "
    "use."
)
NEEDED = "2.50 GiB more were asked for, 1.20 GiB of 23.64 GiB were free"
PRIOR = ["--with_prior_preservation", "--class_prompt", "a toy", "--num_class_images", "2"]
Limit = Callable[[Callable[[int, bool, int], bool]], list[int]]


@pytest.fixture
def limit_memory(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Make passes that keep activations fail at their end.

    The function gets the rows, whether they are checkpointed, and how many passes there were. What
    comes back is a list of the rows of each pass that is successful.
    """
    forward = UNet2DConditionModel.forward

    def install(fails: Callable[[int, bool, int], bool]) -> list[int]:
        passed: list[int] = []
        count = 0

        def limited(unet: UNet2DConditionModel, sample: torch.Tensor, *args: Any, **kwargs: Any):  # noqa: ANN202, ANN401
            nonlocal count
            output = forward(unet, sample, *args, **kwargs)
            if torch.is_grad_enabled():
                count += 1
                if fails(len(sample), unet.is_gradient_checkpointing, count):
                    raise torch.OutOfMemoryError(CUDA)
                passed.append(len(sample))
            return output

        monkeypatch.setattr(UNet2DConditionModel, "forward", limited)
        return passed

    return install


def deltas(folder: Path) -> torch.Tensor:
    return torch.cat([layer.delta for layer in read_concept(folder / "concept.safetensors").layers])


@pytest.mark.parametrize(
    ("most_rows", "more", "expected"),
    [
        pytest.param(4, [], [4, 3] * 2, marks=pytest.mark.slow),
        # Against the base, rows of the concept and of the class never pass together.
        (2, ["--prior_target", "base"], [2, 2, 2, 1] * 2),
        (1, [], [1] * 7 * 2),
    ],
)
def test_smaller_passes_give_the_same_training(
    most_rows: int,
    more: list[str],
    expected: list[int],
    flags: list[str],
    tmp_path: Path,
    limit_memory: Limit,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole, adapted = tmp_path / "whole", tmp_path / "adapted"
    rows = ["--train_batch_size", "4", "--prior_batch_size", "3"]
    common = [*flags, *PRIOR, *rows, "--snr_gamma", "5", "--max_train_steps", "2", *more]
    assert run([*common, "--output_dir", str(whole)]) == 0
    passed = limit_memory(lambda rows, checkpointed, _: rows > most_rows or not checkpointed)
    assert run([*common, "--output_dir", str(adapted), "--on_oom", "adapt"]) == 0
    assert passed[-len(expected) :] == expected
    torch.testing.assert_close(deltas(adapted), deltas(whole), rtol=1e-3, atol=1e-5)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings[0] == f"Out of memory ({NEEDED}); going on with gradient checkpointing."
    if most_rows == 1:
        assert [warning.partition("; ")[2] for warning in warnings[1:]] == [
            f"going on with {rows} of a batch's 7 rows at a time." for rows in (4, 2, 1)
        ]


@pytest.mark.parametrize("more", [[], ["--train_text_encoder"]], ids=["unet", "text_encoder"])
def test_a_step_that_fails_half_way_is_repeated_from_its_start(
    more: list[str], flags: list[str], tmp_path: Path, limit_memory: Limit
) -> None:
    whole, adapted = tmp_path / "whole", tmp_path / "adapted"
    common = [*flags, "--gradient_accumulation_steps", "3", *more]
    assert run([*common, "--output_dir", str(whole)]) == 0
    passed = limit_memory(lambda _, __, count: count == 5)  # the second pass of the second step
    assert run([*common, "--output_dir", str(adapted), "--on_oom", "adapt"]) == 0
    assert len(passed) == 4 * 3 + 1
    torch.testing.assert_close(deltas(adapted), deltas(whole), rtol=1e-3, atol=1e-5)
    first, second = ((folder / "metrics.jsonl").read_text() for folder in (whole, adapted))
    assert first.splitlines()[0].partition('"seconds"')[0] in second
    assert first.count("\n") == second.count("\n")


def test_the_last_rung_gives_one_clear_error(
    flags: list[str], limit_memory: Limit, capsys: pytest.CaptureFixture[str]
) -> None:
    passed = limit_memory(lambda *_: True)
    assert run([*flags, "--on_oom", "adapt"]) == 2
    assert not passed
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        last == f"Out of memory ({NEEDED}); try --mixed_precision bf16 or a smaller --resolution."
    )


def test_without_the_ladder_out_of_memory_gives_one_clear_error(
    flags: list[str], tmp_path: Path, limit_memory: Limit, capsys: pytest.CaptureFixture[str]
) -> None:
    limit_memory(lambda *_: True)
    assert run(flags) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"Out of memory ({NEEDED}); try --on_oom adapt or --gradient_checkpointing or a smaller "
        "--train_batch_size with more --gradient_accumulation_steps or --mixed_precision bf16 or "
        "a smaller --resolution."
    )
    assert not (tmp_path / "run" / "concept.safetensors").exists()


def test_main_memory_counts_too(make_config: Callable[..., Config]) -> None:
    with (
        pytest.raises(LoLDUError, match=r"Out of memory \(\d+\.\d\d GiB more were asked for"),
        out_of_memory_in_one_sentence(make_config()),
    ):
        torch.empty(2**46, dtype=torch.uint8)


def test_other_errors_are_not_taken_for_out_of_memory(
    flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:  # noqa: ANN401
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(UNet2DConditionModel, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run([*flags, "--on_oom", "adapt"])


def test_peak_memory_is_that_of_the_process_where_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ru_maxrss` survives exec: a small process of a large parent has the parent's."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "platform", "linux")
    usage = SimpleNamespace(ru_maxrss=9 * 2**10)
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    status = tmp_path / "status"
    monkeypatch.setattr(memory, "_STATUS", status)
    assert peak_memory_mib() == 9
    status.write_text("VmPeak:\t   99999 kB\nVmHWM:\t    3072 kB\nVmRSS:\t    2048 kB\n")
    assert peak_memory_mib() == 3
    status.write_text("Name:\tpython\n")  # not every system that has the file has the line
    assert peak_memory_mib() == 9
