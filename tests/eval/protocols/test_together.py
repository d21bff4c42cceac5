"""Pictures of several subjects: each in its own region, and what is lost."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eval.__main__ import run
from eval.encoders.load import load_clip, load_dino
from eval.encoders.segmenter import ModelSegmenter
from eval.metrics.functional import collapses
from eval.protocols.suite_layouts import read_suite, read_together
from loldu.errors import LoLDUError
from tests.eval.noise import save_noise

SUITE = """[[subject]]
name = "my_cup"
class_name = "cup"
real = "photos/my_cup"
[[subject]]
name = "my_dog"
class_name = "pup"
real = "photos/my_dog"
[[together]]
name = "pair"
subjects = ["my_cup", "my_dog"]
prompts = ["a {a} beside a {b}", "a {b} with a {a}"]
"""
SIDES = {"my_cup": (0, 0, 32, 32), "my_dog": (32, 0, 64, 32)}


def features(seed: int, subjects: int, n: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return few small numbers, so that some likenesses are equal; some regions are missing."""
    rng = np.random.default_rng(seed)
    regions = [rng.integers(-2, 3, (n, 3)).astype(float) for _ in range(subjects)]
    real = [rng.integers(-2, 3, (rng.integers(1, 4), 3)) + 0.5 for _ in range(subjects)]
    return regions, real


def by_hand(regions: list[np.ndarray], real: list[np.ndarray]) -> list[float]:
    """Return 1 for each picture that lost a subject, by plain loops."""

    def like(row: np.ndarray, others: np.ndarray) -> float:
        return float(np.mean([row @ o / np.linalg.norm(row) / np.linalg.norm(o) for o in others]))

    lost: list[float] = []
    for picture in range(len(regions[0])):
        rows = [own[picture] for own in regions]
        lost.append(
            any(
                not row.any() or like(row, real[other]) > like(row, real[subject]) + 1e-9
                for subject, row in enumerate(rows)
                for other in range(len(rows))
                if other != subject
            )
        )
    return lost


def tensors(arrays: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.tensor(own) for own in arrays]


@settings(deadline=None)
@given(seed=st.integers(0, 9999), subjects=st.integers(2, 4), n=st.integers(1, 4))
def test_collapse_is_that_of_plain_loops_in_any_order(seed: int, subjects: int, n: int) -> None:
    regions, real = features(seed, subjects, n)
    rng = np.random.default_rng(seed + 1)
    real = [own + 1e-2 * rng.normal(size=own.shape) for own in real]
    for own in regions:  # no likenesses are equal but those of missing subjects
        own += 1e-3 * rng.normal(size=(n, 3)) * own.any(1, keepdims=True)
    got = collapses(tensors(regions), tensors(real))
    assert got.tolist() == by_hand(regions, real)
    order = np.random.default_rng(seed).permutation(subjects)
    again = collapses(*(tensors([own[i] for i in order]) for own in (regions, real)))
    assert again.tolist() == got.tolist()


@settings(deadline=None)
@given(seed=st.integers(0, 9999), subjects=st.integers(2, 4))
def test_what_is_one_and_the_same_or_missing_has_collapsed(seed: int, subjects: int) -> None:
    regions, real = features(seed, subjects, 3)
    regions[1][0] = regions[0][0]
    regions[0][1] = 0
    got = collapses(tensors(regions), tensors(real)).tolist()
    assert got[:2] == [1, 1]
    # Real pictures of subjects that have nothing in common are each in their place.
    own = [torch.eye(subjects, dtype=torch.float64)[[i] * 2] for i in range(subjects)]
    assert collapses(own, own).tolist() == [0, 0]


def test_one_subject_cannot_collapse() -> None:
    with pytest.raises(ValueError, match="two subjects"):
        collapses([torch.ones(2, 3)], [torch.ones(2, 3)])


