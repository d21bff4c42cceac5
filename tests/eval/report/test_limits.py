"""Limits of scores: which fail, the exit status, and what the result file says."""

import json
from pathlib import Path

import pytest

from eval.__main__ import run
from eval.report.limits import check_limits, parse_limits
from loldu.errors import LoLDUError
from tests.eval.noise import save_noise


def test_a_score_fails_on_the_wrong_side_of_its_limit() -> None:
    means = {"dino": 0.55, "clip_t": 0.25, "drift": 0.06, "near_copies": 0.0}
    passed, sentence = check_limits(["dino=.55", "clip_t=0.2", "near_copies=0"], means)
    assert all(check["passed"] for check in passed.values())
    assert sentence == ""
    checked, sentence = check_limits(["dino=.6", "drift=5e-2", "diversity=.1"], means)
    assert sentence == (
        "dino is 0.550, under its limit 0.6; drift is 0.060, over its limit 0.05; diversity was "
        "not measured."
    )
    assert checked["dino"] == {"limit": 0.6, "mean": 0.55, "passed": False}
    assert not any(check["passed"] for check in checked.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dno=.5", "dno is no score; perhaps you meant dino"),
        ("dino", "is not like dino=0.6"),
        ("dino=nan", "is not like dino=0.6"),
        ("dino=high", "is not like dino=0.6"),
    ],
)
def test_a_limit_that_is_none_is_named(text: str, message: str) -> None:
    with pytest.raises(LoLDUError, match=message):
        parse_limits([text])


def test_a_build_fails_with_status_1_and_one_line(
    scoring: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("drawn", "real")):
        save_noise(tmp_path / name, ["0.png", "1.png"], seed)
    out = tmp_path / "out.json"
    folders = ["--generated", str(tmp_path / "drawn"), "--real", str(tmp_path / "real")]
    flags = ["images", *folders, *scoring, "--json", str(out), "--overwrite"]
    assert run([*flags, "--fail-under", "dino=-1", "near_copies=1"]) == 0
    assert json.loads(out.read_text())["limits"]["dino"]["passed"]
    capsys.readouterr()
    assert run([*flags, "--fail_under", "dino=1.5"]) == 1
    error = capsys.readouterr().err.strip()
    limit = json.loads(out.read_text())["limits"]["dino"]
    assert error.endswith(f"dino is {limit['mean']:.3f}, under its limit 1.5.")
    assert (limit["limit"], limit["passed"]) == (1.5, False)
    assert run([*flags, "--fail_under", "dno=1"]) == 2
