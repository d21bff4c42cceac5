"""Scores of other prompts, from pictures on disk, by plain loops."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from eval.config import ModelsConfig
from eval.encoders.load import load_clip, load_dino
from eval.protocols.others import score_others
from eval.protocols.prompts import PlannedPicture, plan_pictures
from eval.protocols.score import FeatureReader
from tests.eval.noise import save_noise

PROMPTS = ["a toy", "a car", "a toyshop", "Toy on sand"]


def drawn(folder: Path, seed: int) -> list[PlannedPicture]:
    planned = plan_pictures(folder, PROMPTS, [0])
    save_noise(folder, [one.path.name for one in planned], seed)
    return planned


def test_other_prompts_are_scored_in_each_way(
    clip_folder: Path, dino_folder: Path, tmp_path: Path
) -> None:
    models = ModelsConfig(clip=str(clip_folder), dino=str(dino_folder), device="cpu", cache=False)
    ways = {w: drawn(tmp_path / w, n) for n, w in enumerate(("base", "adapted", "always_on"))}
    real = save_noise(tmp_path / "real", ["0.png", "1.png"], 9)
    got, changes = score_others(FeatureReader(models), ways, real, "toy", 50)
    clip, dino = load_clip(str(clip_folder)), load_dino(str(dino_folder))
    images = {way: [Image.open(one.path) for one in own] for way, own in ways.items()}
    seen = {way: clip.encode_images(own).double() for way, own in images.items()}
    looks = {way: dino.encode_images(own).double() for way, own in images.items()}
    truth = dino.encode_images([Image.open(path) for path in real]).double()
    asked = clip.encode_texts(PROMPTS).double()
    expected = {}
    for way, own in ways.items():
        expected[way] = (seen[way] * asked).sum(1).mean().item()
        expected[f"class_{way}"] = (looks[way][[0, 3]] @ truth.T).mean().item()
        if own is not ways["base"]:
            end = "" if way == "adapted" else "_always_on"
            expected[f"drift{end}"] = 1 - (seen[way] * seen["base"]).sum(1).mean().item()
            same = (looks[way] * looks["base"]).sum(1).mean().item()
            expected[f"drift_dino{end}"] = (1 - same) / 2
    assert got == pytest.approx(expected, abs=1e-5)
    changed = {way: ((seen[way] - seen["base"]) * asked).sum(1) for way in changes}
    assert set(changed) == {"adapted", "always_on"}
    for way, values in changed.items():
        assert changes[way].mean == pytest.approx(values.mean().item(), abs=1e-6)
        assert values.min() <= changes[way].low < changes[way].mean < changes[way].high
        assert changes[way].high <= values.max()
    del ways["always_on"]
    without, _ = score_others(FeatureReader(models), ways, real, "boat")
    assert set(without) == {"base", "adapted", "drift", "drift_dino"}
    assert torch.tensor([*without.values()]).isfinite().all()