@pytest.fixture
def flags(tmp_path: Path, scoring: list[str]) -> list[str]:
    """Four pictures of a pair: as asked, two dogs, without a cup, and swapped; and their masks."""
    real = {}
    for seed, name in enumerate(SIDES):
        (path,) = save_noise(tmp_path / "photos" / name, ["0.png"], seed)
        Image.new("L", (32, 32), 255).save(path.with_name("0-masklabel.png"))
        real[name] = Image.open(path)
    drawn = tmp_path / "drawn" / "pair"
    drawn.mkdir(parents=True)
    shown = {
        "000-0": ("my_cup", "my_dog"),
        "000-1": ("my_dog", "my_dog"),
        "001-0": (None, "my_dog"),
        "001-1": ("my_dog", "my_cup"),
    }
    for name, halves in shown.items():
        picture = Image.new("RGB", (64, 32), "pink")
        for (subject, box), half in zip(SIDES.items(), halves, strict=True):
            mask = Image.new("L", (64, 32))
            if half:
                picture.paste(real[half], box)
                mask.paste(255, box)
            place = tmp_path / "masks" / subject / "pair" / f"{name}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            mask.save(place)
        picture.save(drawn / f"{name}.png")
    (tmp_path / "suite.toml").write_text(SUITE)
    files = ("--suite", str(tmp_path / "suite.toml"), "--pictures", str(tmp_path / "drawn"))
    out = ("--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html"))
    masks = ("--segmenter", str(tmp_path / "masks"), "--bootstrap_samples", "20")
    return ["suite", *files, *out, *masks, "--overwrite", *scoring]


def test_each_subject_is_scored_in_its_own_region(
    flags: list[str], tmp_path: Path, clip_folder: Path, dino_folder: Path
) -> None:
    assert run([*flags, "--fail_under", "collapse=.9"]) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    subjects = content["subjects"]
    assert list(subjects) == ["pair/my_cup", "pair/my_dog"]
    encoders = {"dino": load_dino(str(dino_folder)), "clip": load_clip(str(clip_folder))}

    def row(kind: str, image: Image.Image) -> np.ndarray:
        (found,) = encoders[kind].encode_images([image.convert("RGB")]).double().numpy()
        return found / np.linalg.norm(found)

    rows = {}
    for subject, box in SIDES.items():
        pictures = {one["name"]: one for one in subjects[f"pair/{subject}"]["pictures"]}
        real = Image.open(tmp_path / "photos" / subject / "0.png")
        for name, one in pictures.items():
            picture = Image.open(tmp_path / "drawn" / "pair" / name)
            empty = (name, subject) == ("001-0.png", "my_cup")
            for kind, metric in (("dino", "dino_subject"), ("clip", "clip_i_subject")):
                own = row(kind, picture.crop(box)) * (not empty)
                assert one[metric] == pytest.approx(own @ row(kind, real), abs=1e-5)
                rows[name, subject, kind] = own
            text = "a cup beside a pup" if name.startswith("000") else "a pup with a cup"
            (asked,) = encoders["clip"].encode_texts([text]).double().numpy()
            assert one["clip_t"] == pytest.approx(row("clip", picture) @ asked, abs=1e-5)
            assert one["prompt"] == text
            assert set(one) == {
                *("name", "prompt", "nearest", "dino_subject", "clip_i_subject", "collapse"),
                "clip_t",
            }
    names = sorted({name for name, *_ in rows})
    truth = [
        np.stack([row("dino", Image.open(tmp_path / "photos" / subject / "0.png"))])
        for subject in SIDES
    ]
    expected = by_hand(
        [np.stack([rows[name, subject, "dino"] for name in names]) for subject in SIDES], truth
    )
    assert expected == [0, 1, 1, 1]
    for one in subjects.values():
        assert [picture["collapse"] for picture in one["pictures"]] == expected
    assert content["scores"]["collapse"]["mean"] == pytest.approx(0.75)
    assert content["limits"]["collapse"]["passed"]
    assert content["verdict"]["mixes_or_loses_subjects"]["answer"] in ("some pictures", "yes")
    page = (tmp_path / "out.html").read_text()
    assert "Mixes or loses subjects" in page
    assert "<h2>pair/my_dog</h2>" in page


