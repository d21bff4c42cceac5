"""The model card: its front matter, its text, and its code."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from loldu.base.open import load_pipeline
from trainer import train_dreambooth_loldu
from trainer.__main__ import run
from trainer.options.config import Config
from trainer.results.card import Result, Sample, is_card, model_card
from trainer.results.metadata import Training
from trainer.training.checkpoint import Progress

LORA = "pytorch_lora_weights.safetensors"
FILES = {"concept.safetensors": 38_123, LORA: 12_900_000, "config.toml": 900, "metrics.jsonl": 50}
TRAINING = Training(Progress(1000, 321.4), 4224, "", 5, 100, {"dino": 0.6684})


@pytest.fixture
def make_card(make_config: Callable[..., Config]) -> Callable[..., ModelCard]:
    def make(*flags: str, **changes: Any) -> ModelCard:  # noqa: ANN401
        metadata = {
            "token": "sks",
            "class_name": "dog",
            "instance_prompt": "a photo of sks dog",
            "base": {},
            "versions": {"torch": "2.15.0"},
        }
        config = make_config(*flags)
        result = Result(config, metadata, TRAINING, FILES, [], None, "StableDiffusionPipeline")
        return model_card(replace(result, **changes))

    return make


def code_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def test_front_matter_is_valid_on_the_hub(make_card: Callable[..., ModelCard]) -> None:
    base = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    samples = [Sample("a: sks dog", "samples/0-concept.png", "samples/0-base.png")]
    card = make_card("--pretrained_model_name_or_path", base, samples=samples)
    again = ModelCard(str(card))  # parsed anew
    assert again.data.to_dict() == {
        "base_model": base,
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "license": "creativeml-openrail-m",
        "pipeline_tag": "text-to-image",
        "tags": [
            *("text-to-image", "stable-diffusion", "diffusers", "dreambooth", "loldu", "lora"),
        ],
        "instance_prompt": "a photo of sks dog",
        "widget": [{"text": "a: sks dog", "output": {"url": "samples/0-concept.png"}}],
    }


def test_a_local_base_is_not_named_in_the_front_matter(
    make_card: Callable[..., ModelCard], base_folder: Path
) -> None:
    card = make_card()
    data = card.data.to_dict()
    assert not data.keys() & {"base_model", "base_model_relation", "license", "widget"}
    assert f"Replace `{base_folder.name}` with the path of your copy of the base." in card.text


def test_the_card_describes_the_training(make_card: Callable[..., ModelCard]) -> None:
    text = make_card().text
    for row in (
        "| trained numbers | 4,224 |",
        "| pictures | 5 at 16 pixels |",
        "| prior preservation | 100 class pictures, weight 1 |",
        "| steps | 1,000, 2 pictures each |",
        "| learning rate | 0.01, constant |",
        "| time | 321 s |",
        "| dino | 0.668 |",
    ):
        assert row in text
    assert re.search(r"`concept.safetensors` \| .* \| 38,123 \|", text)


def test_a_prompt_cannot_break_the_card(make_card: Callable[..., ModelCard]) -> None:
    samples = [Sample("a | b\nc", "samples/0-concept.png", "samples/0-base.png")]
    card = make_card(samples=samples)
    assert "|  | a \\| b c |\n| --- | --- |\n| base | ![base](samples/0-base.png) |" in card.text
    assert ModelCard(str(card)).data.widget[0]["text"] == "a | b\nc"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            ["--pretrained_model_name_or_path", "a/b", "--revision", "abc"],
            'from_pretrained("a/b", revision="abc")',
        ),
        (["--method", "svfit", "--mixed_precision", "bf16"], ", torch_dtype=torch.bfloat16)"),
        (["--guidance_scale", "3"], ", num_inference_steps=2, guidance_scale=3.0)"),
        (["--num_inference_steps", "50"], 'pipeline("a photo of sks dog").images'),
        (["--instance_prompt", "unused"], 'load_concept(pipeline, "concept.safetensors")'),
    ],
)
def test_the_code_of_a_card_loads_the_trained_base(
    more: list[str], expected: str, make_card: Callable[..., ModelCard]
) -> None:
    code = code_blocks(make_card(*more).text)[0]
    assert expected in code
    assert ("import torch\n" in code) == ("torch." in expected)
    compile(code, "card", "exec")


def test_a_single_file_base_is_loaded_as_one(
    make_card: Callable[..., ModelCard], tmp_path: Path
) -> None:
    (tmp_path / "v1-5.safetensors").touch()
    card = make_card("--pretrained_model_name_or_path", str(tmp_path / "v1-5.safetensors"))
    assert 'StableDiffusionPipeline.from_single_file("v1-5.safetensors")' in card.text
    assert str(tmp_path) not in str(card)


def test_the_code_of_a_card_loads_the_base_with_the_same_options(
    base_folder: Path, make_card: Callable[..., ModelCard]
) -> None:
    pipeline = load_pipeline(str(base_folder))
    layers = pipeline.text_encoder.encoder.layers
    first, *_ = layers
    layers.append(torch.nn.Identity())
    card = make_card("--prediction_type", "epsilon", "--clip_skip", "1")
    code = code_blocks(card.text)[0]
    lines = [line for line in code.splitlines() if "epsilon" in line or "layers" in line]
    exec("\n".join(lines), {"pipeline": pipeline})
    assert pipeline.scheduler.config["prediction_type"] == "epsilon"
    assert [*pipeline.text_encoder.encoder.layers] == [first]
    assert "1 (2 in A1111)" in card.text
    assert "epsilon" not in code_blocks(make_card().text)[0]


def draw(code: str, folder: Path) -> bytes:
    """Return the pictures that a card's code draws from a fixed noise."""
    torch.manual_seed(0)
    exec(code, {})
    picture = folder / "picture.png"
    with Image.open(picture) as image:
        content = image.tobytes()
    picture.unlink()
    return content


