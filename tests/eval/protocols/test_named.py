"""`--protocol NAME`: which options it sets, and PEFT's numbers from PEFT's own steps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, BitImageProcessor, Dinov2Config, Dinov2Model

from eval.__main__ import parse, run
from eval.config import ImagesConfig, ProtocolConfig, SuiteConfig
from eval.encoders.load import load_dino
from eval.metrics import METRICS, Sample
from eval.protocols.named import PROTOCOLS
from eval.protocols.score import Picture, Subject, pairs_of
from loldu.errors import LoLDUError
from tests.eval.noise import save_noise

CONCEPTS = Path(__file__).parents[3] / "datasets" / "concepts"
FOLDERS = ["--generated", "g", "--real", "r"]


def test_a_protocol_sets_models_pairs_means_and_drawing() -> None:
    config = parse(["images", *FOLDERS, "--protocol", "dreambench++"])
    assert isinstance(config, ImagesConfig)
    assert config.protocol == ProtocolConfig(
        protocol="dreambench++", pairs="matched", aggregate="micro"
    )
    assert config.models.dino == "timm:vit_small_patch8_224.dino"
    suite = parse(["suite", "--suite", "s", "--pictures", "p", "--protocol", "peft"])
    assert isinstance(suite, SuiteConfig)
    assert (suite.models.dino, suite.protocol.pairs) == ("facebook/dinov2-base", "matched")
    drawing = suite.drawing
    assert (drawing.seeds, drawing.num_inference_steps, drawing.guidance_scale) == (
        (0, 1, 2),
        20,
        3.5,
    )
    plain = parse(["images", *FOLDERS])
    named = parse(["images", *FOLDERS, "--protocol", "dreambooth"])
    assert named.models == plain.models
    assert vars(named.protocol) == vars(plain.protocol) | {"protocol": "dreambooth"}
    assert parse(["images", *FOLDERS, "--protocol", "customconcept"]).protocol.clip_t_scale == 2.5


def test_flags_and_presets_win_over_models_and_drawing_and_must_agree_on_scores() -> None:
    flags = ["suite", "--suite", "s", "--pictures", "p", "--protocol", "peft"]
    own = parse([*flags, "--dino", "copy/of/dinov2", "--seeds", "7", "--pairs", "matched"])
    assert (own.models.dino, own.drawing.seeds) == ("copy/of/dinov2", (7,))
    with pytest.raises(LoLDUError, match="--pairs all contradicts --protocol peft, which sets mat"):
        parse([*flags, "--pairs", "all"])
    adapter = ["adapter", "--concept", "c", "--output_dir", "o", "--preset", "pocket"]
    pocket = parse([*adapter, "--protocol", "peft"])
    assert "pocket" in pocket.models.dino
    assert (pocket.drawing.num_inference_steps, pocket.protocol.pairs) == (20, "matched")
    assert set(PROTOCOLS) == {"dreambooth", "customconcept", "dreambench++", "peft"}


def subject(names: list[str], real: int) -> Subject:
    pictures = [Picture(Path("drawn") / name) for name in names]
    return Subject("toy", pictures, [Path("real") / f"{number}.png" for number in range(real)])


def test_pictures_have_the_real_one_of_their_place_their_prompt_or_the_only_one() -> None:
    def numbers(names: list[str], real: int) -> list[str]:
        return [path.stem for path in pairs_of(subject(names, real)).values()]

    assert numbers(["b.png", "a.png", "001-0.png"], 3) == ["0", "1", "2"]
    repeated = ["000-0.png", "000-1.png", "001-0.png", "001-1.png", "002-0.png", "002-1.png"]
    assert numbers(repeated, 3) == ["0", "0", "1", "1", "2", "2"]
    assert numbers(["a.png", "b.png"], 1) == ["0", "0"]
    for names in (["a.png", "b.png", "c.png"], ["000-0.png", "001-0.png", "002-0.png"]):
        with pytest.raises(LoLDUError, match="toy has 2 and 3; name the generated ones PROMPT"):
            numbers(names, 2)


def test_a_picture_that_is_left_out_takes_its_pair_with_it(
    scoring: list[str], tmp_path: Path, dino_folder: Path
) -> None:
    """One bad picture on each side left as many of both, and shifted the pairs between them."""
    drawn = save_noise(tmp_path / "drawn", [f"{n}.png" for n in range(4)])
    real = save_noise(tmp_path / "real", [f"{n}.png" for n in range(4)], seed=1)
    drawn[0].write_bytes(b"")
    real[2].write_bytes(b"")
    flags = ["images", "--generated", str(drawn[0].parent), "--real", str(real[0].parent), *scoring]
    out = tmp_path / "out.json"
    assert run([*flags, "--json", str(out), "--pairs", "matched", "--skip_bad"]) == 0
    (found,) = json.loads(out.read_text())["subjects"].values()
    dino = load_dino(str(dino_folder))
    expected = {
        path.name: (dino.encode_images([Image.open(path)]) @ dino.encode_images([Image.open(r)]).T)
        for path, r in zip(drawn, real, strict=True)
        if path.name in ("1.png", "3.png")
    }
    got = {picture["name"]: picture["dino"] for picture in found["pictures"]}
    assert got == pytest.approx({name: value.item() for name, value in expected.items()}, abs=1e-5)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny DINOv2 with random weights and the image processor of the published one."""
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    size: dict[str, Any] = {"image_size": 28, "patch_size": 7, "mlp_ratio": 2}
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, **size)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 28, "width": 28},
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder


