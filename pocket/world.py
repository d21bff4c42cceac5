"""The pocket world: attributes, random scenes, and the concepts that pre-training never sees.

A scene is a plain ``dict[str, str]``: attribute name -> value. Every attribute and its possible
values stand in ``ATTRIBUTES``. A scene that shows an individual also has its ``name``. A scene of
two things also has attributes of ``NEIGHBOR``. The attribute classifier has a head for each.
"""

import random
from collections.abc import Iterable

Scene = dict[str, str]

COLORS = {
    "red": (214, 40, 40),
    "orange": (245, 135, 30),
    "yellow": (250, 215, 50),
    "green": (50, 160, 70),
    "blue": (45, 85, 210),
    "purple": (135, 60, 190),
    "pink": (250, 140, 190),
    "white": (245, 245, 245),
    "black": (25, 25, 30),
}
_COLORS = tuple(COLORS)

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": ("toy", "car", "house", "shape"),
    "background": (
        *("meadow", "sand", "snow", "sea", "bricks", "night"),
        *("white", "pink", "blue", "yellow", "green"),
    ),
    "size": ("medium", "large"),
    "position": ("center", "left", "right"),
    "color": _COLORS,
    "pattern": ("plain", "striped", "dotted"),
    "accent": _COLORS,
    "shape": ("circle", "square", "triangle", "star", "heart"),
    "body": ("round", "square", "tall"),
    "ears": ("pointy", "round", "long"),
    "ear_color": _COLORS,
    "feet_color": _COLORS,
    "wheel_color": _COLORS,
    "roof_color": _COLORS,
    "door_color": _COLORS,
}

# The second thing of a scene. "side" is where it is, seen from the first thing.
NEIGHBOR: dict[str, tuple[str, ...]] = {
    "relation": ("alone", "beside", "holding"),
    "side": ("left", "right"),
    **{
        f"other_{name}": (*values, "ball") if name == "kind" else values
        for name, values in ATTRIBUTES.items()
        if name not in ("background", "size", "position")
    },
}
OPPOSITE = {"left": "right", "right": "left"}

# Attributes that belong to one kind only, in the order in which they are drawn at random.
PARTS: dict[str, tuple[str, ...]] = {
    "toy": ("body", "color", "pattern", "ears", "ear_color", "feet_color"),
    "car": ("color", "pattern", "wheel_color"),
    "house": ("color", "roof_color", "door_color"),
    "shape": ("shape", "color", "pattern"),
}

RARE_TOKENS = ("sks", "zwx", "dax", "wug", "blick")

# Main color of each background behind the object; objects must differ from it.
_BEHIND = {
    "meadow": "green",
    "sand": "yellow",
    "snow": "white",
    "sea": "blue",
    "bricks": "red",
    "night": "black",
}

# Concepts to personalize on. No scene of the pre-training world matches one of them in all of
# the attributes of `SIGNATURE`.
CONCEPTS: dict[str, Scene] = {
    "dotted_rabbit": {
        "kind": "toy",
        "body": "round",
        "color": "purple",
        "pattern": "dotted",
        "accent": "yellow",
        "ears": "long",
        "ear_color": "orange",
        "feet_color": "green",
    },
    "striped_cat": {
        "kind": "toy",
        "body": "square",
        "color": "green",
        "pattern": "striped",
        "accent": "white",
        "ears": "pointy",
        "ear_color": "red",
        "feet_color": "yellow",
    },
    "tall_bear": {
        "kind": "toy",
        "body": "tall",
        "color": "pink",
        "pattern": "plain",
        "ears": "round",
        "ear_color": "blue",
        "feet_color": "black",
    },
    "night_imp": {
        "kind": "toy",
        "body": "round",
        "color": "orange",
        "pattern": "striped",
        "accent": "black",
        "ears": "pointy",
        "ear_color": "purple",
        "feet_color": "white",
    },
    "beetle_car": {
        "kind": "car",
        "color": "red",
        "pattern": "dotted",
        "accent": "black",
        "wheel_color": "yellow",
    },
    "candy_house": {
        "kind": "house",
        "color": "pink",
        "roof_color": "purple",
        "door_color": "yellow",
    },
}
# Looks for choosing learning rates, so that the concepts serve for results alone. Pre-training may
# show them.
TUNING: dict[str, Scene] = {
    "tuning_toy": {
        "kind": "toy",
        "body": "tall",
        "color": "blue",
        "pattern": "dotted",
        "accent": "white",
        "ears": "pointy",
        "ear_color": "yellow",
        "feet_color": "red",
    },
    "tuning_car": {
        "kind": "car",
        "color": "green",
        "pattern": "striped",
        "accent": "black",
        "wheel_color": "pink",
    },
}
SIGNATURE = {
    "toy": ("body", "color", "ears", "ear_color"),
    "car": ("color", "pattern", "wheel_color"),
    "house": ("color", "roof_color"),
}


