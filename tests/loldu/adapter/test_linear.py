"""Conv1D, convolutions and embeddings: each against a plain layer with the changed weight."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import PeftModel, get_peft_model
from peft.tuners.lora.conversion import convert_to_lora
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from loldu import (
    ConceptError,
    LoLDUConfig,
    export_lora,
    load_concept,
    mix,
    project,
    save_concept,
    set_concepts,
    set_strength,
    verify_concept,
)
from loldu.adapter.layer import LoLDULayer
from loldu.adapter.mixing import Rows

RANK = 4


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Kind:
    """A kind of layer, a batch for it, and the mapping between its weight and W (out, in)."""

    make: Callable[[], nn.Module]
    x: Tensor
    matrix: Callable[[Tensor], Tensor]
    stored: Callable[[Tensor], Tensor]

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return Model(self.make())


class Model(nn.Module):
    """Return a model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        nn.init.normal_(layer.weight)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def convolution(kernel: tuple[int, int] = (1, 1), **options: object) -> Kind:
    return Kind(
        lambda: nn.Conv2d(10, 14, kernel, **options),
        gaussian(3, 10, 6, 7),
        lambda w: w.reshape(14, -1),
        lambda m: m.reshape(14, 10, *kernel),
    )


KINDS = {
    "conv1d": Kind(lambda: Conv1D(14, 10), gaussian(3, 5, 10), lambda w: w.T, lambda m: m.T),
    "convolution": convolution(),
    "strided": convolution(stride=(2, 3), padding=(1, 2)),
    "reflecting": convolution(padding=2, padding_mode="reflect", bias=False),
    "same": convolution(padding="same", dilation=2),
    "wide": convolution((3, 2), stride=(1, 2), padding=(1, 2)),
    "dilated": convolution((3, 2), padding=1, dilation=(2, 1)),
    "wide_circular": convolution((3, 3), padding="same", padding_mode="circular", bias=False),
    "embedding": Kind(
        lambda: nn.Embedding(14, 10),
        torch.randint(14, (3, 5), generator=torch.Generator().manual_seed(0)),
        lambda w: w,
        lambda m: m,
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def adapt(model: nn.Module, *names: str, **options: object) -> PeftModel:
    """Return a model with a random adapter for each name; the first is active."""
    configs = [
        LoLDUConfig(**{"r": RANK + i, "init_weights": False, "seed": i} | options)
        for i in range(len(names))
    ]
    for config in configs:
        config.target_modules = {"layer"}
    adapted = get_peft_model(model, configs[0], names[0])
    for name, config in zip(names[1:], configs[1:], strict=True):
        adapted.add_adapter(name, config)
    return adapted.eval()


def layer_of(model: PeftModel) -> LoLDULayer:
    return model.get_base_model().layer


def reference_delta(kind: Kind, model: PeftModel, name: str = "dog") -> Tensor:
    """``P L_r diag(delta) U_r`` with the factors of LAPACK's LU, as the layer stores weights."""
    weight = kind.matrix(kind.model().layer.weight.detach()).double()
    permutation, lower, upper = torch.linalg.lu(weight)
    delta = layer_of(model).diagonal(name).delta().detach().double()
    r = len(delta)
    unit = upper[:r] / upper.diagonal()[:r, None]
    return kind.stored((permutation @ lower)[:, :r] @ torch.diag(delta) @ unit).float()


@torch.no_grad()
def changed(kind: Kind, change: Tensor, x: Tensor | None = None) -> Tensor:
    """Return the output of the plain layer with its weight changed."""
    model = kind.model()
    model.layer.weight += change
    return model(kind.x if x is None else x)


@torch.no_grad()
def output(model: nn.Module, x: Tensor, **options: object) -> Tensor:
    return model(x, **options)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def test_tokens_of_a_row_have_their_own_strengths() -> None:
    kind = KINDS["conv1d"]
    model = adapt(kind.model(), "dog", "cat")
    rows = [{"dog": 0.5, "cat": 2}, {"cat": 1}, None]
    gates = [{"dog": [0, 1, 0.25, 1, -1]}, {"cat": [1, 0, 0, 0, 0.5]}, {"dog": [1] * 5}]
    gated = Rows.of(rows, gates=gates)
    # W x + Σ g B diag(delta) A x by hand: cat acts on all tokens of the first row.
    of = {name: kind.x @ reference_delta(kind, model, name) for name in ("dog", "cat")}
    expected = output(kind.model(), kind.x)
    expected[0] += 0.5 * torch.tensor(gates[0]["dog"])[:, None] * of["dog"][0] + 2 * of["cat"][0]
    expected[1] += torch.tensor(gates[1]["cat"])[:, None] * of["cat"][1]

    def drawn(rows: Rows, x: Tensor) -> Tensor:
        layer_of(model).rows = rows
        return output(model, x)

    twice = drawn(gated, kind.x.repeat(2, 1, 1))
    assert_close(twice, expected.repeat(2, 1, 1))
    # Tokens at 0 and rows without an adapter are the base's bit by bit; 1 everywhere is no gate.
    assert torch.equal(twice[1, 1:4], output(kind.model(), kind.x)[1, 1:4])
    assert torch.equal(twice[2], output(kind.model(), kind.x)[2])
    ones = Rows.of(rows, gates=[{"dog": [1] * 5, "cat": [1] * 5}] * 3)
    assert torch.equal(drawn(ones, kind.x), drawn(Rows.of(rows), kind.x))
    last = drawn(Rows.of(rows[1:2], blank=2, gates=gates[1:2]), kind.x[[0, 2, 1]])
    assert_close(last[2], expected[1])
    assert torch.equal(last[:2], output(kind.model(), kind.x)[[0, 2]])


def test_gated_tokens_have_gradients() -> None:
    kind = KINDS["conv1d"]
    model, x = adapt(kind.model(), "dog"), kind.x.clone().requires_grad_()
    gates = torch.tensor([0, 1, 0.25, 1, -1])
    layer_of(model).rows = Rows.of([{"dog": 1}] * 3, gates=[{"dog": gates.tolist()}] * 3)
    trained = layer_of(model).diagonal("dog")
    y = model(x)
    found = torch.autograd.grad(y.square().sum(), [x, trained.dz], create_graph=True)
    weight = kind.matrix(kind.model().layer.weight.detach())
    permutation, lower, upper = torch.linalg.lu(weight)
    left = (permutation @ lower)[:, :RANK]
    read = x @ (upper[:RANK] / upper.diagonal()[:RANK, None]).T
    same = model.get_base_model()
    by_hand = same.layer.base_layer(x) + (gates[:, None] * read * trained.delta()) @ left.T
    wanted = torch.autograd.grad(by_hand.square().sum(), [x, trained.dz], create_graph=True)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, 1e-3)
    second, by_hand_second = (
        torch.autograd.grad(g[0].square().sum(), x)[0] for g in (found, wanted)
    )
    torch.testing.assert_close(second, by_hand_second, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_is_the_base_bit_by_bit(kind: Kind, dtype: torch.dtype) -> None:
    x = kind.x.to(dtype) if kind.x.is_floating_point() else kind.x
    model = adapt(kind.model().to(dtype), "dog", init_weights=True)
    assert torch.equal(output(model, x), output(kind.model().to(dtype), x))


def test_the_output_is_that_of_the_changed_weight(kind: Kind) -> None:
    model = adapt(kind.model(), "dog")
    change = reference_delta(kind, model)
    assert_close(layer_of(model).get_delta_weight("dog"), change)
    expected = changed(kind, change)
    assert_close(output(model, kind.x), expected)
    assert (expected - output(kind.model(), kind.x)).abs().max() > 0.1
    with model.disable_adapter():
        assert torch.equal(output(model, kind.x), output(kind.model(), kind.x))


def test_a_single_example_without_a_batch_axis(kind: Kind) -> None:
    model = adapt(kind.model(), "dog")
    assert_close(output(model, kind.x[0]), changed(kind, reference_delta(kind, model), kind.x[0]))


def test_gradients_are_those_of_the_dense_formula(kind: Kind) -> None:
    model = adapt(kind.model().double(), "dog", train_scale=False)
    layer = layer_of(model)
    # The directions, one at a time: what a delta of 1 in it alone changes.
    with torch.no_grad():
        dz, delta = layer.diagonal("dog").dz, layer.diagonal("dog").dz.clone()
        units = []
        for i in range(RANK):
            dz.copy_(torch.eye(RANK)[i])
            units.append(layer.get_delta_weight("dog").double())
        dz.copy_(delta)
    inputs = [kind.x.double().requires_grad_() for _ in range(2)]
    if not kind.x.is_floating_point():
        inputs = [kind.x, kind.x]
    free, plain = delta.double().requires_grad_(), kind.model().double()
    change = sum(weight * unit for weight, unit in zip(free, units, strict=True))
    expected = functional_call(plain, {"layer.weight": plain.layer.weight + change}, inputs[0])
    actual = model(inputs[1])
    g = gaussian(*expected.shape, seed=5).double()
    (expected * g).sum().backward()
    (actual * g).sum().backward()
    torch.testing.assert_close(dz.grad.double(), free.grad, rtol=1e-5, atol=1e-5)
    if kind.x.is_floating_point():
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_is_undone_bit_by_bit(kind: Kind, dtype: torch.dtype) -> None:
    x = kind.x.to(dtype) if kind.x.is_floating_point() else kind.x
    model = adapt(kind.model(), "dog").to(dtype)
    before, live = layer_of(model).weight.clone(), output(model, x)
    model.merge_adapter(safe_merge=True)
    tolerance = 8 * torch.finfo(dtype).eps * live.abs().max().item()
    torch.testing.assert_close(output(model, x), live, atol=tolerance, rtol=0)
    assert torch.equal(layer_of(model).base_weight(), kind.matrix(before))
    model.unmerge_adapter()
    assert torch.equal(layer_of(model).weight, before)
    assert torch.equal(output(model, x), live)
    merged = model.merge_and_unload()
    assert type(merged.layer) is type(kind.make())
    torch.testing.assert_close(output(merged, x), live, atol=tolerance, rtol=0)


def test_mixtures_strengths_and_a_concept_for_every_row(kind: Kind) -> None:
    model = adapt(kind.model(), "dog", "toy")
    dog, toy = (reference_delta(kind, model, name) for name in ("dog", "toy"))
    alone = {"dog": changed(kind, dog), "toy": changed(kind, toy)}
    base = output(kind.model(), kind.x)
    set_concepts(model, ["toy", None, "dog"])
    rows = torch.stack([alone["toy"][0], base[1], alone["dog"][2]])
    assert_close(output(model, kind.x), rows)
    set_concepts(model, None)
    names = ["toy", "__base__", "dog"]
    assert_close(output(model, kind.x, adapter_names=names), rows)
    set_strength(model, -0.5)
    assert_close(output(model, kind.x), changed(kind, -0.5 * dog))
    mix(model, {"dog": 0.7, "toy": 0.4})
    assert_close(output(model, kind.x), changed(kind, 0.7 * dog + 0.4 * toy))
    model.base_model.add_weighted_adapter(["dog", "toy"], [2.0, -1.0], "sum")
    model.set_adapter("sum")
    assert_close(output(model, kind.x), changed(kind, 2 * dog - toy))
    model.delete_adapter("toy")
    model.set_adapter("dog")
    set_strength(model, 1.0)
    assert_close(output(model, kind.x), alone["dog"])


def test_projection_measures_the_change_of_the_stored_weight(kind: Kind) -> None:
    model = adapt(kind.model(), "dog")
    before = reference_delta(kind, model)
    project(model, 0.1, "dog")
    after = layer_of(model).get_delta_weight("dog")
    assert_close(after, before * 0.1 / before.norm())


def test_a_concept_file_round_trips(kind: Kind, tmp_path: Path) -> None:
    model = adapt(kind.model(), "dog")
    path = save_concept(model, tmp_path / "dog.safetensors", "dog")
    fresh = kind.model()
    verify_concept(fresh, path)
    load_concept(fresh, path, "dog")
    assert torch.equal(output(fresh, kind.x), output(model, kind.x))
    verify_concept(fresh, path)
    with pytest.raises(ConceptError, match=r"'layer', whose weight is not the one here"):
        load_concept(kind.model(seed=1), path)


def test_a_concept_distinguishes_a_matrix_from_its_transpose(tmp_path: Path) -> None:
    square = Model(Conv1D(8, 8))
    path = save_concept(adapt(square, "dog"), tmp_path / "dog.safetensors", "dog")
    linear = Model(nn.Linear(8, 8))
    linear.layer.weight.data = square.layer.weight.data
    with pytest.raises(ConceptError, match=r"'layer', whose weight is not the one here"):
        verify_concept(linear, path)
    linear.layer.weight.data = linear.layer.weight.data.T
    verify_concept(linear, path)


def test_an_adapter_saved_by_peft_and_copies_compute_the_same(kind: Kind, tmp_path: Path) -> None:
    model = adapt(kind.model(), "dog")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(kind.model(), tmp_path / "dog", adapter_name="dog")
    copies = [loaded, copy.deepcopy(model)]
    if kind is KINDS["conv1d"]:
        copies.append(pickle.loads(pickle.dumps(model)))
    for other in copies:
        assert torch.equal(output(other, kind.x), output(model, kind.x))


def test_an_exported_lora_computes_the_same(kind: Kind, tmp_path: Path) -> None:
    live = adapt(kind.model(), "dog")
    if kind in (KINDS["reflecting"], KINDS["wide_circular"], KINDS["dilated"]):
        with pytest.raises(ConceptError, match=r"'layer' is a convolution with .*merge"):
            export_lora(live, tmp_path / "dog", "peft")
        return
    folder = export_lora(live, tmp_path / "dog", "peft")
    loaded = PeftModel.from_pretrained(kind.model(), folder)
    assert_close(output(loaded, kind.x), output(live, kind.x))
    assert_close(output(loaded.merge_and_unload(), kind.x), output(live, kind.x))


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (nn.Conv2d(4, 4, 1, groups=2), r"Conv2d\(.*groups=2\)"),
        (nn.Conv1d(4, 4, 1), "Conv1d"),
        (nn.Embedding(4, 4, max_norm=1.0), "Embedding"),
        (nn.LayerNorm(4), "LayerNorm"),
    ],
    ids=repr,
)
def test_other_layers_are_refused_by_name(layer: nn.Module, what: str) -> None:
    config = LoLDUConfig(target_modules=["layer"])
    with pytest.raises(
        TypeError, match=rf"'layer' is a {what}, and.*in exclude_modules"
    ) as refusal:
        get_peft_model(nn.ModuleDict({"layer": layer}), config)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_keeps_the_memory_format(memory_format: torch.memory_format) -> None:
    kind = KINDS["convolution"]
    model = adapt(kind.model(), "dog")
    x = kind.x.to(memory_format=memory_format)
    assert output(model, x).is_contiguous(memory_format=memory_format)


