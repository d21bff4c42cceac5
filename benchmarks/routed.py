"""Drawing with a concept that acts where it is called, beside one that is always on.

``python -m benchmarks.routed``. The embedded base draws a batch of pictures with guidance, and half
of the prompts call the concept. Its network is small, so the work of routing a call weighs more
here than on any larger base.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.table import Table

from benchmarks.harness import Options as Shared
from benchmarks.harness import in_turns, ratio, run, seconds_of, show, spread
from loldu import LoLDUConfig, mix, route_concepts
from loldu.base.draw import sample_images
from loldu.base.open import load_pipeline

PROMPTS = ("a photo of a sks toy", "a photo of a red car")
WAYS = ("base", "always on", "routed", "gated")


@dataclass(frozen=True)
class Options(Shared):
    """Time drawing with the base alone, and with a concept always on, routed, and gated too."""

    # Folder or hub id of the base.
    base: str = "pocket/base"
    # Directions of each layer; 160 is the full rank of the embedded base.
    rank: int = 160
    # Pictures in a batch.
    batch: int = 4
    # Denoising steps.
    steps: int = 20


def measure(options: Options) -> dict[str, Any]:
    """Return the seconds of every way of drawing, and the ratios of paired repetitions."""
    pipeline = load_pipeline(options.base).to(options.device)
    torch.manual_seed(options.seed)
    pipeline.unet.add_adapter(LoLDUConfig(r=options.rank, init_weights=False))

    def drawn(way: str) -> float:
        if way in ("routed", "gated"):
            route_concepts(pipeline, {"default": "sks"}, gate=0 if way == "gated" else 1)
        else:
            mix(pipeline, {"default": 1.0} if way == "always on" else {})
        call = partial(
            sample_images,
            pipeline,
            [PROMPTS[i % len(PROMPTS)] for i in range(options.batch)],
            range(options.batch),
            num_inference_steps=options.steps,
            batch_size=options.batch,
            progress=False,
        )
        return seconds_of(call, options.device)

    calls = {way: partial(drawn, way) for way in WAYS}
    in_turns(calls, 1)
    seconds = in_turns(calls, options.repetitions)
    return {
        "seconds": {way: spread(seconds[way]) for way in WAYS},
        "routed_to_always_on": ratio(seconds["routed"], seconds["always on"]),
        "gated_to_routed": ratio(seconds["gated"], seconds["routed"]),
        "always_on_to_base": ratio(seconds["always on"], seconds["base"]),
    }


def tables(record: dict[str, Any]) -> Iterable[Table]:
    """Yield the table."""
    rows = [{"drawn": way, "seconds": record["seconds"][way]["median"]} for way in WAYS]
    shares = [record[name]["median"] for name in ("routed_to_always_on", "gated_to_routed")]
    note = "routed / always on: {:.3f}, gated / routed: {:.3f}".format(*shares)
    yield show(f"{record['batch']} pictures", rows, note)


main = partial(run, "routed", Options, measure, tables)

if __name__ == "__main__":
    main()
