"""A training step of the paper's text and vision experiments at their true shapes, beside LoRA's.

``python -m benchmarks.full_scale``. Weights and inputs are random, because time and memory follow
from the shapes. Steps of LoLDU and of PEFT's LoRA share the base and take turns. Creating an
adapter is timed too, beside PiSSA's, which needs an SVD of the whole weight.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from rich.table import Table
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from benchmarks.adapters import install
from benchmarks.harness import Options as Shared
from benchmarks.harness import (
    digits,
    in_turns,
    mib,
    peak_bytes,
    ratio,
    run,
    seconds_of,
    show,
    spread,
)
from experiments.methods import QUERY_AND_VALUE, resolve_targets
from loldu import LoLDUConfig

Name = Literal["glue", "vision", "instruct"]


@dataclass(frozen=True)
class Options(Shared):
    """Time a step of each experiment with LoLDU and with LoRA, and the creation of both."""

    # Experiments whose models are measured: RoBERTa-base, ViT-B/16, LLaMA2-7B.
    experiments: tuple[Name, ...] = ("glue", "vision", "instruct")
    # Layers of each model; the true number unless given. LLaMA2-7B takes 14 GB for its weights.
    layers: int | None = None
    # Rows of a step; those of the recipe unless given (32, 128, and 1, LLaMA2-7B's micro batch).
    batch: int | None = None
    # Also time PiSSA, whose SVDs take minutes on a CPU.
    pissa: bool = True


class Shape(NamedTuple):
    """A model at its true size.

    Attributes:
        what: Description.
        build: Builds the model with a number of layers.
        layers: True number of layers.
        batch: Rows of a step in the paper's recipe.
        inputs: Builds a batch with a number of rows.
        dtype: Dtype of the weights on a GPU.
        mixed: Whether a GPU computes in bf16 anyway, as the experiments' recipe does.
        rank: LoLDU's rank in the paper.
        lora_rank: LoRA's rank in the paper.
    """

    what: str
    build: Callable[[int], PreTrainedModel]
    layers: int
    batch: int
    inputs: Callable[[int], dict[str, Tensor]]
    dtype: torch.dtype
    mixed: bool
    rank: int
    lora_rank: int


def _roberta(layers: int) -> PreTrainedModel:
    sizes: Any = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
    return RobertaForSequenceClassification(RobertaConfig(num_hidden_layers=layers, **sizes))


def _vit(layers: int) -> PreTrainedModel:
    return ViTForImageClassification(ViTConfig(num_hidden_layers=layers))


def _llama(layers: int) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers))  # the defaults are LLaMA2-7B


def _tokens(length: int, vocabulary: int, causal: bool, rows: int) -> dict[str, Tensor]:
    ids = torch.randint(3, vocabulary, (rows, length))
    return {"input_ids": ids, "labels": ids if causal else torch.randint(2, (rows,))}


def _pictures(rows: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(rows, 3, 224, 224), "labels": torch.randint(2, (rows,))}


F32, BF16 = torch.float32, torch.bfloat16
_SENTENCES, _TEXTS = partial(_tokens, 128, 50265, False), partial(_tokens, 256, 32000, True)
SHAPES: dict[Name, Shape] = {
    "glue": Shape("RoBERTa-base, 128 tokens", _roberta, 12, 32, _SENTENCES, F32, False, 768, 8),
    "vision": Shape("ViT-B/16, 224 pixels", _vit, 12, 128, _pictures, F32, True, 768, 16),
    "instruct": Shape("LLaMA2-7B, 256 tokens", _llama, 32, 1, _TEXTS, BF16, True, 1024, 64),
}


class Made(NamedTuple):
    """An adapter's layers, the number of trained parameters, and the seconds to create them."""

    layers: dict[str, nn.Module]
    trained: int
    seconds: float


