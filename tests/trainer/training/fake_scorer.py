"""A scorer that needs no model."""

from eval.protocols.live import Pictures


class FakeScorer:
    """Return scripted scores, and record the scored pictures."""

    def __init__(self, *dino: float) -> None:
        self.dino = list(dino)
        self.shown: list[Pictures] = []

    def score(self, pictures: Pictures) -> dict[str, float]:
        self.shown.append(pictures)
        likeness = self.dino[len(self.shown) - 1]
        return {"dino": likeness, "clip_i": 0.5, "clip_t": 0.25, "drift": 0.1}
