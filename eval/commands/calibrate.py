"""`python -m eval calibrate`: score real pictures against each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from eval.config import CLIP, DINO, CalibrateConfig
from eval.encoders.features import PictureFeatures
from eval.metrics import METRICS, Sample
from eval.metrics.bootstrap import Estimate, estimate
from eval.protocols.folders import split_by_subject
from eval.protocols.score import FeatureReader, Subject, build_gallery
from eval.report.output import refuse_to_overwrite, write
from eval.report.page import table_page
from eval.report.tables import markdown_table, titles
from loldu.errors import LoLDUError
from loldu.pictures.folder import list_images

logger = logging.getLogger(__name__)

PUBLISHED = {"dino": 0.774, "clip_i": 0.885}
"""Scores of DreamBooth's real pictures, by the default models (arXiv:2208.12242, table 1)."""


def calibrate(config: CalibrateConfig) -> None:
    """Score the real pictures of each subject; print the table and write the files.

    Raises:
        LoLDUError: If pictures or weights are missing or invalid.
    """
    output = config.output
    refuse_to_overwrite([output.json, output.html], overwrite=output.overwrite)
    folders = {name: list_images(path) for name, path in split_by_subject(config.real).items()}
    reader = FeatureReader(config.models)
    features = reader.read(
        [path for own in folders.values() for path in own],
        subjects=[Subject(name, (), paths) for name, paths in folders.items()],
        skip_bad=config.skip_bad,
    )
    scores = _scores(features, folders)
    if not scores:
        raise LoLDUError(f"No subject of --real {config.real} has two pictures to compare.")
    metrics = [*next(iter(scores.values()))]
    whole = {metric: estimate([own[metric] for own in scores.values()]) for metric in metrics}
    rows = _rows(scores, whole)
    published = PUBLISHED if (config.models.dino, config.models.clip) == (DINO, CLIP) else {}
    if published:
        cells = (f"{published[m]:.3f}" if m in published else "" for m in metrics)
        rows.append(["published for DreamBooth's dataset", "", *cells])
    content = {
        "scores": {metric: vars(value) for metric, value in whole.items()},
        "published": published,
        "subjects": {
            name: {metric: float(values.mean()) for metric, values in own.items()}
            for name, own in scores.items()
        },
        "extractors": reader.identities(),
        "skipped": {
            f"{name}/{path.name}": "unreadable"
            for name, paths in folders.items()
            for path in paths
            if path in features.bad
        },
    }
    page = partial(table_page, "Real against real", rows, content["extractors"])
    write(output, markdown_table(rows), content, page)


def _scores(
    features: PictureFeatures, folders: Mapping[str, Sequence[Path]]
) -> dict[str, Mapping[str, np.ndarray]]:
    """Return the scores of each subject with two pictures, by metric."""
    gallery = build_gallery(features, folders, [])
    scores: dict[str, Mapping[str, np.ndarray]] = {}
    for name, paths in folders.items():
        good = [path for path in paths if path not in features.bad]
        if len(good) < 2:
            logger.warning("Left out %s: one picture cannot be compared with another.", name)
            continue
        rows = features.by_encoder(good)
        sample = Sample(
            generated=rows,
            real=rows,
            training=rows,
            gallery=gallery.features if gallery else None,
            gallery_own=gallery.own[name] if gallery else None,
            exclude_self=True,
        )
        scores[name] = {
            metric.name: metric.scores(sample).numpy()
            for metric in METRICS.values()
            if metric.of_real and metric.applies(sample)
        }
    return scores


def _rows(
    scores: Mapping[str, Mapping[str, np.ndarray]], whole: Mapping[str, Estimate]
) -> list[list[str]]:
    """Return a row for each subject, and a row for all."""
    rows = [["subject", "pictures", *titles([*whole])]]
    counts = {name: len(next(iter(own.values()))) for name, own in scores.items()}
    for name, own in scores.items():
        means = (f"{values.mean():.3f}" for values in own.values())
        rows.append([name, str(counts[name]), *means])
    rows.append(["all", str(sum(counts.values())), *(str(value) for value in whole.values())])
    return rows
