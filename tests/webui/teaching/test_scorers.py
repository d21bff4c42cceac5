"""Models of scores that are missing, found before a training."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from webui.teaching.scorers import hub_answers, lacking

SCORED = {"validation_scores": True, "clip": "openai/clip", "dino": "timm:vit_small.dino"}


def test_a_model_that_is_neither_here_nor_on_a_reachable_hub_is_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert lacking(SCORED, lambda: True) == []
    assert lacking(SCORED, lambda: False) == ["CLIP", "DINO"]
    assert lacking({**SCORED, "validation_scores": False}, lambda: False) == []
    assert lacking({**SCORED, "clip": str(tmp_path)}, lambda: False) == ["DINO"]
    assert lacking({**SCORED, "dino": str(tmp_path / "gone")}, lambda: False) == ["CLIP", "DINO"]
    kept = tmp_path / "models--timm--vit_small.dino" / "snapshots" / "0123"
    kept.mkdir(parents=True)
    assert lacking(SCORED, lambda: False) == ["CLIP", "DINO"]  # a download that was cut short
    (kept / "model.safetensors").touch()
    assert lacking(SCORED, lambda: False) == ["CLIP"]
    assert lacking({"validation_scores": True}, lambda: False) == ["CLIP", "DINO"]  # the defaults


def test_an_offline_machine_does_not_ask_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("webui.teaching.scorers.get_session", pytest.fail)
    assert not hub_answers()
