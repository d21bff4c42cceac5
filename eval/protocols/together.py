"""Score pictures that show several subjects: each in its own region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.config import ProtocolConfig
from eval.encoders.subject import SUBJECT
from eval.metrics import METRICS, Sample
from eval.metrics.functional import nearest
from eval.protocols.score import FeatureReader, Subject
from eval.result import Result, ScoredPicture, ScoredSubject
from loldu.errors import LoLDUError
from loldu.prompts import without_token

REGION = "dino_subject"
"""Encoder that tells the subjects of a picture apart."""


def score_together(
    reader: FeatureReader,
    groups: Mapping[str, Sequence[Subject]],
    protocol: ProtocolConfig,
    token: str,
) -> Result:
    """Return the scores of every subject of every group, named `GROUP/SUBJECT`.

    Args:
        reader: Encoders, cache and segmenter.
        groups: Subjects of each group, which have the same generated pictures.
        protocol: How to score them.
        token: Rare token, which is removed from the prompts unless the protocol keeps it.

    Raises:
        LoLDUError: If the protocol pairs pictures, nothing can tell the subjects apart, or a
            picture or a mask cannot be read.
    """
    if protocol.pairs == "matched":
        raise LoLDUError(
            "--pairs matched does not go with pictures of several subjects, which have no real "
            "picture of their own; leave out the [[together]] tables, or use --pairs all."
        )
    skipped: dict[str, str] = {}
    scored = [
        one
        for name, subjects in groups.items()
        for one in _score(reader, name, subjects, protocol, token, skipped)
    ]
    removed = None if protocol.keep_token else token
    return Result(scored, protocol, reader.identities(), removed, skipped)


def _score(
    reader: FeatureReader,
    name: str,
    subjects: Sequence[Subject],
    protocol: ProtocolConfig,
    token: str,
    skipped: dict[str, str],
) -> list[ScoredSubject]:
    """Score one group, and add the pictures that are left out to `skipped`."""
    features = reader.read_regions(subjects, skip_bad=protocol.skip_bad)
    bad = {path for own in features.values() for path in own.bad}
    black = next(iter(features.values())).black if protocol.skip_black else frozenset()
    pictures = [p for p in subjects[0].generated if p.path not in bad and p.path not in black]
    real = {s.name: [path for path in s.real if path not in bad] for s in subjects}
    for own, left in ((name, pictures), *real.items()):
        if not left:
            raise LoLDUError(f"No picture of {own} is left to score.")
    for path in {path for s in subjects for path in s.paths if path in bad or path in black}:
        skipped[f"{name}/{path.name}"] = "unreadable" if path in bad else "black"
    paths = [picture.path for picture in pictures]
    known = [picture.prompt for picture in pictures if picture.prompt is not None]
    plain = known if protocol.keep_token else [without_token(text, token) for text in known]
    together = [
        (features[s.name].stack(REGION, paths), features[s.name].stack(REGION, real[s.name]))
        for s in subjects
    ]
    found: list[ScoredSubject] = []
    for subject in subjects:
        rows, own = features[subject.name], real[subject.name]
        sample = Sample(
            generated={kind: rows.stack(kind, paths) for kind in (*SUBJECT, "clip")},
            real={kind: rows.stack(kind, own) for kind in SUBJECT},
            prompts=[picture.prompt for picture in pictures],
            prompt_features=reader.encode_texts(plain) if len(plain) == len(paths) else None,
            clip_t_scale=protocol.clip_t_scale,
            together=together,
        )
        scores = {m: one.scores(sample) for m, one in METRICS.items() if one.applies(sample)}
        best, _ = nearest(sample.generated[REGION], rows.stack(REGION, own))
        scored = [
            ScoredPicture(
                picture.path,
                picture.prompt,
                {metric: values[index].item() for metric, values in scores.items()},
                own[row],
            )
            for index, (picture, row) in enumerate(zip(pictures, best.tolist(), strict=True))
        ]
        found.append(ScoredSubject(f"{name}/{subject.name}", scored, len(own)))
    return found
