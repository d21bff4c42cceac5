"""The world: its scenes, the excluded concepts, and its captions."""

import random

import numpy as np
import pytest

from pocket.captions import full_caption, random_caption
from pocket.render import SIZE_PX, render
from pocket.world import (
    ATTRIBUTES,
    CONCEPTS,
    INDIVIDUALS,
    PARTS,
    RARE_TOKENS,
    Scene,
    is_held_out,
    named_scene,
)
from pocket.world import random_scene as draw_scene


def concept_scene(
    name: str, background: str, size: str = "large", position: str = "center"
) -> Scene:
    return CONCEPTS[name] | {"background": background, "size": size, "position": position}


SCENES = [draw_scene(random.Random(seed)) for seed in range(400)]


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
