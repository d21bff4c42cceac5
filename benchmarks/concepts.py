"""Many concepts on one U-Net: memory, a switch, and a batch of all-different ones, beside LoRA.

``python -m benchmarks.concepts``. The U-Net has Stable Diffusion v1.5's attention and random
weights, and so have the concepts: what is measured follows from the shapes. Each method has a
U-Net of its own and does what it can: LoRA's mixed batch is PEFT's, through ``adapter_names``.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
import tyro
from diffusers import UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.device import named, seconds_of
from benchmarks.spread import ratio, spread
from loldu import LoLDUConfig, load_concept, mix, save_concept, set_concepts
from loldu.adapter.layer import LoLDULayer
from loldu.adapter.targets import DIFFUSERS_ATTENTION
from loldu.provenance import provenance, write_record

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """Measure many concepts on one U-Net: memory, switching, and a concept for every picture."""

    # Numbers of concepts held at once.
    concepts: tuple[int, ...] = (1, 10, 100, 1000)
    # The most LoRAs that are held at once: adding one takes PEFT the longer, the more there are.
    most_loras: int = 100
    # Pictures a batch, each with a concept of its own as far as there are enough.
    batch: int = 4
    # Directions a layer; the paper's is 32.
    rank: int = 32
    # Rank of LoRA; diffusers' own for DreamBooth.
    lora_rank: int = 4
    # Times everything is timed; medians are reported.
    repetitions: int = 7
    # Of the random weights.
    seed: int = 0
    # Widths of the U-Net's four stages; Stable Diffusion v1.5's unless given.
    block_out_channels: tuple[int, int, int, int] = (320, 640, 1280, 1280)
    # Width of the text's features; Stable Diffusion v1.5's unless given.
    cross_attention_dim: int = 768
    # Side of the latents; 64 for pictures of 512 pixels.
    sample_size: int = 16
    # Where to measure: cpu or cuda.
    device: str = "cpu"
    # Of the U-Net; concepts and LoRAs stay in float32, as they are trained.
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    # Where the result is written, over the last one.
    output: Path = RESULTS / "concepts.json"


Call = Callable[[], object]


@dataclass(frozen=True)
class Bench:
    """A U-Net with concepts, and what is done with it.

    Attributes:
        calls: By name, what is done before the clock starts, and what is timed: to `switch` to the
            next concept, and a batch of the `base` alone, of one concept (`plain`) and of
            a concept for every picture (`mixed`).
        tensor_bytes: Of all concepts, beside what they share.
        shared_bytes: What all concepts share.
        last_load: Seconds it took to add the last concept.
    """

    calls: dict[str, tuple[Call, Call]]
    tensor_bytes: int
    shared_bytes: int
    last_load: float


def build_unet(options: Options) -> UNet2DConditionModel:
    """Return the U-Net, with the same weights every time."""
    torch.manual_seed(options.seed)
    unet = UNet2DConditionModel(
        sample_size=options.sample_size,
        block_out_channels=options.block_out_channels,
        cross_attention_dim=options.cross_attention_dim,
    )
    nn.Module.to(unet.eval(), options.device, getattr(torch, options.dtype))
    return unet


def inputs(options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Return latents, timesteps and text features of a batch."""
    generator = torch.Generator().manual_seed(options.seed)
    side, dtype = options.sample_size, getattr(torch, options.dtype)
    latents = torch.randn(options.batch, 4, side, side, generator=generator)
    text = torch.randn(options.batch, 77, options.cross_attention_dim, generator=generator)
    timesteps = torch.full((options.batch,), 500, device=options.device)
    return latents.to(options.device, dtype), timesteps, text.to(options.device, dtype)


def loldu_bench(options: Options, concepts: int) -> Bench:
    """Load one concept file under as many names as asked for."""
    unet, x, names = build_unet(options), inputs(options), [f"c{i}" for i in range(concepts)]
    source = build_unet(options)
    source.add_adapter(LoLDUConfig(r=options.rank, init_weights=False))
    with tempfile.TemporaryDirectory() as folder:
        path = save_concept(source, Path(folder) / "concept.safetensors")
        loads = [
            seconds_of(partial(load_concept, unet, path, name), options.device) for name in names
        ]
    turn, rows = cycle(names), _rows(names, options.batch)

    def forward() -> object:
        return unet(*x)

    layers = [module for module in unet.modules() if isinstance(module, LoLDULayer)]
    return Bench(
        {
            "switch": (_nothing, lambda: mix(unet, {next(turn): 1.0})),
            "base": (lambda: mix(unet, {}), forward),
            "plain": (lambda: mix(unet, {names[0]: 1.0}), forward),
            "mixed": (lambda: set_concepts(unet, rows), forward),
        },
        tensor_bytes=sum(_bytes(layer.loldu_diagonal) for layer in layers),
        shared_bytes=sum(
            shared.left.nbytes + shared.right.nbytes + shared.gain.nbytes + shared.diagonal.nbytes
            for layer in layers
            for shared in set(layer.factors.values())
        ),
        last_load=loads[-1],
    )


