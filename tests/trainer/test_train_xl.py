"""SDXL is trained by the same loop: its loss, its runs, and its results in other programs."""

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from loldu import export_lora, load_concept, read_concept
from loldu.base.families import family_of
from loldu.base.open import load_pipeline
from loldu.concept import Layout
from loldu.pictures.folder import CaptionedImage
from trainer.__main__ import run
from trainer.methods import MethodName
from trainer.methods.method import add_trainables, method_named, save_result
from trainer.methods.textual_inversion import learn_words
from trainer.options.config import Config
from trainer.results.card import Result, model_card
from trainer.results.metadata import Training
from trainer.training.buckets import bucket_caches
from trainer.training.cache import build_cache
from trainer.training.checkpoint import Progress
from trainer.training.instances import find_instances
from trainer.training.objective import Batch, Denoiser, DreamBooth, Objective

MakeConfig = Callable[..., Config]
PRIOR = ("--with_prior_preservation", "--class_prompt", "a toy", "--num_class_images", "2")
ENCODERS = ("text_encoder", "text_encoder_2")
WORD = ("--placeholder_token", "<toy>", "--initializer_token", "t")
WORD += ("--instance_prompt", "a photo of <toy> toy")


@pytest.fixture
def xl(xl_folder: Path) -> StableDiffusionXLPipeline:
    return load_pipeline(str(xl_folder))


@pytest.fixture
def base(xl_folder: Path) -> tuple[str, str]:
    return "--pretrained_model_name_or_path", str(xl_folder)


