"""How long the factors of an adapter take, beside a full LU, an SVD and PEFT's PiSSA.

``python -m benchmarks.factorize``. The weights are random: the time follows from the shapes, which
are those of Stable Diffusion v1.5's 128 attention projections, and of one of LLaMA2-7B's.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers import UNet2DConditionModel
from peft import LoraConfig, PeftConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.device import named, seconds_of
from benchmarks.spread import ratio, spread
from loldu import LoLDUConfig, ldu
from loldu.adapter.targets import DIFFUSERS_ATTENTION
from loldu.provenance import provenance, write_record

RESULTS = Path(__file__).parent / "results"

Shape = tuple[int, int]


@dataclass(frozen=True)
class Options:
    """Time the factors of every attention projection of a UNet, and of a large one, in turns."""

    # Directions a layer; the paper's is 32.
    rank: int = 32
    # Times everything is timed; medians are reported.
    repetitions: int = 7
    # Side and rank of the large projection; LLaMA2-7B's and the paper's unless given.
    large_size: int = 4096
    large_rank: int = 1024
    # Times the large one is timed: an SVD of it takes a minute.
    large_repetitions: int = 2
    # Of the random weights.
    seed: int = 0
    # Widths of the UNet's four stages; Stable Diffusion v1.5's unless given.
    block_out_channels: tuple[int, int, int, int] = (320, 640, 1280, 1280)
    # Width of the text's features; Stable Diffusion v1.5's unless given.
    cross_attention_dim: int = 768
    # Where to measure: cpu or cuda.
    device: str = "cpu"
    # Where the result is written, over the last one.
    output: Path = RESULTS / "factorize.json"


@dataclass(frozen=True)
class Route:
    """A way to the factors.

    Attributes:
        what: In words.
        factorize: From a weight and a rank to the factors, or to the adapted layer.
        every_layer: Whether all layers are timed; otherwise one of each shape, and its time counts
            for all of that shape.
    """

    what: str
    factorize: Callable[[Tensor, int], object]
    every_layer: bool


def full_lu(weight: Tensor, r: int) -> tuple[Tensor, ...]:
    """Return LoLDU's factors as its released code makes them, P left a matrix of its own."""
    permutation, lower, upper = torch.linalg.lu(weight)
    diagonal = upper.diagonal()
    return permutation, lower[:, :r], diagonal[:r], (upper / diagonal[:, None])[:r]


def full_svd(weight: Tensor, r: int) -> tuple[Tensor, ...]:
    """Return SVFit's factors."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return u[:, :r], s[:r], vh[:r]


def adapt(config: Callable[..., PeftConfig], weight: Tensor, r: int, **settings: Any) -> object:  # noqa: ANN401
    """Return a linear layer of this weight, adapted by PEFT."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return get_peft_model(nn.Sequential(linear), config(r=r, target_modules=["0"], **settings))  # pyright: ignore[reportArgumentType]  any module will do


OURS = "ldu"
ROUTES = {
    OURS: Route("loldu.ldu: LU of the first r columns and one solve, in float64", ldu, True),
    "full_lu": Route("torch.linalg.lu of the whole weight, in float32", full_lu, True),
    "svd": Route("torch.linalg.svd of the whole weight, in float32", full_svd, False),
    "loldu_layer": Route("PEFT's get_peft_model with LoLDU", partial(adapt, LoLDUConfig), True),
    "pissa_layer": Route(
        "PEFT's get_peft_model with PiSSA, by an SVD",
        partial(adapt, LoraConfig, init_lora_weights="pissa"),
        False,
    ),
    "pissa_niter_16_layer": Route(
        "PEFT's get_peft_model with PiSSA, by a randomized SVD of 16 iterations",
        partial(adapt, LoraConfig, init_lora_weights="pissa_niter_16"),
        True,
    ),
}


def attention_shapes(block_out_channels: Sequence[int], cross_attention_dim: int) -> list[Shape]:
    """Return (out, in) of a UNet's attention projections; no weight is allocated."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=tuple(block_out_channels), cross_attention_dim=cross_attention_dim
        )
    return [
        (module.out_features, module.in_features)
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(DIFFUSERS_ATTENTION)
    ]


def measure(weights: Sequence[Tensor], r: int, repetitions: int) -> dict[str, list[float]]:
    """Return seconds for all layers, by route and repetition.

    A route makes layer after layer, as whoever creates an adapter does; the routes take turns,
    and another one begins in every repetition.
    """
    alike = Counter(weight.shape for weight in weights)
    one_of_each = {weight.shape: weight for weight in weights}.values()
    for route in ROUTES.values():
        route.factorize(weights[0][:64, :64].contiguous(), min(r, 64))
    seconds = {name: [0.0] * repetitions for name in ROUTES}
    for repetition in range(repetitions):
        first = repetition % len(ROUTES)
        for name, route in ([*ROUTES.items()] * 2)[first : first + len(ROUTES)]:
            for weight in weights if route.every_layer else one_of_each:
                call = partial(route.factorize, weight, r)
                times = 1 if route.every_layer else alike[weight.shape]
                seconds[name][repetition] += times * seconds_of(call, str(weight.device))
    return seconds


def case(
    name: str, shapes: Sequence[Shape], r: int, repetitions: int, options: Options
) -> dict[str, Any]:
    """Return a case of the result as JSON values; a ratio is taken within each repetition."""
    generator = torch.Generator().manual_seed(options.seed)
    weights = [torch.randn(shape, generator=generator).to(options.device) for shape in shapes]
    seconds, alike = measure(weights, r, repetitions), Counter(shapes)
    return {
        "case": name,
        "rank": r,
        "repetitions": repetitions,
        "layers": len(shapes),
        "shapes": [{"out": out, "in": in_, "layers": n} for (out, in_), n in alike.items()],
        "routes": {
            name: {
                "what": route.what,
                "layers_timed": len(shapes) if route.every_layer else len(alike),
                "scaled_to_all_layers": not route.every_layer,
                "seconds": spread(seconds[name]),
            }
            for name, route in ROUTES.items()
        },
        "times_as_long_as_ldu": {
            name: ratio(seconds[name], seconds[OURS]) for name in ROUTES if name != OURS
        },
    }


def table(result: dict[str, Any]) -> Table:
    """Return the result for a person."""
    made = Table("route", title=f"{result['case']}, r = {result['rank']}")
    for column in ("seconds", "times ldu", "timed"):
        made.add_column(column, justify="right")
    for name, route in result["routes"].items():
        ratio = result["times_as_long_as_ldu"].get(name, {"median": 1.0})
        timed = f"{route['layers_timed']} layers"
        made.add_row(
            name,
            f"{route['seconds']['median']:.3g}",
            f"{ratio['median']:.3g}",
            f"{timed}, scaled" if route["scaled_to_all_layers"] else timed,
        )
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the JSON, and show the table."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = tyro.cli(
        Options, args=arguments, prog="python -m benchmarks.factorize", use_underscores=True
    )
    device = named(options.device)
    shapes = attention_shapes(options.block_out_channels, options.cross_attention_dim)
    large, large_rank = [(options.large_size, options.large_size)], options.large_rank
    cases = [
        case("unet", shapes, options.rank, options.repetitions, options),
        case("large layer", large, large_rank, options.large_repetitions, options),
    ]
    result = {
        **provenance("benchmarks.factorize", arguments, ["torch", "diffusers", "peft"]),
        "device": device,
        "seed": options.seed,
        "cases": cases,
    }
    write_record(options.output, result)
    Console(stderr=True).print(*map(table, cases))


if __name__ == "__main__":
    main()
