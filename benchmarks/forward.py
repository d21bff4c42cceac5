"""Time and memory of a training step's forward and backward, by adapter, beside the frozen model.

``python -m benchmarks.forward``. It measures one attention projection at a time, of Stable
Diffusion v1.5 and of ViT-B, then all 128 of a U-Net of Stable Diffusion v1.5's shape. The weights
are random, because time and memory follow from the shapes.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.adapters import FROZEN, LORA, METHODS, adapted, held, install, storage_of
from benchmarks.harness import (
    StepOptions,
    compare,
    in_turns,
    mib,
    peak_bytes,
    run,
    seconds_of,
    show,
    spread,
)
from benchmarks.stable_diffusion import TEXT_TOKENS, projections, random_unet


@dataclass(frozen=True)
class Options(StepOptions):
    """Time forward and backward with every adapter in turn, in one process."""

    # How many times the U-Net's step is timed; the result holds medians.
    repetitions: int = 5
    # How many times a single projection's step is timed.
    projection_repetitions: int = 50
    # Width of the vision transformer's projection, and its tokens: those of ViT-B with 32 pictures.
    # FourierFT's 1000 frequencies need widths whose product is at least 1000.
    vit_width: int = 768
    vit_tokens: int = 32 * 197


class Case(NamedTuple):
    """A frozen model and its step.

    Every method computes the gradient of `x`, the input of `forward`, so that only the adapter
    differs.
    """

    name: str
    model: nn.Module
    x: Tensor
    forward: Callable[[Tensor], Tensor]
    repetitions: int


def cases(options: Options) -> Iterator[Case]:
    """Yield single projections, of 64 x 64 latents, of text and of ViT-B, then the U-Net.

    The batch of the U-Net is one picture. The projections do not depend on `--latent_size`.
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
        model = nn.Sequential(OrderedDict(to_q=linear)).requires_grad_(False)
        nn.Module.to(model, options.device, getattr(torch, options.dtype))
        x = _random(options, 1, tokens, in_)
        name = f"projection {out} x {in_}, {tokens} tokens"
        yield Case(name, model, x, model.__call__, options.projection_repetitions)
    side = options.side
    unet = random_unet(options, dtype=options.dtype)
    text = _random(options, 1, TEXT_TOKENS, options.cross_attention_dim).detach()
    latents = _random(options, 1, 4, side, side)

    def forward(x: Tensor) -> Tensor:
        return unet(x, 500, text, return_dict=False)[0]

    yield Case(f"unet, {side} x {side} latents", unet, latents, forward, options.repetitions)


def _random(options: Options, *shape: int) -> Tensor:
    x = torch.randn(shape).to(options.device, getattr(torch, options.dtype))
    return x.requires_grad_()


def saved_bytes(model: nn.Module, step: Callable[[], object]) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, without the model's own.

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
    """Compute the output, and the gradients of the input and of the trained parameters."""
    trained = [parameter for parameter in case.model.parameters() if parameter.requires_grad]
    mixed = (
        contextlib.nullcontext()
        if options.dtype == "float32"
        else torch.autocast(torch.device(options.device).type, getattr(torch, options.dtype))
    )
    with mixed:
        output = case.forward(case.x)
    torch.autograd.grad(output, [case.x, *trained], torch.ones_like(output))


def measure_case(case: Case, options: Options) -> dict[str, Any]:
    """Return the result of one case; measuring memory is the warm-up."""
    plain = projections(case.model)
    layers = {name: adapted(case.model, method) for name, method in METHODS.items()}
    step = partial(run_step, case, options)
    memory = "peak_mib" if options.device.startswith("cuda") else "saved_mib"
    methods: dict[str, dict[str, Any]] = {}
    base_bytes = sum(held(plain.values()).values())
    for name, method in METHODS.items():
        install(case.model, layers[name])
        methods[name] = {
            "what": method.what,
            "trained": sum(p.numel() for p in case.model.parameters() if p.requires_grad),
            "adapter_mib": mib(sum(held(layers[name].values()).values()) - base_bytes),
            "saved_mib": mib(saved_bytes(case.model, step)),
        }
        if memory == "peak_mib":
            methods[name][memory] = mib(peak_bytes(options.device, step))

    def timed(name: str) -> float:
        install(case.model, layers[name])
        return seconds_of(step, options.device)

    seconds = in_turns({name: partial(timed, name) for name in METHODS}, case.repetitions)
    install(case.model, plain)
    for name, result in methods.items():
        result["seconds"] = spread(seconds[name])
    compare(methods, seconds, memory, (FROZEN, LORA))
    return {"case": case.name, "layers": len(plain), "methods": methods}


def measure(options: Options) -> dict[str, Any]:
    """Return the results of all cases."""
    return {
        "latent_size": options.side,
        "cases": [measure_case(case, options) for case in cases(options)],
    }


def tables(record: dict[str, Any]) -> Iterable[Table]:
    """Yield a table for each case."""
    for case in record["cases"]:
        memory = "peak_mib" if "peak_mib" in case["methods"][FROZEN] else "saved_mib"
        rows = [
            {
                "method": name,
                "trained": method["trained"],
                "ms": 1000 * method["seconds"]["median"],
                "/ LoRA": method["times_as_long_as"][LORA]["median"],
                "/ frozen": method["times_as_long_as"][FROZEN]["median"],
                "adapter MiB": method["adapter_mib"],
                memory.replace("_mib", " MiB"): method[memory],
            }
            for name, method in case["methods"].items()
        ]
        yield show(case["case"], rows)


main = partial(run, "forward", Options, measure, tables)

if __name__ == "__main__":
    main()
