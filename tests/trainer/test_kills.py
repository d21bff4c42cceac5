"""A run that is killed at any moment goes on to the same bytes, and leaves nothing behind."""

import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.trainer.kills import check_twenty_kills, differences, never, start
from trainer.training import scores

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it forks")

LIFE = ["--checkpointing_steps", "1", "--checkpoints_total_limit", "1", "--max_train_steps", "2"]
LIFE += ["--validation_prompt", "a photo of sks toy", "--token", "sks", "--validation_steps", "1"]
LIFE += ["--validation_scores", "--validation_images", "1", "--keep_best", "dino"]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them takes longer than everything else."""
    monkeypatch.setattr(scores, "curves", lambda lines, by: Image.new("L", (len(lines), 1)))


def test_three_kills_at_the_worst_moments(flags: list[str], tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    assert start([*flags, *LIFE, "--output_dir", str(whole)], never)[0] == 0
    seen: list[str] = []

    def swapping(name: str, about: str) -> bool:
        """The old best has gone, and the new one still has the name of a draft."""
        seen.extend(["best"] if name == "replace" and about.endswith("/best") else [])
        return seen.count("best") == 2

    def pruning(name: str, about: str) -> bool:
        """One file of an old checkpoint has gone."""
        seen.extend([name] if "old" in seen and name == "unlink" else [])
        seen.extend(["old"] if name == "rename" and "checkpoint-000001" in about else [])
        return seen.count("unlink") == 2

    def writing_the_card(name: str, about: str) -> bool:
        return name == "replace" and about.endswith("README.md")

    again = [*flags, *LIFE, "--output_dir", str(folder), "--resume", "latest"]
    for die in (swapping, pruning, writing_the_card):
        assert start(again, die)[0] == -signal.SIGKILL
    assert start(again, never)[0] == 0
    assert differences(folder, whole) == []


def test_a_run_on_sdxl_that_is_killed_goes_on_to_the_same_bytes(
    flags: list[str], xl_folder: Path, tmp_path: Path
) -> None:
    more = ["--pretrained_model_name_or_path", str(xl_folder), "--train_text_encoder"]
    more += ["--checkpointing_steps", "1", "--max_train_steps", "3"]
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    assert start([*flags, *more, "--output_dir", str(whole)], never)[0] == 0
    again = [*flags, *more, "--output_dir", str(folder), "--resume", "latest"]

    def saving(name: str, about: str) -> bool:
        """The second checkpoint is still a draft."""
        return name == "replace" and about.endswith("checkpoint-000002")

    assert start(again, saving)[0] == -signal.SIGKILL
    assert (folder / "checkpoint-000001").is_dir()
    assert not (folder / "checkpoint-000002").exists()
    assert start(again, never)[0] == 0
    assert differences(folder, whole) == []


@pytest.mark.slow
def test_twenty_kills_over_a_run_s_life(flags: list[str], tmp_path: Path) -> None:
    check_twenty_kills([*flags, *LIFE], tmp_path)
