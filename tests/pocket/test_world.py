"""The world: its scenes, the excluded concepts, and its captions."""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocket.captions import full_caption, random_caption
from pocket.concepts import render_concept
from pocket.render import SIZE_PX, render
from pocket.world import (
    ATTRIBUTES,
    CONCEPTS,
    INDIVIDUALS,
    NEIGHBOR,
    PARTS,
    RARE_TOKENS,
    SIGNATURE,
    TUNING,
    Scene,
    as_seen,
    is_held_out,
    named_scene,
    other_thing,
    random_thing,
    two_things,
)
from pocket.world import random_scene as draw_scene

CONCEPT_FOLDERS = Path(__file__).parents[2] / "datasets" / "concepts"


def concept_scene(
    name: str, background: str, size: str = "large", position: str = "center"
) -> Scene:
    return CONCEPTS[name] | {"background": background, "size": size, "position": position}


SCENES = [draw_scene(random.Random(seed)) for seed in range(400)]
PAIRS = [two_things(random.Random(seed)) for seed in range(400)]


@pytest.mark.parametrize(
    ("draw", "seed", "count", "digest"),
    [
        (draw_scene, 0, 200, "96ada34b56691068"),
        (named_scene, 2_000_000, 100, "f57525b372d7d48c"),
        (draw_scene, 3_000_000, 100, "abec64d42a7fdd50"),
    ],
)
def test_scenes_captions_and_pictures_of_one_thing_stay_as_they_are(
    draw: Callable[[random.Random], Scene], seed: int, count: int, digest: str
) -> None:
    rng, seen = random.Random(seed), hashlib.sha256()
    for scene in [draw(rng) for _ in range(count)]:
        texts = json.dumps([scene, random_caption(scene, rng), full_caption(scene)])
        seen.update(texts.encode())
        seen.update(np.asarray(render(scene, rng)).tobytes())
    assert seen.hexdigest()[:16] == digest


@pytest.mark.parametrize("name", CONCEPTS)
def test_a_concept_is_drawn_as_it_ships(name: str, tmp_path: Path) -> None:
    render_concept(name, CONCEPTS[name], tmp_path)
    shipped = CONCEPT_FOLDERS / name
    drawn = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert drawn == sorted(p.relative_to(shipped) for p in shipped.rglob("*.*"))
    for path in drawn:
        if path.suffix == ".png":
            both = (np.asarray(Image.open(folder / path)) for folder in (tmp_path, shipped))
            assert np.array_equal(*both), path
        else:
            assert (tmp_path / path).read_text() == (shipped / path).read_text()


def test_two_things_are_known_visible_and_no_concept() -> None:
    known = ATTRIBUTES | NEIGHBOR
    for scene in PAIRS:
        assert all(v in known[k] for k, v in scene.items() if k != "name")
        other = other_thing(scene)
        assert not is_held_out(scene)
        assert not is_held_out(other)
        assert scene["relation"] != "holding" or (scene["kind"], other["kind"]) == ("toy", "ball")
        assert (
            other["color"] not in (scene["background"], scene["color"]) or other["kind"] == "ball"
        )
    assert {scene["relation"] for scene in PAIRS} == {"beside", "holding"}


def test_the_second_thing_is_drawn_on_its_side() -> None:
    for seed, scene in enumerate(PAIRS[:100]):
        with_it = np.asarray(render(scene, random.Random(seed))).astype(int)
        other = {k: v for k, v in scene.items() if k.startswith("other_")}
        repainted = scene | {"other_color": "red" if other["other_color"] != "red" else "blue"}
        changed = (with_it != np.asarray(render(repainted, random.Random(seed)))).any(-1)
        columns = np.flatnonzero(changed.any(0))
        assert len(columns) > 3
        assert (columns.mean() > SIZE_PX / 2) == (scene["side"] == "right"), scene


def test_a_caption_names_both_things_and_their_places() -> None:
    for scene in PAIRS:
        caption, other = full_caption(scene), other_thing(scene)
        for value in (other["color"], other.get("shape", other["kind"])):
            assert value in caption
        assert len(caption.split()) <= 30  # and two marks: the length of the text encoder
        if scene["relation"] == "holding":
            assert f"holding a {other['color']} ball on its {scene['side']}" in caption
        else:
            assert f"to the {scene['position']} of a {other['color']}" in caption


