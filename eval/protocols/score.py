"""Score pictures: compute features once, then every metric."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eval.config import ModelsConfig, ProtocolConfig
from eval.encoders.cache import FeatureCache
from eval.encoders.encoder import TextEncoder
from eval.encoders.features import PictureFeatures, compute_features, refuse_unreadable
from eval.encoders.load import load_encoders
from eval.encoders.segmenter import Segmenter, find_masks, load_segmenter
from eval.encoders.subject import SUBJECT
from eval.metrics import METRICS, Sample
from eval.metrics.functional import nearest
from eval.protocols.judge import Judgement, ModelJudge, judge_pictures
from eval.protocols.prompts import context_of, prompt_number
from eval.result import Result, ScoredPicture, ScoredSubject
from loldu.errors import LoLDUError
from loldu.prompts import without_token

logger = logging.getLogger(__name__)

NEAREST = "dino"  # encoder that finds the most similar real picture


class FeatureReader:
    """All encoders that metrics read, with the cache of their features."""

    def __init__(self, models: ModelsConfig) -> None:
        """Load the encoders and open the cache.

        Raises:
            LoLDUError: If weights are missing, or the cache cannot be used.
        """
        names = [NEAREST, *(name for metric in METRICS.values() for name in metric.encoders)]
        device = pick_device(models.device)
        networks = [name for name in names if name not in SUBJECT]
        self.encoders = load_encoders(networks, models, device)
        self._segmenter = load_segmenter(models, device)
        self._judge = ModelJudge(models.judge, device) if models.judge else None
        self._repeats = models.judge_repeats
        self._cache = FeatureCache(models.cache_file) if models.cache else None

    def read(
        self, paths: Sequence[Path], *, subjects: Sequence[Subject] = (), skip_bad: bool = False
    ) -> PictureFeatures:
        """Return the features of picture files.

        Args:
            paths: Picture files, perhaps with repeats.
            subjects: Subjects whose pictures are also encoded alone, if there is a segmenter.
            skip_bad: Whether unreadable pictures are left out.

        Raises:
            LoLDUError: If a picture cannot be read and `skip_bad` is false, or a mask is missing.
        """
        features = compute_features(paths, self.encoders, self._cache)
        refuse_unreadable(features.bad, skip=skip_bad)
        if self._segmenter is None or not subjects:
            return features
        return self._with_subjects(features, [(s, self._segmenter) for s in subjects], skip_bad)

    def read_regions(
        self, subjects: Sequence[Subject], *, skip_bad: bool = False
    ) -> dict[str, PictureFeatures]:
        """Return the features of pictures that show several subjects, by subject.

        Raises:
            LoLDUError: If nothing can tell them apart, or as `read` does.
        """
        if self._segmenter is None:
            raise LoLDUError(
                "Pictures of several subjects need masks of each: give --segmenter a folder with "
                "a folder of masks for each, or a model with labels of their classes."
            )
        regions = self._segmenter.regions({s.name: s.class_name or s.name for s in subjects})
        features = self.read([path for s in subjects for path in s.paths], skip_bad=skip_bad)
        each = {s.name: [(s, regions[s.name])] for s in subjects}
        return {name: self._with_subjects(features, own, skip_bad) for name, own in each.items()}

    def _with_subjects(
        self,
        features: PictureFeatures,
        subjects: Sequence[tuple[Subject, Segmenter]],
        skip_bad: bool,
    ) -> PictureFeatures:
        """Add the features of each subject alone."""
        real = [p for s, _ in subjects for p in s.real if p not in features.bad]
        masks: dict[Path, Path] = {}
        for subject, segmenter in subjects:
            drawn = [p.path for p in subject.generated if p.path not in features.bad]
            own = [path for path in subject.real if path not in features.bad]
            masks |= find_masks(segmenter, drawn, own, subject.class_name)
        networks = {name: self.encoders[source] for name, source in SUBJECT.items()}
        alone = compute_features([*masks], networks, self._cache, masks=masks)
        refuse_unreadable(alone.bad, skip=skip_bad)
        for path in real:
            if path not in alone.bad and not alone.rows["dino_subject"][path].any():
                raise LoLDUError(
                    f"The mask {masks[path]} of the real picture {path} shows no subject; paint it "
                    "white."
                )
        bad = {**features.bad, **alone.bad}
        return PictureFeatures({**features.rows, **alone.rows}, bad, features.black)

    @property
    def judge(self) -> str | None:
        """Identity of the judge, or None without one."""
        return self._judge.identity if self._judge else None

    def judged(
        self, pictures: Sequence[tuple[Path, str | None]], real: Sequence[Path]
    ) -> dict[str, Judgement]:
        """Return the levels that the judge gives, by metric; {} without a judge."""
        if self._judge is None:
            return {}
        return judge_pictures(self._judge, self._cache, pictures, real, self._repeats)

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return the CLIP features of prompts."""
        clip = self.encoders["clip"]
        assert isinstance(clip, TextEncoder)
        return clip.encode_texts(texts)

    def identities(self) -> dict[str, object]:
        """Return the identity of each encoder, for a result file."""
        found = {name: encoder.identity for name, encoder in self.encoders.items()}
        if self._segmenter is not None:
            for name, source in SUBJECT.items():
                weights = f"{found[source].weights}, subject by {self._segmenter.identity}"
                found[name] = replace(found[source], weights=weights)
        return {name: identity.as_json() for name, identity in found.items()}


