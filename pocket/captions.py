"""English captions of scenes: several phrasings, attributes dropped at random, rare tokens."""

import random

from pocket.world import OPPOSITE, RARE_TOKENS, Scene, other_thing

SETTINGS = {
    "meadow": ("on grass", "on a meadow"),
    "sand": ("on sand", "on the beach"),
    "snow": ("in the snow", "in snow"),
    "sea": ("in the sea", "in the water"),
    "bricks": ("in front of bricks", "in front of a brick wall"),
    "night": ("at night", "under the night sky"),
}
_OPENINGS = ("a ", "a photo of a ", "a picture of a ", "the ", "a photo of the ")
_PLACES = {"left": "on the left", "right": "on the right"}


def setting_phrase(background: str, rng: random.Random | None = None) -> str:
    """Return where the object is, e.g. "in the snow"; the first phrasing without `rng`."""
    phrases = SETTINGS.get(background, (f"on a {background} background",))
    return rng.choice(phrases) if rng else phrases[0]


class _Teller:
    """Decides for each attribute whether a caption mentions it."""

    def __init__(self, scene: Scene, rng: random.Random, detail: float) -> None:
        self.scene, self.rng, self.detail = scene, rng, detail

    def says(self, name: str) -> list[str]:
        says = name in self.scene and self.rng.random() < self.detail
        return [self.scene[name]] if says else []

    def surface(self) -> list[str]:
        """Pattern and colors: "striped red and white"."""
        pattern = self.says("pattern") if self.scene.get("pattern", "plain") != "plain" else []
        color = self.says("color")
        accent = self.says("accent") if pattern and color else []
        return pattern + color + (["and", *accent] if accent else [])

    def tail(self, *parts: tuple[str, list[str]]) -> str:
        """Parts with words: " with red pointy ears and blue feet"."""
        phrases = [" ".join([*words, noun]) for noun, words in parts if words]
        return " with " + " and ".join(phrases) if phrases else ""

    def head_and_tail(self) -> tuple[list[str], str]:
        kind = self.scene["kind"]
        if "name" in self.scene:  # the name replaces all attributes
            return [self.scene["name"], kind], ""
        if kind == "toy":
            head = [*self.surface(), *self.says("body"), "toy"]
            ears = [*self.says("ear_color"), *self.says("ears")]
            return head, self.tail(("ears", ears), ("feet", self.says("feet_color")))
        if kind == "car":
            return [*self.surface(), "car"], self.tail(("wheels", self.says("wheel_color")))
        if kind == "house":
            roof, door = self.says("roof_color"), self.says("door_color")
            return [*self.says("color"), "house"], self.tail(("roof", roof), ("door", door))
        if kind == "ball":
            return [*self.says("color"), "ball"], ""
        return [*self.surface(), self.scene["shape"]], ""

    def neighbor(self) -> list[str]:
        """Return the second thing and where it is, e.g. "to the left of a red car"."""
        if not (other := other_thing(self.scene)):
            return []
        head, tail = _Teller(other, self.rng, self.detail).head_and_tail()
        thing = "a " + " ".join(head) + tail
        side = self.says("side")
        if self.scene["relation"] == "holding":
            return ["holding", thing, *(f"on its {place}" for place in side)]
        if side:
            return ["to the", OPPOSITE[side[0]], "of", thing]
        return [self.rng.choice(("beside", "next to")), thing]


def full_caption(scene: Scene) -> str:
    """Return the caption that mentions everything, always in the same words."""
    return _compose(scene, _Teller(scene, random.Random(0), detail=1.0), "a ", None)


def called_caption(scene: Scene, token: str) -> str:
    """Return the caption that calls a thing by a token and names none of its parts.

    It names background, size and position, so that these do not become part of the concept.
    """
    size = f"{scene['size']} " if scene["size"] == "large" else ""
    place = _PLACES.get(scene["position"])
    words = [f"a photo of a {size}{token} {scene['kind']}", *([place] if place else [])]
    return " ".join([*words, setting_phrase(scene["background"])])


def random_caption(scene: Scene, rng: random.Random) -> str:
    """Return a caption like that of a person in a hurry; 2% have a meaningless rare token."""
    detail = rng.choices((0.15, 0.6, 1.0), (0.2, 0.25, 0.55))[0]
    teller = _Teller(scene, rng, detail)
    return _compose(scene, teller, rng.choice(_OPENINGS), rng)


def _compose(scene: Scene, teller: _Teller, opening: str, rng: random.Random | None) -> str:
    head, tail = teller.head_and_tail()
    if scene.get("size") == "large":
        head = teller.says("size") + head
    if rng and rng.random() < 0.02:
        head = [rng.choice(RARE_TOKENS), *head]
    words = [opening + " ".join(head) + tail, *teller.neighbor()]
    if (
        scene.get("relation") != "beside"
        and scene["position"] in _PLACES
        and teller.says("position")
    ):
        words.append(_PLACES[scene["position"]])
    if not rng or rng.random() < 0.35 + 0.6 * teller.detail:
        words.append(setting_phrase(scene["background"], rng))
    return " ".join(words)
