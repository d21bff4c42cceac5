"""Time and memory of a training step's forward and backward, by adapter, beside the frozen model.

``python -m benchmarks.forward``. One attention projection at a time, of Stable Diffusion v1.5 and
of ViT-B, then all 128 of a U-Net of Stable Diffusion v1.5's shape. The weights are random: time and
memory follow from the shapes.
"""

import contextlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from diffusers import UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.adapters import (
    FROZEN,
    LORA,
    METHODS,
    adapted,
    held,
    install,
    projections,
    storage_of,
)
from benchmarks.device import in_turns, named, seconds_of
from benchmarks.memory import mib, peak_bytes
from benchmarks.spread import ratio, spread
from benchmarks.stable_diffusion import TEXT_TOKENS
from loldu.provenance import provenance, write_record

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """Time forward and backward with every adapter in turn, in one process."""

    # Side of the U-Net's latents, 64 for pictures of 512 pixels; unless given, 64 on a GPU and 16
    # elsewhere. A single projection always gets the tokens of 64.
    latent_size: int | None = None
    # Times the U-Net's step is timed; medians are reported.
    repetitions: int = 5
    # Times a single projection's step is timed.
    projection_repetitions: int = 50
    # Of the random weights and inputs.
    seed: int = 0
    # Widths of the U-Net's four stages; Stable Diffusion v1.5's unless given.
    block_out_channels: tuple[int, int, int, int] = (320, 640, 1280, 1280)
    # Width of the text's features; Stable Diffusion v1.5's unless given. Width times width must
    # not be below FourierFT's 1000 frequencies.
    cross_attention_dim: int = 768
    # Width of the vision transformer's projection, and its tokens: ViT-B's at 32 pictures.
    vit_width: int = 768
    vit_tokens: int = 32 * 197
    # Where to measure: cpu or cuda.
    device: str = "cpu"
    # Of the base model, and of autocast unless float32; what is trained stays in float32.
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    # Where the result is written, over the last one.
    output: Path = RESULTS / "forward.json"


@dataclass(frozen=True)
class Case:
    """A model and what is computed with it.

    Attributes:
        name: For the result.
        model: Frozen; it has the projections.
        x: The input that gradients reach, whatever the method, so that only the adapter differs.
        forward: From x to the output.
        repetitions: Times it is timed.
    """

    name: str
    model: nn.Module
    x: Tensor
    forward: Callable[[Tensor], Tensor]
    repetitions: int


def cases(options: Options) -> Iterator[Case]:
    """Yield single projections, of 64 x 64 latents, of text and of ViT-B, then the U-Net.

    The U-Net's batch is one picture.
    """
    torch.manual_seed(options.seed)
    first, _, third, _ = options.block_out_channels
    for out, in_, tokens in (
        (first, first, 64 * 64),
        (third, third, 16 * 16),
        (third, options.cross_attention_dim, TEXT_TOKENS),
        (options.vit_width, options.vit_width, options.vit_tokens),
    ):
        linear = nn.Linear(in_, out, bias=False)
        model = _place(nn.Sequential(OrderedDict(to_q=linear)), options)
        x = _random(options, 1, tokens, in_)
        name = f"projection {out} x {in_}, {tokens} tokens"
        yield Case(name, model, x, model.__call__, options.projection_repetitions)
    unet = UNet2DConditionModel(
        block_out_channels=options.block_out_channels,
        cross_attention_dim=options.cross_attention_dim,
    )
    _place(unet, options)
    text = _random(options, 1, TEXT_TOKENS, options.cross_attention_dim).detach()
    side = latent_size(options)
    name = f"unet, {side} x {side} latents"
    latents = _random(options, 1, 4, side, side)

    def forward(x: Tensor) -> Tensor:
        return unet(x, 500, text, return_dict=False)[0]

    yield Case(name, unet, latents, forward, options.repetitions)


def latent_size(options: Options) -> int:
    """Return the side of the U-Net's latents."""
    return options.latent_size or (64 if options.device.startswith("cuda") else 16)


def _place(model: nn.Module, options: Options) -> nn.Module:
    model.requires_grad_(False)
    return nn.Module.to(model, options.device, getattr(torch, options.dtype))


def _random(options: Options, *shape: int) -> Tensor:
    x = torch.randn(shape).to(options.device, getattr(torch, options.dtype))
    return x.requires_grad_()


