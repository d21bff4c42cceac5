import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from loldu.base.alpha_schedule import min_snr_weights, training_noise_scheduler
from loldu.base.config import BaseModelConfig
from loldu.base.open import load_pipeline, weights_digest
from loldu.base.parts import _load_component
from loldu.base.stable_diffusion import embed
from loldu.errors import LoLDUError
from trainer.__main__ import run


def test_the_base_is_frozen_and_keeps_its_noise_scheduler(base_folder: Path) -> None:
    pipeline = load_pipeline(str(base_folder), torch_dtype=torch.bfloat16)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.safety_checker is None
    assert (pipeline.unet.dtype, pipeline.text_encoder.dtype) == (torch.bfloat16,) * 2
    assert pipeline.vae.dtype == torch.float32
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_another_vae_replaces_that_of_the_base(base_folder: Path, tmp_path: Path) -> None:
    vae = AutoencoderKL.from_pretrained(base_folder / "vae")
    with torch.no_grad():
        dict(vae.named_parameters())["decoder.conv_out.bias"].fill_(3)
    vae.save_pretrained(tmp_path / "vae")
    pipeline = load_pipeline(BaseModelConfig(str(base_folder), vae=str(tmp_path / "vae")))
    bias = dict(pipeline.vae.named_parameters())["decoder.conv_out.bias"]
    torch.testing.assert_close(bias.detach(), torch.full((3,), 3.0))
    assert weights_digest(pipeline) != weights_digest(load_pipeline(str(base_folder)))


