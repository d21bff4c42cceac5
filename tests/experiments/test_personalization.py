from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import get_peft_model
from PIL import Image

from experiments.config import Run, read_experiment
from experiments.data import Entry, entry
from experiments.kinds import by_trainer, personalization
from loldu import LoLDUConfig
from loldu.errors import LoLDUError
from trainer.options.config import AdapterConfig, Config

EXPERIMENT = read_experiment("personalization")
SHORT = {
    "max_train_steps": 2,
    "validation_steps": 1,
    "num_inference_steps": 1,
    "num_class_images": 2,
    "lr_warmup_steps": 0,
    "prompts": ["a photo of a {token} {class_name} on grass"],
    "drift_prompts": ["a photo of a {class_name}"],
}


def a_run(row: str, scale: str = "pocket", **options: object) -> Run:
    run = next(EXPERIMENT.runs(EXPERIMENT.row(row), scale))
    return replace(run, options={**run.options, **options})


def config_of(run: Run, subject: Entry, pictures: Path = Path(), work: Path = Path()) -> Config:
    options = personalization.trainer_options(run, subject)
    return by_trainer.config_of(run, subject, pictures, work, options)


@pytest.mark.parametrize("scale", ["pocket", "full"])
@pytest.mark.parametrize("row", EXPERIMENT.rows, ids=lambda row: row.name)
def test_every_row_is_a_command_the_trainer_takes(row, scale: str, tmp_path: Path) -> None:  # noqa: ANN001
    run = next(EXPERIMENT.runs(row, scale))
    subject = Entry("a", "b", "c", extra={"class_name": "plush bunny"})
    word = run.method == "textual_inversion"
    token = "<new>" if word else "sks"
    config = config_of(run, subject, tmp_path, tmp_path / "out")
    assert config.adapter.method == run.method
    assert config.base.pretrained_model_name_or_path == run.model
    assert config.instance.instance_prompt == f"a photo of a {token} plush bunny"
    assert config.run.validation_prompt[0].count(f"{token} plush bunny") == 1
    assert token not in "".join(config.scores.drift_prompt)
    assert config.optimization.seed == run.seed
    assert config.instance.placeholder_token == ("<new>" if word else None)


FULL_RANK = 5 * 8 * 320 + 5 * 8 * 640 + 6 * (6 * 1280 + 2 * 768)  # prompts are 768 wide


@pytest.mark.parametrize(("rank", "parameters"), [(32, 128 * 33), (1280, FULL_RANK + 128)])
def test_parameters_on_stable_diffusion_v1_5(rank: int, parameters: int) -> None:
    """16 blocks of two attentions with four projections; full rank is a layer's shorter side."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        assert sum(p.numel() for p in unet.parameters()) == 859_520_964
        targets = AdapterConfig().target_modules
        model = get_peft_model(unet, LoLDUConfig(r=rank, target_modules=list(targets)))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters


def test_a_row_is_trained_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_trainer, "CLASS_PICTURES", tmp_path / "class")
    outcome = personalization.run(a_run("loldu-r32", rank=1, **SHORT), tmp_path / "work")
    assert [point["step"] for point in outcome.history] == [0, 1, 2]
    last = outcome.history[-1]
    assert outcome.score == pytest.approx((last["dino"] + last["clip_t"] + last["clip_i"]) / 3)
    assert outcome.parameters == 2 * 56  # r + 1 in each attention projection
    assert outcome.facts["instance_images"] == 5
    assert outcome.picture is not None
    with Image.open(outcome.picture) as strip:
        assert strip.size == (4 * personalization.STRIP_PX, personalization.STRIP_PX)


def test_a_new_word_is_written_into_a_copy_of_the_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_trainer, "CLASS_PICTURES", tmp_path / "class")
    outcome = personalization.run(a_run("textual_inversion", **SHORT), tmp_path / "work")
    caption = (tmp_path / "work" / "renamed" / "01.txt").read_text()
    assert "<new>" in caption
    assert "sks" not in caption
    assert "sks" in Path("datasets/concepts/striped_cat/01.txt").read_text()
    assert outcome.parameters == 128  # the width of one word


def test_initializers_at_full_scale_are_one_token() -> None:
    from open_clip.tokenizer import SimpleTokenizer  # has CLIP's vocabulary

    tokenizer = SimpleTokenizer()
    for name in EXPERIMENT.at("full").data:
        config = config_of(replace(a_run("textual_inversion", "full"), data=name), entry(name))
        word = config.instance.initializer_token
        assert word is not None
        assert len(tokenizer.encode(word)) == 1, word


def test_every_direction_on_sd_v1_5_has_a_scale_of_one() -> None:
    """The preset's alpha is for r = 32; the widest layer has 1,280 directions."""
    config = config_of(a_run("loldu-full", "full"), entry("pet_cat1"))
    assert (config.adapter.rank, config.adapter.alpha) == ("full", 1280)


def test_missing_pictures_are_reported(tmp_path: Path) -> None:
    run = replace(a_run("loldu-r32", "full"), data="pet_cat1")
    with pytest.raises(LoLDUError, match=r"pet_cat1 are not in data/.*unpack CustomConcept101"):
        personalization.run(run, tmp_path)
