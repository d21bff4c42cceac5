"""LoLDU among PEFT's own functions."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import accelerate
import peft
import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

import loldu
from loldu import LoLDUConfig, LoLDUModel, any_base
from loldu.adapter.layer import LoLDULayer
from loldu.adapter.registration import register

X = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
TARGETS = ["wide", "tall"]
Make = Callable[..., nn.Module]


def train(model: nn.Module, steps: int = 4) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X)


OPTIONS = [
    {},
    {"factorization": "svd"},
    {"pivoting": "complete"},
    {"train_scale": False, "diagonal_init": "uniform", "alpha": 3.0},
    {"diagonal_init": "standard_normal", "residual": "perturb"},
    {"normalize_directions": True},
    {"rank_pattern": {"tall": 2}, "alpha_pattern": {"wide": 8}},
    {"modules_to_save": ["head"]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_saved_adapter_comes_back_bit_by_bit(
    make_two_layers: Make, tmp_path: Path, options: dict[str, object], low_cpu_mem_usage: bool
) -> None:
    model = get_peft_model(make_two_layers(), LoLDUConfig(r=6, target_modules=TARGETS, **options))
    train(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        make_two_layers(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert isinstance(loaded.base_model, LoLDUModel)
    assert torch.equal(output(loaded), output(model))
    assert not torch.equal(output(loaded), output(make_two_layers()))


def test_a_checkpoint_holds_trainables_reference_and_pivots_only(
    make_two_layers: Make, tmp_path: Path
) -> None:
    model = get_peft_model(make_two_layers(), LoLDUConfig(r=6, target_modules=TARGETS))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {name.rpartition("loldu_diagonal.")[2] for name in saved} == {
        "dz",
        "ds",
        "z_ref",
        "pivots",
    }
    assert sum(tensor.numel() for tensor in saved.values()) == 2 * (3 * 6 + 1)


def test_saved_pivots_hold_on_a_base_cast_to_bfloat16(
    make_two_layers: Make, tmp_path: Path
) -> None:
    model = get_peft_model(make_two_layers(), LoLDUConfig(r=12, target_modules=TARGETS))
    train(model)
    model.save_pretrained(tmp_path)
    cast = PeftModel.from_pretrained(make_two_layers().bfloat16(), tmp_path)
    for layer, other in zip(model.modules(), cast.modules(), strict=True):
        if isinstance(layer, LoLDULayer):
            assert torch.equal(other.diagonal("default").pivots, layer.diagonal("default").pivots)
            expected = layer.get_delta_weight("default")
            error = (other.get_delta_weight("default") - expected).norm() / expected.norm()
            assert error < 0.05


def test_saved_pivots_win_over_those_the_base_would_give(
    make_two_layers: Make, tmp_path: Path
) -> None:
    model = get_peft_model(make_two_layers(), LoLDUConfig(r=4, target_modules=["wide"]))
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    saved = load_file(file)
    name = next(name for name in saved if name.endswith("pivots"))
    saved[name] = torch.tensor([7, 1, 3, 2], dtype=torch.int32)
    from safetensors.torch import save_file

    save_file(saved, file)
    with any_base():  # no base chooses these rows
        loaded = PeftModel.from_pretrained(make_two_layers(), tmp_path)
    layer = loaded.base_model.model.wide
    assert layer.factors_of("default").pivots.tolist() == [7, 1, 3, 2]
    # Row 7 is the first pivot row: A's first row is W[7] over its first entry.
    weight = layer.base_weight()
    shared = layer.factors_of("default")
    torch.testing.assert_close(shared.right[0] * shared.gain[0], weight[7] / weight[7, 0])


def test_configs_survive_saving(tmp_path: Path) -> None:
    config = LoLDUConfig(r=5, alpha=2.5, target_modules=["a"], factorization="svd", seed=3)
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, LoLDUConfig)
    assert loaded == config
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LOLDU"


def test_registration_is_idempotent_and_refuses_a_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
    register()
    assert before == peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    monkeypatch.setitem(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING, "LOLDU", peft.LoraConfig)
    with pytest.raises(RuntimeError, match="LOLDU method of its own"):
        register()


@pytest.mark.parametrize(
    "options",
    [
        {"r": 0},
        {"r": -3},
        {"alpha": 0.0},
        {"rank_pattern": {"tall": 0}},
        {"factorization": "qr"},
        {"diagonal_init": "gaussian"},
        {"residual": "keep"},
        {"pivoting": "rook"},
        {"layers_pattern": "layers"},
        {"target_modules": ".*", "layers_to_transform": [0]},
    ],
    ids=str,
)
def test_invalid_options_are_refused_by_name(options: dict[str, object]) -> None:
    name = next(iter(options)).split("_pattern")[0].replace("rank", "r")
    config = LoLDUConfig()
    vars(config).update(options)
    with pytest.raises(ValueError, match=name):
        config.__post_init__()


def test_only_the_adapter_trains(make_two_layers: Make) -> None:
    model = get_peft_model(make_two_layers(), LoLDUConfig(r=6, target_modules=TARGETS))
    trainable, _ = model.get_nb_trainable_parameters()
    assert trainable == 2 * (6 + 1)
    frozen = get_peft_model(
        make_two_layers(), LoLDUConfig(r=6, target_modules=TARGETS, train_scale=False)
    )
    assert frozen.get_nb_trainable_parameters()[0] == 2 * 6


def test_patterns_and_layer_choices(make_two_layers: Make) -> None:
    model = get_peft_model(
        make_two_layers(),
        LoLDUConfig(
            r=6, target_modules="all-linear", exclude_modules=["head"], rank_pattern={"tall": 3}
        ),
    )
    base = model.base_model.model
    assert (base.wide.r, base.tall.r) == ({"default": 6}, {"default": 3})
    assert type(base.head) is nn.Linear


def test_first_block_only() -> None:
    config = CLIPTextConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=8,
    )  # fmt: skip
    model = get_peft_model(CLIPTextModel(config), LoLDUConfig(r=2))
    adapted = [n for n, m in model.named_modules() if isinstance(m, LoLDULayer)]
    assert len(adapted) == 2 * 4
    first = get_peft_model(
        CLIPTextModel(config),
        LoLDUConfig(r=2, target_modules=["q_proj"], layers_to_transform=0),
    )
    adapted = [n for n, m in first.named_modules() if isinstance(m, LoLDULayer)]
    assert len(adapted) == 1
    assert ".layers.0." in adapted[0]


def test_a_model_without_default_targets_needs_target_modules(make_two_layers: Make) -> None:
    with pytest.raises(ValueError, match=r"Please specify `target_modules`.* head, tall, wide"):
        get_peft_model(make_two_layers(), LoLDUConfig())


def test_switching_and_deleting_adapters(make_two_layers: Make) -> None:
    base = output(make_two_layers())
    model = get_peft_model(
        make_two_layers(), LoLDUConfig(r=6, target_modules=TARGETS, init_weights=False)
    )
    model.add_adapter("b", LoLDUConfig(r=9, target_modules=["tall"], init_weights=False, seed=1))
    first = output(model)
    model.set_adapter("b")
    second = output(model)
    assert len({tuple(y.flatten().tolist()) for y in (base, first, second)}) == 3
    model.set_adapter("default")
    assert torch.allclose(output(model), first, atol=1e-6)
    with model.disable_adapter():
        assert torch.equal(output(model), base)
    model.set_adapter("b")
    model.delete_adapter("default")
    assert torch.equal(output(model), second)


def test_a_second_adapter_is_not_trained_with_the_first(make_two_layers: Make) -> None:
    model = get_peft_model(make_two_layers(), LoLDUConfig(r=6, target_modules=TARGETS))
    model.add_adapter("b", LoLDUConfig(r=6, target_modules=TARGETS))
    before = copy.deepcopy(model.base_model.model.tall.diagonal("b").state_dict())
    train(model)
    after = model.base_model.model.tall.diagonal("b").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_trainables_are_float32_on_a_half_precision_base(make_two_layers: Make) -> None:
    model = get_peft_model(make_two_layers().bfloat16(), LoLDUConfig(r=6, target_modules=TARGETS))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    model.half()
    assert {p.dtype for p in trained} == {torch.float32}
    for layer in model.modules():
        if isinstance(layer, LoLDULayer):
            assert layer.factors_of("default").left.dtype == torch.float16


def test_a_model_on_the_meta_device_waits_for_its_weights(make_two_layers: Make) -> None:
    with torch.device("meta"):
        base = make_two_layers()
    model = get_peft_model(base, LoLDUConfig(r=6, target_modules=TARGETS))
    with pytest.raises(RuntimeError, match=r"'default' of layer 'wide' has no values yet"):
        model(X)
    source = get_peft_model(make_two_layers(), LoLDUConfig(r=6, target_modules=TARGETS))
    train(source)
    model.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(output(model), output(source))


def test_saved_pivots_hold_through_the_loader_of_transformers(tmp_path: Path) -> None:
    def encoder() -> CLIPTextModel:
        torch.manual_seed(0)
        config = CLIPTextConfig(
            vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=8, bos_token_id=14, eos_token_id=15,
        )  # fmt: skip
        return CLIPTextModel(config).eval()

    trained = get_peft_model(encoder(), LoLDUConfig(r=8, init_weights=False))
    for module in trained.modules():
        if isinstance(module, LoLDULayer):
            pivots = module.diagonal("default").pivots
            pivots.copy_(pivots.flip(0))
    trained.save_pretrained(tmp_path)
    loaded = encoder()
    tokens = torch.arange(8)[None]
    with torch.no_grad(), any_base():  # no base chooses these rows
        loaded.load_adapter(str(tmp_path))
        expected = trained(tokens).last_hidden_state
        torch.testing.assert_close(loaded(tokens).last_hidden_state, expected)
    fresh = get_peft_model(encoder(), LoLDUConfig(r=8))
    fresh.load_state_dict(
        {k: v for k, v in trained.state_dict().items() if "pivots" not in k}, False
    )
    with torch.no_grad():
        assert (fresh(tokens).last_hidden_state - expected).abs().max() > 1e-3


def test_an_offloaded_model_brings_its_diagonals_in(make_two_layers: Make) -> None:
    config = LoLDUConfig(r=6, target_modules=TARGETS, init_weights=False)
    model = get_peft_model(make_two_layers(), config)
    expected = output(model)
    accelerate.cpu_offload(model, torch.device("cpu"), offload_buffers=True)
    assert next(model.parameters()).is_meta
    torch.testing.assert_close(output(model), expected)


def test_public_names() -> None:
    assert all(hasattr(loldu, name) for name in loldu.__all__)