def is_held_out(scene: Scene) -> bool:
    """Return whether a scene (nearly) shows one of `CONCEPTS`, so that pre-training skips it."""
    return _is_one_of(scene, CONCEPTS.values())


def _is_one_of(scene: Scene, looks: Iterable[Scene]) -> bool:
    kind = scene["kind"]
    return any(
        look["kind"] == kind and all(scene.get(a) == look[a] for a in SIGNATURE[kind])
        for look in looks
    )


def contrast(first: str, second: str) -> int:
    """Return the city-block distance of two colors in RGB, 0 to 765."""
    return sum(abs(a - b) for a, b in zip(COLORS[first], COLORS[second], strict=True))


def color_behind(background: str) -> str:
    """Return the color that an object on this background must stand out from."""
    return _BEHIND.get(background, background)


def _random_color(rng: random.Random, *apart_from: str) -> str:
    return rng.choice([c for c in _COLORS if all(contrast(c, a) > 150 for a in apart_from)])


def _random_parts(rng: random.Random, kind: str, behind: str) -> Scene:
    parts: Scene = {}
    for name in PARTS[kind]:
        if name == "pattern":
            parts[name] = rng.choices(ATTRIBUTES[name], [0.5, 0.25, 0.25])[0]
        elif name == "door_color":
            parts[name] = _random_color(rng, parts["color"])
        elif name == "roof_color":
            parts[name] = _random_color(rng, behind, parts["color"])
        elif name == "color" or name.endswith("_color"):
            parts[name] = _random_color(rng, behind)
        else:
            parts[name] = rng.choice(ATTRIBUTES[name])
    if parts.get("pattern", "plain") != "plain":
        parts["accent"] = _random_color(rng, parts["color"])
    return parts


def _setting(rng: random.Random, background: str) -> Scene:
    return {
        "background": background,
        "size": rng.choices(ATTRIBUTES["size"], [0.35, 0.65])[0],
        "position": rng.choices(ATTRIBUTES["position"], [0.7, 0.15, 0.15])[0],
    }


def random_scene(rng: random.Random) -> Scene:
    """Return a random scene of the pre-training world; never a concept."""
    kind = rng.choices(ATTRIBUTES["kind"], [0.46, 0.18, 0.18, 0.18])[0]
    background = rng.choices(ATTRIBUTES["background"], [2] * 6 + [1.2] * 5)[0]
    scene = {"kind": kind, **_setting(rng, background)}
    while True:
        scene_with_parts = scene | _random_parts(rng, kind, color_behind(background))
        if not (kind in SIGNATURE and is_held_out(scene_with_parts)):
            return scene_with_parts


def _visible(parts: Scene, background: str) -> bool:
    colors = {value for name, value in parts.items() if name.endswith("color")}
    behind = color_behind(background)
    return contrast(parts["color"], behind) > 150 and not {background, behind} & colors


def _individuals() -> dict[str, Scene]:
    rng = random.Random(7)
    individuals: dict[str, Scene] = {}
    for kind, count in _INDIVIDUALS_OF.items():
        last = len(individuals) + count
        while len(individuals) < last:
            name = "".join(rng.choice(letters) for letters in ("bdfgklmnprtvz", "aeiou") * 2)
            parts = {"kind": kind} | _random_parts(rng, kind, behind="white")
            if not is_held_out(parts) and any(_visible(parts, b) for b in _BEHIND):
                individuals[name] = parts
    return individuals


_INDIVIDUALS_OF = {"toy": 60, "car": 18, "house": 18}

INDIVIDUALS = _individuals()
"""Made-up name -> the individual's attributes."""


def _clear_backgrounds(parts: Scene) -> list[str]:
    return [b for b in ATTRIBUTES["background"] if _visible(parts, b)]


