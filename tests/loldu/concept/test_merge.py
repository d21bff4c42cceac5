"""Merged models and pipelines, saved as ordinary folders."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from loldu import (
    ConceptError,
    LoLDUConfig,
    mix,
    save_merged,
    set_concepts,
    set_strength,
    unload_concept,
)
from loldu.adapter.layer import LoLDULayer

MakeUNet = Callable[..., UNet2DConditionModel]
MakeModel = Callable[..., nn.Module]
UNET = "unet/diffusion_pytorch_model.safetensors"
ENCODER = "text_encoder/model.safetensors"


def make_encoder() -> CLIPTextModel:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def make_pipeline(unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2).eval(),
        text_encoder=make_encoder(),
        tokenizer=CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[]),
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def adapt(pipeline: StableDiffusionPipeline) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        for name, seed in (("dog", 0), ("toy", 1)):
            config = {"r": 6, "alpha": 2.0, "init_weights": False, "seed": seed}
            pipeline.unet.add_adapter(LoLDUConfig(**config), name)
            pipeline.text_encoder.add_adapter(LoLDUConfig(**config | {"r": 3}), name)


def expected_weights(
    model: nn.Module, plain: nn.Module, weights: dict[str, float]
) -> dict[str, Tensor]:
    """The state of the plain model, plus the weighted delta_W of its layers, in float64."""
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    for name, layer in model.named_modules():
        if isinstance(layer, LoLDULayer):
            total = state[f"{name}.weight"].double()
            for adapter, weight in weights.items():
                shared, r = layer.factors_of(adapter), layer.r[adapter]
                delta = layer.diagonal(adapter).delta().detach().double() * shared.gain[:r]
                total += weight * (shared.left[:, :r].double() * delta) @ shared.right[:r].double()
            state[f"{name}.weight"] = total
    return state


def snapshot(model: nn.Module) -> tuple[list[str], dict[str, Tensor], list[object]]:
    return (
        [f"{name} {type(module).__name__}" for name, module in model.named_modules()],
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [
            [*layer.active_adapters, *layer.strength.items(), layer.merged, layer.rows]
            for layer in model.modules()
            if isinstance(layer, LoLDULayer)
        ],
    )


def assert_same(one: object, other: object) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@torch.no_grad()
def draw(unet: UNet2DConditionModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, states = (torch.randn(*s, generator=generator) for s in ((2, 4, 8, 8), (2, 5, 8)))
    return unet(latents.to(unet.dtype), torch.tensor([3, 9]), states.to(unet.dtype)).sample


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_merged_pipeline_is_an_ordinary_folder(make_unet: MakeUNet, tmp_path: Path) -> None:
    pipeline, plain = make_pipeline(make_unet()), make_pipeline(make_unet())
    adapt(pipeline)
    mixture = {"dog": 0.7, "toy": -0.4}
    mix(pipeline, mixture)
    parts = (pipeline.unet, pipeline.text_encoder)
    before = [snapshot(part) for part in parts]
    config = dict(pipeline.config)
    picture = draw(pipeline.unet)
    folder = save_merged(pipeline, tmp_path / "new" / "merged")
    for part, was in zip(parts, before, strict=True):
        now = snapshot(part)
        assert (now[0], now[2]) == (was[0], was[2])
        assert_same(now[1], was[1])
    assert dict(pipeline.config) == config
    assert torch.equal(draw(pipeline.unet), picture)
    for file, part, base in zip(
        (UNET, ENCODER), parts, (plain.unet, plain.text_encoder), strict=True
    ):
        saved, wanted = load_file(folder / file), expected_weights(part, base, mixture)
        assert saved.keys() == wanted.keys()
        for name, tensor in saved.items():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor.double(), wanted[name].double(), atol=3e-7, rtol=0)
    for file in folder.rglob("*.*"):
        content = file.read_bytes()
        assert not [word for word in (b"loldu", b"peft", b"base_layer") if word in content]
    assert [path.name for path in folder.parent.iterdir()] == ["merged"]
    loaded = StableDiffusionPipeline.from_pretrained(folder)
    torch.testing.assert_close(draw(loaded.unet), picture, atol=1e-5, rtol=1e-5)
    plain.save_pretrained(tmp_path / "plain")
    assert names_in(folder) == names_in(tmp_path / "plain")


@pytest.mark.slow  # another process imports everything once more
def test_a_merged_folder_loads_without_loldu_and_peft(make_unet: MakeUNet, tmp_path: Path) -> None:
    pipeline = make_pipeline(make_unet())
    adapt(pipeline)
    mix(pipeline, {"dog": 1.0})
    folder = save_merged(pipeline, tmp_path / "merged")
    script = """
