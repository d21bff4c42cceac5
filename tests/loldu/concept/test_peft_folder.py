"""Folders of PEFT's `save_pretrained`, loaded as concepts, and back."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from loldu import (
    ConceptError,
    LoLDUConfig,
    load_concept,
    save_concept,
    unload_concept,
    verify_concept,
)

MakeModel = Callable[..., nn.Module]
MakeUNet = Callable[..., UNet2DConditionModel]
TARGETS = ["wide", "tall"]
X = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
KINDS = [
    {},
    {"train_scale": False},
    {"pivoting": "complete"},
    {"factorization": "svd"},
    {"factorization": "svd", "train_scale": False},
    {"residual": "perturb", "diagonal_init": "standard_normal", "seed": 3},
    {"normalize_directions": True, "r": 3},
    {"diagonal_init": "uniform", "pivoting": "complete", "residual": "perturb"},
    {"rank_pattern": {"tall": 3}, "alpha_pattern": {"tall": 5.0}},
]


def trained(model: nn.Module, name: str = "default", **options: object) -> PeftModel:
    """Return a PeftModel that changed in every trainable."""
    config = {"r": 6, "alpha": 2.0, "target_modules": TARGETS} | options
    model = get_peft_model(model, LoLDUConfig(**config), name).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def folder_of(model: PeftModel, path: Path) -> Path:
    model.save_pretrained(path)
    return path


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    return model(X)


@pytest.mark.parametrize("wrap", [False, True], ids=["model", "PeftModel"])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_folder_becomes_a_concept_and_a_folder_again(
    make_two_layers: MakeModel, tmp_path: Path, options: dict[str, object], wrap: bool
) -> None:
    source = trained(make_two_layers(), **options)
    expected = output(source)
    model = make_two_layers()
    if wrap:
        model = get_peft_model(model, LoLDUConfig(r=2, target_modules=["tall"]), "shell")
    concept = load_concept(model, folder_of(source, tmp_path / "peft"), "toy", strength=1.0)
    assert {layer.name for layer in concept.layers} == set(TARGETS)
    assert torch.equal(output(model), expected)
    path = save_concept(model, tmp_path / "toy.safetensors", "toy")
    direct = save_concept(source, tmp_path / "direct.safetensors")
    tensors = [load_file(file) for file in (path, direct)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[1])

    shell = get_peft_model(make_two_layers(), LoLDUConfig(r=1, target_modules=TARGETS), "shell")
    load_concept(shell, path, "toy")
    unload_concept(shell, "shell")
    shell.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(make_two_layers(), tmp_path / "again" / "toy").eval()
    assert torch.equal(output(again), expected)


def test_a_folder_of_one_component_finds_its_place(make_unet: MakeUNet, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8,
    )  # fmt: skip
    encoder = CLIPTextModel(config).eval()
    fresh = CLIPTextModel(config).eval()
    fresh.load_state_dict(encoder.state_dict())
    encoder.add_adapter(LoLDUConfig(r=4, init_weights=False))
    encoder.save_pretrained(tmp_path / "transformers")
    unet = get_peft_model(make_unet(), LoLDUConfig(r=4, init_weights=False))
    unet.save_pretrained(tmp_path / "unet")
    pipeline = SimpleNamespace(components={"unet": make_unet(), "text_encoder": fresh})
    found = load_concept(pipeline, tmp_path / "transformers", "words").layers
    assert {layer.component for layer in found} == {"text_encoder"}
    with torch.no_grad():
        words = torch.arange(6)[None]
        expected = encoder(words).last_hidden_state
        assert torch.equal(fresh(words).last_hidden_state, expected)
    found = load_concept(pipeline, str(tmp_path / "unet"), "looks").layers
    assert {layer.component for layer in found} == {"unet"}
    assert len(found) == 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_base_in_half_precision_is_the_same_base(
    make_two_layers: MakeModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    for number, options in enumerate(KINDS):
        folder = folder_of(trained(make_two_layers(), **options), tmp_path / str(number))
        if options.get("factorization") != "svd":
            verify_concept(make_two_layers().to(dtype), folder)
    svd = folder_of(trained(make_two_layers(), factorization="svd"), tmp_path / "svd")
    with pytest.raises(ConceptError, match="the base it was trained on, in its dtype"):
        verify_concept(make_two_layers().to(dtype), svd)


@pytest.mark.parametrize(
    "options",
    [option for option in KINDS if option.get("train_scale", True)],
    ids=str,
)
def test_another_base_is_refused(
    make_two_layers: MakeModel, tmp_path: Path, options: dict[str, object]
) -> None:
    folder = folder_of(trained(make_two_layers(), **options), tmp_path / "peft")
    model = make_two_layers(seed=1)
    with pytest.raises(ConceptError, match="another base model: the weight of layer 'tall' is not"):
        load_concept(model, folder)
    assert type(model.wide) is nn.Linear


def test_a_folder_without_an_adapter_is_reported(
    make_two_layers: MakeModel, tmp_path: Path
) -> None:
    good = folder_of(trained(make_two_layers()), tmp_path / "good")
    config = json.loads((good / "adapter_config.json").read_text())
    tensors = load_file(good / "adapter_model.safetensors")
    dz = "base_model.model.tall.loldu_diagonal.dz"
    pivots = dz.replace("dz", "pivots")
    number = 0

    def refuse(
        message: str,
        changed: dict[str, object] | str | None = None,
        values: dict[str, Tensor] | bytes | None = None,
        model: nn.Module | None = None,
    ) -> None:
        nonlocal number
        number += 1
        path = tmp_path / f"bad{number}"
        path.mkdir()
        if changed != {}:
            text = changed if isinstance(changed, str) else json.dumps(config | (changed or {}))
            (path / "adapter_config.json").write_text(text)
        if isinstance(values, bytes):
            (path / "adapter_model.safetensors").write_bytes(values)
        elif values != {}:
            save_file(values or tensors, path / "adapter_model.safetensors")
        model = model or make_two_layers()
        with pytest.raises(ConceptError, match=message) as refusal:
            load_concept(model, path)
        assert "\n" not in str(refusal.value)
        assert str(path) in str(refusal.value)
        assert not getattr(model, "peft_config", {})

    refuse(r"has no adapter_config\.json: give a concept file, or the folder", {})
    refuse(r"has no adapter_model\.safetensors: save the adapter with", None, {})
    refuse("is not a LoLDU configuration", "{")
    refuse("is not a LoLDU configuration", "[1]")
    refuse("is not a LoLDU configuration", {"r": "many"})
    refuse("is not a LoLDU configuration", {"pivoting": "none"})
    refuse(
        r"also trained head in full .*: use PeftModel\.from_pretrained",
        {"modules_to_save": ["head"]},
    )
    refuse("is not a readable", None, b"rubbish")
    refuse("'head.weight', which is not part of a LoLDU", None, {"head.weight": torch.ones(1)})
    refuse(r"layer 'tall' \(dz, pivots missing", None, {pivots: tensors[pivots]})
    refuse(r"layer 'tall' \(pivots missing", None, {dz: tensors[dz]})
    alone = {dz: tensors[dz], pivots: tensors[pivots]}
    for message, values in (
        ("pivots missing, or not of this size", {pivots: torch.zeros(2, 6)}),
        ("the pivots are not 6 distinct rows", {pivots: tensors[pivots] * 9}),
        ("13 directions", {pivots: torch.arange(13), dz: torch.ones(13)}),
        ("is not finite", {dz: torch.full((6,), torch.nan)}),
    ):
        refuse(message, {"train_scale": False}, alone | values)
    other = make_two_layers()
    other.tall = nn.Identity()
    refuse("layer 'tall', which this model does not have as a linear layer", model=other)

    refuse("layer 'tall' has no floating weight here", model=make_two_layers().to("meta"))


def test_another_method_is_refused(make_two_layers: MakeModel, tmp_path: Path) -> None:
    lora = get_peft_model(make_two_layers(), LoraConfig(target_modules=TARGETS))
    folder = folder_of(lora, tmp_path / "lora")
    with pytest.raises(ConceptError, match="holds a LORA adapter and not a LoLDU one"):
        load_concept(make_two_layers(), folder)
