"""`python -m eval compare`: paired differences, intervals, and results that do not compare."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from eval.__main__ import run
from eval.config import ProtocolConfig
from eval.result import FORMAT, Result, ScoredPicture, ScoredSubject

METRICS = ("dino", "clip_i")
Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
Make = Callable[..., Path]


def noise(seed: int, counts: Mapping[str, int], shift: float = 0.0) -> Scores:
    """Scores by subject, picture and metric."""
    rng = np.random.default_rng(seed)
    return {
        subject: {
            f"{index:03}-0.png": {m: 0.5 + shift + rng.normal(0, 0.05) for m in METRICS}
            for index in range(count)
        }
        for subject, count in counts.items()
    }


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a result file with the given scores."""

    def write(
        name: str,
        scores: Scores,
        weights: str = "0123",
        resize_px: int = 256,
        **protocol: Any,  # noqa: ANN401
    ) -> Path:
        extractor = {
            "name": "tiny",
            "library": "lib 1",
            "weights": weights,
            "preprocess": {"resize_px": resize_px, "crop_px": 224},
        }
        subjects = [
            ScoredSubject(s, [ScoredPicture(Path(p), "a", v, Path("r")) for p, v in own.items()], 1)
            for s, own in scores.items()
        ]
        extractors = {"dino": extractor, "clip": {**extractor, "weights": "fixed"}}
        options = ProtocolConfig(bootstrap_samples=10, **protocol)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(Result(subjects, options, extractors, None, {}).as_json()))
        return path

    return write


def compared(tmp_path: Path, *paths: Path, more: tuple[str, ...] = ()) -> dict:
    out = tmp_path / "compared.json"
    assert run(["compare", *map(str, paths), "--json", str(out), "--overwrite", *more]) == 0
    return json.loads(out.read_text(encoding="utf-8"))


COUNTS = {"cup": 3, "dog": 8}


@pytest.mark.parametrize("aggregate", ["macro", "micro"])
def test_differences_are_of_pairs(make: Make, tmp_path: Path, aggregate: str) -> None:
    a, b = noise(0, COUNTS), noise(1, COUNTS)
    message = compared(
        tmp_path,
        make("a.json", a, aggregate=aggregate),
        make("b.json", b, aggregate=aggregate),
        more=("--names", "first", "second"),
    )
    assert list(message["scores"]) == ["first", "second"]
    for metric in METRICS:
        own = [np.array([b[s][p][metric] - a[s][p][metric] for p in a[s]]) for s in ("cup", "dog")]
        macro, micro = np.mean([x.mean() for x in own]), np.concatenate(own).mean()
        assert abs(macro - micro) > 1e-3
        found = message["differences"]["second"][metric]
        assert found["mean"] == pytest.approx(macro if aggregate == "macro" else micro, abs=2e-6)
        assert found["low"] < found["mean"] < found["high"]


