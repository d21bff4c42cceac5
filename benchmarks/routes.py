"""The two routes through an adapted layer, timed without gradients beside the frozen layer.

``python -m benchmarks.routes``. It shows where each is the faster one, and which one is taken.
"""

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.device import seconds_of
from benchmarks.spread import ratio
from loldu import ldu
from loldu.adapter.functional import (
    cheapest_route,
    dense_linear,
    factored_linear,
)
from loldu.adapter.shared_factors import SharedFactors
from loldu.provenance import provenance, write_record

RESULTS = Path(__file__).parent / "results"

# Tokens, outputs, inputs, rank: of Stable Diffusion v1.5, of ViT-B, of LLaMA2-7B.
CASES = (
    (77, 1280, 768, 32),
    (256, 1280, 1280, 32),
    (256, 1280, 1280, 128),
    (4096, 320, 320, 32),
    (1, 768, 768, 64),
    (197, 768, 768, 64),
    (6304, 768, 768, 768),
    (1, 4096, 4096, 64),
    (1, 4096, 4096, 1024),
    (128, 4096, 4096, 64),
    (128, 4096, 4096, 1024),
)


@dataclass(frozen=True)
class Options:
    """Time the two routes through layers of several shapes, in turns."""

    # Times everything is timed; medians are reported.
    repetitions: int = 31
    # Of the random weights.
    seed: int = 0
    # Where the result is written, over the last one.
    output: Path = RESULTS / "routes.json"


@torch.no_grad()
def measure(case: tuple[int, int, int, int], options: Options) -> dict[str, Any]:
    """Return a case of the result; in every repetition the routes take turns, in a new order."""
    tokens, out, in_, r = case
    torch.manual_seed(options.seed)
    layer = nn.Linear(in_, out, bias=False)
    x, delta = torch.randn(tokens, in_), 0.1 * torch.randn(r)
    calls = routes(x, layer.weight, r, delta)
    factors = shared(layer.weight, r)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(options.seed)
    for repetition in range(-1, options.repetitions):
        # What ran before decides what is in the caches.
        for name in order.sample([*calls], len(calls)):
            spent = seconds_of(calls[name], "cpu")
            if repetition >= 0:  # The first round warms up.
                seconds[name].append(spent)
    return {
        "tokens": tokens,
        "out": out,
        "in": in_,
        "r": r,
        "taken": cheapest_route(x, factors, delta),
        "times_as_long_as_frozen": {
            name: ratio(seconds[name], seconds["frozen"]) for name in calls if name != "frozen"
        },
    }


def routes(x: Tensor, weight: Tensor, r: int, delta: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return the frozen layer and the two routes, by name."""
    factors = shared(weight, r)
    around = factors.around(delta)
    return {
        "frozen": partial(F.linear, x, weight),
        "factored": partial(factored_linear, x, weight, None, *around),
        "dense": partial(dense_linear, x, weight, None, *around),
    }


def shared(weight: Tensor, r: int) -> SharedFactors:
    """Return the factors of a weight as a layer holds them."""
    return SharedFactors.of(ldu(weight, r), "partial", weight.dtype)


def table(cases: Sequence[dict[str, Any]]) -> Table:
    """Return the result for a person."""
    made = Table("tokens", "layer", "r", title="without gradients, times as long as frozen")
    names = [*cases[0]["times_as_long_as_frozen"]]
    for name in (*names, "taken"):
        made.add_column(name, justify="right")
    for case in cases:
        ratios = case["times_as_long_as_frozen"]
        made.add_row(
            str(case["tokens"]),
            f"{case['out']} x {case['in']}",
            str(case["r"]),
            *(f"{ratios[name]['median']:.2f}" for name in names),
            case["taken"],
        )
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the JSON, and show the table."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = tyro.cli(
        Options, args=arguments, prog="python -m benchmarks.routes", use_underscores=True
    )
    cases = [measure(case, options) for case in CASES]
    result = {
        **provenance("benchmarks.routes", arguments, ["torch"]),
        "dtype": "float32",
        "repetitions": options.repetitions,
        "seed": options.seed,
        "cases": cases,
    }
    write_record(options.output, result)
    Console(stderr=True).print(table(cases))


if __name__ == "__main__":
    main()
