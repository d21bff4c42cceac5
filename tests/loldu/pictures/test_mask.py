from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from loldu.errors import LoLDUError
from loldu.pictures.folder import CaptionedImage
from loldu.pictures.mask import load_mask, loss_weights, marked_shares
from trainer.__main__ import run
from trainer.methods.method import add_trainables
from trainer.methods.trained import Trained
from trainer.options.config import Config
from trainer.training.buckets import BucketedObjective, Part, bucket_caches
from trainer.training.cache import build_cache
from trainer.training.instances import find_instances
from trainer.training.objective import (
    CONCEPT,
    Batch,
    Denoiser,
    DreamBooth,
    Losses,
    Objective,
)

MakeConfig = Callable[..., Config]


@pytest.fixture
def square_pictures(pictures: Path) -> Path:
    """Return the pictures at the resolution of the short run: 16 pixels, 8 latents."""
    for path in pictures.iterdir():
        with Image.open(path) as image:
            image.crop((0, 0, 16, 16)).save(path)
    return pictures


def mark_left_halves(pictures: Path) -> None:
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    for name in "abc":
        mask.save(pictures / f"{name}-masklabel.png")


def dreambooth(pipeline: StableDiffusionPipeline, config: Config) -> DreamBooth:
    found = find_instances(config.instance)
    classes = [CaptionedImage(found[0].path, "a toy")]
    cache = build_cache(pipeline, found, classes, config.instance, seed=0)
    return DreamBooth(pipeline, cache, config)


@torch.no_grad()
def losses_of(
    pipeline: StableDiffusionPipeline,
    concepts: list[DreamBooth],
    batches: list[Batch],
    config: Config,
) -> tuple[list[Losses], torch.Tensor]:
    """Return losses with the prediction that they depend on."""
    seen: list[torch.Tensor] = []
    hook = pipeline.unet.register_forward_hook(lambda _m, _i, output: seen.append(output[0]))
    names = tuple(f"concept-{index}" for index in range(len(concepts)))
    objective = Objective(concepts, Trained(names, {}), config)
    losses = objective.losses(Denoiser(pipeline), batches)
    hook.remove()
    return losses, seen[0]


def test_weights_follow_the_area_that_is_marked() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[:, :4, :6] = 1  # of four latents: one full, one half, two empty
    weights = loss_weights([None, mask], [range(0, 1), range(1, 2)], (2, 2), 0.1)
    assert weights is not None
    torch.testing.assert_close(weights[0], torch.ones(1, 2, 2))
    expected = torch.tensor([[1, 0.1 + 0.9 * 0.5], [0.1, 0.1]])
    torch.testing.assert_close(weights[1, 0], expected / ((1 + 0.55 + 0.2) / 4))


def test_the_weight_of_a_picture_does_not_depend_on_the_size_of_its_mask() -> None:
    small, large = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    small[:, :2, :2] = 1
    large[:, :12] = 1
    for unmasked_weight in (0.0, 0.1, 0.7):
        weights = loss_weights([small, large], [range(0, 1), range(1, 2)], (4, 4), unmasked_weight)
        assert weights is not None
        torch.testing.assert_close(weights.mean(dim=(1, 2, 3)), torch.ones(2))


def test_a_crop_that_misses_the_subject_counts_less_than_one_that_shows_it() -> None:
    empty, full = torch.zeros(1, 8, 8), torch.ones(1, 8, 8)
    weights = loss_weights([empty, full], [range(0, 2)], (2, 2), 0.1)
    assert weights is not None
    torch.testing.assert_close(weights[1], torch.full((1, 2, 2), 1 / 0.55))
    torch.testing.assert_close(weights[0], torch.full((1, 2, 2), 0.1 / 0.55))


def test_without_a_mask_or_with_equal_weights_there_are_none() -> None:
    assert loss_weights([None, None], [range(0, 2)], (2, 2), 0.1) is None
    assert loss_weights([torch.zeros(1, 8, 8)], [range(0, 1)], (2, 2), 1.0) is None


def test_without_a_mask_everything_is_marked() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[:, :4, :6] = 1
    expected = torch.tensor([[[[1.0, 0.5], [0, 0]]], [[[1, 1], [1, 1]]]])
    torch.testing.assert_close(marked_shares([mask, None], (2, 2)), expected)


@pytest.mark.parametrize("weight", ["-0.1", "1.5", "nan"])
def test_an_invalid_weight_gives_one_clear_error(weight: str, make_config: MakeConfig) -> None:
    stated = r"--unmasked_weight is .*; it must be at least 0 and at most 1\.$"
    with pytest.raises(LoLDUError, match=stated):
        make_config("--unmasked_weight", weight)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (Image.new("L", (20, 24), 51), 51),
        (Image.new("1", (20, 24), 1), 255),
        (Image.fromarray(np.full((24, 20), 51 * 257, np.uint16)), 51),
        (Image.new("RGBA", (20, 24), (255, 255, 255, 51)), 51),
        (Image.new("L", (40, 48), 51), 51),
    ],
    ids=["gray", "bilevel", "16-bit", "white-on-transparent", "twice-as-large"],
)
def test_masks_of_every_mode(mask: Image.Image, expected: int, tmp_path: Path) -> None:
    mask.save(tmp_path / "a-masklabel.png")
    loaded = load_mask(tmp_path / "a-masklabel.png", (20, 24))
    assert loaded.mode == "L"
    assert loaded.size == (20, 24)
    np.testing.assert_allclose(np.asarray(loaded), expected, atol=1)


