"""The loss on held-out pictures at fixed noise, and that it leaves the training as it was."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from loldu.base.open import load_pipeline
from loldu.base.stable_diffusion import STATES
from loldu.errors import LoLDUError
from trainer.__main__ import run
from trainer.methods.trained import Trained
from trainer.options.config import Config
from trainer.training.cache import build_cache
from trainer.training.held_out import ROWS, HeldOutLoss
from trainer.training.instances import find_all_instances, find_instances, split
from trainer.training.objective import Denoiser, DreamBooth

MakeConfig = Callable[..., Config]
HELD_OUT = ["--held_out_steps", "2", "--held_out_pictures", "1"]
QUICK = ["--no_sample_at_end", "--lora_file", "no"]


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_is_the_mean_squared_error_of_the_held_out_picture(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    config = make_config(*HELD_OUT, "--snr_gamma", "5")
    trained, held_out = split(find_instances(config.instance), config)
    assert [len(trained), len(held_out)] == [2, 1]
    cache = build_cache(pipeline, trained, [], config.instance, seed=0, held_out=held_out)
    concept = DreamBooth(pipeline, cache, config)
    assert not {*cache.held_out[0]} & {view for views in cache.instances for view in views}
    measured = HeldOutLoss({"default": [concept]}, Trained(("default",), {})).measure(
        Denoiser(pipeline)
    )
    batch, errors = concept.draw_fixed(ROWS), []
    for row in range(ROWS):
        alpha_bar = pipeline.scheduler.alphas_cumprod[batch.timesteps[row]]
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        latent = cache.mean[2] + cache.std[2] * batch.posterior_noise[row]
        noisy = (alpha * latent + sigma * batch.noise[row])[None]
        with torch.no_grad():
            states = cache.conditioning[STATES][:1]
            prediction = pipeline.unet(noisy, batch.timesteps[row], states).sample[0]
        target = alpha * batch.noise[row] - sigma * latent  # the tiny base predicts v
        errors.append(torch.nn.functional.mse_loss(prediction, target).item())
    assert len(set(errors)) == ROWS
    assert measured["default"] == pytest.approx(np.mean(errors), rel=1e-5)


def test_measuring_changes_no_bit_and_survives_a_stop(flags: list[str], tmp_path: Path) -> None:
    common = [
        *flags,
        *QUICK,
        "--ema_decay",
        "0.9",
        "--checkpointing_steps",
        "2",
        "--logging_steps",
        "4",
    ]
    folders = [tmp_path / name for name in ("plain", "measured", "resumed")]
    plain, measured, resumed = folders
    every = ["--held_out_steps", "1"]
    assert run([*common, "--output_dir", str(plain)]) == 0
    assert run([*common, *every, "--output_dir", str(measured)]) == 0
    checkpoint = ["--resume", str(measured / "checkpoint-000002")]
    assert run([*common, *every, *checkpoint, "--output_dir", str(resumed)]) == 0
    states = [load_file(folder / "checkpoint-000004" / "trained.safetensors") for folder in folders]
    for name, tensor in states[0].items():
        assert all(torch.equal(tensor, state[name]) for state in states[1:])
    assert [line["step"] for line in lines(plain)] == [4]
    losses = {line["step"]: line["held_out_loss"] for line in lines(measured)}
    assert [*losses] == [0, 1, 2, 3, 4]
    assert len({*losses.values()}) == 5
    later = {line["step"]: line["held_out_loss"] for line in lines(resumed)}
    assert later == {step: losses[step] for step in (3, 4)}
    assert ("loss" in lines(measured)[0], "loss" in lines(measured)[1]) == (False, True)


def test_two_concepts_are_measured_as_each_would_be_alone(
    flags: list[str], pictures: Path, tmp_path: Path
) -> None:
    blue = tmp_path / "blue"
    blue.mkdir()
    for name in "ab":
        Image.new("RGB", (20, 20), (20, 20, 180)).save(blue / f"{name}.png")
    tables = tmp_path / "concepts.toml"
    tables.write_text(
        f'[red]\ninstance_data_dir = "{pictures}"\n[blue]\ninstance_data_dir = "{blue}"\n'
    )
    both = ["--concepts", str(tables), "--output_dir", str(tmp_path / "both")]
    assert run([*flags, *QUICK, *HELD_OUT, *both]) == 0
    for name, folder in (("red", pictures), ("blue", blue)):
        alone = ["--instance_data_dir", str(folder), "--output_dir", str(tmp_path / name)]
        assert run([*flags, *QUICK, *HELD_OUT, *alone]) == 0
        ours, theirs = lines(tmp_path / "both" / "concepts" / name), lines(tmp_path / name)
        for line, other in zip(ours, theirs, strict=True):
            assert line.get("held_out_loss") == (
                pytest.approx(other["held_out_loss"], rel=1e-4)
                if "held_out_loss" in other
                else None
            )


def test_other_seeds_hold_out_other_pictures(make_config: MakeConfig) -> None:
    found = set()
    for seed in range(8):
        config = make_config(*HELD_OUT, "--seed", str(seed))
        found.add(split(find_instances(config.instance), config)[1][0].path.name)
    assert len(found) == 3


def test_holding_out_everything_is_refused(make_config: MakeConfig) -> None:
    config = make_config("--held_out_steps", "2", "--held_out_pictures", "3")
    with pytest.raises(LoLDUError, match=r"pictures 3 leaves nothing to train on: .* has 3 pict"):
        find_all_instances({"default": config})


def test_without_pictures_held_out_the_trained_ones_are_measured(
    base_folder: Path, make_config: MakeConfig
) -> None:
    config, pipeline = make_config("--held_out_steps", "2"), load_pipeline(str(base_folder))
    cache = build_cache(pipeline, find_instances(config.instance), [], config.instance, seed=0)
    views = DreamBooth(pipeline, cache, config).draw_fixed(ROWS).views
    assert {*views.tolist()} == {0, 1, 2}
