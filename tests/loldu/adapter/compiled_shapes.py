"""Graphs for any batch, resolution and length of text, each beside PEFT's LoRA.

`test_compile.py` runs these.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.export import Dim
from transformers import BertConfig, BertModel

from loldu import LoLDUConfig

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "query", "key", "value", "dense"]
LORA = LoraConfig(r=4, target_modules=ATTENTION, init_lora_weights=False)
# At full rank the cheaper route changes with the number of tokens.
LOLDU = LoLDUConfig(r=64, target_modules=ATTENTION, init_weights=False)


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class First(nn.Module):
    """A model whose output is a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs, return_dict=False)[0]


def transformer() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=64,
    )  # fmt: skip
    return First(BertModel(config, add_pooling_layer=False).eval())


def words(rows: int, length: int) -> tuple[Tensor]:
    return (torch.randint(32, (rows, length), generator=torch.Generator().manual_seed(rows)),)


def unet() -> nn.Module:
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32),
        layers_per_block=1, cross_attention_dim=8, attention_head_dim=4, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return First(model.eval())


def latents(rows: int, side: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    sample = torch.randn(rows, 4, side, side, generator=generator)
    return sample, torch.tensor(7), torch.randn(rows, length, 8, generator=generator)


Case = tuple[Callable[[], nn.Module], list[tuple[Tensor, ...]]]
TRANSFORMER: Case = transformer, [words(2, 3), words(3, 3), words(7, 60)]
UNET: Case = unet, [latents(2, 8, 5), latents(3, 8, 5), latents(3, 16, 11)]


def adapted(make: Callable[[], nn.Module], config: PeftConfig) -> nn.Module:
    torch.manual_seed(1)
    model = make()
    inject_adapter_in_model(config, model)
    return model


def gradients(model: nn.Module, y: Tensor) -> tuple[Tensor, ...]:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(y.square().mean(), trained)


def graphs(case: Case, config: PeftConfig, trains: bool, **options: object) -> int:
    """Compile a model, check it at every size, and return how many graphs that took."""
    make, sizes = case
    model = adapted(make, config)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, **options)
    for inputs in sizes:
        with torch.set_grad_enabled(trains):
            expected, y = model(*inputs), compiled(*inputs)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        if trains:
            expected, actual = gradients(model, expected), gradients(model, y)
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)
    return counters["stats"]["unique_graphs"]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("case", "dynamic", "trains", "backend"),
    [
        pytest.param(TRANSFORMER, None, True, "eager", marks=SLOW),
        (TRANSFORMER, True, False, "eager"),
        pytest.param(TRANSFORMER, True, True, "aot_eager", marks=SLOW),
        pytest.param(TRANSFORMER, True, True, "inductor", marks=SLOW),
        pytest.param(TRANSFORMER, None, False, "inductor", marks=SLOW),
        pytest.param(UNET, None, True, "eager", marks=SLOW),
        pytest.param(UNET, None, False, "eager", marks=SLOW),
        pytest.param(UNET, True, True, "aot_eager", marks=SLOW),
        pytest.param(UNET, True, False, "eager", marks=SLOW),
        pytest.param(UNET, None, True, "inductor", marks=SLOW),
    ],
)
def test_other_sizes_need_no_more_graphs_than_with_lora(
    case: Case, dynamic: bool | None, trains: bool, backend: str
) -> None:
    options = {"dynamic": dynamic, "backend": backend}
    allowed = graphs(case, LORA, trains, **options)
    assert 1 <= allowed <= 4
    assert graphs(case, LOLDU, trains, fullgraph=True, **options) <= allowed


class Small(nn.Module):
    """Two layers, for generated code in a test of seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(12, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(torch.tanh(self.query(x)))


@pytest.mark.parametrize(
    ("dynamic", "trains"),
    [(True, False), pytest.param(None, True, marks=SLOW), pytest.param(True, True, marks=SLOW)],
)
def test_generated_code_serves_every_size(dynamic: bool | None, trains: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(torch.randn(rows, 12, generator=generator),) for rows in (2, 3, 50)]
    options = {"dynamic": dynamic, "backend": "inductor"}
    allowed = graphs((Small, sizes), LORA, trains, **options)
    assert graphs((Small, sizes), LOLDU, trains, fullgraph=True, **options) <= allowed


ROWS, LENGTH = Dim("rows", min=2, max=64), Dim("length", min=2, max=60)
SIDE = Dim("side", min=4, max=32)


@pytest.mark.parametrize(
    ("case", "dynamic"),
    [
        (TRANSFORMER, ({0: ROWS, 1: LENGTH},)),
        pytest.param(
            UNET, ({0: ROWS, 2: 2 * SIDE, 3: 2 * SIDE}, None, {0: ROWS, 1: LENGTH}), marks=SLOW
        ),
    ],
)
@pytest.mark.parametrize("config", [LORA, LOLDU], ids=["lora", "loldu"])
def test_an_exported_program_takes_every_size(
    case: Case, dynamic: tuple[object, ...], config: PeftConfig
) -> None:
    make, sizes = case
    model = adapted(make, config)
    with torch.no_grad():
        program = torch.export.export(model, sizes[0], dynamic_shapes=(dynamic,)).module()
        for inputs in sizes:
            torch.testing.assert_close(program(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("grad", [False, pytest.param(True, marks=SLOW)])
@pytest.mark.parametrize("config", [pytest.param(LORA, marks=SLOW), LOLDU], ids=["lora", "loldu"])
def test_a_traced_unet_passes_its_check(config: PeftConfig, grad: bool) -> None:
    model = adapted(unet, config)
    with torch.set_grad_enabled(grad):
        # Tracing runs the model twice, and fails if the two runs differ.
        traced = torch.jit.trace(model, UNET[1][0])
        for inputs in (latents(2, 8, 5), latents(5, 8, 5)):
            torch.testing.assert_close(traced(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)
