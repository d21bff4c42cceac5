"""FLUX.2 klein is trained by the same loop: its loss, its runs, and its results in diffusers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from loldu import export_lora, load_concept, read_concept
from loldu.base.open import load_pipeline
from loldu.concept import Layout
from loldu.concept.clients import compare_clients
from loldu.concept.merge import save_merged
from loldu.errors import LoLDUError
from loldu.pictures.folder import CaptionedImage
from trainer.__main__ import run
from trainer.methods import MethodName
from trainer.methods.method import add_trainables, method_named, save_result
from trainer.options.config import Config
from trainer.training.base import load_base
from trainer.training.cache import build_cache
from trainer.training.instances import find_instances
from trainer.training.objective import Batch, Denoiser, DreamBooth, Objective

MakeConfig = Callable[..., Config]
PRIOR = ("--with_prior_preservation", "--class_prompt", "a toy", "--num_class_images", "2")


@pytest.fixture
def klein(klein_folder: Path) -> Flux2KleinPipeline:
    return load_pipeline(str(klein_folder))


@pytest.fixture
def base(klein_folder: Path) -> tuple[str, str]:
    return "--pretrained_model_name_or_path", str(klein_folder)


@torch.no_grad()
def stir(trained: Any) -> None:  # noqa: ANN401
    """Move everything that is trained away from its start."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trained.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def predict(pipeline: Any) -> Tensor:  # noqa: ANN401
    """Return a prediction on fixed noise and fixed states of a prompt."""
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 16, 4, 4, generator=generator)
    states = torch.randn(1, 7, 24, generator=generator)
    return pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy),
        encoder_hidden_states=states,
        timestep=torch.tensor([0.3]),
        img_ids=pipeline._prepare_latent_ids(noisy),
        txt_ids=pipeline._prepare_text_ids(states),
    ).sample