@pytest.mark.parametrize(
    ("method", "word", "place"),
    [
        ("loldu", False, None),
        ("loldu", False, "user/toy"),
        ("lora", True, "user/toy"),
        ("textual_inversion", True, None),
        ("dreambooth", False, None),
    ],
)
def test_the_code_of_a_card_draws_its_sample(
    method: str,
    word: bool,
    place: str | None,
    flags: list[str],
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Use a folder user/toy as the repository, because diffusers reads both alike."""
    more = ["--method", method, "--learning_rate", "1", "--max_train_steps", "2"]
    if word:
        more += ["--placeholder_token", "<x>", "--initializer_token", "s"]
        more += ["--instance_prompt", "a <x> toy"]
    if place:
        monkeypatch.setattr(
            train_dreambooth_loldu, "open_repositories", lambda _: {"default": place}
        )
        monkeypatch.setattr(train_dreambooth_loldu, "push", lambda *_: None)
    assert run([*flags, *more]) == 0
    card = (tmp_path / "run" / "README.md").read_text()
    monkeypatch.chdir(tmp_path if place else tmp_path / "run")
    if place:
        shutil.copytree("run", place)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: f"{repo}/{name}")
    Path(base_folder.name).symlink_to(base_folder)
    sample = ModelCard(card).data.widget[0]
    with Image.open(tmp_path / "run" / sample["output"]["url"]) as image:
        shown = image.tobytes()
    codes = code_blocks(card)
    assert len(codes) == (2 if method == "loldu" else 1)
    for code in codes:
        assert len([line for line in code.splitlines() if line]) <= 6
        noise = "generator=__import__('torch').Generator().manual_seed(42)).images"
        drawn = draw(code.replace(").images", f", {noise}"), Path.cwd())
        assert max(abs(a - b) for a, b in zip(drawn, shown, strict=True)) <= 2


def test_a_card_is_distinguished_from_other_readmes(
    make_card: Callable[..., ModelCard], tmp_path: Path
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(str(make_card()))
    assert is_card(readme)
    readme.write_bytes(b"\xff my dreambooth and loldu notes")
    assert not is_card(readme)