def test_subjects_with_prompts_of_their_own_are_scored_as_without_groups(
    flags: list[str], tmp_path: Path
) -> None:
    for seed, name in enumerate(SIDES):
        drawn = save_noise(tmp_path / "drawn" / name, ["000-0.png", "000-1.png"], seed + 5)
        for path in drawn:
            mask = tmp_path / "masks" / name / path.name
            Image.new("L", (32, 32), 255).save(mask)
    both = 'prompts = ["a {token} {class_name}"]\n' + SUITE
    (tmp_path / "suite.toml").write_text(both)
    assert run(flags) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert list(content["subjects"]) == list(SIDES)
    assert list(content["together"]["subjects"]) == ["pair/my_cup", "pair/my_dog"]
    (tmp_path / "suite.toml").write_text(both[: both.index("[[together]]")])
    assert run(flags) == 0
    alone = json.loads((tmp_path / "out.json").read_text())
    assert alone["scores"] == content["scores"]
    assert "together" not in alone
    (tmp_path / "suite.toml").write_text(both)
    assert run([*flags, "--subjects", "my_dog"]) == 0
    assert "together" not in json.loads((tmp_path / "out.json").read_text())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["my_cup", "my_dog"]', '["my_cup"]', "needs two subjects or more"),
        ('["my_cup", "my_dog"]', '["my_cup", "my_cup"]', "names a subject twice"),
        ('["my_cup", "my_dog"]', '["my_cup", "cat"]', "has no [[subject]] cat; it has my_cup"),
        ('["my_cup", "my_dog"]', '"my_cup"', "needs two subjects or more"),
        ('"a {a} beside a {b}"', '"a {a} alone"', "it must have {a} and {b}"),
        ('"a {a} beside a {b}"', '"{a} {b} {c}"', "it must have {a} and {b}"),
        ('["a {a} beside a {b}", "a {b} with a {a}"]', "[]", "has no prompts"),
        ('name = "pair"', 'name = "my_dog"', "has 2 folders named my_dog"),
        ('name = "pair"', 'title = "pair"', "lacks name"),
        ("[[together]]", "[together]", "is no [[together]]"),
        ('"my_dog"]', '"my_dog"]\nmore = 1', "unknown key more"),
    ],
)
def test_mistakes_in_groups_are_one_sentence(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "suite.toml"
    assert old in SUITE
    path.write_text(SUITE.replace(old, new))
    with pytest.raises(LoLDUError) as error:
        read_suite(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    path.write_text(SUITE)
    (group,) = read_together(path, read_suite(path))
    assert list(group.prompts) == ["a cup beside a pup", "a pup with a cup"]


def test_what_cannot_be_scored_is_one_sentence(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(command: list[str], message: str) -> None:
        capsys.readouterr()
        assert run(command) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error

    at = flags.index("--segmenter")
    refused([*flags[:at], *flags[at + 2 :]], "need masks of each")
    refused([*flags, "--pairs", "matched"], "--pairs matched does not go with")
    refused([*flags, "--subjects", "my_dog"], "--subjects my_dog leaves nothing to score")
    (tmp_path / "masks" / "my_dog" / "pair" / "001-0.png").unlink()
    refused(flags, "has no mask of")
    (tmp_path / "drawn" / "pair").rename(tmp_path / "elsewhere")
    refused(flags, "this command draws one subject a picture")


def test_a_model_tells_subjects_apart_by_their_classes(tmp_path: Path) -> None:
    left, right = np.zeros((8, 16), dtype=bool), np.zeros((8, 16), dtype=bool)
    left[:, :8], right[:, 8:] = True, True

    class Labels:
        task = "image-segmentation"
        model = torch.nn.Linear(1, 1)
        model.config = SimpleNamespace(id2label={0: "cup", 1: "puppy, pup"})

        def __call__(self, image: Image.Image) -> list[dict]:
            return [
                {"label": "cup", "mask": left * 255},
                {"label": "puppy, pup", "mask": right * 255},
            ]

    model = ModelSegmenter(Labels(), tmp_path / "masks")
    (path,) = save_noise(tmp_path, ["0.png"])
    Image.open(path).crop((0, 0, 16, 8)).save(path)
    classes = {"my_cup": "Cup", "my_dog": "pup"}
    for (name, kind), mask in zip(classes.items(), (left, right), strict=True):
        (made,) = model.regions(classes)[name].masks([path], kind).values()
        assert np.array_equal(np.asarray(Image.open(made)) > 0, mask)
    for wrong in ({**classes, "other": "cup"}, {**classes, "my_cat": "cat"}):
        with pytest.raises(LoLDUError, match="cannot tell"):
            model.regions(wrong)
