"""Pictures a second from files to all features of `eval`, beside a plain loop over pictures.

``python -m benchmarks.eval_throughput``. Both networks have their true shapes and random weights.
``--against REVISION`` measures an earlier revision in turns with the code of today.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
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
from eval.encoders.encoder import Encoder, PatchGrid, Thumbnail, TokenEncoder
from eval.encoders.features import compute_features
from eval.encoders.load import PATCHES
from eval.encoders.preprocess import published_dino
from eval.metrics.copying import SIDE_PX
from eval.metrics.functional import image_similarity
from experiments.memory import forget_peak_memory
from loldu.errors import LoLDUError
from trainer.training.memory import peak_memory_mib

DINO, CLIP = "vit_small_patch16_224.dino", "ViT-B-32-quickgelu"
WAYS = ("plain loop", "ours", "ours, a second time")
WARMUP = 4
ROOT = Path(__file__).parent.parent
_MEASURE = """
import json, sys
from pathlib import Path
from benchmarks.eval_throughput import Options, measure_way

if __name__ == "__main__":
    given = json.load(sys.stdin)
    pictures = [[Path(path) for path in given[kind]] for kind in ("generated", "real")]
    found = measure_way("ours", Options(**given["options"]), *pictures)
    found = found._asdict() if hasattr(found, "_asdict") else found
    print(json.dumps({name: float(value) for name, value in found.items()}))
"""
"""Measures one way with the code of a revision, in a process of its own."""


@dataclass(frozen=True)
class Options(Shared):
    """Time ours and a plain loop, in turns, each in its own process."""

    # Number of generated pictures; there are a tenth as many real ones.
    pictures: int = 100
    # Side of the JPEG files.
    side_px: int = 512
    # How many times everything is timed; the result holds medians.
    repetitions: int = 5
    # Git revision of a checkout whose code is timed too, such as v0.1.0: images/s today and before.
    against: str | None = None


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
    """Encode as `python -m eval images` does, with all encoders that metrics read, and score."""
    dino = models["dino"]
    assert isinstance(dino, TokenEncoder)
    every = {**models, "thumbnail": Thumbnail(SIDE_PX, dino.device), PATCHES: PatchGrid(dino)}
    seen = compute_features([*generated, *real], every, cache, progress=False)
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


def extract(revision: str, folder: Path) -> None:
    """Write the files of a git revision into a folder.

    Raises:
        LoLDUError: If this is not a checkout, or it has no such revision.
    """
    archive = folder / "revision.tar"
    command = ["git", "-C", str(ROOT), "archive", "--output", str(archive), revision]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise LoLDUError(
            f"--against {revision} is no revision of the checkout {ROOT} "
            f"({' '.join(reason.split())}); give a commit, branch or tag."
        ) from error
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    archive.unlink()


def measure_revision(
    folder: Path, options: Options, generated: list[Path], real: list[Path]
) -> Measured:
    """Time the code in a folder of `extract`.

    Raises:
        LoLDUError: If its benchmark cannot run here.
    """
    given = {
        "options": {n: getattr(options, n) for n in ("pictures", "side_px", "seed", "device")},
        "generated": [str(path) for path in generated],
        "real": [str(path) for path in real],
    }
    script = folder / "measure_way.py"
    script.write_text(_MEASURE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(given),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise LoLDUError(
            f"The benchmark of --against {options.against} failed ({last[0]}); give a revision "
            "whose libraries are those that are installed."
        )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return Measured(**{name: found.get(name, 0.0) for name in Measured._fields})


def measure(options: Options) -> dict[str, Any]:
    """Return the results of all ways."""
    if not Path("/proc/self/clear_refs").exists():
        sys.exit("Peak memory is read from /proc, which only Linux has.")
    before = f"ours at {options.against}"
    ways = [*WAYS, *([before] if options.against else [])]
    found: dict[str, list[Measured]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        if options.against:
            extract(options.against, Path(folder))
        generated = render(Path(folder) / "a", options.pictures, options.side_px, options.seed)
        few = max(2, options.pictures // 10)
        real = render(Path(folder) / "b", few, options.side_px, options.seed + 1)

        def seconds(way: str) -> float:
            if way == before:
                one = measure_revision(Path(folder), options, generated, real)
            else:
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(1, mp_context=context) as process:
                    one = process.submit(measure_way, way, options, generated, real).result()
            found[way].append(one)
            return one.seconds

        in_turns({way: partial(seconds, way) for way in ways}, options.repetitions)
    record = {
        "ways": _summary(found, len(generated) + len(real)),
        "greatest_difference_of_scores": _difference(found),
    }
    if options.against:
        paired = [[one.seconds for one in found[way]] for way in (before, "ours")]
        record["times_as_fast_as_before"] = ratio(*paired)
    return record


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
