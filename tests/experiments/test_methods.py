import pytest
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from experiments.methods import METHODS, adapt, count_parameters, resolve_targets
from loldu.errors import LoLDUError

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
OPTIONS = {
    "lora": {"r": 2},
    "pissa": {"r": 2},
    "adalora": {"init_r": 3, "target_r": 2},
    "vera": {"r": 8},
    "fourierft": {"n_frequency": 10},
    "melora": {"r": 2, "n": 2},
    "loldu": {"r": 8},
    "svfit": {"r": 8},
}
# Two layers of query and value, 16 x 16 each.
NUMBERS = {
    "none": 0,
    "lp": 0,
    "lora": 4 * 2 * 2 * 16,
    "pissa": 4 * 2 * 2 * 16,
    "adalora": 4 * (3 * 2 * 16 + 3),
    "vera": 4 * (8 + 16),
    "fourierft": 4 * 10,
    "loldu": 4 * (8 + 1),
    "svfit": 4 * (8 + 1),
}


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(**SMALL, image_size=16, patch_size=8, num_labels=3)
    ).eval()


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
def test_trained_parameters_of_every_method(method: str) -> None:
    """Every adapter starts at the base; all methods except `none` train the head."""
    with torch.no_grad():
        plain = vit()(pixel_values=pixels()).logits
        model = adapt(vit(), method, OPTIONS.get(method, {}), head=["classifier"], seed=3).eval()
        logits = model(pixel_values=pixels()).logits
    if method != "fourierft":  # its authors start from random coefficients
        torch.testing.assert_close(logits, plain, atol=1e-5, rtol=1e-5)
    outside, inside = count_parameters(model, ["classifier"])
    assert inside == (0 if method == "none" else 3 * 16 + 3)
    if method in NUMBERS:
        assert outside == NUMBERS[method]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} <= {torch.float32}


@pytest.mark.parametrize("method", ["lora", "pissa", "vera", "melora", "loldu", "svfit"])
def test_merged_at_the_start_is_the_base(method: str) -> None:
    """PiSSA takes its factors out of the base weight: merging must put them back."""
    state = vit().state_dict()
    model = adapt(vit(), method, OPTIONS[method], head=["classifier"], seed=3)
    if method == "pissa":
        taken = model.get_submodule("base_model.model.vit.layers.0.attention.q_proj.base_layer")
        assert not torch.allclose(taken.weight, state["vit.layers.0.attention.q_proj.weight"])
    merged = model.merge_and_unload().state_dict()
    assert merged.keys() == state.keys()
    for name, weight in state.items():
        torch.testing.assert_close(merged[name], weight, atol=1e-5, rtol=1e-5)


def test_full_and_bias_counts() -> None:
    base = vit()
    biases = {n: p for n, p in base.named_parameters() if n.endswith("bias")}
    of_head = base.classifier.bias.numel()
    model = adapt(vit(), "bitfit", {}, head=["classifier"], seed=0)
    expected = sum(p.numel() for p in biases.values()) - of_head
    assert count_parameters(model, ["classifier"])[0] == expected
    model = adapt(vit(), "ft", {}, head=["classifier"], seed=0)
    assert sum(count_parameters(model, ["classifier"])) == sum(p.numel() for p in base.parameters())


@pytest.mark.parametrize("method", ["lora", "vera", "fourierft"])
def test_seeds_decide_what_is_random(method: str) -> None:
    def drawn(seed: int) -> list[torch.Tensor]:
        model = adapt(vit(), method, OPTIONS[method], head=["classifier"], seed=seed)
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return [t.detach() for n, t in state.items() if method in n or "lora_A" in n]

    same, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(a, b) for a, b in zip(same, again, strict=True))
    if method in ("lora", "vera"):
        assert not all(torch.equal(a, b) for a, b in zip(same, other, strict=True))


@pytest.mark.parametrize("targets", [("query", "value"), ("q_proj", "v_proj")])
def test_projections_are_found_under_either_name(targets: tuple[str, str]) -> None:
    models: list[tuple[nn.Module, set[str]]] = [
        (vit(), {"q_proj", "v_proj"}),
        (RobertaForSequenceClassification(RobertaConfig(**SMALL)), {"query", "value"}),
        (LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2)), {"q_proj", "v_proj"}),
    ]
    for model, expected in models:
        assert set(resolve_targets(model, targets)) == expected


def test_layers_of_one_name_are_distinguished_by_their_parent() -> None:
    model = RobertaForSequenceClassification(RobertaConfig(**SMALL))
    adapted = adapt(model, "loldu", {"target_modules": ["attention.output.dense"], "r": 2}, seed=0)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all(".attention.output.dense." in name for name in trained)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lodlu", {}, "no method lodlu; perhaps you meant loldu"),
        ("loldu", {"target_modules": ["qeury"]}, "no layer called qeury"),
        ("loldu", {"rank": 3}, "options for loldu"),
        ("loldu", {"r": 0}, "options for loldu: r must be a positive integer"),
        ("ft", {"r": 3}, "ft takes no options, not r"),
    ],
)
def test_mistakes_are_reported(method: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(LoLDUError, match=message) as error:
        adapt(vit(), method, options, head=["classifier"], seed=0)
    assert "\n" not in str(error.value)
