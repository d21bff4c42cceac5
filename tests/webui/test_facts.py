from dataclasses import replace
from pathlib import Path

import pytest

from loldu import read_concept
from tests.webui.conftest import entry_of, teach
from trainer.errors import TrainerError
from webui.facts import describe, facts_of, filled, suggestion


def test_facts(runs: Path) -> None:
    rabbit, file = facts_of(entry_of(runs / "rabbit")), runs / "rabbit" / "concept.safetensors"
    assert rabbit.prompt == "a photo of a sks <b>toy</b>"
    assert rabbit.words == "sks <b>toy</b>"
    assert rabbit.layers == len(read_concept(file).layers) == 32
    assert rabbit.numbers == 32 * 4
    assert rabbit.bytes == file.stat().st_size
    assert (rabbit.num_inference_steps, rabbit.guidance_scale) == (7, 2.5)
    house = facts_of(entry_of(runs / "house"))
    assert (house.prompt, house.words, house.guidance_scale) == (None, None, None)


def test_what_a_file_says_is_shown_as_text(runs: Path) -> None:
    rabbit = replace(facts_of(entry_of(runs / "rabbit")), name="<i>name", base="<i>base")
    shown = describe([rabbit])
    assert "<b>" not in shown
    assert "<i>" not in shown
    assert "sks &lt;b&gt;toy&lt;/b&gt;" in shown
    assert "<dd>32</dd>" in shown
    assert "<dd>128</dd>" in shown


def test_what_is_no_text_is_not_taken_for_text(base_folder: Path, tmp_path: Path) -> None:
    odd = {"token": ["sks"], "class_name": 7, "class_prompt": [1, "a photo of a cat"]}
    path = tmp_path / "odd" / "concept.safetensors"
    teach(base_folder, path, 0, "a photo of a zwx cat", **odd)
    assert facts_of(entry_of(path.parent)).words == "zwx cat"


def test_prompts_of_several_concepts(runs: Path) -> None:
    one = replace(facts_of(entry_of(runs / "rabbit")), token="sks", class_name="toy")
    one = replace(one, prompt="a photo of a sks toy")
    other = replace(one, name="house", token="zwx", class_name="house")
    unknown = replace(one, token=None, class_name=None)
    assert suggestion([], each=False) == ""
    assert suggestion([one], each=False) == "a photo of a sks toy"
    assert suggestion([one, other], each=False) == "a photo of a sks toy and a zwx house"
    prompt = suggestion([one, other], each=True)
    assert prompt == "a photo of a {token} {class}"
    assert filled(prompt, [other]) == "a photo of a zwx house"
    assert filled("a {thing}", []) == "a {thing}"
    for concepts in ([], [one, other]):
        with pytest.raises(TrainerError, match=r"^\{token\} in the prompt stands for"):
            filled(prompt, concepts)
    with pytest.raises(TrainerError, match=r"^rabbit does not tell a word for \{class\}"):
        filled("a {class}", [unknown])