def elsewhere(scene: Scene, rng: random.Random, *others: Scene) -> Scene:
    """Return the same thing in another setting, in which other things stand out as well."""
    clear = [b for b in _clear_backgrounds(scene) if all(_visible(other, b) for other in others)]
    clear = clear or [scene["background"]]
    return scene | _setting(rng, rng.choice(clear))


def random_thing(rng: random.Random) -> Scene:
    """Return the look of a random toy, car or house for a predictor of concepts to learn from.

    It (nearly) shows neither one of `CONCEPTS` nor one of `TUNING`, and stands out on three
    backgrounds at least. A third of toys and cars are plain.
    """
    while True:
        kind = rng.choices(("toy", "car", "house"), [0.6, 0.2, 0.2])[0]
        behind = color_behind(rng.choice(ATTRIBUTES["background"]))
        look = {"kind": kind} | _random_parts(rng, kind, behind)
        if look.get("pattern") == "plain" and rng.random() < 0.5:
            continue
        known = (*CONCEPTS.values(), *TUNING.values())
        if len(_clear_backgrounds(look)) >= 3 and not _is_one_of(look, known):
            return look


def named_scene(rng: random.Random) -> Scene:
    """Return one of `INDIVIDUALS` on a background where it is visible."""
    name = rng.choice(list(INDIVIDUALS))
    parts = INDIVIDUALS[name]
    return {"name": name, **parts, **_setting(rng, rng.choice(_clear_backgrounds(parts)))}


def other_thing(scene: Scene) -> Scene:
    """Return kind and parts of the second thing of a scene; {} if there is one thing only."""
    return {name[6:]: value for name, value in scene.items() if name.startswith("other_")}


def as_seen(scene: Scene) -> Scene:
    """Return the scene that a picture shows: of two things side by side, the left one is first."""
    if scene.get("relation") != "beside" or scene["side"] == "right":
        return scene
    first = {f"other_{n}": v for n, v in scene.items() if f"other_{n}" in NEIGHBOR}
    placed = {"relation": "beside", "side": "right", "position": "left"}
    return {"background": scene["background"], **placed, **other_thing(scene), **first}


def _random_other(rng: random.Random, kind: str, behind: str, beside: str) -> Scene:
    """Return a second thing, plain and with few parts, so that a caption can name them all."""
    other: Scene = {"kind": kind, "color": _random_color(rng, behind, beside)}
    for name in ("body", "ears", "shape", "wheel_color", "roof_color"):
        if name in PARTS.get(kind, ()):
            known = name in ATTRIBUTES and not name.endswith("color")
            apart = (behind, other["color"]) if name == "roof_color" else (behind,)
            other[name] = rng.choice(ATTRIBUTES[name]) if known else _random_color(rng, *apart)
    return other


def beside(scene: Scene, side: str, rng: random.Random) -> Scene:
    """Return the scene with a random second thing on one side of its thing; never a concept."""
    kind, behind = rng.choice(ATTRIBUTES["kind"]), color_behind(scene["background"])
    while is_held_out(other := _random_other(rng, kind, behind, scene["color"])):
        continue
    return side_by_side(scene, side, other)


def side_by_side(scene: Scene, side: str, other: Scene) -> Scene:
    """Return the scene with a second thing on one side of its thing."""
    # Things side by side have one size, smaller than the others.
    first = {name: value for name, value in scene.items() if name != "size"}
    return _of_two(first | {"relation": "beside", "position": OPPOSITE[side]}, side, other)


def two_things(rng: random.Random) -> Scene:
    """Return a random scene of two things, side by side or a toy that holds a ball.

    The first thing is one of `INDIVIDUALS` in a fifth of the scenes. No thing is a concept.
    """
    first = named_scene(rng) if rng.random() < 0.2 else random_scene(rng)
    side = rng.choice(NEIGHBOR["side"])
    if first["kind"] != "toy" or rng.random() >= 0.4:
        return beside(first, side, rng)
    behind = color_behind(first["background"])
    ball: Scene = {"kind": "ball", "color": _random_color(rng, behind, first["feet_color"])}
    return _of_two(first | {"relation": "holding", "position": "center"}, side, ball)


def _of_two(first: Scene, side: str, other: Scene) -> Scene:
    return first | {"side": side} | {f"other_{name}": value for name, value in other.items()}
