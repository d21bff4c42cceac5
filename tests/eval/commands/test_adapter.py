"""The report end to end: a tiny base, a trained concept, and tiny scoring models."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from eval.__main__ import run
from eval.commands import adapter
from eval.encoders.load import load_clip, load_dino
from eval.protocols.prompts import plan_pictures
from eval.report.before_after import BeforeAfter
from eval.report.verdict import verdict_json
from loldu import read_concept
from loldu.base.config import BaseModelConfig
from loldu.base.draw import sample_images
from loldu.base.open import load_pipeline
from loldu.concept.reader import checksum
from loldu.errors import LoLDUError
from loldu.pictures.open import load_image
from trainer.__main__ import run as train

SIDE = 16
Capture = pytest.CaptureFixture[str]
SEEDS = [3, 5]


@pytest.fixture(scope="module")
def run_dir(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on two pictures, with two more held out."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    for name in ("pictures/0.png", "pictures/1.png", "pictures/held_out/2.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    status = train(
        [
            *("--pretrained_model_name_or_path", str(base_folder)),
            *("--instance_data_dir", str(folder / "pictures")),
            *("--instance_prompt", "a photo of a sks toy", "--class_prompt", "a photo of a toy"),
            *("--output_dir", str(folder), "--resolution", str(SIDE), "--rank", "4"),
            *("--max_train_steps", "3", "--learning_rate", "0.1"),
        ]
    )
    assert status == 0
    return folder


@pytest.fixture(scope="module")
def options(run_dir: Path, clip_folder: Path, dino_folder: Path) -> list[str]:
    """Return the command line of a small report, without its output folder."""
    return [
        *("adapter", "--concept", str(run_dir / "concept.safetensors")),
        *("--clip", str(clip_folder), "--dino", str(dino_folder), "--device", "cpu"),
        *("--no_cache", "--bootstrap_samples", "50"),
        *("--prompts", "a {token} {class_name}", "a {token} {class_name} on sand"),
        *("--other_prompts", "a {class_name}", "--num_inference_steps", "2"),
        *("--seeds", *map(str, SEEDS)),
    ]


@pytest.fixture
def flags(options: list[str], tmp_path: Path) -> list[str]:
    return [*options, "--output_dir", str(tmp_path / "out")]


@pytest.fixture(scope="module")
def report_dir(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert run([*options, "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def report(report_dir: Path) -> dict:
    return read(report_dir)


def read(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def mean_cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.cosine_similarity(a[:, None], b[None], dim=-1).mean().item()


def test_base_scores_are_those_of_pictures_drawn_without_the_concept(
    report: dict, run_dir: Path, base_folder: Path, clip_folder: Path, dino_folder: Path
) -> None:
    drawn = sample_images(
        load_pipeline(str(base_folder)),
        ["a sks toy", "a sks toy on sand"] * 2,
        [3, 3, 5, 5],
        num_inference_steps=2,
        progress=False,
    )
    truth = [load_image(run_dir / "pictures" / "held_out" / "2.png")]
    clip, dino = load_clip(str(clip_folder)), load_dino(str(dino_folder))
    seen = clip.encode_images(drawn)
    asked = clip.encode_texts(["a toy", "a toy on sand"] * 2)
    expected = {
        "dino": mean_cosine(dino.encode_images(drawn), dino.encode_images(truth)),
        "clip_i": mean_cosine(seen, clip.encode_images(truth)),
        "clip_t": torch.cosine_similarity(seen, asked).mean().item(),
        "clip_t_context": torch.cosine_similarity(
            seen, clip.encode_texts(["a photo", "on sand"] * 2)
        )
        .mean()
        .item(),
    }
    got = {metric: report["base"]["scores"][metric]["mean"] for metric in expected}
    assert got == pytest.approx(expected, abs=1e-5)


def test_the_concept_changes_what_is_drawn(report: dict) -> None:
    before, after = report["base"]["scores"], report["adapted"]["scores"]
    for metric in ("dino", "clip_i", "clip_t"):
        change = after[metric]["mean"] - before[metric]["mean"]
        assert change != 0
        assert report["gains"][metric]["mean"] == pytest.approx(change)


def test_other_prompts_change_only_if_the_concept_is_always_on(
    report: dict, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert report["others"]["adapted"] == report["others"]["base"]
    assert report["others"]["drift"] == pytest.approx(0, abs=1e-6)
    assert report["others"]["drift_dino"] == pytest.approx(0, abs=1e-6)
    assert "-0.0" not in json.dumps(report["others"])
    assert run([*flags, "--always_on"]) == 0
    others = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["others"]
    assert others["adapted"] != others["base"]
    assert 0 < others["drift"] < 1
    assert 0 < others["drift_dino"] < 0.5
    capsys.readouterr()
    assert run([*flags, "--leak", "--output_dir", str(tmp_path / "leak")]) == 0
    leak = read(tmp_path / "leak")["others"]
    both = {name: leak[name] for name in report["others"]}
    assert both == pytest.approx(report["others"], abs=1e-6)
    names = {"adapted": "always_on", "class_adapted": "class_always_on"}
    names |= {name: f"{name}_always_on" for name in ("drift", "drift_dino")}
    assert {name: leak[own] for name, own in names.items()} == pytest.approx(
        {name: others[name] for name in names}, abs=1e-5
    )
    table = capsys.readouterr().out
    change = leak["class_always_on"] - leak["class_base"]
    (line,) = (row for row in table.splitlines() if "class without the token, always on" in row)
    assert f"{change:+.3f}" in line
    assert "drift of other prompts, always on" in table


def test_real_scores_compare_training_with_held_out_pictures(
    report: dict, run_dir: Path, clip_folder: Path
) -> None:
    clip = load_clip(str(clip_folder))
    taught = [load_image(run_dir / "pictures" / f"{name}.png") for name in "01"]
    truth = [load_image(run_dir / "pictures" / "held_out" / "2.png")]
    expected = mean_cosine(clip.encode_images(taught), clip.encode_images(truth))
    assert report["real"]["clip_i"] == pytest.approx(expected, abs=1e-5)
    assert set(report["real"]) == {"dino", "clip_i", "copy_patches", "copy_pixels"}


def test_the_report_has_training_costs_and_prompts(report: dict, run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    assert report["train_steps"] == 3
    assert report["trainable_parameters"] == summary["trainable_parameters"]
    assert report["train_seconds"] == summary["train_seconds"]
    assert report["concept_bytes"] == (run_dir / "concept.safetensors").stat().st_size
    (subject,) = report["adapted"]["subjects"].values()
    asked = [picture["prompt"] for picture in subject["pictures"]]
    assert asked == ["a sks toy", "a sks toy on sand"] * 2
    assert report["seeds"] == SEEDS
    assert report["drawn_with"]["torch"] == version("torch")


def test_the_picture_holds_five_rows_of_pictures(report_dir: Path) -> None:
    sheet = load_image(report_dir / "report.png")
    assert sheet.width > 6 * 160
    assert sheet.height > 5 * 160


def test_training_pictures_are_compared_with_each_other_when_none_are_held_out(
    flags: list[str], run_dir: Path, dino_folder: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("0.png", "1.png"):
        shutil.copy(run_dir / "pictures" / name, alone)
    assert run([*flags, "--real", str(alone)]) == 0
    report = read(tmp_path / "out")
    first, second = load_dino(str(dino_folder)).encode_images(
        [load_image(alone / "0.png"), load_image(alone / "1.png")]
    )
    expected = torch.cosine_similarity(first, second, dim=0).item()
    assert report["real"]["dino"] == pytest.approx(expected, abs=1e-5)


def test_a_concept_without_its_run_is_reported_without_training_costs(
    flags: list[str],
    run_dir: Path,
    base_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(run_dir / "concept.safetensors", tmp_path)
    moved = [*flags, "--concept", str(tmp_path / "concept.safetensors")]
    base_flags = [
        "--pretrained_model_name_or_path",
        str(base_folder),
        "--real",
        str(run_dir / "pictures"),
    ]
    assert run(moved) == 2
    assert "--real" in capsys.readouterr().err
    assert run([*moved, *base_flags]) == 0
    report = read(tmp_path / "out")
    assert report["train_seconds"] is None
    assert report["concept_bytes"] > 0


def test_an_earlier_report_is_replaced_only_on_request(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out" / "report.json"
    path.parent.mkdir()
    path.write_text('{"adapted": 0}', encoding="utf-8")
    assert run(flags) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == '{"adapted": 0}'
    assert run([*flags, "--overwrite"]) == 0
    assert "gains" in json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "name", ["report.json", "report.html", "report.png", "pictures/base/concept/000-3.png"]
)
def test_files_of_somebody_else_are_never_replaced(
    name: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine", encoding="utf-8")
    assert run([*flags, "--overwrite"]) == 2
    assert f"{path} would be replaced, but this command did not" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--concept", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--prompts"], "--prompts is empty"),
        (["--prompts", "a {colour} toy"], "{class_name}"),
        (["--real", "nowhere"], "nowhere"),
        (["--dino", "/no/such/folder"], "--dino"),
        (["--preset", "nosuch"], "dreambooth, pocket"),
    ],
)
def test_mistakes_give_one_line(
    flags: list[str], more: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*flags, *more]) == 2
    message = capsys.readouterr().err.strip()
    assert expected in message
    assert "\n" not in message


def test_a_second_call_draws_only_missing_pictures(
    report_dir: Path, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(report_dir, tmp_path / "again")
    again = [*options, "--output_dir", str(folder), "--overwrite"]
    gone = folder / "pictures" / "adapted" / "concept" / "001-5.png"
    was = load_image(gone)
    gone.unlink()
    drawn: list[str] = []

    def recorded(pipeline, prompts: list[str], *rest, **more) -> list[Image.Image]:  # noqa: ANN001, ANN002, ANN003
        drawn.extend(prompts)
        return sample_images(pipeline, prompts, *rest, **more)

    monkeypatch.setattr("eval.protocols.drawing.sample_images", recorded)
    assert run(again) == 0
    assert drawn == ["a sks toy on sand"]
    difference = np.asarray(load_image(gone), dtype=int) - np.asarray(was, dtype=int)
    assert np.abs(difference).max() <= 1  # another batch rounds otherwise
    for metric, score in read(report_dir)["adapted"]["scores"].items():
        assert read(folder)["adapted"]["scores"][metric] == pytest.approx(score, abs=1e-3)


def test_pictures_with_other_settings_are_replaced_only_on_request(
    report_dir: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(report_dir / "pictures", folder / "pictures")
    again = [*options, "--output_dir", str(folder), "--num_inference_steps", "3"]
    assert run(again) == 2
    message = capsys.readouterr().err.strip()
    assert "000-3.png" in message
    assert "--overwrite" in message
    assert not (folder / "report.json").exists()
    assert run([*again, "--overwrite"]) == 0
    assert read(folder)["num_inference_steps"] == 3


def test_the_page_shows_before_after_and_the_nearest(report_dir: Path, report: dict) -> None:
    page = (report_dir / "report.html").read_text(encoding="utf-8")
    assert list(report["verdict"]) == [
        *("looks_like_it", "obeys_the_prompt", "hurts_other_prompts", "copies_a_training_picture"),
    ]
    assert report["verdict"]["hurts_other_prompts"]["answer"] == "no"  # it acts on its prompts
    assert report["other_changes"] == {"adapted": {"mean": 0.0, "low": 0.0, "high": 0.0}}
    answers = [
        page.index(f"<strong>{one['answer']}</strong>") for one in report["verdict"].values()
    ]
    assert max(answers) < page.index("<figcaption>before") < page.index("<table>")
    again = BeforeAfter.from_json(report)
    assert verdict_json(again.verdict) == report["verdict"]
    older = {name: value for name, value in report.items() if name != "other_changes"}
    assert [one.answer for one in BeforeAfter.from_json(older).verdict][2] == "no"
    assert page.count("<figcaption>nearest real one") == 4
    assert page.count("<figcaption>before") == 6
    assert "a sks toy on sand" in page


def test_every_prompt_is_drawn_from_every_seed(tmp_path: Path) -> None:
    wanted = plan_pictures(tmp_path, ["a", "b"], (7, 8))
    assert [(one.path.name, one.prompt, one.seed) for one in wanted] == [
        ("000-7.png", "a", 7),
        ("001-7.png", "b", 7),
        ("000-8.png", "a", 8),
        ("001-8.png", "b", 8),
    ]


@pytest.mark.parametrize("base", [[1, 2], {"vae": 5}], ids=str)
def test_metadata_of_another_type_is_one_sentence(
    base: object, options: list[str], run_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "concept.safetensors"
    metadata = json.loads(json.dumps(read_concept(run_dir / file.name).metadata))
    forge_metadata(run_dir / file.name, file, {**metadata, "base": base})
    assert run([*with_concept(options, file), "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "metadata.base" in error
    assert error.count("\n") == 1


def test_a_base_is_loaded_from_a_file_alone_only_if_one_says_so(
    options: list[str],
    run_dir: Path,
    base_folder: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = Path(shutil.copy(run_dir / "concept.safetensors", tmp_path))
    claimed = {"vae": "some/vae", "revision": "main", "clip_skip": 0}
    forge_metadata(file, file, {**read_concept(file).metadata, "base": claimed}, base="some/base")
    command = with_concept(options, file)
    command += ["--real", str(run_dir / "pictures"), "--output_dir", str(tmp_path / "out")]
    asked: list[BaseModelConfig] = []

    def load(base: BaseModelConfig, **_: object) -> None:
        asked.append(base)
        raise LoLDUError("that will do")

    monkeypatch.setattr(adapter, "load_pipeline", load)
    assert run(command) == 2
    assert "names the base some/base, but a file may say anything" in capsys.readouterr().err
    assert not asked
    mine = ["--pretrained_model_name_or_path", str(base_folder)]
    assert run([*command, *mine]) == 2
    assert run([*command, "--trust_concept"]) == 2
    assert asked == [
        BaseModelConfig(str(base_folder)),
        BaseModelConfig("some/base", vae="some/vae", revision="main"),
    ]


def test_damaged_files_of_the_run_are_one_sentence(
    options: list[str], run_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    summary = "summary.json"
    for name, content in (("config.toml", "base = ["), (summary, "[1"), (summary, "[]")):
        folder = tmp_path / f"{name}{content}".replace("/", "")
        folder.mkdir()
        for own in ("concept.safetensors", "config.toml", "summary.json"):
            shutil.copy(run_dir / own, folder)
        (folder / name).write_text(content)
        command = with_concept(options, folder / "concept.safetensors")
        assert run([*command, "--output_dir", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert name in error
        assert error.count("\n") == 1


def with_concept(options: list[str], file: Path) -> list[str]:
    place = options.index("--concept") + 1
    return [*options[:place], str(file), *options[place + 1 :]]


def forge_metadata(source: Path, target: Path, metadata: object, base: str = "base") -> None:
    """Write a concept with any metadata and a checksum that fits."""
    arrays = load_file(source)
    with safe_open(source, "numpy") as file:
        header = file.metadata()
    description = json.loads(header["description"]) | {"metadata": metadata, "base": base}
    header["description"] = json.dumps(description)
    header["checksum"] = checksum(header["description"], arrays)
    save_file(arrays, target, header)