def test_a_scene_as_seen_begins_on_the_left_and_loses_nothing() -> None:
    for scene in PAIRS:
        seen = as_seen(scene)
        assert as_seen(seen) == seen
        assert full_caption(seen).split()[-1] == full_caption(scene).split()[-1]
        if scene["relation"] == "beside":
            assert (seen["position"], seen["side"]) == ("left", "right")
            first, second = ({k: v for k, v in s.items()} for s in (scene, seen))
            things = [
                ({k: v for k, v in s.items() if k in PARTS[s["kind"]] or k == "kind"})
                for s in (first, other_thing(second) if scene["side"] == "left" else second)
            ]
            assert things[0] == things[1]


def test_scenes_use_known_attributes_and_values() -> None:
    for scene in SCENES:
        assert set(PARTS[scene["kind"]]) <= set(scene)
        assert all(value in ATTRIBUTES[name] for name, value in scene.items())


def test_no_scene_of_the_corpus_is_a_concept() -> None:
    assert not any(is_held_out(scene) for scene in SCENES if scene["kind"] != "shape")
    for name, concept in CONCEPTS.items():
        assert is_held_out(concept_scene(name, "snow")), name
        assert not any(concept.items() <= scene.items() for scene in SCENES)


@pytest.mark.parametrize("name", CONCEPTS)
def test_a_concept_can_be_drawn_in_every_setting(name: str) -> None:
    for background in ATTRIBUTES["background"]:
        picture = render(concept_scene(name, background), random.Random(0))
        assert picture.size == (SIZE_PX, SIZE_PX)
        assert np.asarray(picture).std() > 10


def test_a_picture_depends_on_its_seed() -> None:
    scene = concept_scene("dotted_rabbit", "night")
    first, again, other = (np.asarray(render(scene, random.Random(s))) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_full_caption_names_everything() -> None:
    scene = concept_scene("dotted_rabbit", "snow", "large", "left")
    assert full_caption(scene) == (
        "a large dotted purple and yellow round toy with orange long ears and green feet "
        "on the left in the snow"
    )


def test_a_name_stands_for_one_look_that_is_no_concept() -> None:
    assert len(INDIVIDUALS) == 96
    assert not {*INDIVIDUALS} & {*RARE_TOKENS}
    assert not any(is_held_out(look) for look in INDIVIDUALS.values())
    assert len({tuple(look.items()) for look in INDIVIDUALS.values()}) > 90


def test_an_individual_is_called_by_name_and_not_described() -> None:
    rng = random.Random(0)
    for _ in range(100):
        scene = named_scene(rng)
        assert INDIVIDUALS[scene["name"]].items() <= scene.items()
        caption = random_caption(scene, rng)
        assert f" {scene['name']} {scene['kind']}" in caption
        assert not any(word in caption for word in ("ears", "feet", "wheels", "roof", "striped"))


def test_random_captions_name_the_kind_and_rarely_a_rare_token() -> None:
    rng = random.Random(0)
    captions = [(scene, random_caption(scene, rng)) for scene in SCENES for _ in range(10)]
    for scene, caption in captions:
        assert scene.get("shape", scene["kind"]) in caption
    rare = sum(any(f" {token} " in f" {c} " for token in RARE_TOKENS) for _, c in captions)
    assert 0.01 < rare / len(captions) < 0.03


def test_no_thing_for_a_predictor_shows_a_concept_or_a_look_for_tuning() -> None:
    rng = random.Random(0)
    things = [random_thing(rng) for _ in range(3000)]
    for thing in things:
        for look in (*CONCEPTS.values(), *TUNING.values()):
            if look["kind"] == thing["kind"]:
                assert any(thing.get(name) != look[name] for name in SIGNATURE[look["kind"]])
    plain = sum(thing.get("pattern") == "plain" for thing in things)
    assert {thing["kind"] for thing in things} == {"toy", "car", "house"}
    assert plain == pytest.approx(0.8 * 3000 / 3, rel=0.1)