def test_peft_converts_a_conv1d_and_refuses_the_others(kind: Kind) -> None:
    model = adapt(kind.model(), "dog")
    if kind is not KINDS["conv1d"]:
        with pytest.raises(TypeError, match="do not support LoRA conversion"):
            convert_to_lora(model, RANK, "dog")
        return
    _, state = convert_to_lora(model, RANK, "dog")
    (down,), (up,) = ([v for k, v in state.items() if f"lora_{x}" in k] for x in "AB")
    assert_close((up @ down).T, reference_delta(kind, model))


def test_gpt2_out_of_the_box() -> None:
    def make() -> GPT2LMHeadModel:
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2,
            bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        return GPT2LMHeadModel(config).eval()

    tokens = torch.tensor([[3, 1, 4, 1]])
    model = get_peft_model(make(), LoLDUConfig(task_type="CAUSAL_LM", init_weights=False))
    adapted = [n for n, m in model.named_modules() if isinstance(m, LoLDULayer)]
    assert adapted == ["base_model.model.transformer.h.0.attn.c_attn"]
    with torch.no_grad():
        live, base = model(tokens).logits, make()(tokens).logits
        assert (live - base).abs().max() > 1e-4
        assert_close(model.merge_and_unload()(tokens).logits, live)


def test_an_embedding_that_scales_scales_the_change() -> None:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4, tie_word_embeddings=False,
    )  # fmt: skip
    base = Gemma3ForCausalLM(config).eval()
    model = get_peft_model(base, LoLDUConfig(r=3, target_modules=["embed_tokens"]))
    layer = next(m for m in model.modules() if isinstance(m, LoLDULayer))
    nn.init.constant_(layer.diagonal("default").dz, 0.1)
    tokens = torch.tensor([[3, 1, 4, 1]])
    live = output(layer, tokens)
    model.merge_adapter()
    assert_close(live, output(layer, tokens))
    model.unmerge_adapter()
    assert (live - output(layer.base_layer, tokens)).abs().max() > 1e-3


