"""A training step of the paper's text and vision experiments at their true shapes, beside LoRA's.

``python -m benchmarks.full_scale``. Weights and inputs are random: time and memory follow from the
shapes. Steps of LoLDU and of PEFT's LoRA share the base and take turns; making an adapter is timed
too, beside PiSSA's, whose SVD is of the whole weight.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from peft import LoraConfig, PeftConfig, get_peft_model
from rich.console import Console
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
from benchmarks.device import in_turns, named, seconds_of
from benchmarks.memory import mib, peak_bytes
from benchmarks.spread import ratio, spread
from experiments.methods.adapt import QUERY_AND_VALUE, resolve_targets
from loldu import LoLDUConfig
from loldu.provenance import provenance, write_record

RESULTS = Path(__file__).parent / "results"
Name = Literal["glue", "vision", "instruct"]


@dataclass(frozen=True)
class Options:
    """Time a step of each experiment with LoLDU and with LoRA, and the making of either."""

    # Which experiments' models: RoBERTa-base, ViT-B/16, LLaMA2-7B.
    experiments: tuple[Name, ...] = ("glue", "vision", "instruct")
    # Where to measure: cpu or cuda.
    device: str = "cpu"
    # Times every step is timed; medians are reported.
    repetitions: int = 7
    # Layers of each model; the true number unless given. LLaMA2-7B takes 14 GB for its weights.
    layers: int | None = None
    # Rows a step; the recipe's unless given (32, 128, and 1 as LLaMA2-7B's micro batch).
    batch: int | None = None
    # Leave PiSSA out: its SVDs take minutes on a CPU.
    pissa: bool = True
    # Of the random weights and inputs.
    seed: int = 0
    # Where the result is written, over the last one.
    output: Path = RESULTS / "full_scale.json"


@dataclass(frozen=True)
class Shape:
    """A model at its true size.

    Attributes:
        what: In words.
        build: Makes it with so many layers.
        layers: Its true number.
        batch: Rows a step in the paper's recipe.
        inputs: Makes a batch.
        dtype: Of the weights on a GPU.
        mixed: Whether a GPU computes in bf16 all the same, as the experiments' recipe says.
        rank: LoLDU's in the paper.
        lora_rank: LoRA's.
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
    return RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=50265,
            max_position_embeddings=514,
            type_vocab_size=1,
            num_hidden_layers=layers,
        )
    )


def _vit(layers: int) -> PreTrainedModel:
    return ViTForImageClassification(ViTConfig(num_hidden_layers=layers))


def _llama(layers: int) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers))  # whose defaults are LLaMA2-7B


def _tokens(length: int, vocabulary: int, causal: bool, rows: int) -> dict[str, Tensor]:
    ids = torch.randint(3, vocabulary, (rows, length))
    return {"input_ids": ids, "labels": ids if causal else torch.randint(2, (rows,))}


def _pictures(rows: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(rows, 3, 224, 224), "labels": torch.randint(2, (rows,))}


SHAPES: dict[Name, Shape] = {
    "glue": Shape(
        "RoBERTa-base, 128 tokens",
        _roberta,
        12,
        32,
        partial(_tokens, 128, 50265, False),
        torch.float32,
        False,
        768,
        8,
    ),
    "vision": Shape("ViT-B/16, 224 pixels", _vit, 12, 128, _pictures, torch.float32, True, 768, 16),
    "instruct": Shape(
        "LLaMA2-7B, 256 tokens",
        _llama,
        32,
        1,
        partial(_tokens, 256, 32000, True),
        torch.bfloat16,
        True,
        1024,
        64,
    ),
}


@dataclass(frozen=True)
class Made:
    """An adapter's layers, kept beside the base that they share, and what making them took."""

    layers: dict[str, nn.Module]
    trained: int
    seconds: float


def make(model: PreTrainedModel, config: PeftConfig, device: str) -> Made:
    """Adapt a model, take the adapted layers out again, and leave the model as it was."""
    names = tuple(config.target_modules)  # pyright: ignore[reportAttributeAccessIssue]
    plain = {n: m for n, m in model.named_modules() if n.endswith(names)}
    seconds = seconds_of(lambda: get_peft_model(model, config), device)
    layers = {name: model.get_submodule(name) for name in plain}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    install(model, plain)
    del model.peft_config
    return Made(layers, trained, seconds)


def measure(name: Name, options: Options) -> dict[str, Any]:
    """Step times, memory and creation times of one model."""
    shape = SHAPES[name]
    torch.manual_seed(options.seed)
    on_gpu = options.device.startswith("cuda")
    dtype = shape.dtype if on_gpu else torch.float32
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(options.device):
            model = shape.build(options.layers or shape.layers)
            batch = shape.inputs(options.batch or shape.batch)
    finally:
        torch.set_default_dtype(previous)
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
    targets = resolve_targets(model, QUERY_AND_VALUE)
    configs: dict[str, PeftConfig] = {
        "loldu": LoLDUConfig(r=shape.rank, target_modules=targets),
        "lora": LoraConfig(r=shape.lora_rank, target_modules=targets),
    }
    made = {method: make(model, config, options.device) for method, config in configs.items()}
    creation = {method: round(of.seconds, 4) for method, of in made.items()}
    if options.pissa:
        pissa = LoraConfig(r=shape.rank, init_lora_weights="pissa", target_modules=targets)
        creation["pissa"] = round(make(model, pissa, options.device).seconds, 4)
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
    """A step of AdamW with an adapter in its place."""
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


def main(options: Options) -> None:
    """Measure, print a table and write the record."""
    device = named(options.device)
    table = Table("model", "LoLDU s/step", "LoRA s/step", "LoLDU / LoRA", "MiB", "creation s")
    found: dict[str, Any] = {}
    for name in options.experiments:
        result = found[name] = measure(name, options)
        step, over = result["step_seconds"], result["step_over_lora"]
        table.add_row(
            result["what"],
            f"{step['loldu']['median']:.4g}",
            f"{step['lora']['median']:.4g}",
            f"{over['median']:.3f} ({over['min']:.3f} to {over['max']:.3f})",
            " / ".join(f"{value:.0f}" for value in result["peak_mib_of_a_step"].values()),
            ", ".join(f"{k} {v:.3g}" for k, v in result["creation_seconds"].items()),
        )
    Console().print(table)
    libraries = ("torch", "transformers", "peft")
    record = provenance("benchmarks.full_scale", sys.argv[1:], libraries)
    write_record(options.output, record | {"device": device, "models": found})


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m benchmarks.full_scale"))