def test_invalid_masks_give_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "a-masklabel.png"
    Image.new("L", (24, 20), 255).save(path)  # not turned as its picture is
    with pytest.raises(LoLDUError, match=r"is 24 x 20 pixels but its picture, upright, is 20 x"):
        load_mask(path, (20, 24))
    Image.new("L", (20, 24)).save(path)
    with pytest.raises(LoLDUError, match=r"a-masklabel\.png is all black; paint the part"):
        load_mask(path, (20, 24))
    path.write_bytes(b"x")
    with pytest.raises(LoLDUError, match=r"a-masklabel\.png cannot be read"):
        load_mask(path, (20, 24))


def test_only_a_concept_row_with_a_mask_is_weighted(
    pipeline: StableDiffusionPipeline, square_pictures: Path, make_config: MakeConfig
) -> None:
    """Train beside a concept without a mask, in one pass."""
    config = make_config("--unmasked_weight", "0.25", "--prior_loss_weight", "0.5")
    plain = dreambooth(pipeline, config)
    mark_left_halves(square_pictures)
    masked = dreambooth(pipeline, config)
    batches = [masked.draw(0), plain.draw(1)]
    losses, prediction = losses_of(pipeline, [masked, plain], batches, config)
    alone = [losses_of(pipeline, [plain], [batch], config)[0][0] for batch in batches]

    cache, batch = masked._cache, batches[0]
    latents = cache.mean[batch.views] + cache.std[batch.views] * batch.posterior_noise
    alpha_bar = pipeline.scheduler.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    target = alpha_bar.sqrt() * batch.noise - (1 - alpha_bar).sqrt() * latents  # v-prediction
    squares = (prediction[::2] - target)[:2] ** 2
    left, right = squares[..., :4].mean(), squares[..., 4:].mean()
    torch.testing.assert_close(losses[0].instance, (left + 0.25 * right) / 1.25)
    assert not torch.isclose(losses[0].instance, alone[0].instance, rtol=1e-3)
    torch.testing.assert_close(losses[0].prior, alone[0].prior)
    torch.testing.assert_close(losses[0].total, losses[0].instance + 0.5 * losses[0].prior)
    torch.testing.assert_close(losses[1].instance, alone[1].instance)


def test_areas_of_weight_zero_are_not_learned(
    pipeline: StableDiffusionPipeline, square_pictures: Path, make_config: MakeConfig
) -> None:
    mark_left_halves(square_pictures)
    config = make_config("--unmasked_weight", "0")
    masked = dreambooth(pipeline, config)
    batches = [masked.draw(0)]
    (before,), _ = losses_of(pipeline, [masked], batches, config)
    hook = pipeline.unet.register_forward_hook(
        lambda _m, _i, output: (torch.cat([output[0][..., :4], output[0][..., 4:] + 9], -1),)
    )
    (after,), _ = losses_of(pipeline, [masked], batches, config)
    hook.remove()
    torch.testing.assert_close(after.instance, before.instance, rtol=0, atol=0)
    assert after.prior > before.prior + 1


def test_a_masked_run_resumes_bit_identically_and_refuses_another_mask(
    square_pictures: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark_left_halves(square_pictures)
    flags = [*flags, "--checkpointing_steps", "2"]
    assert run(flags) == 0
    whole = tmp_path / "run"
    again = [*flags, "--output_dir", str(tmp_path / "again"), "--resume"]
    again.append(str(whole / "checkpoint-000002"))
    assert run(again) == 0
    ours, theirs = (
        load_file(folder / "concept.safetensors") for folder in (whole, tmp_path / "again")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    Image.new("L", (16, 16), 255).save(square_pictures / "a-masklabel.png")
    capsys.readouterr()
    assert run([*again, "--overwrite"]) == 2
    assert "A picture or caption has changed" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("buckets", [False, True])
def test_black_parts_are_trained_on_the_answer_of_the_base(
    buckets: bool, pipeline: StableDiffusionPipeline, square_pictures: Path, make_config: MakeConfig
) -> None:
    mark_left_halves(square_pictures)
    more = ["--aspect_buckets"] if buckets else []
    config = make_config("--unmasked_target", "base", "--unmasked_weight", "1", *more)
    found = find_instances(config.instance)
    if buckets:
        (cache,) = bucket_caches(pipeline, found, [], config, [])
    else:
        cache = build_cache(pipeline, found, [], config.instance, seed=0)
    concept = DreamBooth(pipeline, cache, config)
    rows, denoiser = concept.rows(batch := concept.draw(0)), Denoiser(pipeline)
    with torch.no_grad():
        base = rows.answered_by(denoiser)
        trained = add_trainables(pipeline, {"default": config}, {})
        for parameter in trained.parameters():
            parameter.add_(0.1)
        if buckets:
            objective = BucketedObjective({"default": [concept]}, trained, config)
            (losses,) = objective.losses(denoiser, [[Part(concept, CONCEPT, batch)]])
        else:
            (losses,) = Objective([concept], trained, config).losses(denoiser, [batch])
        prediction = rows.answered_by(denoiser)
        assert not torch.allclose(prediction, base, atol=1e-3)
    left = torch.arange(8) < 4
    errors = torch.where(left, prediction - rows.target, prediction - base)
    torch.testing.assert_close(losses.instance, errors.square().mean())
