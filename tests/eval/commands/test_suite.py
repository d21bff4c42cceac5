"""`python -m eval suite` end to end: tiny concepts of a tiny base, tiny scoring models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from eval.__main__ import run
from eval.encoders.load import load_clip
from eval.protocols import drawing
from loldu import LoLDUConfig, load_concept, save_concept
from loldu.base.draw import sample_images
from loldu.base.open import load_pipeline
from tests.eval.noise import save_noise

SUITE = """prompts = ["a {token} {class_name}", "a {token} {class_name} on sand"]
[[subject]]
name = "cup"
class_name = "cup"
real = "photos/cup"
[[subject]]
name = "dog"
class_name = "pup"
real = "photos/dog"
"""


def teach(base: Path, path: Path, seed: int, place: str | None = None) -> None:
    """Save a random concept, and the part of a run's config that names the base."""
    pipeline = load_pipeline(str(base))
    pipeline.unet.add_adapter(LoLDUConfig(r=4, init_weights=False, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    for weight in (weight for weight in pipeline.unet.parameters() if weight.requires_grad):
        weight.data += 5 * torch.randn(weight.shape, generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_concept(pipeline, path)
    text = f'[base]\npretrained_model_name_or_path = "{place or base}"\n'
    path.with_name("config.toml").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def concepts(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a concept in the folder of its run, and a copy elsewhere."""
    folder = tmp_path_factory.mktemp("concepts")
    teach(base_folder, folder / "cup" / "concept.safetensors", 0)
    teach(base_folder, folder / "dog.safetensors", 1)
    return folder


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    for seed, name in enumerate(("cup", "dog")):
        save_noise(tmp_path / "photos" / name, ["0.png", "1.png"], seed)
    path = tmp_path / "suite.toml"
    path.write_text(SUITE, encoding="utf-8")
    return path


@pytest.fixture
def flags(suite: Path, scoring: list[str], tmp_path: Path) -> list[str]:
    return [
        *("suite", "--suite", str(suite), "--pictures", str(tmp_path / "drawn"), *scoring),
        *("--json", str(tmp_path / "result.json"), "--overwrite", "--bootstrap_samples", "10"),
    ]


@pytest.fixture
def to_draw(flags: list[str], concepts: Path) -> list[str]:
    return [
        *flags,
        *("--concepts", str(concepts), "--seeds", "3", "5", "--num_inference_steps", "1"),
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of pictures when they are drawn."""
    names = []

    def save(image: Image.Image, path: Path, message: str) -> None:
        names.append(f"{path.parent.name}/{path.name}")
        save_png(image, path, message)

    save_png = drawing.save_png
    monkeypatch.setattr(drawing, "save_png", save)
    return names


def result(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))


def prompts(tmp_path: Path, subject: str) -> dict[str, str]:
    return {p["name"]: p["prompt"] for p in result(tmp_path)["subjects"][subject]["pictures"]}


ALL = {f"{name}/00{n}-{s}.png" for name in ("cup", "dog") for n in (0, 1) for s in (3, 5)}


def test_a_suite_is_drawn_and_scored_and_resumes(
    to_draw: list[str], tmp_path: Path, drawn: list[str]
) -> None:
    assert run(to_draw) == 0
    assert set(drawn) == ALL
    first = result(tmp_path)
    assert prompts(tmp_path, "dog")["001-5.png"] == "a sks pup on sand"
    assert first["protocol"]["token"] == "sks"
    assert first["subjects"]["cup"]["real"] == 2

    lost = ["cup/001-5.png", "dog/000-3.png", "dog/001-3.png"]
    kept = tmp_path / "drawn" / "cup" / "000-3.png"
    before = kept.stat().st_mtime_ns
    for name in lost:
        (tmp_path / "drawn" / name).unlink()
    drawn.clear()
    assert run([*to_draw, "--batch_size", "1"]) == 0  # which changes no picture
    assert sorted(drawn) == lost
    assert kept.stat().st_mtime_ns == before
    again = result(tmp_path)
    for metric in ("dino", "clip_i", "clip_t", "diversity"):
        mean = again["scores"][metric]["mean"]
        assert mean == pytest.approx(first["scores"][metric]["mean"], abs=1e-3)

    drawn.clear()
    assert run([*to_draw, "--subjects", "dog"]) == 0
    assert not drawn
    assert list(result(tmp_path)["subjects"]) == ["dog"]


def test_every_subject_is_drawn_with_its_own_concept(
    to_draw: list[str], base_folder: Path, concepts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted = []

    def spy(pipeline: StableDiffusionPipeline, *asked: Any, **how: Any) -> list[Image.Image]:  # noqa: ANN401
        predicted.append(predict(pipeline))
        return sample_images(pipeline, *asked, **how)

    monkeypatch.setattr(drawing, "sample_images", spy)
    assert run([*to_draw, "--seeds", "3"]) == 0
    cup, dog = predicted
    assert (cup - dog).abs().max() > 1e-2
    for found, name in ((cup, "cup/concept.safetensors"), (dog, "dog.safetensors")):
        pipeline = load_pipeline(str(base_folder))
        load_concept(pipeline, concepts / name)
        torch.testing.assert_close(found, predict(pipeline), atol=1e-4, rtol=0)


@torch.no_grad()
def predict(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    """Return the UNet's output for a fixed noise and a prompt."""
    generator = torch.Generator().manual_seed(0)
    latents, prompt = (
        torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 5, 16))
    )
    return pipeline.unet(latents, 500, prompt).sample


def test_pictures_with_other_settings_are_replaced_only_on_request(
    to_draw: list[str], tmp_path: Path, drawn: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cup = [*to_draw, "--subjects", "cup", "--seeds", "3"]
    assert run(cup) == 0
    other = [*cup, "--guidance_scale", "1"]
    capsys.readouterr()
    drawn.clear()
    assert run(other) == 2
    assert_one_line(capsys, "exists with other settings; replace such pictures with --redraw")
    assert not drawn
    assert run([*other, "--redraw"]) == 0
    assert sorted(drawn) == ["cup/000-3.png", "cup/001-3.png"]
    mine = tmp_path / "drawn" / "cup" / "001-3.png"
    for made in (b"", b"my own notes"):
        mine.write_bytes(made)
        drawn.clear()
        for flags in ([], ["--redraw"]):
            assert run([*other, *flags]) == 2
            assert "001-3.png would be replaced" in capsys.readouterr().err
        assert (drawn, mine.read_bytes()) == ([], made)


@pytest.mark.parametrize("given_in", ["name", "sidecar", "metadata", "prompts_json"])
def test_existing_pictures_hold_their_prompts(
    flags: list[str], tmp_path: Path, given_in: str, clip_folder: Path
) -> None:
    names = ["000-9.png", "001-9.png"] if given_in == "name" else ["a.png", "b.png"]
    texts = ["a sks cup", "a sks cup on sand"]
    folder = tmp_path / "drawn" / "cup"
    paths = save_noise(folder / "samples" if given_in == "prompts_json" else folder, names, 9)
    if given_in == "sidecar":
        for path, text in zip(paths, texts, strict=True):
            path.with_suffix(".txt").write_text(text, encoding="utf-8")
    if given_in == "metadata":
        lines = [{"file_name": n, "text": t} for n, t in zip(names, texts, strict=True)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    if given_in == "prompts_json":
        (folder / "prompts.json").write_text(json.dumps({"a": texts[0], "b": texts[1]}))
    assert run([*flags, "--subjects", "cup"]) == 0
    assert prompts(tmp_path, "cup") == dict(zip(names, texts, strict=True))
    clip = load_clip(str(clip_folder))
    images = [Image.open(path) for path in paths]
    rows = clip.encode_images(images), clip.encode_texts(["a cup", "a cup on sand"])
    expected = torch.cosine_similarity(*rows).mean().item()
    assert result(tmp_path)["scores"]["clip_t"]["mean"] == pytest.approx(expected, abs=1e-5)


def test_mistakes_before_drawing(
    to_draw: list[str],
    flags: list[str],
    suite: Path,
    tmp_path: Path,
    drawn: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(command: list[str], message: str) -> None:
        assert run(command) == 2
        assert_one_line(capsys, message)
        assert not drawn

    refused([*to_draw, "--subjects", "fox"], "--subjects fox is not in the suite; it has cup, dog")
    refused([*to_draw, "--concepts", str(tmp_path)], "has no concept of cup: neither cup.safe")
    refused([*to_draw, "--seeds"], "--seeds is empty")
    refused([*to_draw, "--seeds", "3", "3"], "--seeds has a duplicate")
    refused([*to_draw, "--batch_size", "0"], "--batch_size is 0; it must be at least 1")
    refused(flags, "There is no folder")
    save_noise(tmp_path / "drawn" / "cup", ["a.png"])
    refused([*flags, "--subjects", "cup"], "The prompts of")
    suite.write_text(SUITE.replace("photos/dog", "nowhere"), encoding="utf-8")
    refused(to_draw, "nowhere")
    suite.write_text(SUITE.replace("on sand", "{on} sand"), encoding="utf-8")
    refused(to_draw, '"a {token} {class_name} {on} sand" has a placeholder')


def test_concepts_that_cannot_be_drawn_with_one_base(
    to_draw: list[str],
    concepts: Path,
    base_folder: Path,
    tmp_path: Path,
    drawn: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other"
    pipeline = load_pipeline(str(base_folder))
    pipeline.unet.load_state_dict(
        {name: weight * 1.5 for name, weight in pipeline.unet.state_dict().items()}
    )
    pipeline.save_pretrained(other)
    mixed = tmp_path / "mixed"
    shutil.copytree(concepts, mixed)
    (mixed / "dog.safetensors").unlink()
    flags = [*to_draw, "--concepts", str(mixed)]

    teach(other, mixed / "dog" / "concept.safetensors", 1)
    assert run(flags) == 2
    assert_one_line(capsys, "The concepts of dog and cup were trained on different bases")
    # Said to be of the same base, it is still seen that it is not, before cup is drawn.
    assert run([*flags, "--pretrained_model_name_or_path", str(base_folder)]) == 2
    assert_one_line(capsys, "dog")
    (mixed / "dog" / "concept.safetensors").write_bytes(b"no concept")
    assert run(flags) == 2
    assert_one_line(capsys, "dog")
    assert not drawn


def assert_one_line(capsys: pytest.CaptureFixture[str], message: str) -> None:
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not captured.out
