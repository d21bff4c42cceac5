"""The two routes through an adapted layer, timed without gradients beside the frozen layer.

``python -m benchmarks.routes``. The result shows which route is faster, and which one is taken.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from benchmarks.harness import Options as Shared
from benchmarks.harness import in_turns, ratio, run, seconds_of, show
from loldu import ldu
from loldu.adapter.functional import cheapest_route, dense_linear, factored_linear
from loldu.adapter.shared_factors import SharedFactors

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
class Options(Shared):
    """Time both routes through layers of several shapes, in turns."""

    # How many times everything is timed; the result holds medians.
    repetitions: int = 31


@torch.no_grad()
def measure_case(case: tuple[int, int, int, int], options: Options) -> dict[str, Any]:
    """Return the result of one shape; the first round warms up."""
    tokens, out, in_, r = case
    torch.manual_seed(options.seed)
    layer = nn.Linear(in_, out, bias=False)
    x, delta = torch.randn(tokens, in_), 0.1 * torch.randn(r)
    calls = routes(x, layer.weight, r, delta)
    timed = {name: partial(seconds_of, call, "cpu") for name, call in calls.items()}
    in_turns(timed, 1)
    seconds = in_turns(timed, options.repetitions)
    return {
        "tokens": tokens,
        "out": out,
        "in": in_,
        "r": r,
        "taken": cheapest_route(x, shared(layer.weight, r), delta),
        "times_as_long_as_frozen": {
            name: ratio(seconds[name], seconds["frozen"]) for name in calls if name != "frozen"
        },
    }


def routes(x: Tensor, weight: Tensor, r: int, delta: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return the frozen layer and the two routes, by name."""
    around = shared(weight, r).around(delta)
    return {
        "frozen": partial(F.linear, x, weight),
        "factored": partial(factored_linear, x, weight, None, *around),
        "dense": partial(dense_linear, x, weight, None, *around),
    }


def shared(weight: Tensor, r: int) -> SharedFactors:
    """Return the factors of a weight in the form that a layer holds."""
    return SharedFactors.of(ldu(weight, r), "partial", weight.dtype)


def measure(options: Options) -> dict[str, Any]:
    """Return the results of all shapes."""
    return {"dtype": "float32", "cases": [measure_case(case, options) for case in CASES]}


def tables(record: dict[str, Any]) -> Iterable[Table]:
    """Yield the table of the shapes."""
    rows = [
        {
            "tokens": case["tokens"],
            "layer": f"{case['out']} x {case['in']}",
            "r": case["r"],
            **{name: x["median"] for name, x in case["times_as_long_as_frozen"].items()},
            "taken": case["taken"],
        }
        for case in record["cases"]
    ]
    yield show("without gradients, times as long as frozen", rows)


main = partial(run, "routes", Options, measure, tables)

if __name__ == "__main__":
    main()
