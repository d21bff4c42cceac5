"""Layouts of published benchmarks, and errors for mistakes in them."""

import json
import re
from pathlib import Path

import pytest

from eval.protocols.prompts import fill
from eval.protocols.suite_layouts import SuiteSubject, read_suite
from loldu.errors import LoLDUError

DREAMBOOTH = """Classes

subject_name,class
red_kettle,kettle
dog2,dog
wolf_plushie,stuffed animal

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in a box'.format(unique_token, class_token),
"a {0} {1} in the baker's window".format(unique_token, class_token),
	'a painter\\'s {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a tie'.format(unique_token, class_token)
]
"""
OBJECT = [
    "a {token} {class_name} in a box",
    "a {token} {class_name} in the baker's window",
    "a painter's {token} {class_name}",
]


def dreambooth(folder: Path, text: str = DREAMBOOTH) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts_and_classes.txt").write_text(text, encoding="utf-8")
    return folder


def concept(taught: str, kind: str, name: str = "scene_barn") -> dict[str, str]:
    return {
        "instance_prompt": taught,
        "class_prompt": kind,
        "instance_data_dir": f"./benchmark_dataset/{name}",
        "class_data_dir": f"./regularization/{name}",
        "prompt_filename": "prompts/some.txt",
    }


def custom_concept(folder: Path, content: object) -> Path:
    (folder / "prompts").mkdir()
    (folder / "prompts" / "some.txt").write_text(
        "photo of a {}.\n\nA fox wearing {} at noon. \n", encoding="utf-8"
    )
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "dataset.json").write_text(text, encoding="utf-8")
    return folder


def toml(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("root", "given"), [("", ""), ("dataset", ""), ("", "prompts_and_classes.txt")]
)
def test_dreambooths_set(tmp_path: Path, root: str, given: str) -> None:
    folder = dreambooth(tmp_path / root)
    assert read_suite(tmp_path / given) == [
        SuiteSubject("red_kettle", "kettle", folder / "red_kettle", OBJECT),
        SuiteSubject("dog2", "dog", folder / "dog2", ["a {token} {class_name} wearing a tie"]),
        SuiteSubject("wolf_plushie", "stuffed animal", folder / "wolf_plushie", OBJECT),
    ]


@pytest.mark.parametrize(
    ("taught", "kind", "class_name"),
    [
        ("photo of a <new1> barn", "barn", "barn"),
        ("photo of a <new1> action figure", "action figure", "action figure"),
        ("photo of a <new1> dice plushie", "dice", "dice plushie"),
        ("photo of <new1> sunglasses", "sunglasses", "sunglasses"),
        ("photo of a <new1> kids table chair", "kids table chair", "kids table chair"),
        ("photo of a barn", "barn", "barn"),
    ],
)
def test_custom_concept(tmp_path: Path, taught: str, kind: str, class_name: str) -> None:
    (subject,) = read_suite(custom_concept(tmp_path, [concept(taught, kind)]))
    assert (subject.name, subject.class_name) == ("scene_barn", class_name)
    assert subject.real == tmp_path / "benchmark_dataset" / "scene_barn"
    assert fill(subject.prompts, "sks", subject.class_name) == [
        f"photo of a sks {class_name}.",
        f"A fox wearing sks {class_name} at noon.",
    ]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = DREAMBOOTH.replace("in a box", "in a\u2028box")
    assert (
        "a {token} {class_name} in a\u2028box" in read_suite(dreambooth(tmp_path, text))[0].prompts
    )
    (tmp_path / "other").mkdir()
    folder = custom_concept(tmp_path / "other", [concept("a barn", "barn")])
    (folder / "prompts" / "some.txt").write_text("a {}\x85 by night\na {}\n", encoding="utf-8")
    prompts = ["a {token} {class_name}\x85 by night", "a {token} {class_name}"]
    assert read_suite(folder / "dataset.json")[0].prompts == prompts


