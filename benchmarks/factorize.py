"""How long the factors of an adapter take, beside a full LU, an SVD and PEFT's PiSSA.

``python -m benchmarks.factorize``. The weights are random, because the time follows from the
shapes: Stable Diffusion v1.5's 128 attention projections, and one of LLaMA2-7B.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from rich.table import Table
from torch import Tensor, nn

from benchmarks.harness import UNetOptions, in_turns, ratio, run, seconds_of, show, spread
from benchmarks.stable_diffusion import projections, random_unet
from loldu import LoLDUConfig, ldu

Shape = tuple[int, int]


@dataclass(frozen=True)
class Options(UNetOptions):
    """Time the factors of every attention projection of a U-Net, and of a large one, in turns."""

    # Directions of each layer; the paper uses 32.
    rank: int = 32
    # Side and rank of the large projection; by default those of LLaMA2-7B and of the paper.
    large_size: int = 4096
    large_rank: int = 1024
    # How many times the large one is timed: an SVD of it takes a minute.
    large_repetitions: int = 2


class Route(NamedTuple):
    """A way to compute factors.

    `factorize` takes a weight and a rank, and returns the factors or the adapted layer. Without
    `every_layer` one layer of each shape is timed, and counts for all layers of that shape.
    """

    what: str
    factorize: Callable[[Tensor, int], object]
    every_layer: bool = True


def full_lu(weight: Tensor, r: int) -> tuple[Tensor, ...]:
    """Return LoLDU's factors as the paper's released code computes them, with P as a matrix."""
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
PISSA, FAST_PISSA = (
    partial(adapt, LoraConfig, init_lora_weights=init) for init in ("pissa", "pissa_niter_16")
)
BY_PEFT = "PEFT's get_peft_model with"
ROUTES = {
    OURS: Route("loldu.ldu: LU of the first r columns and one solve, in float64", ldu),
    "full_lu": Route("torch.linalg.lu of the whole weight, in float32", full_lu),
    "svd": Route("torch.linalg.svd of the whole weight, in float32", full_svd, False),
    "loldu_layer": Route(f"{BY_PEFT} LoLDU", partial(adapt, LoLDUConfig)),
    "pissa_layer": Route(f"{BY_PEFT} PiSSA, by an SVD", PISSA, False),
    "pissa_niter_16_layer": Route(
        f"{BY_PEFT} PiSSA, by a randomized SVD of 16 iterations", FAST_PISSA
    ),
}


def attention_shapes(options: UNetOptions) -> list[Shape]:
    """Return (out, in) of a U-Net's attention projections; no weight is allocated."""
    unet = random_unet(options, device="meta")
    return [(linear.out_features, linear.in_features) for linear in projections(unet).values()]


def time_routes(weights: Sequence[Tensor], r: int, repetitions: int) -> dict[str, list[float]]:
    """Return the seconds for all layers, by route; a route makes one layer after another."""
    alike = Counter(weight.shape for weight in weights)
    one_of_each = {weight.shape: weight for weight in weights}.values()

    def seconds(route: Route) -> float:
        return sum(
            seconds_of(partial(route.factorize, weight, r), str(weight.device))
            * (1 if route.every_layer else alike[weight.shape])
            for weight in (weights if route.every_layer else one_of_each)
        )

    for route in ROUTES.values():
        route.factorize(weights[0][:64, :64].contiguous(), min(r, 64))
    return in_turns({name: partial(seconds, route) for name, route in ROUTES.items()}, repetitions)


def measure_case(
    name: str, shapes: Sequence[Shape], r: int, repetitions: int, options: Options
) -> dict[str, Any]:
    """Return the result of some layers."""
    generator = torch.Generator().manual_seed(options.seed)
    weights = [torch.randn(shape, generator=generator).to(options.device) for shape in shapes]
    seconds, alike = time_routes(weights, r, repetitions), Counter(shapes)
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


def measure(options: Options) -> dict[str, Any]:
    """Return the results of the U-Net's layers and of the large layer."""
    large = [(options.large_size, options.large_size)]
    shapes = attention_shapes(options)
    return {
        "cases": [
            measure_case("unet", shapes, options.rank, options.repetitions, options),
            measure_case(
                "large layer", large, options.large_rank, options.large_repetitions, options
            ),
        ]
    }


def tables(record: dict[str, Any]) -> Iterable[Table]:
    """Yield a table for each case."""
    for case in record["cases"]:
        rows = [
            {
                "route": name,
                "seconds": route["seconds"]["median"],
                "times ldu": case["times_as_long_as_ldu"].get(name, {"median": 1.0})["median"],
                "layers timed": route["layers_timed"],
            }
            for name, route in case["routes"].items()
        ]
        yield show(f"{case['case']}, r = {case['rank']}", rows)


main = partial(run, "factorize", Options, measure, tables)

if __name__ == "__main__":
    main()
