"""Save and load concepts of models and pipelines."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from loldu import ConceptError, LoLDUConfig, load_concept, read_concept, save_concept
from loldu.adapter.layer import LoLDULayer

MakeUNet = Callable[..., UNet2DConditionModel]
MakeModel = Callable[..., nn.Module]
X = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def sample(unet: UNet2DConditionModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, states = (torch.randn(*s, generator=generator) for s in ((2, 4, 8, 8), (2, 5, 8)))
    dtype = unet.dtype
    return unet(latents.to(dtype), torch.tensor([3, 700]), states.to(dtype)).sample


def trained_unet(make_unet: MakeUNet, **options: object) -> UNet2DConditionModel:
    """Return a U-Net whose adapter changed in every trainable."""
    unet = make_unet()
    unet.add_adapter(LoLDUConfig(**{"r": 8, "alpha": 3.0} | options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return unet


def text_encoder(seed: int = 0) -> CLIPTextModel:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def pipeline(unet: nn.Module, encoder: nn.Module | None = None) -> SimpleNamespace:
    """The part of a pipeline that load_concept needs: its components."""
    parts = {"unet": unet, "text_encoder": encoder or text_encoder(), "scheduler": object()}
    return SimpleNamespace(components=parts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r": 64},
        {"factorization": "svd"},
        {"pivoting": "complete"},
        {"train_scale": False},
        {"diagonal_init": "standard_uniform", "residual": "perturb"},
        {"normalize_directions": True},
        {"rank_pattern": {"to_out.0": 3, "attn1.to_q": 5}},
    ],
    ids=str,
)
def test_a_loaded_concept_draws_the_same_bits(
    make_unet: MakeUNet, tmp_path: Path, options: dict[str, object]
) -> None:
    trained = trained_unet(make_unet, **options)
    path = save_concept(trained, tmp_path / "toy.safetensors", metadata={"prompt": "sks toy"})
    unet = make_unet()
    before = sample(unet)
    concept = load_concept(unet, path, adapter_name="toy")
    assert concept.metadata == {"prompt": "sks toy"}
    assert torch.equal(sample(unet), sample(trained))
    assert not torch.equal(sample(unet), before)
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    unet.disable_adapters()
    assert torch.equal(sample(unet), before)


def test_a_new_process_draws_the_same_bits(make_unet: MakeUNet, tmp_path: Path) -> None:
    trained = trained_unet(make_unet)
    save_concept(trained, tmp_path / "toy.safetensors")
    make_unet().save_pretrained(tmp_path / "base")
    torch.save(sample(trained), tmp_path / "expected.pt")
    script = """
import sys, torch, hashlib
from diffusers import UNet2DConditionModel
from loldu import load_concept
torch.set_num_threads(1)
folder = sys.argv[1]
unet = UNet2DConditionModel.from_pretrained(folder + "/base").eval()
load_concept(unet, folder + "/toy.safetensors")
g = torch.Generator().manual_seed(0)
x, s = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 5, 8, generator=g)
with torch.no_grad():
    y = unet(x, torch.tensor([3, 700]), s).sample
print(hashlib.sha256(y.numpy().tobytes()).hexdigest())
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    expected = hashlib.sha256(sample(trained).numpy().tobytes()).hexdigest()
    assert run.stdout.split()[-1] == expected


def test_strength_scales_the_change_of_weights(make_unet: MakeUNet, tmp_path: Path) -> None:
    path = save_concept(trained_unet(make_unet), tmp_path / "toy.safetensors")
    full, half, none = make_unet(), make_unet(), make_unet()
    load_concept(full, path)
    load_concept(half, path, strength=0.5)
    load_concept(none, path, strength=0.0)
    for one, other in zip(full.modules(), half.modules(), strict=True):
        if isinstance(one, LoLDULayer):
            expected = 0.5 * one.get_delta_weight("default")
            torch.testing.assert_close(other.get_delta_weight("default"), expected)
    torch.testing.assert_close(sample(none), sample(make_unet()))