def saved_bytes(model: nn.Module, step: Callable[[], object]) -> int:
    """Return the bytes that a step's forward keeps for its backward, beside what the model holds.

    Every storage counts once and in full.
    """
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.update([storage_of(tensor)])
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(saved[pointer] for pointer in saved.keys() - held([model]).keys())


def run_step(case: Case, options: Options) -> None:
    """Compute the output, and the gradients of the input and of what is trained."""
    trained = [parameter for parameter in case.model.parameters() if parameter.requires_grad]
    mixed = (
        contextlib.nullcontext()
        if options.dtype == "float32"
        else torch.autocast(torch.device(options.device).type, getattr(torch, options.dtype))
    )
    with mixed:
        output = case.forward(case.x)
    torch.autograd.grad(output, [case.x, *trained], torch.ones_like(output))


def measure(case: Case, options: Options) -> dict[str, Any]:
    """Return a case's part of the result; what measures memory is the warm-up."""
    plain = projections(case.model)
    layers = {name: adapted(case.model, method) for name, method in METHODS.items()}
    step = partial(run_step, case, options)
    methods: dict[str, dict[str, Any]] = {}
    base_bytes = sum(held(plain.values()).values())
    for name, method in METHODS.items():
        install(case.model, layers[name])
        parameters = [p for p in case.model.parameters() if p.requires_grad]
        adapter_bytes = sum(held(layers[name].values()).values()) - base_bytes
        methods[name] = {
            "what": method.what,
            "trained": sum(parameter.numel() for parameter in parameters),
            "adapter_mib": mib(adapter_bytes),
            "saved_mib": mib(saved_bytes(case.model, step)),
        }
        if options.device.startswith("cuda"):
            methods[name]["peak_mib"] = mib(peak_bytes(options.device, step))

    def timed(name: str) -> float:
        install(case.model, layers[name])
        return seconds_of(step, options.device)

    seconds = in_turns({name: partial(timed, name) for name in METHODS}, case.repetitions)
    install(case.model, plain)
    for name, result in methods.items():
        result["seconds"] = spread(seconds[name])
        result["times_as_long_as"] = {
            other: ratio(seconds[name], seconds[other]) for other in (FROZEN, LORA)
        }
        memory = "peak_mib" if "peak_mib" in result else "saved_mib"
        result["times_the_memory_of"] = {
            other: _quotient(result[memory], methods[other][memory]) for other in (FROZEN, LORA)
        }
    return {"case": case.name, "layers": len(plain), "methods": methods}


def _quotient(a: float, b: float) -> float | None:
    """None over zero: a frozen projection keeps nothing."""
    return float(f"{a / b:.4g}") if b else None


def table(case: dict[str, Any]) -> Table:
    """Return a case of the result for a person."""
    made = Table(title=case["case"])
    made.add_column("method", no_wrap=True)
    memory = "peak_mib" if "peak_mib" in case["methods"][FROZEN] else "saved_mib"
    columns = ("trained", "ms", "/ LoRA", "/ frozen", "adapter MiB", memory.replace("_mib", " MiB"))
    for column in columns:
        made.add_column(column, justify="right")
    for name, method in case["methods"].items():
        made.add_row(
            name,
            str(method["trained"]),
            f"{1000 * method['seconds']['median']:.4g}",
            f"{method['times_as_long_as'][LORA]['median']:.3f}",
            f"{method['times_as_long_as'][FROZEN]['median']:.3f}",
            f"{method['adapter_mib']:.3g}",
            f"{method[memory]:.4g}",
        )
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the JSON, and show the table."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = tyro.cli(
        Options, args=arguments, prog="python -m benchmarks.forward", use_underscores=True
    )
    result = {
        **provenance("benchmarks.forward", arguments, ["torch", "diffusers", "peft"]),
        "device": named(options.device),
        "dtype": options.dtype,
        "latent_size": latent_size(options),
        "block_out_channels": options.block_out_channels,
        "cross_attention_dim": options.cross_attention_dim,
        "repetitions": options.repetitions,
        "projection_repetitions": options.projection_repetitions,
        "seed": options.seed,
        "cases": [measure(case, options) for case in cases(options)],
    }
    write_record(options.output, result)
    Console(stderr=True).print(*map(table, result["cases"]))


if __name__ == "__main__":
    main()
