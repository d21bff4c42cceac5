"""The layers that an adapter targets, and the dtype of its trainables."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTModel

from loldu import LoLDUConfig
from loldu.adapter.layer import LoLDULayer

Make = Callable[..., nn.Module]
SMALL = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


class Attention(nn.Module):
    """Projections under the given names, in a model of the given type."""

    def __init__(self, names: list[str], model_type: str) -> None:
        super().__init__()
        self.config = {"model_type": model_type}
        self.block = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.block.values():
            x = layer(x)
        return x


def vit() -> ViTModel:
    return ViTModel(ViTConfig(image_size=8, patch_size=4, **SMALL))


def classifier() -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(vocab_size=16, **SMALL))


def adapted(model: nn.Module, adapter_name: str = "default") -> list[str]:
    return [
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, LoLDULayer) and adapter_name in module.r
    ]


def ends(model: nn.Module, adapter_name: str = "default") -> set[str]:
    return {name.rpartition(".")[2] for name in adapted(model, adapter_name)}


@pytest.mark.parametrize("model_type", ["vit", "bert"])
@pytest.mark.parametrize(
    "names", [["q_proj", "k_proj", "v_proj", "fc"], ["query", "key", "value", "fc"]]
)
def test_queries_and_values_are_the_default_in_either_spelling(
    names: list[str], model_type: str
) -> None:
    model = get_peft_model(Attention(names, model_type), LoLDUConfig(r=2))
    assert adapted(model) == [f"block.{names[0]}", f"block.{names[2]}"]


def test_a_vision_transformer_of_the_installed_version_has_a_default() -> None:
    model = get_peft_model(vit(), LoLDUConfig(r=2))
    assert len(adapted(model)) == 3 * 2
    assert ends(model) in ({"q_proj", "v_proj"}, {"query", "value"})


def test_an_entry_made_in_pefts_table_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    table = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    monkeypatch.setitem(table, "ours", ["fc"])
    model = get_peft_model(Attention(["q_proj", "fc"], "ours"), LoLDUConfig(r=2))
    assert adapted(model) == ["block.fc"]
    monkeypatch.setitem(table, "ours", r"block\.q.*")
    model = get_peft_model(Attention(["q_proj", "fc"], "ours"), LoLDUConfig(r=2))
    assert adapted(model) == ["block.q_proj"]


def test_the_default_is_found_under_another_methods_adapter() -> None:
    model = inject_adapter_in_model(LoraConfig(target_modules="all-linear"), vit())
    del model.peft_config
    model = inject_adapter_in_model(LoLDUConfig(r=2), model)
    assert len(adapted(model)) == 3 * 2
    assert ends(model) in ({"q_proj", "v_proj"}, {"query", "value"})


@pytest.mark.parametrize(
    ("targets", "meant"),
    [
        (["query", "value"], "Perhaps you meant q_proj, v_proj. "),
        (["attention.to_q"], "Perhaps you meant q_proj. "),
        (["vproj"], "Perhaps you meant v_proj, q_proj. "),
        ([r"0"], ""),
        (r".*\.attention$x", ""),
    ],
)
def test_targets_that_match_nothing_say_what_could_be_meant(
    targets: list[str] | str, meant: str
) -> None:
    model = Attention(["q_proj", "v_proj", "fc1"], "vit")
    rest = re.escape(f"{meant}Its linear layers are named fc1, q_proj, v_proj.")
    with pytest.raises(ValueError, match=rf"not found in the base model\..* try again\. {rest}"):
        get_peft_model(model, LoLDUConfig(target_modules=targets))


def test_layers_of_a_list_are_named_by_it() -> None:
    model = nn.Sequential(nn.ModuleDict({"to_out": nn.Sequential(nn.Linear(4, 4))}))
    with pytest.raises(ValueError, match=r"Its linear layers are named to_out\.0\.$"):
        get_peft_model(model, LoLDUConfig(target_modules=["wide"]))


def test_a_second_adapter_that_matches_nothing_leaves_the_first(make_two_layers: Make) -> None:
    model = get_peft_model(make_two_layers(), LoLDUConfig(r=2, target_modules=["wide"]))
    with pytest.raises(ValueError, match=r"Perhaps you meant wide\. .* named head, tall, wide\.$"):
        model.add_adapter("other", LoLDUConfig(target_modules=["wyde"]))
    assert [*model.peft_config] == ["default"]
    assert adapted(model) == ["wide"]
    model.add_adapter("other", LoLDUConfig(target_modules=["tall"]))
    assert adapted(model, "other") == ["tall"]


@pytest.mark.parametrize("excluded", [["wide", "tall", "head"], r"wide|tall|head"])
def test_excluding_everything_is_an_error(make_two_layers: Make, excluded: list[str] | str) -> None:
    config = LoLDUConfig(target_modules="all-linear", exclude_modules=excluded)
    with pytest.raises(ValueError, match="exclude_modules"):
        get_peft_model(make_two_layers(), config)


@pytest.mark.parametrize("excluded", [["q_proj", "query", "dense"], r".*(q_proj|query|dense)"])
def test_excluded_layers_are_left_alone(excluded: list[str] | str) -> None:
    config = LoLDUConfig(r=2, target_modules="all-linear", exclude_modules=excluded)
    model = get_peft_model(vit(), config)
    assert ends(model) >= {"fc1"}
    assert ends(model).isdisjoint({"q_proj", "query", "dense"})


def test_all_linear_leaves_the_classifier_to_be_trained_in_full() -> None:
    config = LoLDUConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS")
    model = get_peft_model(classifier(), config)
    linear = {name for name, part in classifier().named_modules() if isinstance(part, nn.Linear)}
    assert {*adapted(model)} == linear - {"classifier"}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trained if "loldu_" not in name} == {
        "base_model.model.classifier.modules_to_save.default.weight",
        "base_model.model.classifier.modules_to_save.default.bias",
    }
    model.add_adapter("other", LoLDUConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
    assert adapted(model, "other") == adapted(model)


@pytest.mark.parametrize(
    ("layers", "pattern", "expected"),
    [(0, None, {0}), ([0, 2], "layer", {0, 2}), ([1], ["nowhere", "layer"], {1})],
)
def test_chosen_blocks_only(
    layers: int | list[int], pattern: str | list[str] | None, expected: set[int]
) -> None:
    config = LoLDUConfig(
        r=2,
        target_modules=["query", "value"],
        layers_to_transform=layers,
        layers_pattern=pattern,
    )
    names = adapted(get_peft_model(classifier(), config))
    assert len(names) == 2 * len(expected)
    assert {int(name.split("layer.")[1][0]) for name in names} == expected


def test_a_block_that_does_not_exist_is_an_error() -> None:
    config = LoLDUConfig(target_modules=["query"], layers_to_transform=[3])
    with pytest.raises(ValueError, match=r"'layers_to_transform': \[3\]\. Perhaps you meant query"):
        get_peft_model(classifier(), config)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_trainables_follow_the_base_only_where_float32_is_declined(
    make_two_layers: Make, tmp_path: Path, dtype: torch.dtype
) -> None:
    x = torch.randn(5, 24).to(dtype)
    base = make_two_layers().to(dtype)
    before = base(x)
    config = LoLDUConfig(r=6, target_modules=["wide", "tall"])
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    model.add_adapter("other", config)
    dtypes = {
        name: {p.dtype for key, p in model.named_parameters() if f"diagonal.{name}" in key}
        for name in ("default", "other")
    }
    assert dtypes == {"default": {dtype}, "other": {torch.float32}}
    assert torch.equal(model(x), before)
    for name, parameter in model.named_parameters():
        if "diagonal.default" in name:
            nn.init.normal_(parameter.data, std=0.1)
    expected = model(x)
    model(x).float().square().mean().backward()
    assert all(p.grad.dtype == dtype for p in model.parameters() if p.requires_grad)
    assert (expected - before).abs().max() > 1e-3
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    loaded = PeftModel.from_pretrained(
        make_two_layers().to(dtype), tmp_path, autocast_adapter_dtype=False
    )
    assert {p.dtype for n, p in loaded.named_parameters() if "loldu_" in n} == {dtype}
    assert torch.equal(loaded(x), expected)


def test_a_layer_of_the_base_named_like_the_adapter_is_neither_trained_nor_saved() -> None:
    base = nn.ModuleDict({"fc": nn.Linear(4, 4), "loldu_head": nn.Linear(4, 4)})
    model = get_peft_model(base, LoLDUConfig(r=2, target_modules=["fc"]))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"base_model.model.fc.loldu_diagonal.default.{n}" for n in ("dz", "ds")}
    saved = get_peft_model_state_dict(model)
    assert saved
    assert all(name.startswith("base_model.model.fc.") for name in saved)