class Formulas:
    """One step from the published formulas, without the code under test.

    Source: Esser et al., Scaling Rectified Flow Transformers, Eq. 13 and 14; Ruiz et al.,
    DreamBooth, Eq. 2; black-forest-labs' flux2 for patches, their normalization and their places.
    """

    def __init__(self, pipeline: Flux2KleinPipeline, folder: Path) -> None:
        self.pipeline: Any = pipeline
        self.folder = folder

    def mode(self, names: str) -> Tensor:
        found = []
        for name in names:  # 20 x 24 pictures: to 16 x 19, of which the middle 16 rows
            image = Image.open(self.folder / f"{name}.png").resize(
                (16, 19), Image.Resampling.LANCZOS
            )
            picture = np.asarray(image.crop((0, 1, 16, 17)), np.float32) / 127.5 - 1
            found.append(torch.from_numpy(picture).permute(2, 0, 1))
        return self.pipeline.vae.encode(torch.stack(found)).latent_dist.mode()

    def patches(self, names: str) -> Tensor:
        mode, bn = self.mode(names), self.pipeline.vae.bn
        corners = [mode[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        joined = torch.stack(corners, dim=2).flatten(1, 2)
        mean, variance = bn.running_mean[:, None, None], bn.running_var[:, None, None]
        return (joined - mean) / (variance + 1e-4).sqrt()

    def states(self, prompts: list[str]) -> Tensor:
        asked = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        tokens = self.pipeline.tokenizer(
            [asked.format(prompt) for prompt in prompts],
            padding="max_length",
            max_length=512,
            return_tensors="pt",
        )
        hidden = self.pipeline.text_encoder(**tokens, output_hidden_states=True).hidden_states
        return torch.cat([hidden[layer] for layer in (9, 18, 27)], dim=2)

    def errors(self, batch: Batch, names: str, prompts: list[str]) -> Tensor:
        clean, t = self.patches(names), batch.timesteps[:, None, None, None]
        noisy = (1 - t) * clean + t * batch.noise
        places = torch.tensor([[0, row, column, 0] for row in range(4) for column in range(4)])
        words = torch.tensor([[0, 0, 0, word] for word in range(512)])
        tokens = self.pipeline.transformer(
            hidden_states=noisy.flatten(2).mT,
            encoder_hidden_states=self.states(prompts),
            timestep=batch.timesteps,
            img_ids=places,
            txt_ids=words,
        ).sample
        return (tokens.mT.unflatten(2, (4, 4)) - (batch.noise - clean)).square()

    def script(self, batch: Batch, names: str, prompts: list[str]) -> Tensor:
        """Compute as examples/dreambooth/train_dreambooth_lora_flux2_klein.py does."""
        pipeline, vae = self.pipeline, self.pipeline.vae
        clean = pipeline._patchify_latents(self.mode(names))
        deviation = (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()
        clean = (clean - vae.bn.running_mean.view(1, -1, 1, 1)) / deviation
        ids, sigmas = pipeline._prepare_latent_ids(clean), batch.timesteps.view(-1, 1, 1, 1)
        states, words = pipeline.encode_prompt(prompts)
        found = pipeline.transformer(
            hidden_states=pipeline._pack_latents((1.0 - sigmas) * clean + sigmas * batch.noise),
            timestep=batch.timesteps * 1000 / 1000,
            guidance=None,
            encoder_hidden_states=states,
            txt_ids=words,
            img_ids=ids,
        ).sample
        found = pipeline._unpack_latents_with_ids(found, ids)
        return ((found - (batch.noise - clean)) ** 2).reshape(len(names), -1).mean(1)


def test_the_loss_is_that_of_the_formulas_and_of_the_script_of_diffusers(
    klein: Flux2KleinPipeline, make_config: MakeConfig, base: tuple[str, str], pictures: Path
) -> None:
    config = make_config(*base, *PRIOR, "--prior_loss_weight", "0.7")
    images = find_instances(config.instance)
    classes = [CaptionedImage(image.path, "a toy") for image in images]
    cache = build_cache(klein, images, classes, config.instance, seed=0)
    formulas = Formulas(load_pipeline(base[1]), pictures)
    trained = add_trainables(klein, {"default": config}, {})
    concept = DreamBooth(klein, cache, config)
    batch = concept.draw(3)
    (losses,) = Objective([concept], trained, config).losses(Denoiser(klein), [batch])
    names = "".join("abc"[view % 3] for view in batch.views)
    prompts = ["a photo of sks toy"] * 2 + ["a toy"] * 2
    with torch.no_grad():
        errors = formulas.errors(batch, names, prompts)
        script = formulas.script(batch, names, prompts)
    expected = errors[:2].mean() + 0.7 * errors[2:].mean()
    torch.testing.assert_close(losses.total, expected, rtol=1e-5, atol=1e-5)
    script_loss = script[:2].mean() + 0.7 * script[2:].mean()
    torch.testing.assert_close(losses.total, script_loss, rtol=1e-5, atol=1e-5)
    assert len({*batch.timesteps.tolist()}) == 4
    losses.total.backward()
    gradients = [p.grad for p in trained.parts["transformer"].parameters("default")]
    assert len(gradients) == 2 * (8 + 2 * 2)  # dz and ds of every adapted layer
    assert all(grad is not None and grad.any() for grad in gradients)


def test_several_concepts_resume_to_the_same_bits(
    flags: list[str], base: tuple[str, str], tmp_path: Path, pictures: Path
) -> None:
    own = (flags.index("--instance_data_dir"), flags.index("--instance_prompt"))
    flags = [flag for i, flag in enumerate(flags) if not any(at <= i <= at + 1 for at in own)]
    toml = tmp_path / "concepts.toml"
    toml.write_text(
        f"[dog]\ninstance_data_dir = '{pictures}'\ninstance_prompt = 'a sks dog'\n"
        f"[toy]\ninstance_data_dir = '{pictures}'\ninstance_prompt = 'a zwx toy'\n"
    )
    common = [*flags, *base, "--concepts", str(toml), *PRIOR, "--checkpointing_steps", "1"]
    common += ["--validation_prompt", "a sks dog", "--validation_steps", "2"]
    common += ["--max_train_steps", "2", "--num_inference_steps", "1", "--train_batch_size", "1"]
    common += ["--mixed_precision", "bf16", "--gradient_checkpointing", "--no_sample_at_end"]
    whole, resumed = tmp_path / "run", tmp_path / "resumed"
    assert run(common) == 0
    again = [*common, "--output_dir", str(resumed), "--resume", str(whole / "checkpoint-000001")]
    assert run(again) == 0
    files = [Path("concepts") / name / "concept.safetensors" for name in ("dog", "toy")]
    for file in files:
        assert (whole / file).read_bytes() == (resumed / file).read_bytes()
    concepts = [read_concept(whole / file) for file in files]
    assert concepts[0].metadata["base"]["family"] == "FLUX.2 klein"
    assert {layer.component for layer in concepts[0].layers} == {"transformer"}
    names = [layer.name.rpartition("attn.")[2] for layer in concepts[0].layers]
    assert {"to_qkv_mlp_proj", "to_out", "to_out.0", "add_k_proj", "to_add_out"} <= {*names}
    deltas = [torch.cat([layer.delta for layer in concept.layers]) for concept in concepts]
    assert all(bool(layer.delta.any()) for layer in concepts[0].layers)
    assert not torch.equal(*deltas)
    sheets = [whole / "concepts" / name / "validation" / "000002.png" for name in ("dog", "toy")]
    assert sheets[0].read_bytes() != sheets[1].read_bytes()
    lora = load_file(whole / files[0].with_name("pytorch_lora_weights.safetensors"))
    assert lora["lora_unet_double_blocks_0_txt_attn_qkv.lora_down.weight"].shape == (3 * 4, 16)
    card = (whole / "concepts" / "dog" / "README.md").read_text()
    assert "Flux2KleinPipeline" in card
    assert "\n- flux2-klein\n" in card
    assert "are those of the concept, with a relative error of" in card
    assert "in A1111." not in card


@pytest.mark.parametrize(
    ("layout", "rank", "targets"),
    [
        ("kohya", "full", ()),
        ("kohya", "3", ("to_q", "to_v", "add_k_proj", "ff.linear_in", "x_embedder", "proj_out")),
        ("diffusers", "4", ()),
    ],
)
def test_the_exported_lora_draws_the_same_in_diffusers(
    layout: Layout,
    rank: str,
    targets: tuple[str, ...],
    klein: Flux2KleinPipeline,
    klein_folder: Path,
    tmp_path: Path,
    make_config: MakeConfig,
) -> None:
    config = make_config("--rank", rank, *(("--target_modules", *targets) if targets else ()))
    stir(add_trainables(klein, {"default": config}, {}))
    path = export_lora(klein, tmp_path / "toy.safetensors", layout)
    other = Flux2KleinPipeline.from_pretrained(klein_folder)
    untouched = predict(other)
    other.load_lora_weights(path)
    assert (predict(klein) - untouched).abs().max() > 1e-2
    torch.testing.assert_close(predict(other), predict(klein), rtol=1e-5, atol=1e-5)
    if layout == "kohya":
        (compared,) = compare_clients(klein, path)
        assert (compared.client, compared.weights) == ("ComfyUI", 6 if targets else 12)
        assert compared.error < 1e-5
        alone = export_lora(klein.transformer, tmp_path / "alone.safetensors")
        assert alone.read_bytes() == path.read_bytes()
    if rank == "full":
        shapes = {key: tuple(tensor.shape) for key, tensor in load_file(path).items()}
        assert shapes["lora_unet_single_blocks_1_linear1.lora_up.weight"] == (144, 16)
        assert shapes["lora_unet_single_blocks_1_linear2.lora_down.weight"] == (16, 64)
        assert shapes["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"] == (48, 48)


@pytest.mark.parametrize(
    ("method", "more"), [("loldu", ()), ("lora", ("--alpha", "2")), ("dreambooth", ())]
)
def test_the_result_of_every_method_loads_into_a_fresh_pipeline(
    method: MethodName,
    more: tuple[str, ...],
    klein: Flux2KleinPipeline,
    base: tuple[str, str],
    tmp_path: Path,
    make_config: MakeConfig,
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    config = make_config(*base, "--method", method, *more)
    trained = add_trainables(klein, {"default": config}, {})
    stir(trained)
    save_result(klein, trained, "default", config, {"instance_prompt": "sks"}, out)
    path = out / method_named(method).file_name
    fresh: Any = Flux2KleinPipeline.from_pretrained(base[1])
    before = predict(fresh)
    if method == "dreambooth":
        fresh = load_pipeline(str(path))
    elif method == "lora":
        fresh.load_lora_weights(str(out), weight_name=path.name)
    else:
        load_concept(fresh, path, route=False)
        merged = load_pipeline(str(save_merged(fresh, tmp_path / "merged")))
        torch.testing.assert_close(predict(merged), predict(klein), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predict(fresh), predict(klein), rtol=1e-4, atol=1e-4)
    assert (predict(fresh) - before).abs().max() > 1e-3


def test_options_that_make_no_sense_are_refused_before_the_base_is_loaded(
    make_config: MakeConfig, base: tuple[str, str]
) -> None:
    word = ("--placeholder_token", "<toy>", "--initializer_token", "t")
    for options, reason in (
        (("--snr_gamma", "5"), "flow matching has no such weights"),
        (("--noise_offset", "0.1"), "its noise schedule ends in noise alone"),
        (("--train_text_encoder",), "its text encoder is a language model, which stays frozen"),
        ((*word, "--instance_prompt", "a <toy> toy"), "which learns no new word here"),
    ):
        config = make_config(*base, *options)
        with pytest.raises(LoLDUError, match=rf"^{options[0]} is not for FLUX.2 klein: .*{reason}"):
            load_base({"default": config}, torch.device("cpu"))