@dataclass(frozen=True)
class Picture:
    """A generated picture, and its prompt if that is known."""

    path: Path
    prompt: str | None = None


@dataclass(frozen=True)
class Subject:
    """Pictures of one concept, which are scored together.

    Attributes:
        name: Name of the concept.
        generated: Generated pictures.
        real: Real pictures to compare them with.
        training: Pictures that it was trained on, to find copies; the real ones if empty.
        look_alikes: Real pictures of other things that look like it, which join the gallery.
        class_name: Class word, by which a segmenter may find it.
    """

    name: str
    generated: Sequence[Picture]
    real: Sequence[Path]
    training: Sequence[Path] = ()
    look_alikes: Sequence[Path] = ()
    class_name: str | None = None

    @cached_property
    def trained_on(self) -> Sequence[Path]:
        """Training pictures, or the real ones."""
        return self.training or self.real

    @cached_property
    def paths(self) -> list[Path]:
        """All pictures, perhaps with repeats."""
        generated = [picture.path for picture in self.generated]
        return [*generated, *self.real, *self.trained_on, *self.look_alikes]


@dataclass(frozen=True)
class Gallery:
    """Real pictures of all subjects and their look-alikes.

    Attributes:
        features: Features of all, by encoder.
        own: Rows of each subject.
    """

    features: Mapping[str, Tensor]
    own: Mapping[str, Tensor]


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
    paths = [path for subject in subjects for path in subject.paths]
    features = reader.read(paths, subjects=subjects, skip_bad=protocol.skip_bad)
    skipped = _skipped(subjects, features, protocol)
    if skipped:
        logger.warning("Left out: %s.", ", ".join(f"{k} ({why})" for k, why in skipped.items()))
    gallery = build_gallery(
        features, {s.name: s.real for s in subjects}, [p for s in subjects for p in s.look_alikes]
    )
    scored = [_score(reader, subject, features, gallery, protocol, token) for subject in subjects]
    removed = None if protocol.keep_token else token
    return Result(scored, protocol, reader.identities(), removed, skipped, reader.judge)


def build_gallery(
    features: PictureFeatures, real: Mapping[str, Sequence[Path]], look_alikes: Sequence[Path]
) -> Gallery | None:
    """Return the readable pictures of all subjects, or None if one subject is alone.

    Args:
        features: Features of all pictures.
        real: Real pictures of each subject.
        look_alikes: Pictures of other things.
    """
    owners = {p: name for name, paths in real.items() for p in paths if p not in features.bad}
    others = [p for p in look_alikes if p not in features.bad and p not in owners]
    if len({*owners.values()}) < 2 and not others:
        return None
    paths = [*owners, *others]
    names = [owners.get(path) for path in paths]
    own = {name: torch.tensor([owner == name for owner in names]) for name in real}
    return Gallery({NEAREST: features.stack(NEAREST, paths)}, own)