@pytest.fixture
def deep_folder(base_folder: Path, tmp_path: Path) -> Path:
    """The base with three text encoder layers instead of one."""
    pipeline = load_pipeline(str(base_folder))
    torch.manual_seed(1)
    config: Any = {**pipeline.text_encoder.config.to_dict(), "num_hidden_layers": 3}
    pipeline.text_encoder = CLIPTextModel(CLIPTextConfig(**config))
    pipeline.save_pretrained(tmp_path / "deep")
    return tmp_path / "deep"


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_clip_skip_uses_the_states_of_an_earlier_layer(deep_folder: Path, clip_skip: int) -> None:
    whole = CLIPTextModel.from_pretrained(deep_folder / "text_encoder").eval()
    pipeline = load_pipeline(BaseModelConfig(str(deep_folder), clip_skip=clip_skip))
    tokens = pipeline.tokenizer(
        "a toy", padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    states: list[torch.Tensor] = []
    layer = whole.encoder.layers[2 - clip_skip]
    layer.register_forward_hook(lambda _, __, output: states.append(output))
    with torch.no_grad():
        whole(tokens)
        expected = whole.final_layer_norm(states[0])
    torch.testing.assert_close(embed(pipeline, ["a toy"]), expected)


def test_clip_skip_beyond_the_layers_gives_one_clear_error(base_folder: Path) -> None:
    with pytest.raises(LoLDUError, match=r"--clip_skip is 1, but the text encoder .* 1 layers"):
        load_pipeline(BaseModelConfig(str(base_folder), clip_skip=1))


def test_the_prediction_type_of_the_base_is_the_default(base_folder: Path) -> None:
    assert load_pipeline(str(base_folder)).scheduler.config["prediction_type"] == "v_prediction"
    scheduler = load_pipeline(
        BaseModelConfig(str(base_folder), prediction_type="epsilon")
    ).scheduler
    assert scheduler.config["prediction_type"] == "epsilon"
    assert training_noise_scheduler(scheduler).config["prediction_type"] == "epsilon"
    # DDIM's step to the clean image, from the formula of what is predicted.
    scheduler.set_timesteps(1)
    (timestep,) = scheduler.timesteps
    noisy, noise = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    alpha_bar = scheduler.alphas_cumprod[timestep]
    expected = (noisy - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()
    step = scheduler.step(noise, timestep, noisy)
    torch.testing.assert_close(step.pred_original_sample, expected)


@pytest.fixture
def zero_snr_folder(base_folder: Path, tmp_path: Path) -> Path:
    """Return a base with a schedule that ends in pure noise, saved for another sampler."""
    pipeline = load_pipeline(str(base_folder))
    pipeline.scheduler = EulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    pipeline.save_pretrained(tmp_path / "zero_snr")
    return tmp_path / "zero_snr"


def test_training_follows_a_schedule_that_ends_in_pure_noise(zero_snr_folder: Path) -> None:
    scheduler = training_noise_scheduler(load_pipeline(str(zero_snr_folder)).scheduler)
    betas = torch.linspace(0.0001**0.5, 0.02**0.5, 1000) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    # Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed, Alg. 1.
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod, expected, rtol=1e-3, atol=1e-6)
    assert scheduler.alphas_cumprod[-1] == 0
    timesteps = torch.tensor([0, 500, 999])
    assert min_snr_weights(scheduler, timesteps, 5.0).isfinite().all()
    epsilon = DDPMScheduler.from_config(scheduler.config, prediction_type="epsilon")
    assert isinstance(epsilon, DDPMScheduler)
    assert min_snr_weights(epsilon, timesteps, 5.0).isfinite().all()


def test_a_base_of_zero_snr_is_trained_and_draws(
    zero_snr_folder: Path, flags: list[str], tmp_path: Path
) -> None:
    more = ["--snr_gamma", "5", "--validation_prompt", "sks", "--validation_steps", "1"]
    base = ["--pretrained_model_name_or_path", str(zero_snr_folder), "--max_train_steps", "1"]
    assert run([*flags, *base, *more]) == 0
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert 0 < line["loss"] < 10
    with Image.open(tmp_path / "run" / "validation" / "000001.png") as sheet:
        assert len(set(sheet.convert("L").tobytes())) > 10


def test_epsilon_from_pure_noise_is_refused(zero_snr_folder: Path) -> None:
    with pytest.raises(LoLDUError, match=r"ends in pure noise .* --prediction_type v_predict"):
        load_pipeline(BaseModelConfig(str(zero_snr_folder), prediction_type="epsilon"))


def test_a_variant_in_half_precision_is_trained_in_fp32(
    base_folder: Path, flags: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "half"
    half = load_pipeline(str(base_folder))
    for part in (half.unet, half.text_encoder, half.vae):
        part.half()
    half.save_pretrained(folder, variant="fp16")
    assert (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").exists()
    more = ["--variant", "fp16", "--max_train_steps", "1"]
    assert run([*flags, "--pretrained_model_name_or_path", str(folder), *more]) == 0
    pipeline = load_pipeline(BaseModelConfig(str(folder), variant="fp16"))
    for part in ("unet", "text_encoder", "vae"):
        rounded = getattr(half, part).state_dict()
        for name, weight in getattr(pipeline, part).state_dict().items():
            assert weight.dtype in (torch.float32, torch.int64), name
            assert torch.equal(weight, rounded[name].to(weight.dtype)), name


def test_revision_and_variant_reach_diffusers(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def spy(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            asked.append(options)
            # A folder has no revisions: that is the hub's business.
            return original(*arguments, **{**options, "revision": None, "variant": None})

        return call

    for kind, name in (
        (DiffusionPipeline, "load_config"),
        (StableDiffusionPipeline, "from_pretrained"),
    ):
        monkeypatch.setattr(kind, name, spy(getattr(kind, name)))
    load_pipeline(BaseModelConfig(str(base_folder), revision="abc", variant="fp16"))
    assert [options["revision"] for options in asked[:2]] == ["abc", "abc"]
    assert asked[1]["variant"] == "fp16"


def test_a_missing_base_gives_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"x")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "folder").mkdir()
    for name, message in {
        "nowhere": "does not exist",
        "folder": "is not a diffusers folder: it has no model_index.json",
        "model.ckpt": "not a .safetensors checkpoint",
        "broken.safetensors": "incomplete or not a .safetensors file; download it again",
    }.items():
        with pytest.raises(LoLDUError, match=message) as error:
            load_pipeline(str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_a_folder_with_a_missing_part_gives_one_clear_error(
    base_folder: Path, tmp_path: Path
) -> None:
    index = (base_folder / "model_index.json").read_text()
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(LoLDUError, match="lacks its folder unet; download it again") as error:
        load_pipeline(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_missing_weight_gives_one_clear_error(base_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base_folder, tmp_path / "base")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["decoder.conv_out.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(LoLDUError, match=r"lacks 1 weights .*decoder\.conv_out\.bias; download"):
        load_pipeline(str(folder))


def test_another_kind_of_pipeline_is_refused_by_its_index(tmp_path: Path) -> None:
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(LoLDUError, match=r"is a FluxPipeline, but only Stable .* XL or FLUX"):
        load_pipeline(str(tmp_path))


def test_an_inpainting_base_is_refused(base_folder: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(str(base_folder))
    config = {**pipeline.unet.config, "in_channels": 9}
    pipeline.unet = UNet2DConditionModel.from_config(config)
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(LoLDUError, match="takes 9 channels, so it is for inpainting"):
        load_pipeline(str(tmp_path))


def test_an_unreachable_hub_gives_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        LoLDUError, match="is neither a local folder nor on the Hub: check the name, the connection"
    ) as error:
        load_pipeline("nobody/no-such-base")
    assert "\n" not in str(error.value)


class Harmful:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.mkdir, (self.trace,)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("text_encoder", "pytorch_model.bin"),
        ("unet", "diffusion_pytorch_model.bin"),
        ("vae", "diffusion_pytorch_model.bin"),
    ],
)
@pytest.mark.parametrize("kind", ["harmful", "old", "cut"])
def test_a_pickle_that_would_run_code_is_one_sentence(
    base_folder: Path, tmp_path: Path, part: str, name: str, kind: str
) -> None:
    folder, trace = tmp_path / "base", tmp_path / "ran"
    shutil.copytree(base_folder, folder)
    (weights,) = (folder / part).glob("*.safetensors")
    file = folder / part / name
    torch.save({**load_file(weights), "more": Harmful(trace)}, file)
    weights.unlink()
    if kind == "old":
        file.write_bytes(pickle.dumps(Harmful(trace), protocol=2))
    elif kind == "cut":
        file.write_bytes(b"")
    reason = "cannot be read" if kind == "cut" else "pickled file .* get the same model with .safet"
    with pytest.raises(LoLDUError, match=rf"^The base \S+ (has weights in a )?{reason}"):
        load_pipeline(str(folder))
    index = DiffusionPipeline.load_config(str(folder))
    with pytest.raises(LoLDUError, match=rf"^The {part} of the base \S+ (has .* a )?{reason}"):
        _load_component(str(folder), part, *index[part], torch.float32)
    assert not trace.exists()