def test_a_clear_shift_is_distinguished_from_chance(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shift is smaller than the spread of the scores, so that only pairing detects it."""
    counts = {f"s{i}": 12 for i in range(6)}
    a, jitter = noise(0, counts), noise(1, counts)
    shifted, alike = (
        {
            s: {
                p: {m: v + shift + 0.1 * (jitter[s][p][m] - 0.5) for m, v in own.items()}
                for p, own in pictures.items()
            }
            for s, pictures in a.items()
        }
        for shift in (0.02, 0.0)
    )
    paths = make("a.json", a), make("up.json", shifted), make("same.json", alike)
    message = compared(tmp_path, *paths)["differences"]
    table = capsys.readouterr().out
    for metric in METRICS:
        assert 0.01 < message["up"][metric]["low"] < 0.02 < message["up"][metric]["high"] < 0.03
        assert message["same"][metric]["low"] < 0 < message["same"][metric]["high"]
    marked = {line.split("|")[1].strip() for line in table.splitlines() if "] *" in line}
    assert marked == {"up"}


def test_order_does_not_matter_and_unshared_pictures_are_left_out(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = noise(0, COUNTS), noise(1, COUNTS)
    expected = compared(tmp_path, make("a.json", a), make("b.json", b))
    assert "Left out" not in caplog.text
    turned = {s: dict(reversed(own.items())) for s, own in reversed(b.items())}
    turned["cup"]["more.png"] = dict.fromkeys(METRICS, 9.0)
    turned["fox"] = {"000-0.png": dict.fromkeys(METRICS, 9.0)}
    assert compared(tmp_path, make("a.json", a), make("b.json", turned)) == expected
    assert "Left out 2 pictures" in caplog.text


def test_single_subjects_are_compared_whatever_their_folders_are_called(
    make: Make, tmp_path: Path
) -> None:
    a, b = noise(0, {"cup": 4}), noise(1, {"cup": 4})
    expected = compared(tmp_path, make("a.json", a), make("b.json", b))
    assert compared(tmp_path, make("a.json", a), make("b.json", {"out_b": b["cup"]})) == expected


def test_only_metrics_that_all_have_are_compared(make: Make, tmp_path: Path) -> None:
    a = noise(0, COUNTS)
    b = {s: {p: {"dino": v["dino"]} for p, v in own.items()} for s, own in a.items()}
    message = compared(tmp_path, make("a.json", a), make("b.json", b))
    assert list(message["differences"]["b"]) == ["dino"] == list(message["scores"]["a"])


def test_the_adapted_part_of_a_report_counts(make: Make, tmp_path: Path) -> None:
    base, adapted, other = (noise(seed, {"sks cup": 4}) for seed in range(3))
    message = {"format": FORMAT, "name": "sks cup"}
    for name, scores in (("base", base), ("adapted", adapted)):
        message[name] = json.loads(make(f"{name}.json", scores).read_text())
    report = tmp_path / "report.json"
    report.write_text(json.dumps(message), encoding="utf-8")
    found = compared(tmp_path, report, make("other.json", other))
    expected = compared(tmp_path, tmp_path / "adapted.json", tmp_path / "other.json")
    assert found["differences"] == expected["differences"]


def test_names_are_distinguished_from_paths(make: Make, tmp_path: Path) -> None:
    scores = noise(0, COUNTS)
    same = make("a/result.json", scores), make("b/result.json", scores)
    assert list(compared(tmp_path, *same)["scores"]) == ["a", "b"]
    twice = compared(tmp_path, same[0], same[0])["scores"]
    assert list(twice) == [f"1 {same[0]}", f"2 {same[0]}"]


def test_the_plot_is_well_formed(make: Make, tmp_path: Path) -> None:
    paths = make("a.json", noise(0, COUNTS)), make("b.json", noise(1, COUNTS, 0.2))
    plot, page = tmp_path / "plot.svg", tmp_path / "page.html"
    odd = "<script>&\"'"
    more = ("--names", odd, "b" * 50, "--plot", str(plot), "--html", str(page))
    message = compared(tmp_path, *paths, more=more)
    space = "{http://www.w3.org/2000/svg}"
    tree = ElementTree.fromstring(plot.read_text(encoding="utf-8"))
    texts = [element.text for element in tree.iter(f"{space}text")]
    assert texts.count(odd) == texts.count("b" * 29 + "…") == len(METRICS)
    assert "<script" not in page.read_text(encoding="utf-8")
    means = [message["scores"][name][m]["mean"] for m in METRICS for name in (odd, "b" * 50)]
    assert [text for text in texts if text and text[0] == "0"] == [f"{v:.3f}" for v in means]
    points = [float(point.get("x", 0)) for point in tree.iter(f"{space}use")]
    assert len(points) == len(means)
    assert points[0] < points[1]  # the better one is further to the right, inside the drawing
    width = float(tree.get("viewBox", "").split()[2])
    assert all(0 < point < width for point in points)
    again = tmp_path / "again.svg"
    compared(tmp_path, *paths, more=("--names", odd, "b" * 50, "--plot", str(again)))
    assert again.read_bytes() == plot.read_bytes()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"weights": "4567"}, "dino has different weights (tiny, tiny); score both with the same"),
        ({"resize_px": 224}, "dino has different preprocess"),
        ({"pairs": "matched"}, "--pairs was all and matched"),
        ({"clip_t_scale": 2.5}, "--clip_t_scale was None and 2.5"),
        ({"keep_token": True}, "--keep_token was False and True"),
        ({"aggregate": "micro"}, "--aggregate was macro and micro"),
    ],
)
def test_results_with_other_settings_are_refused(
    make: Make, capsys: pytest.CaptureFixture[str], other: dict[str, Any], message: str
) -> None:
    scores = noise(0, COUNTS)
    refused(capsys, [make("a.json", scores), make("b.json", scores, **other)], message)


def test_mistakes(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = make("a.json", noise(0, COUNTS))
    refused(capsys, [a], "Give two or more results")
    refused(capsys, [a, make("b.json", noise(0, {"fox": 2, "owl": 2}))], "no picture in common")
    refused(capsys, [a, tmp_path / "nowhere.json"], "There is no file")
    refused(capsys, [a, tmp_path], "is not a result that can be compared")
    for number, text in enumerate(
        ("{", "[]", "3", "{}", '{"adapted": 3}', f'{{"format": "{FORMAT}", "subjects": 3}}')
    ):
        broken = tmp_path / f"broken{number}.json"
        broken.write_text(text, encoding="utf-8")
        refused(capsys, [a, broken], f"{broken} is not a result that can be compared")
    for key, value in (("extractors", {}), ("subjects", {}), ("protocol", {"token": None, "x": 1})):
        changed = tmp_path / f"{key}.json"
        changed.write_text(json.dumps(json.loads(a.read_text()) | {key: value}), encoding="utf-8")
        refused(capsys, [a, changed], f"{changed} is not a result that can be compared")
    later = tmp_path / "later.json"
    later.write_text(json.dumps(json.loads(a.read_text()) | {"format": "loldu-eval-9"}))
    refused(capsys, [a, later], f"has the format loldu-eval-9, but this version reads {FORMAT}")
    for names in (["x"], ["x", "x"], ["x", "y", "z"]):
        refused(capsys, [a, a], "--names must give the 2 results a name each", "--names", *names)
    refused(capsys, [a, a], "must end in .svg", "--plot", str(tmp_path / "plot.png"))
    refused(capsys, [a, a], "exists; replace it", "--json", str(a))
    refused(
        capsys,
        [a, a],
        "is a folder; give the name",
        "--html",
        str(tmp_path),
        "--overwrite",
    )
    refused(capsys, [a, a], f"{a} is not a folder", "--html", str(a / "page.html"))
    refused(capsys, [a, a], "only --json can be printed", "--html", "-")
    new = str(tmp_path / "new.svg")
    refused(capsys, [a, a], "is given for two files", "--plot", new, "--html", new)
    refused(capsys, [a, a], "must be at least 1", "--bootstrap_samples", "0")


def refused(
    capsys: pytest.CaptureFixture[str], paths: list[Path], message: str, *more: str
) -> None:
    assert run(["compare", *map(str, paths), *more]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not captured.out
