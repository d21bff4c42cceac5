"""Scores of one point of a learning curve, with the embedded world's judge."""

from eval.metrics.functional import clip_t, drift
from eval.protocols.live import Pictures
from experiments.kinds.concepts.judge import BACKGROUNDS, Judge
from pocket.captions import full_caption, setting_phrase
from pocket.classifier import overall_agreement
from pocket.judge import to_pixels

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
        parts = {name: value for name, value in judge.concept.items() if name != "kind"}
        settings = [{"background": background} for background in BACKGROUNDS]
        read, others = (
            judge.classifier.read(to_pixels(drawn)) for drawn in (pictures.concept, pictures.others)
        )
        plain, unrelated = [], []  # in the order of `drift_prompts`, repeatedly
        for index, scene in enumerate(others):
            place = index % (classes + OTHER_SCENES)
            (plain if place < classes else unrelated).append(scene)
        repeats = len(read) // len(settings)
        seen = judge.clip.encode_images(pictures.concept)
        return judge.likeness(list(pictures.concept)) | {
            "clip_t": clip_t(seen, judge.clip.encode_texts(pictures.prompts)),
            "drift": drift(
                judge.clip.encode_images(pictures.others), judge.clip.encode_images(pictures.base)
            ),
            "concept": overall_agreement(read, [parts] * len(read)),
            "background": overall_agreement(read, settings * repeats),
            "others": overall_agreement(unrelated, self._scenes * repeats),
            "leak": overall_agreement(plain, [parts] * len(plain)),
        }

    def _thing(self, token: str, background: str) -> str:
        thing = f"{token} {self._judge.concept['kind']}".strip()
        return f"a photo of a {thing} {setting_phrase(background)}"