def lora_bench(options: Options, concepts: int) -> Bench:
    """Add as many random LoRAs as asked for, through PEFT."""
    unet, x, names = build_unet(options), inputs(options), [f"c{i}" for i in range(concepts)]
    plain_bytes = _bytes(unet)
    config = LoraConfig(
        r=options.lora_rank, target_modules=[*DIFFUSERS_ATTENTION], init_lora_weights=False
    )
    start = perf_counter()
    model = get_peft_model(unet, config, names[0])
    assert isinstance(model, PeftModel)
    last_load = perf_counter() - start
    for name in names[1:]:
        last_load = seconds_of(partial(model.add_adapter, name, config), options.device)
    model.eval()
    turn, rows = cycle(names), _rows(names, options.batch)

    def base() -> object:
        with model.disable_adapter():
            return model(*x)

    return Bench(
        {
            "switch": (_nothing, lambda: model.set_adapter(next(turn))),
            "base": (_nothing, base),
            "plain": (lambda: model.set_adapter(names[0]), lambda: model(*x)),
            "mixed": (_nothing, lambda: model(*x, adapter_names=rows)),
        },
        tensor_bytes=_bytes(unet) - plain_bytes,
        shared_bytes=0,
        last_load=last_load,
    )


METHODS = {"loldu": loldu_bench, "lora": lora_bench}
CALLS = ("switch", "base", "plain", "mixed")


def _nothing() -> None:
    """What is done before a call that needs nothing done."""


def _rows(names: Sequence[str], batch: int) -> list[str]:
    return [names[i % len(names)] for i in range(batch)]


def _bytes(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


@torch.no_grad()
def measure(options: Options, concepts: int) -> dict[str, Any]:
    """Return one row of the result; the methods and their calls take turns in every repetition."""
    methods = METHODS if concepts <= options.most_loras else {"loldu": loldu_bench}
    benches = {name: build(options, concepts) for name, build in methods.items()}
    seconds = {name: {call: [] for call in CALLS} for name in methods}
    for repetition in range(-1, options.repetitions):
        for name, bench in benches.items():
            for call in CALLS:
                prepare, timed = bench.calls[call]
                prepare()
                spent = seconds_of(timed, options.device)
                if repetition >= 0:  # The first round warms up.
                    seconds[name][call].append(spent)
    return {
        "concepts": concepts,
        "different_in_a_batch": min(concepts, options.batch),
        "methods": {
            name: {
                "bytes_per_concept": bench.tensor_bytes // concepts,
                "bytes_shared": bench.shared_bytes,
                "seconds_to_load_the_last": bench.last_load,
                "seconds": {call: spread(seconds[name][call]) for call in CALLS},
                "mixed_to_plain": ratio(seconds[name]["mixed"], seconds[name]["plain"]),
                "plain_to_base": ratio(seconds[name]["plain"], seconds[name]["base"]),
            }
            for name, bench in benches.items()
        },
        "lora_to_loldu": {
            call: ratio(seconds["lora"][call], seconds["loldu"][call]) for call in CALLS
        }
        if "lora" in benches
        else None,
    }


def table(result: dict[str, Any]) -> Table:
    """Return the result for a person."""
    made = Table("concepts", title=f"many concepts on one U-Net, batches of {result['batch']}")
    columns = ("method", "KB each", "load ms", "switch ms", "plain s", "mixed s", "mixed / plain")
    for column in columns:
        made.add_column(column, justify="right")
    for row in result["rows"]:
        for name, method in row["methods"].items():
            times = {call: spread["median"] for call, spread in method["seconds"].items()}
            made.add_row(
                str(row["concepts"]),
                name,
                f"{method['bytes_per_concept'] / 1000:.1f}",
                f"{1000 * method['seconds_to_load_the_last']:.1f}",
                f"{1000 * times['switch']:.2f}",
                f"{times['plain']:.3g}",
                f"{times['mixed']:.3g}",
                f"{method['mixed_to_plain']['median']:.3f}",
            )
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the JSON, and show the table."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = tyro.cli(
        Options, args=arguments, prog="python -m benchmarks.concepts", use_underscores=True
    )
    result = {
        **provenance("benchmarks.concepts", arguments, ["torch", "diffusers", "peft"]),
        "device": named(options.device),
        "dtype": options.dtype,
        "batch": options.batch,
        "rank": options.rank,
        "lora_rank": options.lora_rank,
        "sample_size": options.sample_size,
        "block_out_channels": options.block_out_channels,
        "cross_attention_dim": options.cross_attention_dim,
        "repetitions": options.repetitions,
        "seed": options.seed,
        "rows": [measure(options, concepts) for concepts in options.concepts],
    }
    write_record(options.output, result)
    Console(stderr=True).print(table(result))


if __name__ == "__main__":
    main()