@torch.no_grad()
def stir(trained: Any) -> None:  # noqa: ANN401
    """Move everything that is trained away from its start."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trained.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def predict(pipeline: StableDiffusionXLPipeline, prompt: str = "a sks toy") -> Tensor:
    states, _, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[20.0, 24, 0, 2, 16, 16]])}
    return pipeline.unet(latents, 300, states, added_cond_kwargs=added).sample


class Formulas:
    """One step from the published formulas, without the code under test.

    Source: Ho et al., DDPM, Eq. 4 and 14; Podell et al., SDXL, Sec. 2.1 and 2.2; Ruiz et al.,
    DreamBooth, Eq. 2. The schedule is the one in the scheduler's config: betas whose roots are
    evenly spaced.
    """

    def __init__(self, pipeline: StableDiffusionXLPipeline, folder: Path) -> None:
        self.pipeline, self.folder = pipeline, folder
        roots = torch.linspace(0.0001**0.5, 0.02**0.5, 1000, dtype=torch.float64)
        self.alpha_bar = (1 - roots**2).cumprod(0)

    def latents(self, names: str, noise: Tensor) -> Tensor:
        found = []
        for name in names:  # 20 x 24 pictures: to 16 x 19, of which the middle 16 rows
            image = Image.open(self.folder / f"{name}.png").resize(
                (16, 19), Image.Resampling.LANCZOS
            )
            picture = np.asarray(image.crop((0, 1, 16, 17)), np.float32) / 127.5 - 1
            found.append(torch.from_numpy(picture).permute(2, 0, 1))
        posterior = self.pipeline.vae.encode(torch.stack(found)).latent_dist
        return 0.13025 * (posterior.mean + posterior.std * noise)

    def text(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        states, pooled = [], torch.empty(0)
        for number in ("", "_2"):
            tokenizer, encoder = (
                getattr(self.pipeline, name + number) for name in ("tokenizer", "text_encoder")
            )
            ids = tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
            output = encoder(ids, output_hidden_states=True)
            states.append(output.hidden_states[-2])
            pooled = output[0]
        return torch.cat(states, dim=2), pooled

    def errors(self, batch: Batch, names: str, prompts: list[str]) -> Tensor:
        clean = self.latents(names, batch.posterior_noise)
        alpha = self.alpha_bar[batch.timesteps][:, None, None, None]
        noisy = (alpha.sqrt() * clean + (1 - alpha).sqrt() * batch.noise).float()
        return (self.predict(noisy, batch.timesteps, prompts) - batch.noise).square()

    def predict(self, noisy: Tensor, timesteps: Tensor, prompts: list[str]) -> Tensor:
        states, pooled = self.text(prompts)
        ids = torch.tensor([[24.0, 20, 1, 0, 16, 16]]).repeat(len(prompts), 1)
        added = {"text_embeds": pooled, "time_ids": ids}
        return self.pipeline.unet(noisy, timesteps, states, added_cond_kwargs=added).sample


def test_the_loss_is_that_of_the_formulas_and_of_the_script_of_diffusers(
    xl: StableDiffusionXLPipeline, make_config: MakeConfig, base: tuple[str, str], pictures: Path
) -> None:
    config = make_config(*base, "--train_text_encoder", *PRIOR, "--prior_loss_weight", "0.7")
    images = find_instances(config.instance)
    classes = [CaptionedImage(image.path, "a toy") for image in images]
    cache = build_cache(xl, images, classes, config.instance, seed=0)
    formulas = Formulas(load_pipeline(base[1]), pictures)
    trained = add_trainables(xl, {"default": config}, {})
    concept = DreamBooth(xl, cache, config)
    batch = concept.draw(3)
    objective = Objective([concept], trained, config)
    (losses,) = objective.losses(Denoiser(xl, trains_text=True), [batch])
    names = "".join("abc"[view % 3] for view in batch.views)
    prompts = ["a photo of sks toy"] * 2 + ["a toy"] * 2
    with torch.no_grad():
        errors = formulas.errors(batch, names, prompts)
        expected = errors[:2].mean() + 0.7 * errors[2:].mean()
        # As in examples/dreambooth/train_dreambooth_lora_sdxl.py.
        scheduler: Any = DDPMScheduler.from_pretrained(base[1], subfolder="scheduler")
        clean = formulas.latents(names, batch.posterior_noise)
        noisy = scheduler.add_noise(clean, batch.noise, batch.timesteps)
        chunks = formulas.predict(noisy, batch.timesteps, prompts).chunk(2)
        targets = batch.noise.chunk(2)
        script = F.mse_loss(chunks[0], targets[0]) + 0.7 * F.mse_loss(chunks[1], targets[1])
    torch.testing.assert_close(losses.total, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.total, script, rtol=1e-5, atol=1e-5)
    losses.total.backward()
    for part in ("unet", *ENCODERS):
        gradients = [p.grad for p in trained.parts[part].parameters("default")]
        assert all(grad is not None and grad.any() for grad in gradients), part


def test_buckets_give_every_picture_its_true_time_ids(
    xl: StableDiffusionXLPipeline, make_config: MakeConfig, tmp_path: Path, base: tuple[str, str]
) -> None:
    folder = tmp_path / "wide"
    folder.mkdir()
    for name, size in (("a", (90, 30)), ("b", (33, 32)), ("c", (64, 20))):
        Image.effect_noise(size, 50).convert("RGB").save(folder / f"{name}.png")
    flags = (*base, "--aspect_buckets", "--instance_data_dir", str(folder))
    config = make_config(*flags, "--resolution", "24")
    found: dict[tuple[int, int], list[float]] = {}
    for cache in bucket_caches(xl, find_instances(config.instance), [], config, []):
        for row in cache.descriptions["time_ids"].tolist():
            found[int(row[1]), int(row[0])] = row[2:]
            assert (int(row[4]) // 2, int(row[5]) // 2) == cache.mean.shape[-2:]
    assert found == {
        (90, 30): [0, 8, 16, 32],  # resized to 48 x 16
        (33, 32): [0, 0, 24, 24],  # resized to 25 x 24
        (64, 20): [2, 0, 8, 40],  # resized to 40 x 12
    }


def deltas(path: Path) -> Tensor:
    return torch.cat([layer.delta for layer in read_concept(path).layers])


def test_several_concepts_train_both_text_encoders_and_resume_to_the_same_bits(
    flags: list[str], base: tuple[str, str], tmp_path: Path, pictures: Path
) -> None:
    own = (flags.index("--instance_data_dir"), flags.index("--instance_prompt"))
    flags = [flag for i, flag in enumerate(flags) if not any(at <= i <= at + 1 for at in own)]
    toml = tmp_path / "concepts.toml"
    toml.write_text(
        f"[dog]\ninstance_data_dir = '{pictures}'\ninstance_prompt = 'a sks dog'\n"
        f"[toy]\ninstance_data_dir = '{pictures}'\ninstance_prompt = 'a zwx toy'\n"
    )
    common = [*flags, *base, "--concepts", str(toml), "--train_text_encoder", *PRIOR]
    common += ["--caption_dropout", "0.25", "--checkpointing_steps", "2"]
    common += ["--validation_prompt", "a sks dog", "--validation_steps", "4"]
    common += ["--mixed_precision", "bf16", "--gradient_checkpointing", "--no_sample_at_end"]
    whole, resumed = tmp_path / "run", tmp_path / "resumed"
    assert run(common) == 0
    again = [*common, "--output_dir", str(resumed), "--resume", str(whole / "checkpoint-000002")]
    assert run(again) == 0
    files = [Path("concepts") / name / "concept.safetensors" for name in ("dog", "toy")]
    for file in files:
        assert (whole / file).read_bytes() == (resumed / file).read_bytes()
    concept = read_concept(whole / files[0])
    assert concept.metadata["base"]["family"] == "Stable Diffusion XL"
    assert {layer.component for layer in concept.layers} == {"unet", *ENCODERS}
    first = {y.name.split(".")[2] for y in concept.layers if y.component == "text_encoder"}
    assert first == {"0"}  # the last layer of two is not read
    assert all(bool(layer.delta.any()) for layer in concept.layers)
    assert not torch.equal(deltas(whole / files[0]), deltas(whole / files[1]))
    sheets = [whole / "concepts" / name / "validation" / "000004.png" for name in ("dog", "toy")]
    assert sheets[0].read_bytes() != sheets[1].read_bytes()
    lora = load_file(whole / files[0].with_name("pytorch_lora_weights.safetensors"))
    assert {key.split("_")[1] for key in lora} == {"unet", "te1", "te2"}
    card = (whole / "concepts" / "dog" / "README.md").read_text()
    assert "StableDiffusionXLPipeline" in card
    assert "the changes of all weights are those of the concept" in card
    metrics = (whole / "concepts" / "dog" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics[-1])["step"] == 4


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_the_exported_lora_draws_the_same_in_diffusers(
    layout: Layout,
    xl: StableDiffusionXLPipeline,
    xl_folder: Path,
    tmp_path: Path,
    make_config: MakeConfig,
) -> None:
    more = ("--train_text_encoder", "--target_modules", "to_q", "to_k", "to_v", "to_out.0")
    config = make_config(*more, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
    stir(add_trainables(xl, {"default": config}, {}))
    path = export_lora(xl, tmp_path / "toy.safetensors", layout)
    other = StableDiffusionXLPipeline.from_pretrained(xl_folder)
    untouched = predict(other)
    other.load_lora_weights(path)
    assert (predict(xl) - untouched).abs().max() > 1e-2
    torch.testing.assert_close(predict(other), predict(xl), rtol=1e-5, atol=1e-5)
    for name in ENCODERS:
        assert any("lora" in key for key, _ in getattr(other, name).named_modules())
    if layout == "kohya":
        keys = {key.split(".")[0] for key in load_file(path)}
        block = "lora_unet_input_blocks_3_1_transformer_blocks_1_attn2"
        assert {f"{block}_to_out_0", "lora_unet_middle_block_1_proj_in"} <= keys
        assert "lora_te2_text_model_encoder_layers_1_self_attn_q_proj" in keys
        assert "lora_te1_text_model_encoder_layers_0_self_attn_out_proj" in keys
        assert not any("down_blocks" in key or "up_blocks" in key for key in keys)


def test_half_of_the_base_s_own_size_is_warned_of(
    flags: list[str], base: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    more = [*base, "--max_train_steps", "1", "--no_sample_at_end", "--resolution"]
    assert run([*flags, *more, "8"]) == 0
    assert "--resolution 8 is at most half of the 16 pixels that this base" in caplog.text
    caplog.clear()
    assert run([*flags, *more, "16", "--overwrite"]) == 0
    assert "at most half" not in caplog.text


def by_the_card(config: Config, word: Path, word_keys: Mapping[str, str]) -> Any:  # noqa: ANN401
    """Return the pipeline that the code of a model card makes in the folder of a word."""
    metadata = {"instance_prompt": "a <toy> toy", "base": {}, "versions": {}}
    training = Training(Progress(4, 1.0), 40, "", 3, 0)
    result = Result(
        config,
        metadata,
        training,
        {word.name: 1},
        [],
        None,
        "StableDiffusionXLPipeline",
        word_keys=word_keys,
    )
    (code,) = re.findall(r"```python\n(.*?)```", str(model_card(result)), flags=re.DOTALL)
    found: dict[str, Any] = {}
    base = Path(config.base.pretrained_model_name_or_path)
    with contextlib.chdir(word.parent):
        exec(code.replace(f'"{base.name}"', repr(str(base))), found)
    return found["pipeline"]


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("loldu", ("--train_text_encoder",)),
        ("lora", ("--train_text_encoder", "--alpha", "2")),
        ("textual_inversion", WORD),
        ("dreambooth", ()),
    ],
)
def test_the_result_of_every_method_loads_into_a_fresh_pipeline(
    method: MethodName,
    more: tuple[str, ...],
    xl: StableDiffusionXLPipeline,
    base: tuple[str, str],
    tmp_path: Path,
    make_config: MakeConfig,
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    prompt = "a <toy> toy" if more is WORD else "a sks toy"
    config = make_config(*base, "--method", method, *more)
    words = learn_words(xl, {"default": config})
    trained = add_trainables(xl, {"default": config}, words)
    stir(trained)
    save_result(xl, trained, "default", config, {"instance_prompt": "sks"}, out)
    path = out / method_named(method).file_name
    fresh: Any = StableDiffusionXLPipeline.from_pretrained(base[1])
    before = predict(fresh, "a toy")
    if method == "dreambooth":
        fresh = load_pipeline(str(path))
    elif method == "lora":
        fresh.load_lora_weights(str(out), weight_name=path.name)
    elif method == "loldu":
        load_concept(fresh, path, route=False)
    else:
        fresh = by_the_card(config, path, family_of(xl).word_keys)
        torch.testing.assert_close(predict(fresh, "a toy"), before)
    torch.testing.assert_close(predict(fresh, prompt), predict(xl, prompt), rtol=1e-4, atol=1e-4)
    assert (predict(fresh, prompt) - before).abs().max() > 1e-3


def test_a_word_that_is_learned_moves_the_prompts_of_training(
    xl: StableDiffusionXLPipeline, make_config: MakeConfig
) -> None:
    config = make_config("--method", "textual_inversion", *WORD)
    family = family_of(xl)
    before = family.encode_text(xl, ["a t toy"])
    trained = add_trainables(xl, {"default": config}, learn_words(xl, {"default": config}))
    text = family.encode_text(xl, ["a <toy> toy", ""])
    torch.testing.assert_close(text["encoder_hidden_states"][:1], before["encoder_hidden_states"])
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    assert [tuple(tensor.shape) for tensor in state.values()] == [(16,), (24,)]
    stir(trained)
    encoders = {name: getattr(xl, name) for name in ENCODERS}
    moved = family.encode_again(encoders, text)
    states = moved["encoder_hidden_states"]
    for part in (slice(0, 16), slice(16, 40)):
        assert not torch.equal(states[0, :, part], text["encoder_hidden_states"][0, :, part])
    assert not states[1].any()
    assert not moved["text_embeds"][1].any()
    trained.load_state_dict(state)
    again = family.encode_again(encoders, text)
    torch.testing.assert_close(again["text_embeds"], text["text_embeds"])