def _skipped(
    subjects: Sequence[Subject], features: PictureFeatures, protocol: ProtocolConfig
) -> dict[str, str]:
    """Return why pictures are left out, by subject, kind and file name."""
    skipped = {}
    for subject in subjects:
        kinds = {
            "generated": [picture.path for picture in subject.generated],
            "real": subject.real,
            "training": subject.training,
            "look_alikes": subject.look_alikes,
        }
        for kind, paths in kinds.items():
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
    gallery: Gallery | None,
    protocol: ProtocolConfig,
    token: str | None,
) -> ScoredSubject:
    pictures, real, partners = _usable(subject, features, protocol)
    paths = [picture.path for picture in pictures]
    prompts = [picture.prompt for picture in pictures]
    known = [text for text in prompts if text is not None]
    removed = None if protocol.keep_token else token
    plain = [without_token(text, removed) if removed else text for text in known]
    kind, all_known = subject.class_name, len(known) == len(prompts)
    context = [context_of(text, token, kind) for text in known] if kind and all_known else []
    training = [path for path in subject.trained_on if path not in features.bad]
    levels = reader.judged([*zip(paths, plain if all_known else prompts, strict=True)], real)
    sample = Sample(
        judged={
            name: torch.tensor(scores)
            for name, one in levels.items()
            if (scores := one.scores) is not None
        },
        generated=features.by_encoder(paths),
        real=features.by_encoder(real if partners is None else partners),
        training=features.by_encoder(training) if training else None,
        gallery=gallery.features if gallery else None,
        gallery_own=gallery.own[subject.name] if gallery else None,
        prompts=prompts,
        prompt_features=reader.encode_texts(plain) if all_known else None,
        context_features=reader.encode_texts(context) if context else None,
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
    return ScoredSubject(subject.name, scored, len(real), _summary(subject.name, levels))


def _summary(name: str, levels: Mapping[str, Judgement]) -> dict[str, dict[str, Any]]:
    """Return how the judge answered, for a result file, and log it."""
    for metric, one in levels.items():
        agreement = "no" if one.agreement is None else f"{one.agreement:.2f}"
        left_out = "; the score is left out" if one.scores is None else ""
        logger.info(
            "%s of %s: agreement of repeats %s, %d answers in another form%s.",
            *(metric, name, agreement, one.unanswered, left_out),
        )
    return {
        metric: {"agreement": one.agreement, "unanswered": one.unanswered}
        for metric, one in levels.items()
    }


def _usable(
    subject: Subject, features: PictureFeatures, protocol: ProtocolConfig
) -> tuple[list[Picture], list[Path], list[Path] | None]:
    """Return the generated and real pictures to score, and the real pair of each generated one.

    The pairs are None unless the protocol has them. A real picture that is left out then leaves out
    the generated ones that it belongs to.

    Raises:
        LoLDUError: If none is left, or a generated picture has no pair.
    """
    black = features.black if protocol.skip_black else frozenset[Path]()
    generated = [p for p in subject.generated if p.path not in features.bad and p.path not in black]
    real = [path for path in subject.real if path not in features.bad]
    partners = None
    if protocol.pairs == "matched":
        pair = pairs_of(subject)
        generated = [picture for picture in generated if pair[picture.path] not in features.bad]
        partners = [pair[picture.path] for picture in generated]
    for kind, left in (("generated", generated), ("real", real)):
        if not left:
            raise LoLDUError(f"No {kind} picture of {subject.name} is left to score.")
    return generated, real, partners


def pairs_of(subject: Subject) -> dict[Path, Path]:
    """Return the real picture of each generated one.

    These are in one order if there are as many of both. Otherwise a picture named PROMPT-SEED has
    the real picture of that number, counted from 0, or all have the only real picture.

    Raises:
        LoLDUError: If a generated picture has none.
    """
    paths, real = [picture.path for picture in subject.generated], list(subject.real)
    if len(paths) == len(real):
        return dict(zip(paths, real, strict=True))
    if len(real) == 1:
        return dict.fromkeys(paths, real[0])
    numbers = {path: prompt_number(path) for path in paths}
    pairs = {p: real[n] for p, n in numbers.items() if n is not None and n < len(real)}
    if len(pairs) < len(paths):
        raise LoLDUError(
            f"--pairs matched needs a real picture for each generated one, and {subject.name} has "
            f"{len(real)} and {len(paths)}; name the generated ones PROMPT-SEED.png, such as "
            "000-0.png for the first real picture, use --pairs all, or correct the folders."
        )
    return pairs
