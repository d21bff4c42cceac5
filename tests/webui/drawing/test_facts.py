import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from loldu import ConceptError
from loldu.errors import LoLDUError
from tests.webui.concepts import entry_of
from webui.drawing.facts import describe, facts_of, filled, suggestion
from webui.library.about import about


def test_facts(runs: Path) -> None:
    rabbit = facts_of(entry_of(runs / "rabbit"))
    assert rabbit.about == about(runs / "rabbit" / "concept.safetensors")
    assert rabbit.words == "sks <b>toy</b>"
    assert (rabbit.num_inference_steps, rabbit.guidance_scale) == (7, 2.5)
    house = facts_of(entry_of(runs / "house"))
    assert (house.words, house.num_inference_steps, house.guidance_scale) == (None, None, None)
    with pytest.raises(ConceptError, match=r"^broken is not a readable"):
        facts_of(entry_of(runs / "broken"))


@pytest.mark.parametrize(
    "config",
    [
        "no toml [",
        "run = 5",
        '[run]\nnum_inference_steps = "many"\nguidance_scale = nan',
        "[run]\nnum_inference_steps = 100000\nguidance_scale = true",
        f"[run]\nnum_inference_steps = {10**400}\nguidance_scale = 1e300",
    ],
)
def test_damaged_options_beside_a_concept_are_unknown(
    config: str, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "rabbit", tmp_path / "rabbit")
    (tmp_path / "rabbit" / "config.toml").write_text(config)
    facts = facts_of(entry_of(tmp_path / "rabbit"))
    assert (facts.num_inference_steps, facts.guidance_scale) == (None, None)


def test_metadata_is_escaped(runs: Path) -> None:
    shown = describe([replace(facts_of(entry_of(runs / "rabbit")), name="<i>name")])
    assert "<b>" not in shown
    assert "<i>" not in shown
    assert "sks &lt;b&gt;toy&lt;/b&gt;" in shown
    assert "<dd>32</dd>" in shown
    assert "<dd>128</dd>" in shown
    assert "where a prompt has “sks”" in shown
    assert "in every picture" in describe([facts_of(entry_of(runs / "house"))])


def test_prompts_of_several_concepts(runs: Path) -> None:
    rabbit = facts_of(entry_of(runs / "rabbit"))
    toy = replace(rabbit.about, token="sks", class_name="toy", prompt="a photo of a sks toy")
    one = replace(rabbit, about=toy)
    house = replace(toy, token="zwx", class_name="house")
    other = replace(one, name="house", about=house)
    unknown = replace(one, about=replace(toy, token=None, class_name=None))
    assert suggestion([], each=False) == ""
    assert suggestion([one], each=False) == "a photo of a sks toy"
    assert suggestion([one, other], each=False) == "a photo of a sks toy and a zwx house"
    prompt = suggestion([one, other], each=True)
    assert prompt == "a photo of a {token} {class}"
    assert filled(prompt, [other]) == "a photo of a zwx house"
    assert filled("a {thing}", []) == "a {thing}"
    for concepts in ([], [one, other]):
        with pytest.raises(LoLDUError, match=r"^\{token\} in the prompt stands for"):
            filled(prompt, concepts)
    with pytest.raises(LoLDUError, match=r"^rabbit has no word for \{class\}"):
        filled("a {class}", [unknown])
