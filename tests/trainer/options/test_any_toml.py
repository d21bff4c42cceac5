"""Mutated TOML files of people: their options, or an error of one sentence."""

import logging
import random
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from eval.protocols.suite_layouts import read_suite
from loldu.errors import LoLDUError
from loldu.options import toml_value, values_of
from loldu.presets import flat, read_preset
from tests.damage import mutated_text, snapshot
from trainer.options.concepts import concept_configs
from trainer.options.preset import PRESETS, configure

logger = logging.getLogger(__name__)

CONCEPTS = """[dog]
instance_data_dir = "dog"
instance_prompt = "a photo of sks dog"
token = "sks"

[my-toy_2]
instance_data_dir = "/far/toy"
instance_prompt = "a café toy 猫"
validation_prompt = "a toy"
class_prompt = ["a toy", "a toy on grass"]
"""
SUITE = """prompts = ["a {token} {class_name}", "a {class_name} in snow"]
[[subject]]
name = "cup"
class_name = "cup"
real = "photos/cup"
[[subject]]
name = "fox"
class_name = "toy"
real = "/far/fox"
prompts = ["a fox"]
"""
VALUES = [
    *('""', '"x"', "nan", "inf", "-1", "0", "1e999", "9" * 400, "0x" + "f" * 5_000, "true", "[]"),
    *("[[[[1]]]]", "{a = 1}", "1979-05-27", '"\\u0000"', "[" * 3_000, "a." * 3_000 + "a = 1"),
    *("[table]", '"""', "rank = 4", "preset = 1", "\0", "\u2028", "[dog]", "dog = {}", '"full"'),
]


GIVEN = {"instance_data_dir": "x", "output_dir": "run", "class_prompt": "a toy"}


def read_as_preset(path: Path) -> Mapping[str, Any]:
    return values_of(configure({**GIVEN, **read_preset(path).values}))


def read_as_concepts(path: Path) -> Mapping[str, Any]:
    config = configure({"concepts": str(path), "rank": 4, "output_dir": "run"})
    return {name: values_of(own) for name, own in concept_configs(config).items()}


def read_as_suite(path: Path) -> Mapping[str, Any]:
    return {subject.name: vars(subject) for subject in read_suite(path)}


FILES: dict[str, tuple[list[str], Callable[[Path], Mapping[str, Any]]]] = {
    "preset": (
        [path.read_text("utf-8") for path in sorted(PRESETS.glob("*.toml"))],
        read_as_preset,
    ),
    "concepts": ([CONCEPTS], read_as_concepts),
    "suite": ([SUITE], read_as_suite),
}


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FILES)
def test_mutated_toml(kind: str, count: int, tmp_path: Path) -> None:
    texts, read = FILES[kind]
    path, seen = tmp_path / "a.toml", Counter[str]()
    for number in range(count):
        rng = random.Random(f"{kind} {number}")
        path.write_bytes(mutated_text(rng.choice(texts), rng, VALUES))
        before = snapshot(tmp_path)
        try:
            found = read(path)
        except LoLDUError as error:
            seen["refused"] += 1
            sentence = str(error)
        else:
            seen["read"] += 1
            sentence = ""
            expected = tomllib.loads(path.read_text(encoding="utf-8-sig"))
            if kind == "preset":
                expected.pop("preset", None)
                for name, value in flat(expected).items():  # a list may have its only value
                    assert toml_value(found[name]) in (value, [value]), (number, name)
            elif kind == "concepts":
                assert list(found) == list(expected)
            else:
                assert list(found) == [row["name"] for row in expected["subject"]]
        assert "\n" not in sentence, number
        assert len(sentence) < 2_000, (number, sentence)
        assert snapshot(tmp_path) == before
    logger.info("%s: %s", kind, dict(seen))
    assert min(seen["read"], seen["refused"]) > count / 20
