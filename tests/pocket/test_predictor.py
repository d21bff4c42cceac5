"""The predictor of the pocket base, at its smallest."""

from pathlib import Path

import pytest
import torch
from transformers import ViTModel

from loldu.base.open import load_pipeline
from loldu.pictures.folder import list_images
from loldu.predict.predictor import predict_concept, read_predictor
from pocket.__main__ import main
from pocket.captions import called_caption
from pocket.corpus import make_corpus
from pocket.predictor import Predicting, make_predictor

ROOT = Path(__file__).parents[2]
SMALL = Predicting(
    things=12, held_out=2, steps=2, batch=4, lr=0.1, checkpoint_every=2, backbone_lr=1e-9
)


def test_captions_name_the_setting_and_no_part() -> None:
    scene = {"kind": "toy", "color": "red", "background": "snow"}
    large = called_caption(scene | {"size": "large", "position": "left"}, "sks")
    assert large == "a photo of a large sks toy on the left in the snow"
    plain = called_caption(scene | {"size": "medium", "position": "center"}, "sks")
    assert plain == "a photo of a sks toy in the snow"


def test_things_are_shown_in_five_settings_with_the_same_parts(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, "things", 20, seed=1)
    setting = ("background", "size", "position")
    looks = [{k: v for k, v in scene.items() if k not in setting} for scene in corpus.scenes]
    for start in range(0, 20, 5):
        assert all(look == looks[start] for look in looks[start : start + 5])
    assert looks[0] != looks[5]


def test_it_reads_a_concept_off_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "predictor.safetensors"
    make_predictor(ROOT / "pocket", tmp_path / "build", path, SMALL)
    written = path.read_bytes()
    pipeline = load_pipeline(str(ROOT / "pocket" / "base"))
    pictures = list_images(ROOT / "datasets" / "concepts" / "tall_bear")
    concept = predict_concept(pipeline, pictures, path, tmp_path / "bear.safetensors")
    assert len(concept.layers) == 56
    assert sum(layer.delta.numel() for layer in concept.layers) > 5_000
    assert all(layer.delta.abs().max() > 0 for layer in concept.layers)
    # Its backbone is the DINO, and a finished training is not repeated.
    dino = ViTModel.from_pretrained(ROOT / "pocket/encoders/dino", dtype=torch.float32)
    found = read_predictor(path).reader.backbone.state_dict()["layernorm.bias"]
    torch.testing.assert_close(found, dino.state_dict()["layernorm.bias"], rtol=0, atol=1e-3)
    monkeypatch.setattr("trainer.predictor.objective.PredictorObjective.losses", None)
    make_predictor(ROOT / "pocket", tmp_path / "build", path, SMALL)
    assert path.read_bytes() == written


@pytest.mark.parametrize(
    ("command", "option"),
    [("predictor", "--steps"), ("encoders", "--dino-steps"), ("pretrain", "--batch")],
)
def test_an_amount_below_one_is_refused_before_anything_is_rendered(
    command: str,
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build = str(tmp_path / "build")
    monkeypatch.setattr("sys.argv", ["pocket", command, "--build", build, option, "-1"])
    assert main() == 2
    assert f"{option} is -1; it must be at least 1." in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
