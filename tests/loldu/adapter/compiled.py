"""LoLDU under torch.compile: one graph, the same numbers, and no new graph for a new strength.

`test_compile.py` runs these.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from loldu import (
    LoLDUConfig,
    any_base,
    hotswap_concept,
    load_concept,
    mix,
    save_concept,
    set_concepts,
    set_strength,
    unload_concept,
)
from loldu.adapter.layer import LoLDULayer, set_rows
from loldu.adapter.mixing import Rows

Make = Callable[..., nn.Module]
TARGETS = ["wide", "tall"]
X = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A backend of torch.compile that runs each graph as it is, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


def build(make: Make, *others: dict[str, object]) -> PeftModel:
    """Return a PeftModel with a random adapter 'default' and numbered further ones."""
    options = {"r": 6, "target_modules": TARGETS, "init_weights": False}
    model = get_peft_model(make(), LoLDUConfig(**options))
    for number, other in enumerate(others):
        model.add_adapter(str(number), LoLDUConfig(**options | {"seed": number + 1} | other))
    return model


def gradients(model: nn.Module, y: Tensor) -> tuple[Tensor, ...]:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(y.square().mean(), trained)


def all_active(model: PeftModel) -> None:
    model.base_model.set_adapter(["default", "0", "1"])


def by_row(model: PeftModel) -> None:
    set_concepts(model, ["default", None, "1"])


@pytest.mark.parametrize("use", [None, pytest.param(all_active, marks=pytest.mark.slow), by_row])
def test_a_model_is_one_graph_forward_and_backward(
    make_two_layers: Make, use: Callable[[PeftModel], None] | None
) -> None:
    model = build(make_two_layers, {"r": 3}, {"factorization": "svd", "target_modules": ["tall"]})
    if use is not None:
        use(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    eager, y = model(X), compiled(X)
    torch.testing.assert_close(y, eager)
    torch.testing.assert_close(gradients(model, y), gradients(model, eager))


def test_other_rows_of_the_same_concepts_need_no_new_graph(make_two_layers: Make) -> None:
    model, graphs = build(make_two_layers, {"r": 3}, {"r": 2, "seed": 1}), Graphs()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    for rows in (
        ["default", None, {"0": 0.5}],
        [{"0": 1.5}, "default", "default"],
        [None, {"default": -1.0}, "0"],
    ):
        set_concepts(model, rows)
        torch.testing.assert_close(compiled(X), model(X))
    assert graphs.count == 1


def test_other_gates_of_tokens_need_no_new_graph(make_two_layers: Make) -> None:
    graphs, x = Graphs(), X.view(2, 3, 24)
    model = build(make_two_layers, {})
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    for gates in ([0, 1, 0], [1, 1, 1], [0, 0, 0.5]):
        rows = Rows.of([{"default": 1}, None], ["0", "default"], gates=[{"default": gates}] * 2)
        set_rows(adapted(model), rows)
        torch.testing.assert_close(compiled(x), model(x))
    assert graphs.count == 1


def unet_inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.tensor([3, 700]),
        torch.randn(2, 5, 8, generator=generator),
    )


class Blocks(nn.Module):
    """A model of equal blocks, like those of a UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(16, 2, 8, cross_attention_dim=8) for _ in range(6)
        )

    def forward(self, x: Tensor, states: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, encoder_hidden_states=states)
        return x


@pytest.mark.slow
def test_blocks_compiled_one_by_one_share_their_graphs_as_those_of_the_base_do() -> None:
    torch.manual_seed(0)
    x, states = torch.randn(2, 5, 16), torch.randn(2, 3, 8)
    counts = []
    for adapts in (False, True):
        model, graphs = Blocks(), Graphs()
        if adapts:
            inject_adapter_in_model(LoLDUConfig(r=4, target_modules=["to_q", "to_v"]), model)
        for block in model.blocks:
            block.compile(backend=graphs, fullgraph=True)
        with torch.no_grad():
            model(x, states)
        counts.append(graphs.count)
    assert counts[0] == counts[1] < 6


