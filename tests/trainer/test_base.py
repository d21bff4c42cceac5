from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from trainer.base import fingerprint, load_pipeline
from trainer.errors import TrainerError


def test_the_base_is_frozen_and_keeps_its_noise_scheduler(base_folder: Path) -> None:
    pipeline = load_pipeline(str(base_folder), torch_dtype=torch.bfloat16)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.safety_checker is None
    assert (pipeline.unet.dtype, pipeline.text_encoder.dtype) == (torch.bfloat16,) * 2
    assert pipeline.vae.dtype == torch.float32
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_another_vae_takes_the_place_of_the_base_s(base_folder: Path, tmp_path: Path) -> None:
    vae = AutoencoderKL.from_pretrained(base_folder / "vae")
    with torch.no_grad():
        dict(vae.named_parameters())["decoder.conv_out.bias"].fill_(3)
    vae.save_pretrained(tmp_path / "vae")
    pipeline = load_pipeline(str(base_folder), vae=str(tmp_path / "vae"))
    bias = dict(pipeline.vae.named_parameters())["decoder.conv_out.bias"]
    torch.testing.assert_close(bias.detach(), torch.full((3,), 3.0))
    assert fingerprint(pipeline) != fingerprint(load_pipeline(str(base_folder)))


def test_a_base_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"x")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "folder").mkdir()
    for name, message in {
        "nowhere": "does not exist",
        "folder": "is not a diffusers folder: it has no model_index.json",
        "model.ckpt": "not a .safetensors checkpoint",
        "broken.safetensors": "cannot be read",
    }.items():
        with pytest.raises(TrainerError, match=message) as error:
            load_pipeline(str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_a_folder_with_a_missing_part_is_one_sentence(base_folder: Path, tmp_path: Path) -> None:
    index = (base_folder / "model_index.json").read_text()
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(TrainerError, match="cannot be read") as error:
        load_pipeline(str(tmp_path))
    assert "\n" not in str(error.value)


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        TrainerError, match="the hub does not give it: check the name, the connection"
    ) as error:
        load_pipeline("nobody/no-such-base")
    assert "\n" not in str(error.value)
