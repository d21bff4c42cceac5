"""Pictures a second from files to DINO and CLIP features, beside a plain loop over pictures.

``python -m benchmarks.eval_throughput``. Both networks have their true shapes and random weights.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor

from benchmarks.harness import Options as Shared
from benchmarks.harness import digits, in_turns, ratio, run, show, spread
from eval.encoders.cache import FeatureCache
from eval.encoders.encoder import Encoder
from eval.encoders.features import compute_features
from eval.encoders.preprocess import published_dino
from eval.metrics.functional import image_similarity
from experiments.memory import forget_peak_memory
from trainer.training.memory import peak_memory_mib

DINO, CLIP = "vit_small_patch16_224.dino", "ViT-B-32-quickgelu"
WAYS = ("plain loop", "ours", "ours, a second time")
WARMUP = 4


@dataclass(frozen=True)
class Options(Shared):
    """Time ours and a plain loop, in turns, each in its own process."""

    # Number of generated pictures; there are a tenth as many real ones.
    pictures: int = 100
    # Side of the JPEG files.
    side_px: int = 512
    # How many times everything is timed; the result holds medians.
    repetitions: int = 5


class Measured(NamedTuple):
    """Seconds, peak memory beyond both networks, and mean similarities of one way."""

    seconds: float
    peak_mib: float
    dino: float
    clip_i: float


def render(folder: Path, count: int, side_px: int, seed: int) -> list[Path]:
    """Write JPEG files of smooth colours with fine noise, about as large as photographs."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    paths = [folder / f"{number:04}.jpg" for number in range(count)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 200, (9, 9, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side_px, side_px), Image.Resampling.BICUBIC))
        noise = rng.integers(0, 24, smooth.shape, dtype=np.uint8)
        Image.fromarray(np.minimum(smooth, 231) + noise).save(path, quality=92)
    return paths


def load(seed: int, device: str) -> dict[str, Encoder]:
    """Return both networks with random weights."""
    import open_clip
    import timm

    from eval.encoders.from_open_clip import OpenClip
    from eval.encoders.from_timm import TimmDino

    torch.manual_seed(seed)
    dino, clip = TimmDino.__new__(TimmDino), OpenClip.__new__(OpenClip)
    dino.model = timm.create_model(DINO, pretrained=False, num_classes=0).eval()
    dino.preprocess, dino.name = published_dino(), "random"
    clip.model = open_clip.create_model(CLIP, pretrained=None).eval()
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    clip.preprocess, clip.name = type(dino.preprocess)(224, 224, mean, std), "random"
    for extractor in (dino, clip):
        extractor.to(device)
    return {"dino": dino, "clip": clip}


def plain_loop(
    models: dict[str, Encoder], generated: Sequence[Path], real: Sequence[Path]
) -> dict[str, float]:
    """Score one picture at a time, one network after the other, then pair by pair."""
    scores = {}
    for name, model in models.items():
        rows: list[list[Tensor]] = []
        for paths in (generated, real):
            rows.append([])
            for path in paths:
                with torch.no_grad():
                    pixels = model.preprocess(Image.open(path))[None].to(model.device)
                    feature = model._image_rows(pixels)
                rows[-1].append(feature / feature.norm(dim=-1, keepdim=True))
        pairs = [(g @ r.T).item() for g in rows[0] for r in rows[1]]
        scores[name] = sum(pairs) / len(pairs)
    return scores


def ours(
    models: dict[str, Encoder],
    generated: Sequence[Path],
    real: Sequence[Path],
    cache: FeatureCache | None = None,
) -> dict[str, float]:
    """Score as `python -m eval images` does."""
    seen = compute_features([*generated, *real], models, cache, progress=False)
    return {
        name: image_similarity(seen.stack(name, generated), seen.stack(name, real))
        for name in models
    }


def measure_way(way: str, options: Options, generated: list[Path], real: list[Path]) -> Measured:
    """Time one way, in a new process."""
    with redirect_stderr(None):
        models = load(options.seed, options.device)
    call: Callable[..., dict[str, float]] = plain_loop if way == "plain loop" else ours
    if way == "ours, a second time":
        cache = FeatureCache(generated[0].parent / "features.sqlite")
        ours(models, generated, real, cache)
        call = partial(ours, cache=cache)
    else:
        call(models, generated[:WARMUP], real[:1])
    forget_peak_memory()
    before = peak_memory_mib()
    started = time.perf_counter()
    scores = call(models, generated, real)
    seconds = time.perf_counter() - started
    return Measured(seconds, digits(peak_memory_mib() - before), scores["dino"], scores["clip"])


def measure(options: Options) -> dict[str, Any]:
    """Return the results of all ways."""
    if not Path("/proc/self/clear_refs").exists():
        sys.exit("Peak memory is read from /proc, which only Linux has.")
    found: dict[str, list[Measured]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        generated = render(Path(folder) / "a", options.pictures, options.side_px, options.seed)
        few = max(2, options.pictures // 10)
        real = render(Path(folder) / "b", few, options.side_px, options.seed + 1)

        def seconds(way: str) -> float:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as process:
                one = process.submit(measure_way, way, options, generated, real).result()
            found[way].append(one)
            return one.seconds

        in_turns({way: partial(seconds, way) for way in WAYS}, options.repetitions)
    return {
        "ways": _summary(found, len(generated) + len(real)),
        "greatest_difference_of_scores": _difference(found),
    }


def _summary(found: dict[str, list[Measured]], count: int) -> dict[str, Any]:
    plain = [one.seconds for one in found["plain loop"]]
    return {
        way: {
            "pictures_per_second": spread(count / one.seconds for one in own),
            "times_as_fast_as_the_loop": ratio(plain, [one.seconds for one in own]),
            "peak_mib": spread(one.peak_mib for one in own),
        }
        for way, own in found.items()
    }


def _difference(found: dict[str, list[Measured]]) -> float:
    """Return the largest difference of a mean similarity between two runs of any ways."""
    whole = [one for own in found.values() for one in own]
    return max(np.ptp([one.dino for one in whole]), np.ptp([one.clip_i for one in whole]))


def tables(record: dict[str, Any]) -> Iterable[Table]:
    """Yield the table of the ways."""
    rows = [
        {
            "way": way,
            "pictures/s": result["pictures_per_second"]["median"],
            "times as fast": result["times_as_fast_as_the_loop"]["median"],
            "peak MiB more": result["peak_mib"]["median"],
        }
        for way, result in record["ways"].items()
    ]
    yield show(f"DINO and CLIP features of {record['side_px']} px files", rows)


main = partial(
    run, "eval_throughput", Options, measure, tables, libraries=("timm", "open_clip_torch")
)

if __name__ == "__main__":
    main()
