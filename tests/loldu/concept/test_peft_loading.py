"""Saved pivots through every loader, on bases whose rounding would choose other ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from loldu import ConceptError, LoLDUConfig, any_base, ldu, load_concept, save_concept
from loldu.adapter.layer import LoLDULayer

Route = Callable[[PeftModel, torch.dtype, Path], nn.Module]
R = 8


def encoder(dtype: torch.dtype = torch.float32) -> CLIPTextModel:
    """Return an encoder with entries near ±1 that differ by less than half precision resolves."""
    config = CLIPTextConfig(
        vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8, bos_token_id=14, eos_token_id=15,
    )  # fmt: skip
    torch.manual_seed(0)
    model = CLIPTextModel(config).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            sign = torch.randint_like(module.weight, 2) * 2 - 1
            module.weight.data = sign * (1 + 1e-4 * torch.rand_like(module.weight))
    return model.to(dtype)


def peft_model(dtype: torch.dtype) -> PeftModel:
    return get_peft_model(encoder(dtype), LoLDUConfig(r=R))


def state_of(model: PeftModel, prefix: str = "base_model.model.") -> dict[str, Tensor]:
    state = get_peft_model_state_dict(model)
    return {name.removeprefix(prefix): tensor.clone() for name, tensor in state.items()}


def from_pretrained(model: PeftModel, dtype: torch.dtype, folder: Path) -> nn.Module:
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(encoder(dtype), folder)


def from_pretrained_through_meta(model: PeftModel, dtype: torch.dtype, folder: Path) -> nn.Module:
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(encoder(dtype), folder, low_cpu_mem_usage=True)


def second_adapter(model: PeftModel, dtype: torch.dtype, folder: Path) -> nn.Module:
    model.save_pretrained(folder)
    loaded = get_peft_model(encoder(dtype), LoLDUConfig(r=2 * R), "other")
    loaded.load_adapter(folder, "default")
    loaded.delete_adapter("other")
    return loaded


def loader_of_transformers(model: PeftModel, dtype: torch.dtype, folder: Path) -> nn.Module:
    model.save_pretrained(folder)
    loaded = encoder(dtype)
    loaded.load_adapter(str(folder))
    return loaded


def values_into_an_adapter(model: PeftModel, dtype: torch.dtype, _: Path) -> nn.Module:
    loaded = peft_model(dtype)
    set_peft_model_state_dict(loaded, state_of(model, ""))
    return loaded


def injected_where_the_values_are(model: PeftModel, dtype: torch.dtype, _: Path) -> nn.Module:
    loaded, state = encoder(dtype), state_of(model)
    config = LoLDUConfig(r=R, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
    inject_adapter_in_model(config, loaded, state_dict=state, low_cpu_mem_usage=True)
    set_peft_model_state_dict(loaded, state, low_cpu_mem_usage=True)
    return loaded


def whole_model_through_meta(model: PeftModel, dtype: torch.dtype, _: Path) -> nn.Module:
    state = peft_model(dtype).state_dict() | {
        name: tensor for name, tensor in model.state_dict().items() if "loldu_" in name
    }
    with torch.device("meta"):
        loaded = peft_model(dtype)
    loaded.load_state_dict(state, assign=True)
    return loaded


def cast_afterwards(model: PeftModel, dtype: torch.dtype, folder: Path) -> nn.Module:
    return from_pretrained(model, torch.float32, folder).to(dtype)


def concept(model: PeftModel, dtype: torch.dtype, folder: Path) -> nn.Module:
    loaded = encoder(dtype)
    load_concept(loaded, save_concept(model, folder / "dog.safetensors"))
    return loaded


ROUTES = (
    from_pretrained,
    from_pretrained_through_meta,
    second_adapter,
    loader_of_transformers,
    values_into_an_adapter,
    injected_where_the_values_are,
    whole_model_through_meta,
    cast_afterwards,
    concept,
)


def layers(model: nn.Module) -> list[LoLDULayer]:
    return [module for module in model.modules() if isinstance(module, LoLDULayer)]


@pytest.mark.filterwarnings("ignore:Adapter other was active")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("route", ROUTES)
def test_saved_pivots_hold_on_a_rounded_base(
    route: Route, dtype: torch.dtype, tmp_path: Path
) -> None:
    trained = get_peft_model(encoder(), LoLDUConfig(r=R, init_weights=False))
    loaded = route(trained, dtype, tmp_path)
    assert len(layers(loaded)) == len(layers(trained)) == 4
    for layer, original in zip(layers(loaded), layers(trained), strict=True):
        expected = original.get_delta_weight("default")
        assert layer.base_weight().dtype == dtype
        assert layer.diagonal("default").dz.dtype == torch.float32
        error = (layer.get_delta_weight("default") - expected).norm() / expected.norm()
        assert error < 0.02
        chosen_again = ldu(layer.base_weight(), R)
        other = (chosen_again.left * original.delta("default")) @ chosen_again.right
        assert (other - expected).norm() / expected.norm() > 0.5


KEYS = {
    "ldu": ({}, {"dz", "ds", "z_ref", "pivots"}),
    "svd": ({"factorization": "svd"}, {"dz", "ds", "z_ref"}),
    "fixed scale": ({"train_scale": False}, {"dz", "pivots"}),
    "perturbing": (
        {"diagonal_init": "ones", "residual": "perturb"},
        {"dz", "ds", "z_ref", "perturbation", "pivots"},
    ),
    "normalized": ({"normalize_directions": True}, {"dz", "ds", "z_ref", "unit", "pivots"}),
}


@pytest.mark.parametrize(("options", "names"), KEYS.values(), ids=KEYS)
def test_a_checkpoint_holds_the_listed_tensors_only(
    make_two_layers: Callable[..., nn.Module],
    tmp_path: Path,
    options: dict[str, object],
    names: set[str],
) -> None:
    config = LoLDUConfig(r=6, target_modules=["wide", "tall"], modules_to_save=["head"], **options)
    model = get_peft_model(make_two_layers(), config)
    model(torch.randn(2, 24)).square().mean().backward()
    model.save_pretrained(tmp_path)
    saved = {*load_file(tmp_path / "adapter_model.safetensors")}
    prefix = "base_model.model."
    assert saved == {
        *(f"{prefix}{layer}.loldu_diagonal.{n}" for layer in ("wide", "tall") for n in names),
        f"{prefix}head.weight",
        f"{prefix}head.bias",
    }


def test_modules_saved_in_full_come_back_through_the_loader_of_transformers(
    tmp_path: Path,
) -> None:
    config = LoLDUConfig(r=R, init_weights=False, modules_to_save=["final_layer_norm"])
    trained = get_peft_model(encoder(), config)
    norm = next(p for n, p in trained.named_parameters() if "modules_to_save.default.bias" in n)
    torch.nn.init.constant_(norm, 3.0)
    loaded = loader_of_transformers(trained, torch.float32, tmp_path)
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        expected = trained(tokens).last_hidden_state
        assert torch.equal(loaded(tokens).last_hidden_state, expected)
        assert (encoder()(tokens).last_hidden_state - expected).abs().mean() > 1


def plain(seed: int) -> CLIPTextModel:
    """A base; another seed is another base of the same shapes."""
    config = encoder().config
    torch.manual_seed(seed)
    return CLIPTextModel(config).eval()


def beside_another(base: nn.Module, folder: Path) -> None:
    get_peft_model(base, LoLDUConfig(r=R), "mine").load_adapter(folder, "default")


def through_meta(base: nn.Module, folder: Path) -> None:
    PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=True)


def as_state_dict(base: nn.Module, folder: Path) -> None:
    model = get_peft_model(base, LoLDUConfig.from_pretrained(folder))
    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))


def by_transformers(base: CLIPTextModel, folder: Path) -> None:
    base.load_adapter(str(folder))
    base.train().eval()(torch.arange(8)[None])  # its loader calls no hook of the layers


@pytest.mark.parametrize(
    "load",
    [PeftModel.from_pretrained, through_meta, beside_another, as_state_dict, by_transformers],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train_scale": False},
        {"pivoting": "complete"},
        {"factorization": "svd"},
        {"diagonal_init": "normal", "seed": 5},
        {"diagonal_init": "ones", "residual": "perturb"},
    ],
    ids=str,
)
def test_peft_refuses_another_base_unless_any_will_do(
    load: Callable[[nn.Module, Path], object], options: dict[str, object], tmp_path: Path
) -> None:
    config = LoLDUConfig(r=R, init_weights=False, **options)
    get_peft_model(plain(0), config).save_pretrained(tmp_path)
    base = plain(1)
    with pytest.raises(ConceptError, match=r"another base model: .* layer '\S*proj'; .*any_base"):
        load(base, tmp_path)
    base = plain(1)
    with any_base():
        load(base, tmp_path)
    base.to(torch.bfloat16).train().eval()(torch.arange(8)[None])
    own = plain(0)
    load(own, tmp_path)
    own.train().eval()(torch.arange(8)[None])


def test_a_refused_adapter_can_be_deleted_and_the_others_work(tmp_path: Path) -> None:
    config = LoLDUConfig(r=R, init_weights=False)
    get_peft_model(plain(0), config).save_pretrained(tmp_path)
    model = get_peft_model(plain(1), config, "mine")
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        before = model(tokens).last_hidden_state
        with pytest.raises(ConceptError, match="adapter 'theirs' was trained on another base"):
            model.load_adapter(tmp_path, "theirs")
        assert torch.equal(model(tokens).last_hidden_state, before)
        model.set_adapter("theirs")
        with pytest.raises(ConceptError, match="adapter 'theirs' was trained on another base"):
            model(tokens)
        model.set_adapter("mine")
        model.delete_adapter("theirs")
        model.eval()
        assert torch.equal(model(tokens).last_hidden_state, before)


def test_a_folder_with_pivots_alone_is_compared_by_them(tmp_path: Path) -> None:
    config = LoLDUConfig(r=R, init_weights=False, train_scale=False)
    get_peft_model(plain(0), config).save_pretrained(tmp_path)
    with pytest.raises(ConceptError, match="was made for another base model: the weight of layer"):
        load_concept(plain(1), tmp_path)
    load_concept(plain(0), tmp_path)


def test_the_card_beside_a_saved_adapter_begins_with_how_to_load_it(tmp_path: Path) -> None:
    model = get_peft_model(plain(0), LoLDUConfig(r=R))
    for _ in range(2):  # once, however often it is saved
        model.save_pretrained(tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.library_name == "peft"
        assert card.text.lstrip().startswith("# How to load it")
        assert card.text.count("import loldu") == 1
        assert "### Framework versions" in card.text
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("# A project that says import loldu itself")
    model.peft_config["default"].save_pretrained(mine)
    assert (mine / "README.md").read_text() == "# A project that says import loldu itself"
