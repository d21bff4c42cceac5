"""Many concepts on one U-Net: memory, switching, and a different concept in each row of a batch.

``python -m benchmarks.concepts``. The U-Net has the attention layers of Stable Diffusion v1.5; its
weights and the concepts are random, because what is measured follows from the shapes. LoLDU and
LoRA have a U-Net each. LoRA's mixed batch is PEFT's own, through ``adapter_names``.
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.table import Table
from torch import Tensor, nn

from benchmarks.harness import Dtype, UNetOptions, in_turns, ratio, run, seconds_of, show, spread
from benchmarks.stable_diffusion import random_inputs, random_unet
from loldu import LoLDUConfig, load_concept, mix, save_concept, set_concepts
from loldu.adapter.layer import LoLDULayer
from loldu.adapter.targets import DIFFUSERS_ATTENTION


@dataclass(frozen=True)
class Options(UNetOptions):
    """Measure many concepts on one U-Net: memory, switching, and a concept for every picture."""

    # Numbers of concepts held at once.
    concepts: tuple[int, ...] = (1, 10, 100, 1000)
    # Most LoRAs held at once: the more there are, the longer PEFT takes to add one.
    most_loras: int = 100
    # Pictures in a batch, each with its own concept as long as there are enough.
    batch: int = 4
    # Directions of each layer; the paper uses 32.
    rank: int = 32
    # Rank of LoRA; 4 is diffusers' default for DreamBooth.
    lora_rank: int = 4
    # Side of the latents; 64 for pictures of 512 pixels.
    sample_size: int = 16
    # Dtype of the U-Net; concepts and LoRAs stay in float32, as they are trained.
    dtype: Dtype = "float32"


Call = Callable[[], object]
CALLS = ("switch", "base", "plain", "mixed")


@dataclass(frozen=True)
class Bench:
    """A U-Net with concepts, and what is timed on it.

    Attributes:
        calls: By name, a call before the clock starts and the timed call: `switch` to the next
            concept, then a batch of the `base` alone, of one concept (`plain`) and of a
            different concept in each picture (`mixed`).
        tensor_bytes: Bytes of all concepts, without the shared ones.
        shared_bytes: Bytes that all concepts share.
        last_load: Seconds to add the last concept.
    """

    calls: dict[str, tuple[Call, Call]]
    tensor_bytes: int
    shared_bytes: int
    last_load: float


def _bench_inputs(options: Options, unet: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(options.seed)
    return random_inputs(unet, options.sample_size, options.batch)


def _build_unet(options: Options) -> nn.Module:
    return random_unet(options, sample_size=options.sample_size, dtype=options.dtype)


def loldu_bench(options: Options, concepts: int) -> Bench:
    """Load one concept file under as many names as there are concepts."""
    unet, names = _build_unet(options), [f"c{i}" for i in range(concepts)]
    inputs, rows = _bench_inputs(options, unet), _rows(names, options.batch)
    source: Any = _build_unet(options)
    source.add_adapter(LoLDUConfig(r=options.rank, init_weights=False))
    with tempfile.TemporaryDirectory() as folder:
        path = save_concept(source, Path(folder) / "concept.safetensors")
        loads = [
            seconds_of(partial(load_concept, unet, path, name), options.device) for name in names
        ]
    turn, forward = cycle(names), partial(unet, **inputs)
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
    """Add as many random LoRAs as there are concepts, through PEFT."""
    unet, names = _build_unet(options), [f"c{i}" for i in range(concepts)]
    inputs, rows = _bench_inputs(options, unet), _rows(names, options.batch)
    plain_bytes = _bytes(unet)
    config = LoraConfig(
        r=options.lora_rank, target_modules=[*DIFFUSERS_ATTENTION], init_lora_weights=False
    )
    start = perf_counter()
    model = get_peft_model(unet, config, names[0])  # pyright: ignore[reportArgumentType]  any module will do
    assert isinstance(model, PeftModel)
    last_load = perf_counter() - start
    for name in names[1:]:
        last_load = seconds_of(partial(model.add_adapter, name, config), options.device)
    model.eval()
    turn, forward = cycle(names), partial(model, **inputs)

    def base() -> object:
        with model.disable_adapter():
            return forward()

    return Bench(
        {
            "switch": (_nothing, lambda: model.set_adapter(next(turn))),
            "base": (_nothing, base),
            "plain": (lambda: model.set_adapter(names[0]), forward),
            "mixed": (_nothing, partial(forward, adapter_names=rows)),
        },
        tensor_bytes=_bytes(unet) - plain_bytes,
        shared_bytes=0,
        last_load=last_load,
    )


METHODS = {"loldu": loldu_bench, "lora": lora_bench}


def _nothing() -> None:
    """Prepare nothing."""


def _rows(names: Sequence[str], batch: int) -> list[str]:
    return [names[i % len(names)] for i in range(batch)]


def _bytes(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


@torch.no_grad()
def measure_row(options: Options, concepts: int) -> dict[str, Any]:
    """Return the result of one number of concepts; the first round warms up."""
    methods = METHODS if concepts <= options.most_loras else {"loldu": loldu_bench}
    benches = {name: build(options, concepts) for name, build in methods.items()}

    def seconds_of_call(prepare: Call, timed: Call) -> float:
        prepare()
        return seconds_of(timed, options.device)

    calls = {
        f"{name} {call}": partial(seconds_of_call, *bench.calls[call])
        for name, bench in benches.items()
        for call in CALLS
    }
    in_turns(calls, 1)
    seconds = in_turns(calls, options.repetitions)
    return {
        "concepts": concepts,
        "different_in_a_batch": min(concepts, options.batch),
        "methods": {
            name: {
                "bytes_per_concept": bench.tensor_bytes // concepts,
                "bytes_shared": bench.shared_bytes,
                "seconds_to_load_the_last": bench.last_load,
                "seconds": {call: spread(seconds[f"{name} {call}"]) for call in CALLS},
                "mixed_to_plain": ratio(seconds[f"{name} mixed"], seconds[f"{name} plain"]),
                "plain_to_base": ratio(seconds[f"{name} plain"], seconds[f"{name} base"]),
            }
            for name, bench in benches.items()
        },
        "lora_to_loldu": {
            call: ratio(seconds[f"lora {call}"], seconds[f"loldu {call}"]) for call in CALLS
        }
        if "lora" in benches
        else None,
    }


def measure(options: Options) -> dict[str, Any]:
    """Return the results of all numbers of concepts."""
    return {"rows": [measure_row(options, concepts) for concepts in options.concepts]}


def tables(record: dict[str, Any]) -> Iterable[Table]:
    """Yield the table."""
    rows = [
        {
            "concepts": row["concepts"],
            "method": name,
            "KB each": method["bytes_per_concept"] / 1000,
            "load ms": 1000 * method["seconds_to_load_the_last"],
            "switch ms": 1000 * method["seconds"]["switch"]["median"],
            "plain s": method["seconds"]["plain"]["median"],
            "mixed s": method["seconds"]["mixed"]["median"],
            "mixed / plain": method["mixed_to_plain"]["median"],
        }
        for row in record["rows"]
        for name, method in row["methods"].items()
    ]
    yield show(f"many concepts on one U-Net, batches of {record['batch']}", rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    run("concepts", Options, measure, tables, ["torch", "diffusers", "peft"], argv)


if __name__ == "__main__":
    main()
