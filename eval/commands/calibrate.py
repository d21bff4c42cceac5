"""`python -m eval calibrate`: real pictures against real ones, beside the published numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.config import CLIP, DINO, CalibrateConfig
from eval.metrics.bootstrap import Estimate, estimate
from eval.metrics.functional import image_similarities
from eval.protocols.folders import split_by_subject
from eval.protocols.score import Scorer
from eval.report.output import refuse_to_overwrite, write
from eval.report.page import table_page
from eval.report.result import METRICS, markdown_table
from loldu.errors import LoLDUError
from loldu.pictures.folder import list_images

logger = logging.getLogger(__name__)

PUBLISHED = {"dino": 0.774, "clip_i": 0.885}
"""Real pictures of DreamBooth's 30 subjects, by the default models (arXiv:2208.12242, table 1)."""


def calibrate(config: CalibrateConfig) -> None:
    """Score every subject's real pictures against each other, and leave table and files.

    Raises:
        LoLDUError: If pictures or weights are not as they must be.
    """
    output = config.output
    refuse_to_overwrite([output.json, output.html], overwrite=output.overwrite)
    folders = {name: list_images(path) for name, path in split_by_subject(config.real).items()}
    scorer = Scorer(config.models)
    paths = [path for own in folders.values() for path in own]
    seen = scorer.see(paths, skip_bad=config.skip_bad)
    scores: dict[str, Mapping[str, np.ndarray]] = {}
    for name, own in folders.items():
        good = [path for path in own if path not in seen.bad]
        if len(good) < 2:
            logger.warning("Left out %s: one picture has no other to be compared with.", name)
            continue
        rows = {metric: seen.stack(model, good) for metric, model in _MODELS.items()}
        scores[name] = {
            metric: image_similarities(own_rows, own_rows, exclude_self=True).numpy()
            for metric, own_rows in rows.items()
        }
    if not scores:
        raise LoLDUError(f"No subject of --real {config.real} has two pictures to compare.")
    whole = {metric: estimate([own[metric] for own in scores.values()]) for metric in _MODELS}
    rows = _rows(scores, whole)
    published = PUBLISHED if (config.models.dino, config.models.clip) == (DINO, CLIP) else {}
    if published:
        numbers = (f"{published[metric]:.3f}" for metric in _MODELS)
        rows.append(["published for DreamBooth's set", "", *numbers])
    told = {
        "scores": {metric: vars(value) for metric, value in whole.items()},
        "published": published,
        "subjects": {
            name: {metric: float(values.mean()) for metric, values in own.items()}
            for name, own in scores.items()
        },
        "extractors": scorer.identities(),
        "skipped": {
            f"{name}/{path.name}": "unreadable"
            for name, own in folders.items()
            for path in own
            if path in seen.bad
        },
    }
    write(output, markdown_table(rows), told, lambda: table_page("Real against real", rows, told))


_MODELS = {"dino": "dino", "clip_i": "clip"}


def _rows(
    scores: Mapping[str, Mapping[str, Any]], whole: Mapping[str, Estimate]
) -> list[list[str]]:
    rows = [["subject", "pictures", *(METRICS[metric] for metric in _MODELS)]]
    for name, own in scores.items():
        means = (f"{values.mean():.3f}" for values in own.values())
        rows.append([name, str(len(own["dino"])), *means])
    count = sum(len(own["dino"]) for own in scores.values())
    rows.append(["all", str(count), *(str(value) for value in whole.values())])
    return rows
