"""The metadata of a concept are enough to load its base again."""

import shutil
from pathlib import Path

import pytest
import torch

from loldu import Concept, load_concept, read_concept
from loldu.base.config import BaseModelConfig
from loldu.base.open import load_pipeline
from loldu.base.record import base_options, public_base
from loldu.base.stable_diffusion import embed
from loldu.errors import LoLDUError
from trainer.__main__ import run


@pytest.fixture
def two_layers(base_folder: Path, tmp_path: Path) -> Path:
    """Return a base whose text encoder has its only layer twice."""
    pipeline = load_pipeline(str(base_folder))
    layers = pipeline.text_encoder.encoder.layers
    layers.append(type(layers[0])(pipeline.text_encoder.config))
    pipeline.text_encoder.config.num_hidden_layers = 2
    pipeline.save_pretrained(tmp_path / "two")
    return tmp_path / "two"


def test_a_concept_is_drawn_as_it_was_trained(
    two_layers: Path, flags: list[str], tmp_path: Path
) -> None:
    base = ["--pretrained_model_name_or_path", str(two_layers)]
    read_as = ["--clip_skip", "1", "--prediction_type", "epsilon", "--train_text_encoder"]
    long = "a photo of sks toy, red, on the grass"
    read_as += ["--max_train_steps", "2", "--prompt_chunks", "3", "--instance_prompt", long]
    assert run([*flags, *base, *read_as]) == 0
    path = tmp_path / "run" / "concept.safetensors"
    concept = read_concept(path)
    text_layers = {y.name for y in concept.layers if y.component == "text_encoder"}
    assert text_layers
    assert all(name.startswith("encoder.layers.0.") for name in text_layers)
    assert base_options(concept, path).pretrained_model_name_or_path == str(two_layers)
    alone = Path(shutil.copy(path, tmp_path / "alone.safetensors"))
    for place in (path, alone):
        options = base_options(concept, place, str(two_layers))
        assert (options.clip_skip, options.prediction_type) == (1, "epsilon")
        assert options.prompt_chunks == 3
        pipeline = load_pipeline(options)
        assert pipeline.scheduler.config["prediction_type"] == "epsilon"
        before = embed(pipeline, ["sks"])
        load_concept(pipeline, place)
        assert not torch.equal(embed(pipeline, ["sks"]), before)


def test_published_base_options_hold_no_local_paths(base_folder: Path) -> None:
    base = BaseModelConfig(
        str(base_folder), vae="stabilityai/sd-vae-ft-mse", single_file_config=str(base_folder)
    )
    assert public_base(base) == {
        "pretrained_model_name_or_path": base_folder.name,
        "vae": "stabilityai/sd-vae-ft-mse",
        "single_file_config": base_folder.name,
        "clip_skip": 0,
        "prompt_chunks": 1,
    }


def test_a_file_alone_names_nothing_to_load(tmp_path: Path) -> None:
    found = {
        "pretrained_model_name_or_path": "a/b",
        "vae": "a/vae",
        "single_file_config": "my-layout",
        "revision": "1234",
        "clip_skip": 1,
        "sha256": "of a file",
        "of a later version": True,
    }
    concept = Concept("a/b", {}, (), {"base": found})
    path = tmp_path / "concept.safetensors"
    with pytest.raises(LoLDUError, match=r"names the base a/b, .*--trust_concept\.$"):
        base_options(concept, path)
    for place in ("a/b", "./b"):
        assert base_options(concept, path, place) == BaseModelConfig(place, clip_skip=1)
    wanted = BaseModelConfig("a/b", vae="a/vae", revision="1234", clip_skip=1)
    for place in (None, "a/b"):
        assert base_options(concept, path, place, trusted=True) == wanted
    # At another place it has no revision, but is read the same way.
    moved = base_options(concept, path, "./b", trusted=True)
    assert moved == BaseModelConfig("./b", clip_skip=1)
    older = Concept("a/b", {}, (), {"base": "a/b"})
    assert base_options(older, path, trusted=True) == BaseModelConfig("a/b")
    for local in ("", "base", "/etc/base", "../a/b", "~/b"):
        with pytest.raises(LoLDUError, match="which is not a hub id: give your base with --pre"):
            base_options(Concept(local, {}, (), {}), path, trusted=True)


def test_the_config_file_of_another_program_is_not_that_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[server]\nport = 1\n")
    concept = Concept("a/b", {}, (), {})
    path = tmp_path / "concept.safetensors"
    assert base_options(concept, path, "./b") == BaseModelConfig("./b")
    (tmp_path / "config.toml").write_text("base = 3\n")
    with pytest.raises(LoLDUError, match="has a base that is not a table"):
        base_options(concept, path, "./b")
    (tmp_path / "config.toml").write_text("[base]\nclip_skip = 'one'\n")
    with pytest.raises(LoLDUError, match="clip_skip is 'one'; it must be a whole number"):
        base_options(concept, path, "./b")
