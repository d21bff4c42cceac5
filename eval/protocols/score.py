"""Score pictures: compute features once, then every metric."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from eval.config import ModelsConfig, ProtocolConfig
from eval.encoders.cache import FeatureCache
from eval.encoders.encoder import TextEncoder
from eval.encoders.features import PictureFeatures, compute_features, refuse_unreadable
from eval.encoders.load import load_encoders
from eval.metrics import METRICS, Sample
from eval.metrics.functional import nearest
from eval.result import Result, ScoredPicture, ScoredSubject
from loldu.errors import LoLDUError
from loldu.prompts import without_token

logger = logging.getLogger(__name__)

NEAREST = "dino"
"""Encoder that finds the most similar real picture."""


class FeatureReader:
    """All encoders that metrics read, with the cache of their features."""

    def __init__(self, models: ModelsConfig) -> None:
        """Load the encoders and open the cache.

        Raises:
            LoLDUError: If weights are missing, or the cache cannot be used.
        """
        names = [NEAREST, *(name for metric in METRICS.values() for name in metric.encoders)]
        self.encoders = load_encoders(names, models, pick_device(models.device))
        self._cache = FeatureCache(models.cache_file) if models.cache else None

    def read(self, paths: Sequence[Path], *, skip_bad: bool = False) -> PictureFeatures:
        """Return the features of picture files.

        Raises:
            LoLDUError: If a picture cannot be read and `skip_bad` is false.
        """
        features = compute_features(paths, self.encoders, self._cache)
        refuse_unreadable(features.bad, skip=skip_bad)
        return features

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return the CLIP features of prompts."""
        clip = self.encoders["clip"]
        assert isinstance(clip, TextEncoder)
        return clip.encode_texts(texts)

    def identities(self) -> dict[str, object]:
        """Return the identity of each encoder, for a result file."""
        return {name: encoder.identity.as_json() for name, encoder in self.encoders.items()}


@dataclass(frozen=True)
class Picture:
    """A generated picture, and its prompt if that is known."""

    path: Path
    prompt: str | None = None


@dataclass(frozen=True)
class Subject:
    """Generated and real pictures of one concept, which are scored together."""

    name: str
    generated: Sequence[Picture]
    real: Sequence[Path]


def pick_device(device: str | None) -> str:
    """Return the given device, or by default a GPU if there is one.

    Raises:
        LoLDUError: If this machine has no such device.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise LoLDUError(
            f"--device {device} does not exist here: give cpu, or cuda if there is a GPU."
        ) from error
    return device


def score_subjects(
    reader: FeatureReader,
    subjects: Sequence[Subject],
    protocol: ProtocolConfig,
    token: str | None = None,
) -> Result:
    """Score every picture of every subject.

    Args:
        reader: Encoders and cache.
        subjects: Pictures to score.
        protocol: How to score them.
        token: Rare token, which is removed from the prompts unless the protocol keeps it.

    Raises:
        LoLDUError: If pictures cannot be read or there are too few.
    """
    paths = [picture.path for subject in subjects for picture in subject.generated]
    paths += [path for subject in subjects for path in subject.real]
    features = reader.read(paths, skip_bad=protocol.skip_bad)
    skipped = _skipped(subjects, features, protocol)
    if skipped:
        logger.warning("Left out: %s.", ", ".join(f"{k} ({why})" for k, why in skipped.items()))
    removed = None if protocol.keep_token else token
    scored = [_score(reader, subject, features, protocol, removed) for subject in subjects]
    return Result(scored, protocol, reader.identities(), removed, skipped)


def _skipped(
    subjects: Sequence[Subject], features: PictureFeatures, protocol: ProtocolConfig
) -> dict[str, str]:
    """Return why pictures are left out, by subject, kind and file name."""
    skipped = {}
    for subject in subjects:
        generated = [picture.path for picture in subject.generated]
        for kind, paths in (("generated", generated), ("real", subject.real)):
            for path in paths:
                name = f"{subject.name}/{kind}/{path.name}"
                if path in features.bad:
                    skipped[name] = "unreadable"
                elif kind == "generated" and protocol.skip_black and path in features.black:
                    skipped[name] = "black"
    return skipped


def _score(
    reader: FeatureReader,
    subject: Subject,
    features: PictureFeatures,
    protocol: ProtocolConfig,
    token: str | None,
) -> ScoredSubject:
    pictures, real = _usable(subject, features, protocol)
    paths = [picture.path for picture in pictures]
    prompts = [picture.prompt for picture in pictures]
    known = [text for text in prompts if text is not None]
    plain = [without_token(text, token) if token else text for text in known]
    sample = Sample(
        generated=features.by_encoder(paths),
        real=features.by_encoder(real),
        prompts=prompts,
        prompt_features=reader.encode_texts(plain) if len(known) == len(prompts) else None,
        pairs=protocol.pairs,
        clip_t_scale=protocol.clip_t_scale,
    )
    scores = {
        name: metric.scores(sample) for name, metric in METRICS.items() if metric.applies(sample)
    }
    rows, _ = nearest(sample.generated[NEAREST], features.stack(NEAREST, real))
    scored = [
        ScoredPicture(
            picture.path,
            picture.prompt,
            {name: values[index].item() for name, values in scores.items()},
            real[row],
        )
        for index, (picture, row) in enumerate(zip(pictures, rows.tolist(), strict=True))
    ]
    return ScoredSubject(subject.name, scored, len(real))


def _usable(
    subject: Subject, features: PictureFeatures, protocol: ProtocolConfig
) -> tuple[list[Picture], list[Path]]:
    """Return the generated and real pictures that can be scored.

    Raises:
        LoLDUError: If none is left, or matched pairs need as many of both.
    """
    black = features.black if protocol.skip_black else frozenset[Path]()
    generated = [p for p in subject.generated if p.path not in features.bad and p.path not in black]
    real = [path for path in subject.real if path not in features.bad]
    for kind, left in (("generated", generated), ("real", real)):
        if not left:
            raise LoLDUError(f"No {kind} picture of {subject.name} is left to score.")
    if protocol.pairs == "matched" and len(generated) != len(real):
        raise LoLDUError(
            f"--pairs matched needs as many real as generated pictures, and {subject.name} has "
            f"{len(real)} and {len(generated)}; use --pairs all, or correct the folders."
        )
    return generated, real