def pipeline(unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet, scheduler=EulerDiscreteScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@torch.no_grad()
def draw(unet: UNet2DConditionModel) -> Tensor:
    return unet(gaussian(2, 4, 8, 8), torch.tensor([3, 700]), gaussian(2, 5, 8, seed=1)).sample


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_a_pipeline_reads_the_exported_convolutions(
    make_unet: Callable[..., UNet2DConditionModel], tmp_path: Path, layout: str
) -> None:
    targets = ["proj_in", "proj_out", "conv_shortcut", "to_q"]
    live, loaded = make_unet(), make_unet()
    live.add_adapter(LoLDUConfig(r=6, target_modules=targets, init_weights=False))
    path = export_lora(pipeline(live), tmp_path / "dog.safetensors", layout)
    shapes = {tuple(tensor.shape) for tensor in load_file(path).values() if tensor.dim() == 4}
    assert shapes >= {(6, 16, 1, 1), (16, 6, 1, 1)}
    pipeline(loaded).load_lora_weights(path)
    assert_close(draw(loaded), draw(live))
    assert (draw(live) - draw(make_unet())).abs().max() > 1e-3


def test_an_embedding_has_no_place_in_a_pipelines_lora(tmp_path: Path) -> None:
    model = adapt(KINDS["embedding"].model(), "dog")
    file = tmp_path / "dog.safetensors"
    holder = SimpleNamespace(components={"text_encoder": model})
    for layout in ("diffusers", "kohya"):
        with pytest.raises(ConceptError, match=r"'layer' is an embedding.*layout='peft'"):
            export_lora(holder, file, layout)
    assert not file.exists()
