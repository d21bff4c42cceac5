"""`python -m eval images`, on folders of noise and tiny scoring models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel, ViTModel

from eval.__main__ import run
from eval.encoders.load import load_clip, load_dino

CONCEPTS = Path(__file__).parents[3] / "datasets" / "concepts"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
DINO_MEAN, DINO_STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def save_pictures(folder: Path, count: int, seed: int) -> list[Image.Image]:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    images = [Image.fromarray(picture) for picture in pixels]
    for index, image in enumerate(images):
        image.save(folder / f"{index:02}.png")
    return images


@pytest.fixture
def flags(clip_folder: Path, dino_folder: Path, tmp_path: Path) -> list[str]:
    return [
        "images",
        *("--generated", str(tmp_path / "generated"), "--real", str(tmp_path / "real")),
        *("--clip", str(clip_folder), "--dino", str(dino_folder), "--device", "cpu"),
        *("--json", str(tmp_path / "scores.json"), "--no_cache", "--bootstrap_samples", "50"),
    ]


def result(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))


def means(tmp_path: Path) -> dict[str, float]:
    return {metric: score["mean"] for metric, score in result(tmp_path)["scores"].items()}


def mean_cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.cosine_similarity(a[:, None], b[None], dim=-1).mean().item()


def test_one_subject(
    flags: list[str],
    clip_folder: Path,
    dino_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    generated = save_pictures(tmp_path / "generated", 3, seed=0)
    real = save_pictures(tmp_path / "real", 2, seed=1)
    (tmp_path / "prompts").write_text("a sks toy\na sks toy on sand\nsks toy\n", encoding="utf-8")
    assert run([*flags, "--prompts", str(tmp_path / "prompts"), "--token", "sks"]) == 0
    clip, dino = load_clip(str(clip_folder)), load_dino(str(dino_folder))
    seen, asked = clip.encode_images(generated), ["a toy", "a toy on sand", "toy"]
    expected = {
        "dino": mean_cosine(dino.encode_images(generated), dino.encode_images(real)),
        "clip_i": mean_cosine(seen, clip.encode_images(real)),
        "clip_t": torch.cosine_similarity(seen, clip.encode_texts(asked)).mean().item(),
    }
    got = means(tmp_path)
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    printed = capsys.readouterr().out
    assert f"| {means(tmp_path)['dino']:.3f} [" in printed
    report = result(tmp_path)
    assert report["protocol"]["token"] == "sks"
    assert report["extractors"]["dino"]["preprocess"]["resize_px"] == 32
    (subject,) = report["subjects"].values()
    assert [picture["prompt"] for picture in subject["pictures"]] == [
        "a sks toy",
        "a sks toy on sand",
        "sks toy",
    ]
    matrix = dino.encode_images(generated) @ dino.encode_images(real).T
    nearest = [picture["nearest"] for picture in subject["pictures"]]
    assert nearest == [f"{place:02}.png" for place in matrix.argmax(dim=1)]


def test_real_pictures_by_a_plain_loop(
    flags: list[str], clip_folder: Path, dino_folder: Path, tmp_path: Path
) -> None:
    """Compute every score again with numpy, from the networks of transformers."""
    generated, real = CONCEPTS / "striped_cat", CONCEPTS / "striped_cat" / "held_out"
    folders = ["--generated", str(generated), "--real", str(real)]
    assert run([*flags, *folders, "--prompt", "a striped cat"]) == 0
    clip = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32).eval()
    dino = ViTModel.from_pretrained(dino_folder, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(clip_folder)("a striped cat", return_tensors="pt")

    def seen(folder: Path) -> dict[str, list[np.ndarray]]:
        found: dict[str, list[np.ndarray]] = {"clip": [], "dino": [], "all": []}
        for path in sorted(folder.glob("*.png")):
            image = Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
            pixels = np.asarray(image, dtype=np.float64) / 255
            for name, mean, std in (("clip", CLIP_MEAN, CLIP_STD), ("dino", DINO_MEAN, DINO_STD)):
                given = torch.tensor((pixels - mean) / std).permute(2, 0, 1)[None].float()
                with torch.no_grad():
                    row = (
                        clip.visual_projection(clip.vision_model(given).pooler_output)
                        if name == "clip"
                        else dino(given).last_hidden_state[:, 0]
                    )
                    if name == "dino":
                        found["all"].append(dino(given).last_hidden_state[0, 1:].double().numpy())
                found[name].append(row[0].double().numpy())
        return found

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    def of_places(a: np.ndarray, b: np.ndarray) -> float:
        """Pictures of 32 pixels have 4 x 4 patches, so that none are averaged."""
        return float(np.mean([cosine(x, y) for x, y in zip(a, b, strict=True)]))

    drawn, true = seen(generated), seen(real)
    with torch.no_grad():
        text = clip.text_projection(clip.text_model(**tokens).pooler_output)[0].double().numpy()
    count = len(drawn["dino"])
    others = [(i, j) for i in range(count) for j in range(count) if i != j]
    expected = {
        "dino": np.mean([cosine(g, r) for g in drawn["dino"] for r in true["dino"]]),
        "clip_i": np.mean([cosine(g, r) for g in drawn["clip"] for r in true["clip"]]),
        "clip_t": np.mean([cosine(g, text) for g in drawn["clip"]]),
        "diversity": 1 - np.mean([cosine(drawn["dino"][i], drawn["dino"][j]) for i, j in others]),
        "copy_patches": np.mean([max(of_places(g, r) for r in true["all"]) for g in drawn["all"]]),
    }
    assert (count, len(true["dino"])) == (5, 4)
    got = means(tmp_path)
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    own = max(of_places(a, b) for i, a in enumerate(true["all"]) for b in true["all"][i + 1 :])
    pictures = result(tmp_path)["subjects"]["striped_cat"]["pictures"]
    near = [1 - one["copy_patches"] < (1 - own) / 4 for one in pictures]
    assert all(
        one["near_copies"] == 1 for one, is_near in zip(pictures, near, strict=True) if is_near
    )
    assert set(got) == {*expected, "copy_pixels", "near_copies"}


def test_json_can_take_the_place_of_the_table(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pictures(tmp_path / "generated", 2, seed=0)
    save_pictures(tmp_path / "real", 2, seed=1)
    assert run([*flags, "--json", "-", "--html", str(tmp_path / "page.html")]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "loldu-eval-1"
    assert "<h2>generated</h2>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_subjects_are_matched_by_name_and_count_the_same(flags: list[str], tmp_path: Path) -> None:
    for seed, (name, count) in enumerate({"cup": 1, "dog": 3}.items()):
        save_pictures(tmp_path / "generated" / name, count, seed)
        save_pictures(tmp_path / "real" / name, 2, seed + 10)
    assert run(flags) == 0
    cup, dog = (result(tmp_path)["subjects"][name] for name in ("cup", "dog"))
    assert (len(cup["pictures"]), len(dog["pictures"])) == (1, 3)
    own = [subject["scores"]["dino"] for subject in (cup, dog)]
    assert means(tmp_path)["dino"] == pytest.approx(sum(own) / 2)
    assert "diversity" not in means(tmp_path)  # one picture has none
    assert run([*flags, "--aggregate", "micro", "--overwrite"]) == 0
    assert means(tmp_path)["dino"] == pytest.approx((own[0] + 3 * own[1]) / 4)


def test_captions_beside_the_pictures_are_their_prompts(flags: list[str], tmp_path: Path) -> None:
    save_pictures(tmp_path / "generated", 2, seed=0)
    save_pictures(tmp_path / "real", 2, seed=1)
    assert run([*flags, "--prompt", "a red car"]) == 0
    from_flag = means(tmp_path)["clip_t"]
    for name in ("00.txt", "01.txt"):
        (tmp_path / "generated" / name).write_text("a red car\n", encoding="utf-8")
    assert run([*flags, "--overwrite"]) == 0
    assert means(tmp_path)["clip_t"] == from_flag


def test_other_protocols(
    flags: list[str], clip_folder: Path, dino_folder: Path, tmp_path: Path
) -> None:
    generated = save_pictures(tmp_path / "generated", 3, seed=0)
    real = save_pictures(tmp_path / "real", 3, seed=1)
    asked = ["--prompt", "a sks toy", "--token", "sks", "--keep_token", "--clip_t_scale", "2.5"]
    assert run([*flags, *asked, "--pairs", "matched"]) == 0
    clip, dino = load_clip(str(clip_folder)), load_dino(str(dino_folder))
    seen = dino.encode_images(generated)
    pairs = torch.cosine_similarity(seen, dino.encode_images(real)).mean().item()
    assert means(tmp_path)["dino"] == pytest.approx(pairs, abs=1e-5)
    drawn, text = clip.encode_images(generated), clip.encode_texts(["a sks toy"])
    scaled = 2.5 * torch.cosine_similarity(drawn, text).clamp(min=0).mean().item()
    assert means(tmp_path)["clip_t"] == pytest.approx(scaled, abs=1e-5)
    alike = [(seen[i] @ seen[j]).item() for i in range(3) for j in range(3) if i != j]
    assert means(tmp_path)["diversity"] == pytest.approx(1 - sum(alike) / 6, abs=1e-5)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--prompts", "{tmp}/one_line"], "1 lines for the 3 pictures"),
        (["--prompts", "{tmp}/nowhere"], "is not a file"),
        (["--prompts", "{tmp}/one.json"], "no prompt for 01.png"),
        (["--pairs", "matched"], "has 2 and 3"),
        (["--generated", "{tmp}/nowhere"], "nowhere"),
        (["--generated", "{tmp}/subjects"], "has no folder"),
        (["--json", "{tmp}/one_line"], "--overwrite"),
        (["--clip", "open_clip:ViT-B-32-quickgelu/nosuch"], "--clip"),
    ],
)
def test_mistakes_give_one_line(
    flags: list[str],
    more: list[str],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_pictures(tmp_path / "generated", 3, seed=0)
    save_pictures(tmp_path / "real", 2, seed=1)
    (tmp_path / "one.json").write_text('{"00": "a toy"}', encoding="utf-8")
    save_pictures(tmp_path / "subjects" / "cup", 1, seed=2)
    (tmp_path / "one_line").write_text("a toy\n", encoding="utf-8")
    assert run([*flags, *(text.format(tmp=tmp_path) for text in more)]) == 2
    message = capsys.readouterr().err.strip()
    assert expected in message
    assert "\n" not in message
