"""The form of the studio becomes options of the trainer."""

from dataclasses import replace
from pathlib import Path

import pytest

from loldu.errors import LoLDUError
from trainer.options.preset import PRESETS, parse
from webui.engine.job import Kind
from webui.engine.options import flags, write_options
from webui.teaching.recipes import Order, options_for, presets_for, rare_tokens, suggested_token

SD = "stable-diffusion-v1-5/stable-diffusion-v1-5"
XL = "stabilityai/stable-diffusion-xl-base-1.0"
KLEIN = "black-forest-labs/FLUX.2-klein-base-4B"
ORDER = Order(
    class_name="Toy  rabbit",
    token="sks",
    recipe="fast",
    previews=("a {token} {class} on {grass}",),
    options={
        **{"max_train_steps": 40, "learning_rate": 1e-2, "rank": 8, "resolution": 64, "seed": 7},
        **{"with_prior_preservation": True, "train_text_encoder": False, "random_flip": False},
        "validation_scores": True,
    },
)


def made(order: Order, base: str, tmp_path: Path, *, on_gpu: bool = True) -> dict:
    return options_for(order, base, tmp_path, tmp_path / "class", on_gpu=on_gpu)


@pytest.mark.parametrize("preset", [path.stem for path in PRESETS.glob("*.toml")])
def test_every_preset_is_taken_by_the_trainer(preset: str, tmp_path: Path) -> None:
    base = "pocket/base" if preset.startswith("pocket") else SD
    base = {"sdxl": XL, "klein": KLEIN}.get(preset, base)
    options = made(replace(ORDER, recipe=preset), base, tmp_path)
    write_options(tmp_path, options)
    config = parse(flags(tmp_path, Kind.TRAIN))
    assert config.base.pretrained_model_name_or_path == base
    assert config.instance.instance_prompt == "a photo of a sks Toy rabbit"
    assert config.run.validation_prompt == (
        "a photo of a sks Toy rabbit",
        "a sks Toy rabbit on {grass}",
    )
    assert config.run.validation_steps == config.run.checkpointing_steps == 4
    assert config.run.checkpoints_total_limit is None
    assert config.scores.validation_scores
    assert config.scores.scores_optional
    assert config.adapter.rank == 8
    assert config.optimization.max_train_steps == 40
    if base == SD:
        assert config.prior.class_prompt == ("a photo of a Toy rabbit",)
        assert config.optimization.mixed_precision == "fp16"


def test_a_base_has_its_own_presets_first() -> None:
    assert list(presets_for("pocket/base")) == list(presets_for(str(Path("pocket/base").resolve())))
    assert list(presets_for("pocket/base")) == ["pocket", "pocket_always_on"]
    assert list(presets_for(SD)) == ["fast", "paper", "best", "low_vram"]
    assert list(presets_for("/somewhere/sd15.safetensors")) == list(presets_for(SD))


def test_a_base_has_the_presets_of_its_family(
    base_folder: Path, xl_folder: Path, klein_folder: Path
) -> None:
    plain, large = list(presets_for(SD)), ["sdxl"]
    assert list(presets_for(XL)) == large
    assert list(presets_for(str(xl_folder))) == large
    assert list(presets_for(str(base_folder))) == plain
    assert list(presets_for(KLEIN)) == list(presets_for(str(klein_folder))) == ["klein"]
    every = [*plain, *large, "klein"]
    assert list(presets_for("somebody/another")) == every  # only the hub knows its kind


def test_presets_of_one_base_are_not_offered_for_another(tmp_path: Path) -> None:
    assert "variant" in made(ORDER, SD, tmp_path)
    other = made(ORDER, "somebody/another", tmp_path)
    assert "variant" not in other
    assert other["pretrained_model_name_or_path"] == "somebody/another"


def test_half_precision_is_for_gpus(tmp_path: Path) -> None:
    assert made(ORDER, SD, tmp_path, on_gpu=False)["mixed_precision"] == "no"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"token": "two words"}, "The rare word must be one word"),
        ({"token": "--push_to_hub"}, "The rare word must be one word"),
        ({"token": ""}, "The rare word must be one word"),
        ({"token": "toy", "class_name": "toy"}, "part of the class"),
        ({"class_name": " "}, "what kind of thing"),
        ({"class_name": "<b>dog</b>"}, "what kind of thing"),
        ({"class_name": "a b c d e f"}, "what kind of thing"),
        ({"recipe": "../paper"}, "There is no preset"),
    ],
)
def test_invalid_concept_words_are_reported(wrong: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(LoLDUError, match=message):
        made(replace(ORDER, **wrong), SD, tmp_path)


def test_rare_words_are_one_token_and_not_taken(base_folder: Path) -> None:
    assert rare_tokens("pocket/base") == ("sks", "zwx", "dax", "wug")
    assert suggested_token("pocket/base", ()) == "sks"
    assert suggested_token("pocket/base", ("sks", "dax")) == "zwx"
    assert suggested_token(SD, ("sks",)) == "ohwx"
    assert suggested_token("pocket/base", rare_tokens("pocket/base")) == "sks"
