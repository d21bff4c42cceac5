"""Many concepts on one U-Net: memory, switching, and a different concept in each row of a batch.

``python -m benchmarks.concepts``. The U-Net has the attention layers of Stable Diffusion v1.5; its
weights and the concepts are random, because what is measured follows from the shapes. LoLDU and
LoRA have a U-Net each. LoRA's mixed batch is PEFT's own, through ``adapter_names``.
"""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
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
Calls = dict[str, tuple[Call, Call]]
"""By name, a call before the clock starts and the timed call.

`switch` goes to the next concept. The others are batches: of the `base` alone, of one concept
(`plain`), and of a different concept in each picture (`mixed`).
"""
CALLS = ("switch", "base", "plain", "mixed")


def _setup(options: Options, concepts: int) -> tuple[nn.Module, dict[str, Tensor], list[str]]:
    """Return a U-Net, a batch of inputs, and the names of the concepts."""
    unet = random_unet(options, sample_size=options.sample_size, dtype=options.dtype)
    torch.manual_seed(options.seed)
    inputs = random_inputs(unet, options.sample_size, options.batch)
    return unet, inputs, [f"c{i}" for i in range(concepts)]


def loldu_calls(options: Options, concepts: int) -> tuple[Calls, dict[str, float]]:
    """Load one concept file under as many names as there are concepts."""
    unet, inputs, names = _setup(options, concepts)
    source: Any = _setup(options, concepts)[0]
    source.add_adapter(LoLDUConfig(r=options.rank, init_weights=False))
    with tempfile.TemporaryDirectory() as folder:
        path = save_concept(source, Path(folder) / "concept.safetensors")
        loads = [
            seconds_of(partial(load_concept, unet, path, name), options.device) for name in names
        ]
    turn, forward = cycle(names), partial(unet, **inputs)
    rows = [*islice(cycle(names), options.batch)]
    layers = [module for module in unet.modules() if isinstance(module, LoLDULayer)]
    shared = [own for layer in layers for own in set(layer.factors.values())]
    calls: Calls = {
        "switch": (_nothing, lambda: mix(unet, {next(turn): 1.0})),
        "base": (lambda: mix(unet, {}), forward),
        "plain": (lambda: mix(unet, {names[0]: 1.0}), forward),
        "mixed": (lambda: set_concepts(unet, rows), forward),
    }
    return calls, {
        "bytes_per_concept": sum(_bytes(layer.loldu_diagonal) for layer in layers) // concepts,
        "bytes_shared": sum(
            own.left.nbytes + own.right.nbytes + own.gain.nbytes + own.diagonal.nbytes
            for own in shared
        ),
        "seconds_to_load_the_last": loads[-1],
    }


def lora_calls(options: Options, concepts: int) -> tuple[Calls, dict[str, float]]:
    """Add as many random LoRAs as there are concepts, through PEFT."""
    unet, inputs, names = _setup(options, concepts)
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

    calls: Calls = {
        "switch": (_nothing, lambda: model.set_adapter(next(turn))),
        "base": (_nothing, base),
        "plain": (lambda: model.set_adapter(names[0]), forward),
        "mixed": (
            _nothing,
            partial(forward, adapter_names=[*islice(cycle(names), options.batch)]),
        ),
    }
    return calls, {
        "bytes_per_concept": (_bytes(unet) - plain_bytes) // concepts,
        "bytes_shared": 0,
        "seconds_to_load_the_last": last_load,
    }


METHODS = {"loldu": loldu_calls, "lora": lora_calls}


def _nothing() -> None:
    """Prepare nothing."""


def _bytes(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


@torch.no_grad()
def measure_row(options: Options, concepts: int) -> dict[str, Any]:
    """Return the result of one number of concepts; the first round warms up."""
    methods = METHODS if concepts <= options.most_loras else {"loldu": loldu_calls}
    made = {name: build(options, concepts) for name, build in methods.items()}

    def timed(prepare: Call, call: Call) -> float:
        prepare()
        return seconds_of(call, options.device)

    calls = {
        f"{name} {call}": partial(timed, *own[call])
        for name, (own, _) in made.items()
        for call in CALLS
    }
    in_turns(calls, 1)
    seconds = in_turns(calls, options.repetitions)
    return {
        "concepts": concepts,
        "different_in_a_batch": min(concepts, options.batch),
        "methods": {
            name: {
                **facts,
                "seconds": {call: spread(seconds[f"{name} {call}"]) for call in CALLS},
                "mixed_to_plain": ratio(seconds[f"{name} mixed"], seconds[f"{name} plain"]),
                "plain_to_base": ratio(seconds[f"{name} plain"], seconds[f"{name} base"]),
            }
            for name, (_, facts) in made.items()
        },
        "lora_to_loldu": {
            call: ratio(seconds[f"lora {call}"], seconds[f"loldu {call}"]) for call in CALLS
        }
        if "lora" in made
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


main = partial(run, "concepts", Options, measure, tables)

if __name__ == "__main__":
    main()
