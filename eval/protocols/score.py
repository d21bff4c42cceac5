"""From pictures to scores: features once, then the metrics."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from eval.config import ModelsConfig, ProtocolConfig
from eval.encoders.cache import FeatureCache
from eval.encoders.extractors import ImageExtractor, ImageTextExtractor, load_clip, load_dino
from eval.encoders.features import Seen, see, tell_bad
from eval.metrics.functional import diversities, image_similarities, nearest, text_similarities
from eval.report.result import Result, ScoredPicture, ScoredSubject
from loldu.errors import LoLDUError
from loldu.prompts import without_token

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extractors:
    """The two models that measure."""

    clip: ImageTextExtractor
    dino: ImageExtractor

    @classmethod
    def load(cls, models: ModelsConfig) -> Extractors:
        """Load both on the device asked for.

        Raises:
            LoLDUError: If one of them has no weights here.
        """
        device = pick_device(models.device)
        return cls(load_clip(models.clip, device), load_dino(models.dino, device))


class Scorer:
    """Both models, and the features they have computed before."""

    def __init__(self, models: ModelsConfig) -> None:
        """Load the models and open the cache.

        Raises:
            LoLDUError: If weights are missing, or the cache cannot be used.
        """
        self.extractors = Extractors.load(models)
        self._cache = FeatureCache(models.cache_file) if models.cache else None

    def see(self, paths: Sequence[Path], *, skip_bad: bool = False) -> Seen:
        """Return the features of picture files.

        Raises:
            LoLDUError: If one cannot be read, and such are not to be skipped.
        """
        models = {"dino": self.extractors.dino, "clip": self.extractors.clip}
        seen = see(paths, models, self._cache)
        tell_bad(seen.bad, skip=skip_bad)
        return seen

    def identities(self) -> dict[str, object]:
        """What decides the features, for a result's file."""
        models = (("dino", self.extractors.dino), ("clip", self.extractors.clip))
        return {name: model.identity.as_json() for name, model in models}


@dataclass(frozen=True)
class Picture:
    """A generated picture, and what it was asked for, where that is known."""

    path: Path
    prompt: str | None = None


@dataclass(frozen=True)
class Subject:
    """What is scored together: pictures of one concept and the real ones."""

    name: str
    generated: Sequence[Picture]
    real: Sequence[Path]


def pick_device(device: str | None) -> str:
    """Return the device asked for, or a GPU where there is one.

    Raises:
        LoLDUError: If this machine has no such device.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise LoLDUError(
            f"--device {device} is not there: give cpu, or cuda where there is such a GPU."
        ) from error
    return device


def score_subjects(
    scorer: Scorer, subjects: Sequence[Subject], protocol: ProtocolConfig, token: str | None = None
) -> Result:
    """Score every picture of every subject.

    Args:
        scorer: The models.
        subjects: What to score.
        protocol: How.
        token: The rare token, which is left out of the prompts unless the protocol keeps it.

    Raises:
        LoLDUError: If pictures cannot be read or there are too few.
    """
    paths = [picture.path for subject in subjects for picture in subject.generated]
    paths += [path for subject in subjects for path in subject.real]
    seen = scorer.see(paths, skip_bad=protocol.skip_bad)
    skipped = _left_out(subjects, seen, protocol)
    if skipped:
        logger.warning("Left out: %s.", ", ".join(f"{k} ({why})" for k, why in skipped.items()))
    removed = None if protocol.keep_token else token
    scored = [_score(scorer, subject, seen, protocol, removed) for subject in subjects]
    return Result(scored, protocol, scorer.identities(), removed, skipped)


def _left_out(subjects: Sequence[Subject], seen: Seen, protocol: ProtocolConfig) -> dict[str, str]:
    """What is not scored, and why; several folders may have pictures of one name."""
    skipped = {}
    for subject in subjects:
        generated = [picture.path for picture in subject.generated]
        for kind, paths in (("generated", generated), ("real", subject.real)):
            for path in paths:
                name = f"{subject.name}/{kind}/{path.name}"
                if path in seen.bad:
                    skipped[name] = "unreadable"
                elif kind == "generated" and protocol.skip_black and path in seen.black:
                    skipped[name] = "black"
    return skipped


def _score(
    scorer: Scorer, subject: Subject, seen: Seen, protocol: ProtocolConfig, token: str | None
) -> ScoredSubject:
    black = seen.black if protocol.skip_black else frozenset[Path]()
    drawn = [p for p in subject.generated if p.path not in seen.bad and p.path not in black]
    real = [path for path in subject.real if path not in seen.bad]
    for kind, left in (("generated", drawn), ("real", real)):
        if not left:
            raise LoLDUError(f"No {kind} picture of {subject.name} is left to score.")
    if protocol.pairs == "matched" and len(drawn) != len(real):
        raise LoLDUError(
            f"--pairs matched needs as many real as generated pictures, and {subject.name} has "
            f"{len(real)} and {len(drawn)}; use --pairs all, or correct the folders."
        )
    paths = [picture.path for picture in drawn]
    dino, clip = (seen.stack(name, paths) for name in ("dino", "clip"))
    true_dino, true_clip = (seen.stack(name, real) for name in ("dino", "clip"))
    scores = {
        "dino": image_similarities(dino, true_dino, pairs=protocol.pairs),
        "clip_i": image_similarities(clip, true_clip, pairs=protocol.pairs),
    }
    told = [picture.prompt for picture in drawn]
    asked = [without_token(text, token) if token else text for text in told if text is not None]
    if len(asked) == len(drawn):
        texts = scorer.extractors.clip.encode_texts(asked)
        scores["clip_t"] = text_similarities(clip, texts, scale=protocol.clip_t_scale)
    if min(Counter(told).values()) > 1:
        scores["diversity"] = diversities(dino, told)
    places, _ = nearest(dino, true_dino)
    pictures = [
        ScoredPicture(path, prompt, {m: values[i].item() for m, values in scores.items()}, real[at])
        for i, (path, prompt, at) in enumerate(zip(paths, told, places.tolist(), strict=True))
    ]
    return ScoredSubject(subject.name, pictures, len(real))