import sys
sys.modules["loldu"] = sys.modules["peft"] = None
import torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
print(float(pipeline.unet.get_submodule(sys.argv[2]).weight.double().sum()))
"""
    name, layer = next(
        (n, m) for n, m in pipeline.unet.named_modules() if isinstance(m, LoLDULayer)
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(folder), name],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = (layer.base_weight() + layer.get_delta_weight("dog").detach()).double().sum()
    assert float(run.stdout.split()[-1]) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(
    make_unet: MakeUNet, tmp_path: Path, dtype: torch.dtype
) -> None:
    pipeline, plain = make_pipeline(make_unet()), make_pipeline(make_unet())
    adapt(pipeline)
    pipeline.unet.to(dtype)
    plain.unet.to(dtype)
    mixture = {"dog": 0.3, "toy": 0.3}
    mix(pipeline, mixture)
    saved = load_file(save_merged(pipeline, tmp_path / "merged") / UNET)
    wrong = total = 0
    for name, exact in expected_weights(pipeline.unet, plain.unet, mixture).items():
        assert saved[name].dtype == dtype
        wrong += int((saved[name] != exact.to(dtype)).sum())
        total += exact.numel()
    assert wrong <= 1e-3 * total  # ties that float32 breaks otherwise than float64


def test_merging_uses_the_current_strengths(make_unet: MakeUNet, tmp_path: Path) -> None:
    pipeline, plain = make_pipeline(make_unet()), make_pipeline(make_unet())
    adapt(pipeline)
    mix(pipeline, {"toy": 1.0})
    set_strength(pipeline, 1.5)
    for file, weights in (("a", {"toy": 1.5}), ("b", {})):
        saved = load_file(save_merged(pipeline, tmp_path / file) / UNET)
        wanted = expected_weights(pipeline.unet, plain.unet, weights)
        for name, tensor in saved.items():
            torch.testing.assert_close(tensor.double(), wanted[name].double(), atol=3e-7, rtol=0)
        set_strength(pipeline, 0.0)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_model_on_its_own(make_unet: MakeUNet, tmp_path: Path, wrap: bool) -> None:
    unet = make_unet()
    config = LoLDUConfig(r=6, init_weights=False)
    if wrap:
        adapted = get_peft_model(unet, config)
    else:
        adapted = unet
        adapted.add_adapter(config)
    picture = draw(adapted)
    save_merged(adapted, tmp_path / "unet")
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "unet").eval()
    torch.testing.assert_close(draw(loaded), picture, atol=1e-5, rtol=1e-5)
    assert torch.equal(draw(adapted), picture)


def test_pipelines_whose_parts_are_wrapped(make_unet: MakeUNet, tmp_path: Path) -> None:
    pipeline = make_pipeline(make_unet())
    config = LoLDUConfig(r=3, init_weights=False)
    pipeline.text_encoder = get_peft_model(pipeline.text_encoder, config)
    pipeline.unet.add_adapter(LoLDUConfig(r=3, init_weights=False))
    save_merged(pipeline, tmp_path / "a")
    unload_concept(pipeline.text_encoder, "default")  # leaves an empty wrapper
    save_merged(pipeline, tmp_path / "b")
    for folder, changed in (("a", True), ("b", False)):
        loaded = StableDiffusionPipeline.from_pretrained(tmp_path / folder).text_encoder
        same = [
            torch.equal(x, y)
            for x, y in zip(loaded.parameters(), make_encoder().parameters(), strict=True)
        ]
        assert all(same) != changed


def test_modules_trained_in_full_are_saved_as_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    model = get_peft_model(
        BertForSequenceClassification(config),
        LoLDUConfig(r=3, task_type="SEQ_CLS", target_modules=["query"], init_weights=False),
    ).eval()
    head = model.base_model.model.classifier.modules_to_save["default"]
    nn.init.constant_(head.bias, 5.0)
    words = torch.arange(6)[None]
    with torch.no_grad():
        expected = model(words).logits
        save_merged(model, tmp_path / "bert")
        loaded = BertForSequenceClassification.from_pretrained(tmp_path / "bert").eval()
        torch.testing.assert_close(loaded(words).logits, expected)
    assert expected.min() > 3


def test_unmergeable_adapters_are_refused(
    make_unet: MakeUNet, make_two_layers: MakeModel, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def refuse(message: str, model: object, folder: Path = out) -> None:
        with pytest.raises(ConceptError, match=message) as refusal:
            save_merged(model, folder)
        assert "\n" not in str(refusal.value)

    pipeline = make_pipeline(make_unet())
    refuse("no concept is active here", pipeline)
    adapt(pipeline)
    refuse("exists: choose another name", pipeline, tmp_path)
    refuse("has no save_pretrained", SimpleNamespace(components=pipeline.components))
    refuse("has no save_pretrained", get_peft_model(
        make_two_layers(), LoLDUConfig(target_modules=["wide"])))  # fmt: skip
    set_concepts(pipeline, ["dog", None])
    refuse("every picture has its own concept", pipeline)
    mix(pipeline, {})
    refuse("no concept is active here", pipeline)
    mix(pipeline, {"dog": 1e30})
    pipeline.unet.half()
    refuse(r"not finite in torch\.float16: lower the strength", pipeline)
    mix(pipeline, {"dog": 1.0})
    pipeline.text_encoder.disable_adapters()
    pipeline.unet.disable_adapters()
    refuse("no concept is active here", pipeline)
    pipeline.unet.enable_adapters()
    layer = next(m for m in pipeline.unet.modules() if isinstance(m, LoLDULayer))
    layer.merge()
    refuse("dog is merged into layer '.*': unmerge it first", pipeline)
    layer.unmerge()
    layer.base_layer.weight = nn.Parameter(torch.ones(16, 16, dtype=torch.int8), False)
    refuse("is quantized", pipeline)
    pipeline.text_encoder.to("meta")
    refuse("text_encoder has weights that are not in memory", pipeline)
    both = make_pipeline(make_unet())
    both.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj"]), "style")
    both.unet.add_adapter(LoLDUConfig(r=2), "dog")
    refuse("'encoder.layers.0.self_attn.q_proj' has an adapter of another method", both)
    assert not any(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(make_unet: MakeUNet, tmp_path: Path) -> None:
    unet = make_unet()
    unet.add_adapter(LoLDUConfig(r=2, init_weights=False))

    class Broken(UNet2DConditionModel):
        def save_pretrained(self, folder: Path) -> None:
            super().save_pretrained(folder)
            raise OSError("disk full")

    unet.__class__ = Broken
    with pytest.raises(OSError, match="disk full"):
        save_merged(unet, tmp_path / "unet")
    assert not any(tmp_path.iterdir())


def test_a_weight_that_two_layers_share_changes_in_the_adapted_one_alone(
    make_unet: MakeUNet, tmp_path: Path
) -> None:
    unet = make_unet()
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    attention.to_k.weight = attention.to_q.weight
    base = attention.to_k.weight.detach().clone()
    unet.add_adapter(LoLDUConfig(r=3, init_weights=False, target_modules=["to_q"]))
    saved = load_file(save_merged(unet, tmp_path / "unet") / Path(UNET).name)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    assert torch.equal(saved[f"{name}.to_k.weight"], base)
    assert not torch.equal(saved[f"{name}.to_q.weight"], base)