def make(model: PreTrainedModel, config: PeftConfig, device: str) -> Made:
    """Adapt a model, keep the adapted layers, and restore the model."""
    names = tuple(config.target_modules)  # pyright: ignore[reportAttributeAccessIssue]
    plain = {n: m for n, m in model.named_modules() if n.endswith(names)}
    seconds = seconds_of(lambda: get_peft_model(model, config), device)
    layers = {name: model.get_submodule(name) for name in plain}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    install(model, plain)
    del model.peft_config
    return Made(layers, trained, seconds)


def build(
    shape: Shape, dtype: torch.dtype, options: Options
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Return a model with random weights, and a batch."""
    torch.manual_seed(options.seed)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(options.device):
            model = shape.build(options.layers or shape.layers)
            batch = shape.inputs(options.batch or shape.batch)
    finally:
        torch.set_default_dtype(previous)
    return model, {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}


def measure_model(name: Name, options: Options) -> dict[str, Any]:
    """Return step times, memory and creation times of one model."""
    shape = SHAPES[name]
    on_gpu = options.device.startswith("cuda")
    dtype = shape.dtype if on_gpu else torch.float32
    model, batch = build(shape, dtype, options)
    targets = resolve_targets(model, QUERY_AND_VALUE)
    configs: dict[str, PeftConfig] = {
        "loldu": LoLDUConfig(r=shape.rank, target_modules=targets),
        "lora": LoraConfig(r=shape.lora_rank, target_modules=targets),
    }
    made = {method: make(model, config, options.device) for method, config in configs.items()}
    creation = {method: digits(of.seconds) for method, of in made.items()}
    if options.pissa:
        pissa = LoraConfig(r=shape.rank, init_lora_weights="pissa", target_modules=targets)
        creation["pissa"] = digits(make(model, pissa, options.device).seconds)
    mixed = torch.autocast("cuda", torch.bfloat16, enabled=on_gpu and shape.mixed)
    steps = {method: _step(model, of.layers, batch, mixed) for method, of in made.items()}
    peaks = {method: mib(peak_bytes(options.device, step)) for method, step in steps.items()}
    calls = {m: partial(seconds_of, step, options.device) for m, step in steps.items()}
    seconds = in_turns(calls, options.repetitions)
    return {
        "what": shape.what,
        "dtype": str(dtype).removeprefix("torch."),
        "mixed": on_gpu and shape.mixed,
        "layers": options.layers or shape.layers,
        "batch": options.batch or shape.batch,
        "rank": {"loldu": shape.rank, "lora": shape.lora_rank, "pissa": shape.rank},
        "trained": {method: of.trained for method, of in made.items()},
        "step_seconds": {method: spread(taken) for method, taken in seconds.items()},
        "step_over_lora": ratio(seconds["loldu"], seconds["lora"]),
        "peak_mib_of_a_step": peaks,
        "creation_seconds": creation,
    }


def _step(
    model: PreTrainedModel,
    layers: Mapping[str, nn.Module],
    batch: dict[str, Tensor],
    mixed: torch.autocast,
) -> Callable[[], None]:
    """Return a step of AdamW with an adapter in place."""
    trained = [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> None:
        install(model, layers)
        model.train()
        with mixed:
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(options: Options) -> dict[str, Any]:
    """Return the results of all models."""
    return {"models": {name: measure_model(name, options) for name in options.experiments}}


def tables(record: dict[str, Any]) -> Iterable[Table]:
    """Yield the table of the models."""
    rows = [
        {
            "model": model["what"],
            "LoLDU s/step": model["step_seconds"]["loldu"]["median"],
            "LoRA s/step": model["step_seconds"]["lora"]["median"],
            "LoLDU / LoRA": model["step_over_lora"]["median"],
            "MiB": " / ".join(f"{value:.0f}" for value in model["peak_mib_of_a_step"].values()),
            "creation s": ", ".join(f"{k} {v:.3g}" for k, v in model["creation_seconds"].items()),
        }
        for model in record["models"].values()
    ]
    yield show("a training step at the experiments' true shapes", rows)


main = partial(run, "full_scale", Options, measure, tables)

if __name__ == "__main__":
    main()