def test_the_suite_of_this_project(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        'prompts = ["a {token} {class_name}"]\n'
        '[[subject]]\nname = "cup"\nclass_name = "cup"\nreal = "photos/cup"\n'
        '[[subject]]\nname = "fox"\nclass_name = "toy"\nreal = "/far/fox"\nprompts = ["a fox"]\n',
    )
    assert read_suite(path) == [
        SuiteSubject("cup", "cup", tmp_path / "photos" / "cup", ["a {token} {class_name}"]),
        SuiteSubject("fox", "toy", Path("/far/fox"), ["a fox"]),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Classes\n\nsubject_name,class\n\nPrompts\n", "has no subject"),
        (DREAMBOOTH.replace("_list = [\n'a {0} {1} wearing a tie'", ""), "dog2 .* has no prompts"),
        (DREAMBOOTH.replace("{0} {1} in a box", "{2} in a box"), "line 13 is not a template"),
        (DREAMBOOTH.replace("{0} {1} in a box", "{0 in a box"), "line 13 is not a template"),
        (DREAMBOOTH.replace("{0} {1} in a box", "{0.x} in a box"), "line 13 is not a template"),
        (DREAMBOOTH.replace("{0} {1} in a box", "{0[x]} in a box"), "line 13 is not a template"),
    ],
)
def test_mistakes_in_dreambooths_set(tmp_path: Path, text: str, message: str) -> None:
    refused(dreambooth(tmp_path, text), message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is not JSON"),
        ("[" * 100_000, "is JSON that cannot be read"),
        ([{**concept("a", "b"), "class_prompt": 3}], "the class 3 is not a string"),
        ([], "has no concept"),
        (3, "is not CustomConcept101's list"),
        ({"barn": 1}, "is not CustomConcept101's list"),
        ([{"class_prompt": "barn"}], "KeyError: 'instance_data_dir'"),
        ([{**concept("a", "b"), "instance_prompt": 3}], "is not CustomConcept101's list"),
        ([{**concept("a", "b"), "prompt_filename": "nowhere.txt"}], "nowhere.txt.*No such file"),
        ([{**concept("a", "b"), "prompt_filename": "prompts"}], "prompts.*Is a directory"),
        ([concept("a <new1> b", "b"), concept("a <new1> c", "c")], "2 subjects named scene_barn"),
    ],
)
def test_mistakes_in_custom_concept(tmp_path: Path, content: object, message: str) -> None:
    refused(custom_concept(tmp_path, content), message)


CUP = '[[subject]]\nname = "cup"\nclass_name = "cup"\nreal = "cup"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompts = [", "cannot be read as TOML"),
        ('prompts = ["a"]', r"has no \[\[subject\]\]"),
        ('subject = ["cup"]', r"has no \[\[subject\]\]"),
        (CUP, "cup of --suite .* has no prompts"),
        (f'prompt = ["a"]\n{CUP}', "unknown key prompt; it takes prompts, subject"),
        (CUP.replace('real = "cup"', ""), r"A \[\[subject\]\] .* lacks real"),
        (CUP + 'photos = "a"', "unknown key photos; it takes class_name, name, prompts, real"),
        (CUP.replace('"cup"\n', "3\n", 1), "has the name 3; write it in quotes"),
        (CUP + 'prompts = "a {token}"', r"not a list of strings such as \[\"a \{token\}"),
        (f"prompts = [1]\n{CUP}", "not a list of strings such as"),
        (f'prompts = ["a"]\n{CUP}{CUP}', "2 subjects named cup"),
    ],
)
def test_mistakes_in_the_suite_of_this_project(tmp_path: Path, text: str, message: str) -> None:
    refused(toml(tmp_path, text), message)


def test_invalid_suites_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "neither a .toml file nor a folder with prompts_and_classes.txt")
    refused(tmp_path, "neither a .toml file")
    (tmp_path / "prompts_and_classes.txt").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path, "not UTF-8")


def refused(path: Path, message: str) -> None:
    with pytest.raises(LoLDUError) as caught:
        read_suite(path)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompt", ["a {colour} cup", "a {} cup", "a {token.x} cup", "a {token"])
def test_a_prompt_with_another_placeholder_is_named(prompt: str) -> None:
    with pytest.raises(LoLDUError, match=re.escape(f'"{prompt}" has a placeholder')):
        fill(["a {token}", prompt], "sks", "cup")
