"""Score pictures of other prompts: what a concept changes where nobody calls it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.metrics import METRICS, Sample
from eval.metrics.bootstrap import Estimate, estimate
from eval.protocols.prompts import PlannedPicture
from eval.protocols.score import FeatureReader

BASE, ADAPTED, ALWAYS_ON = "base", "adapted", "always_on"
"""Ways in which the pictures were drawn."""
CLASS = "class_"
"""Beginning of the names of scores of prompts with the class and without the token."""


def score_others(
    reader: FeatureReader,
    drawn: Mapping[str, Sequence[PlannedPicture]],
    real: Sequence[Path],
    class_name: str,
    samples: int = 2000,
) -> tuple[dict[str, float], dict[str, Estimate]]:
    """Return the scores of other prompts by name, and the change of their CLIP-T by way.

    - `base`, `adapted`: CLIP-T of the pictures of each way.
    - `class_base`, `class_adapted`: DINO likeness to the concept's real pictures, over the prompts
      with the class word, if there are any; it rises if the concept leaks into its class.
    - The metrics against the base, such as `drift`.

    With `ALWAYS_ON`, there are `always_on`, `class_always_on`, and `drift_always_on` and so on. The
    changes are differences of pairs: the same prompt and seed, less the base's.

    Args:
        reader: Encoders and cache.
        drawn: Pictures of the same prompts and seeds by way, among them `BASE` and `ADAPTED`; a
            way without pictures is left out.
        real: Real pictures of the concept.
        class_name: Class word.
        samples: Resamplings for the intervals of the changes.

    Raises:
        LoLDUError: If a picture cannot be read.
    """
    paths = {way: [one.path for one in own] for way, own in drawn.items() if own}
    features = reader.read([*(path for own in paths.values() for path in own), *real])
    prompts = [one.prompt for one in drawn[BASE]]
    texts = reader.encode_texts(prompts)
    word = re.compile(rf"\b{re.escape(class_name.lower())}\b")
    of_class = [place for place, text in enumerate(prompts) if word.search(text.lower())]
    truth, before = features.by_encoder(real), features.by_encoder(paths[BASE])
    scores: dict[str, float] = {}
    changes: dict[str, Estimate] = {}
    of_base = METRICS["clip_t"].scores(Sample(generated=before, prompt_features=texts))
    for way, own in paths.items():
        rows = features.by_encoder(own)
        obeyed = METRICS["clip_t"].scores(Sample(generated=rows, prompt_features=texts))
        scores[way] = obeyed.mean().item()
        if of_class:
            alike = Sample(generated={"dino": rows["dino"][of_class]}, real=truth)
            scores[CLASS + way] = METRICS["dino"].score(alike)
        if way != BASE:
            changes[way] = estimate([(obeyed - of_base).numpy()], samples=samples)
            against_base = Sample(generated=rows, base=before)
            scores |= {
                f"{name}{'' if way == ADAPTED else f'_{way}'}": metric.score(against_base)
                for name, metric in METRICS.items()
                if metric.against == "base"
            }
    rounded = {name: round(value, 6) + 0.0 for name, value in scores.items()}  # -0.0 + 0.0 is 0.0
    return rounded, changes