def as_peft(folder: Path, images: list[Image.Image]) -> torch.Tensor:
    """Embed pictures as PEFT's `method_comparison/image-gen` does: processor, CLS, unit length."""
    processor, model = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        rows = [
            model(**processor(images=[image], return_tensors="pt")).last_hidden_state[:, 0]
            for image in images
        ]
    return torch.nn.functional.normalize(torch.cat(rows), dim=-1)


def test_peft_numbers_are_those_of_peft(dinov2: Path, scoring: list[str], tmp_path: Path) -> None:
    """Two repeats of three prompts; prompt i has the i-th real picture, and none is a square."""
    real = sorted((CONCEPTS / "striped_cat").glob("*.png"))[:3]
    drawn = sorted((CONCEPTS / "tall_bear").glob("*.png"))[:3] * 2
    pictures: dict[str, list[Image.Image]] = {"real": [], "drawn": []}
    for number, path in enumerate(drawn):
        for kind, origin, name in (
            ("real", real[number % 3], f"{number % 3}.png"),
            ("drawn", path, f"00{number % 3}-{number // 3}.png"),
        ):
            (tmp_path / kind).mkdir(exist_ok=True)
            image = (
                Image.open(origin).convert("RGB").crop((0, number // 3 * (kind == "drawn"), 64, 61))
            )
            image.save(tmp_path / kind / name)
            pictures[kind].append(image)
    out = tmp_path / "out.json"
    folders = ["--generated", str(tmp_path / "drawn"), "--real", str(tmp_path / "real")]
    models = [*scoring, "--dino", str(dinov2)]
    assert run(["images", *folders, *models, "--protocol", "peft", "--json", str(out)]) == 0
    content = json.loads(out.read_text())
    embedded = {kind: as_peft(dinov2, images) for kind, images in pictures.items()}
    similarity = (embedded["drawn"] * embedded["real"]).sum(-1)
    repeats = [similarity[start : start + 3].mean().item() for start in (0, 3)]
    assert content["scores"]["dino"]["mean"] == pytest.approx(np.mean(repeats), abs=1e-5)
    assert content["protocol"]["protocol"] == "peft"
    ours = load_dino(str(dinov2))
    sample = Sample(
        generated={"dino": ours.encode_images(pictures["drawn"])},
        base={"dino": ours.encode_images(pictures["real"])},
    )
    drift = (1 - similarity.mean().item()) / 2
    assert METRICS["drift_dino"].score(sample) == pytest.approx(drift, abs=1e-5)