@pytest.mark.slow
def test_a_unet_is_one_graph_forward_and_backward(
    make_unet: Callable[..., UNet2DConditionModel],
) -> None:
    unet = make_unet()
    unet.add_adapter(LoLDUConfig(r=4, init_weights=False))
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    eager, y = unet(*unet_inputs()).sample, compiled(*unet_inputs()).sample
    torch.testing.assert_close(y, eager, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients(unet, y), gradients(unet, eager), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_generated_code_gives_the_same_numbers_at_every_strength(make_two_layers: Make) -> None:
    model = build(make_two_layers, {"r": 3})
    compiled = torch.compile(model, fullgraph=True)
    for strength in (1.0, 0.6, -0.3):
        mix(model, {"default": strength, "0": 0.8})
        eager, y = model(X), compiled(X)
        torch.testing.assert_close(y, eager)
        torch.testing.assert_close(gradients(model, y), gradients(model, eager))


def test_new_strengths_need_no_new_graph(make_two_layers: Make) -> None:
    model, graphs = build(make_two_layers, {}), Graphs()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    mix(model, {"default": 1.0, "0": 0.9})
    compiled(X)
    mix(model, {"default": 0.6, "0": 0.8})
    compiled(X)
    before = graphs.count
    for step in range(12):
        mix(model, {"default": 0.5 - 0.11 * step, "0": 1.2 + 0.1 * step})
        torch.testing.assert_close(compiled(X), model(X))
    assert graphs.count == before


def test_new_values_need_no_new_graph(make_two_layers: Make) -> None:
    model, graphs = build(make_two_layers), Graphs()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    compiled(X)
    for seed in range(1, 4):
        other = get_peft_model(
            make_two_layers(),
            LoLDUConfig(r=6, target_modules=TARGETS, init_weights=False, seed=seed),
        )
        for layer in adapted(other):
            # Other pivots than those the model was compiled with.
            pivots = layer.diagonal("default").pivots
            pivots.copy_(pivots.roll(seed))
        with any_base():
            set_peft_model_state_dict(model, get_peft_model_state_dict(other))
            torch.testing.assert_close(compiled(X), other(X))
    assert graphs.count == 1


def test_another_concept_in_the_same_place_needs_no_new_graph(
    make_two_layers: Make, tmp_path: Path
) -> None:
    model, graphs = build(make_two_layers), Graphs()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    compiled(X)
    for seed in range(1, 4):
        other = build(make_two_layers)
        for layer in adapted(other):
            layer.diagonal("default").dz.data.mul_(1 + seed)
        hotswap_concept(compiled, save_concept(other, tmp_path / f"{seed}.safetensors"))
        torch.testing.assert_close(compiled(X), other(X))
    assert graphs.count == 1


def test_a_model_may_be_compiled_right_after_a_cast(make_two_layers: Make) -> None:
    model = build(make_two_layers, {}, {"factorization": "svd"})
    all_active(model)
    compiled = torch.compile(model.to(torch.bfloat16), backend="eager", fullgraph=True)
    y = compiled(X.bfloat16())
    torch.testing.assert_close(y, model(X.bfloat16()), rtol=0, atol=0)


def adapted(model: nn.Module) -> list[LoLDULayer]:
    return [module for module in model.modules() if isinstance(module, LoLDULayer)]


@pytest.mark.slow
def test_concepts_in_and_out_of_a_compiled_pipeline(
    make_pipeline: Callable[[], StableDiffusionPipeline],
    draw: Callable[..., np.ndarray],
    tmp_path: Path,
) -> None:
    source, eager, pipeline, graphs = make_pipeline(), make_pipeline(), make_pipeline(), Graphs()
    source.unet.add_adapter(LoLDUConfig(r=4, init_weights=False))
    concept = save_concept(source, tmp_path / "dog.safetensors")
    pipeline.unet = torch.compile(pipeline.unet, backend=graphs, fullgraph=True)

    def pictures() -> np.ndarray:
        drawn, expected = (draw(p, ["a fox", "a hen"], [1, 2]) for p in (pipeline, eager))
        np.testing.assert_allclose(drawn, expected, atol=1e-6)
        return drawn

    plain = draw(eager, ["a fox", "a hen"], [1, 2])
    for each in (pipeline, eager):
        load_concept(each, concept, "dog")
    assert abs(pictures() - plain).max() > 1e-3
    for strength in (0.5, 0.7, 0.9):
        for each in (pipeline, eager):
            set_strength(each, strength)
        pictures()
    # The concept as trained, and at any strength.
    assert graphs.count == 2
    for each in (pipeline, eager):
        unload_concept(each, "dog")
    assert np.array_equal(pictures(), plain)


def test_pivots_written_by_the_loader_of_transformers_hold_in_a_graph(tmp_path: Path) -> None:
    def encoder() -> CLIPTextModel:
        torch.manual_seed(0)
        config = CLIPTextConfig(
            vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=8, bos_token_id=14, eos_token_id=15,
        )  # fmt: skip
        return CLIPTextModel(config).eval()

    trained = get_peft_model(encoder(), LoLDUConfig(r=8, init_weights=False))
    for layer in adapted(trained):
        pivots = layer.diagonal("default").pivots
        pivots.copy_(pivots.flip(0))
    trained.save_pretrained(tmp_path)
    loaded = encoder()
    tokens = torch.arange(8)[None]
    with torch.no_grad(), any_base():
        loaded.load_adapter(str(tmp_path))
        y = torch.compile(loaded, backend="eager", fullgraph=True)(tokens).last_hidden_state
        torch.testing.assert_close(y, trained(tokens).last_hidden_state)