def test_a_second_concept_takes_over_and_the_first_stays_at_hand(
    make_unet: MakeUNet, tmp_path: Path
) -> None:
    first = trained_unet(make_unet)
    second = trained_unet(make_unet, r=3, target_modules=["to_k"])
    unet = make_unet()
    load_concept(unet, save_concept(first, tmp_path / "a.safetensors"), "a")
    load_concept(unet, save_concept(second, tmp_path / "b.safetensors"), "b")
    assert torch.allclose(sample(unet), sample(second), atol=1e-6)
    unet.set_adapters("a")
    assert torch.equal(sample(unet), sample(first))
    with pytest.raises(ConceptError, match=r"'a' is already loaded"):
        load_concept(unet, tmp_path / "b.safetensors", "a")


@pytest.mark.parametrize("saved_as", [torch.float32, torch.float16])
def test_the_dtype_of_the_file(make_unet: MakeUNet, tmp_path: Path, saved_as: torch.dtype) -> None:
    trained = trained_unet(make_unet)
    path = save_concept(trained, tmp_path / "toy.safetensors", dtype=saved_as)
    deltas = torch.cat([layer.delta for layer in read_concept(path).layers])
    expected = torch.cat(
        [m.diagonal("default").delta() for m in trained.modules() if isinstance(m, LoLDULayer)]
    )
    assert torch.equal(deltas, expected.to(saved_as).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_base_in_another_dtype_is_the_same_base(
    make_unet: MakeUNet, tmp_path: Path, dtype: torch.dtype, reverse: bool
) -> None:
    trained = trained_unet(make_unet)
    other = make_unet()
    (trained if reverse else other).to(dtype)
    path = save_concept(trained, tmp_path / "toy.safetensors")
    load_concept(other, path)
    scale = sample(trained).float().abs().max()
    assert (sample(other).float() - sample(trained).float()).abs().max() < 0.1 * scale


@pytest.mark.parametrize("wrap", [False, True])
def test_models_of_peft(make_two_layers: MakeModel, tmp_path: Path, wrap: bool) -> None:
    config = LoLDUConfig(r=6, target_modules=["wide", "tall"], init_weights=False)
    trained = get_peft_model(make_two_layers(), config)
    path = save_concept(trained, tmp_path / "toy.safetensors")
    model = make_two_layers()
    if wrap:
        model = get_peft_model(model, LoLDUConfig(r=2, target_modules=["tall"]), "other")
    load_concept(model, path, "toy")
    with torch.no_grad():
        assert torch.equal(model(X), trained(X))
    if wrap:
        assert isinstance(model, PeftModel)
        assert model.active_adapter == "toy"
        model.set_adapter("other")
        with torch.no_grad():
            assert torch.equal(model(X), make_two_layers()(X))


def test_pipelines_with_an_adapted_text_encoder(make_unet: MakeUNet, tmp_path: Path) -> None:
    encoder = get_peft_model(text_encoder(), LoLDUConfig(r=4, init_weights=False))
    trained = pipeline(trained_unet(make_unet), encoder)
    path = save_concept(trained, tmp_path / "toy.safetensors")
    fresh = pipeline(make_unet())
    load_concept(fresh, path)
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        expected = encoder(tokens).last_hidden_state
        assert torch.equal(fresh.components["text_encoder"](tokens).last_hidden_state, expected)
    assert torch.equal(sample(fresh.components["unet"]), sample(trained.components["unet"]))
    with pytest.raises(ConceptError, match=r"also changes the .*: pass the whole pipeline"):
        load_concept(make_unet(), path)


@pytest.mark.parametrize("save_whole", [False, True])
def test_a_unet_alone_and_its_pipeline_exchange_concepts(
    make_unet: MakeUNet, tmp_path: Path, save_whole: bool
) -> None:
    trained, fresh = trained_unet(make_unet), make_unet()
    source = pipeline(trained) if save_whole else trained
    path = save_concept(source, tmp_path / "toy.safetensors")
    load_concept(fresh if save_whole else pipeline(fresh), path)
    assert torch.equal(sample(fresh), sample(trained))


def test_a_concept_saved_while_merged_is_that_of_the_base(
    make_two_layers: MakeModel, tmp_path: Path
) -> None:
    config = LoLDUConfig(r=6, target_modules=["wide", "tall"], init_weights=False)
    trained = get_peft_model(make_two_layers(), config)
    trained.merge_adapter()
    model = make_two_layers()
    load_concept(model, save_concept(trained, tmp_path / "toy.safetensors"))
    trained.unmerge_adapter()
    with torch.no_grad():
        assert torch.equal(model(X), trained(X))


def test_a_concept_joins_a_lora(make_two_layers: MakeModel, tmp_path: Path) -> None:
    config = LoLDUConfig(r=6, target_modules=["wide", "tall"], init_weights=False)
    concept = get_peft_model(make_two_layers(), config)
    path = save_concept(concept, tmp_path / "toy.safetensors")
    lora = LoraConfig(r=2, target_modules=["tall"], init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(make_two_layers(), lora, "style").get_base_model()
    tall = model.tall
    load_concept(model, path, "toy")
    with torch.no_grad():
        h = torch.tanh(concept.base_model.model.wide(X))
        expected = tall(h) + h @ concept.base_model.model.tall.get_delta_weight("default").T
        torch.testing.assert_close(model.tall(h), expected)


def state_of(model: nn.Module) -> tuple[list[str], list[Tensor], list[bool]]:
    return (
        [f"{name} {type(module).__name__}" for name, module in model.named_modules()],
        [tensor.clone() for tensor in model.state_dict().values()],
        [parameter.requires_grad for parameter in model.parameters()],
    )


def assert_refused(
    model: nn.Module, path: Path, message: str, adapter_name: str = "default"
) -> None:
    modules, tensors, trainable = state_of(model)
    with pytest.raises(ConceptError, match=message) as refusal:
        load_concept(model, path, adapter_name)
    assert "\n" not in str(refusal.value)
    after = state_of(model)
    assert (after[0], after[2]) == (modules, trainable)
    assert all(torch.equal(a, b) for a, b in zip(tensors, after[1], strict=True))
    assert not getattr(model, "peft_config", {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_another_base_is_refused_by_its_first_layer(
    make_unet: MakeUNet, tmp_path: Path, dtype: torch.dtype
) -> None:
    path = save_concept(trained_unet(make_unet), tmp_path / "toy.safetensors")
    first = read_concept(path).layers[0].name
    assert_refused(make_unet(seed=1).to(dtype), path, f"another base.*'{first}'.*not the one here")
    unet = make_unet().to(dtype)
    layer = read_concept(path).layers[5].name
    weight = unet.get_submodule(layer).weight.data
    weight += 0.2 * weight.std() * torch.randn_like(weight)
    assert_refused(unet, path, f"another base.*'{layer}'.*not the one here")


def test_a_small_change_of_a_float32_base_is_noticed(make_unet: MakeUNet, tmp_path: Path) -> None:
    path = save_concept(trained_unet(make_unet), tmp_path / "toy.safetensors")
    for change in (lambda w: w[2, 3].add_(1e-3), lambda w: w.mul_(1.0001), lambda w: w.add_(1e-4)):
        unet = make_unet()
        layer = read_concept(path).layers[-1].name
        change(unet.get_submodule(layer).weight.data)
        assert_refused(unet, path, f"'{layer}'")


def test_an_svd_concept_asks_for_the_dtype_it_was_trained_on(
    make_unet: MakeUNet, tmp_path: Path
) -> None:
    path = save_concept(trained_unet(make_unet, factorization="svd"), tmp_path / "toy.safetensors")
    assert_refused(make_unet().half(), path, r"trained on float32, and this is float16")


def test_missing_layers_and_other_shapes_are_refused(
    make_two_layers: MakeModel, tmp_path: Path
) -> None:
    config = LoLDUConfig(r=6, target_modules=["wide", "tall"])
    path = save_concept(get_peft_model(make_two_layers(), config), tmp_path / "toy.safetensors")
    model = make_two_layers()
    model.tall = nn.Linear(12, 21, bias=False)
    assert_refused(model, path, "'tall', 20 x 12, which is 21 x 12 here")
    model.tall = nn.Identity()
    assert_refused(model, path, "'tall', which this model does not have as a linear layer")


@pytest.mark.parametrize("name", ["", "a.b", "keys"])
def test_names_pytorch_cannot_give_a_module_are_refused(
    make_two_layers: MakeModel, tmp_path: Path, name: str
) -> None:
    config = LoLDUConfig(r=6, target_modules=["wide"])
    path = save_concept(get_peft_model(make_two_layers(), config), tmp_path / "toy.safetensors")
    assert_refused(make_two_layers(), path, "cannot name an adapter", adapter_name=name)


def test_a_model_of_another_method_is_refused(make_two_layers: MakeModel, tmp_path: Path) -> None:
    config = LoLDUConfig(r=6, target_modules=["wide"])
    path = save_concept(get_peft_model(make_two_layers(), config), tmp_path / "toy.safetensors")
    lora = get_peft_model(make_two_layers(), LoraConfig(target_modules=["tall"]))
    with pytest.raises(ConceptError, match=r"PeftModel of another method"):
        load_concept(lora, path, "toy")


def test_unsaveable_models_are_refused(make_two_layers: MakeModel, tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    with pytest.raises(ConceptError, match=r"no LoLDU adapter named 'default'"):
        save_concept(make_two_layers(), path)
    with pytest.raises(TypeError, match=r"expected a model or a diffusers pipeline, got str"):
        save_concept("model", path)
    config = LoLDUConfig(r=6, target_modules=["wide"], modules_to_save=["head"])
    with pytest.raises(ConceptError, match=r"also trains head in full .*use save_pretrained"):
        save_concept(get_peft_model(make_two_layers(), config), path)
    model = get_peft_model(make_two_layers(), LoLDUConfig(r=6, target_modules=["wide"]))
    with pytest.raises(ConceptError, match=r"not JSON"):
        save_concept(model, path, metadata={"when": object()})
    nn.init.constant_(model.base_model.model.wide.diagonal("default").dz, torch.nan)
    with pytest.raises(ConceptError, match=r"'wide' is not finite"):
        save_concept(model, path)
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_overwritten_only_on_request(
    make_two_layers: MakeModel, tmp_path: Path
) -> None:
    path = tmp_path / "folder" / "toy.safetensors"
    model = get_peft_model(make_two_layers(), LoLDUConfig(r=6, target_modules=["wide"]))
    save_concept(model, path, metadata={"n": 1})
    with pytest.raises(ConceptError, match=r"exists: pass overwrite=True"):
        save_concept(model, path, metadata={"n": 2})
    assert read_concept(path).metadata == {"n": 1}
    save_concept(model, path, metadata={"n": 2}, overwrite=True)
    assert read_concept(path).metadata == {"n": 2}
    assert [p.name for p in path.parent.iterdir()] == ["toy.safetensors"]


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("my-base", "my-base"),
        ("my-base/unet", "my-base"),
        ("models--someone--sd/snapshots/0123abc/unet", "someone/sd"),
    ],
)
def test_the_base_is_named_without_its_path(
    make_unet: MakeUNet, tmp_path: Path, folder: str, expected: str
) -> None:
    make_unet().save_pretrained(tmp_path / folder)
    unet = UNet2DConditionModel.from_pretrained(tmp_path / folder)
    unet.add_adapter(LoLDUConfig(r=2))
    path = save_concept(unet, tmp_path / "toy.safetensors")
    assert read_concept(path).base == expected
    assert str(tmp_path).encode() not in path.read_bytes()
