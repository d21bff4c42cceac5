"""Scores of one point of a learning curve, with the embedded world's judge."""

from PIL import Image

from eval.metrics.functional import drift
from eval.protocols.live import Pictures
from experiments.kinds.concepts.judge import BACKGROUNDS, Drawn, Judge
from pocket.captions import full_caption, setting_phrase

OTHER_SCENES = 8
LEAK_BACKGROUNDS = ("meadow", "snow", "night", "pink")
METRICS = ("dino", "clip_i", "clip_t", "drift", "concept", "background", "others", "leak")


class CurveScorer:
    """Scorer for the trainer: the metrics of the kind `concepts`, on fewer pictures, and drift.

    `leak` is read from pictures of the plain class in several settings.
    """

    def __init__(self, judge: Judge) -> None:
        """Use the judge of a concept."""
        self._judge = judge
        self._scenes = judge.others[:OTHER_SCENES]

    def prompts(self, token: str) -> list[str]:
        """Return prompts for the concept in every setting."""
        return [self._thing(token, background) for background in BACKGROUNDS]

    def drift_prompts(self) -> list[str]:
        """Return prompts for the plain class, then for unrelated scenes."""
        plain = [self._thing("", background) for background in LEAK_BACKGROUNDS]
        return [*plain, *(full_caption(scene) for scene in self._scenes)]

    def score(self, pictures: Pictures) -> dict[str, float]:
        """Return every metric of `METRICS`."""
        judge, classes = self._judge, len(LEAK_BACKGROUNDS)
        repeats = len(pictures.concept) // len(BACKGROUNDS)
        groups: tuple[list[Image.Image], list[Image.Image]] = [], []
        for index, picture in enumerate(pictures.others):  # by `drift_prompts`, repeatedly
            groups[index % (classes + OTHER_SCENES) < classes].append(picture)
        scores = judge.measure(
            Drawn(list(pictures.concept), *groups),
            pictures.prompts,
            BACKGROUNDS * repeats,
            self._scenes * repeats,
        )
        encode = judge.clip.encode_images
        scores["drift"] = drift(encode(pictures.others), encode(pictures.base))
        return {name: scores[name] for name in METRICS}

    def _thing(self, token: str, background: str) -> str:
        thing = f"{token} {self._judge.concept['kind']}".strip()
        return f"a photo of a {thing} {setting_phrase(background)}"
