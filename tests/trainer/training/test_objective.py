from collections import Counter
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr

from loldu.adapter.layer import LoLDULayer
from loldu.base.alpha_schedule import min_snr_weights, training_noise_scheduler
from loldu.base.stable_diffusion import STATES
from loldu.errors import LoLDUError
from loldu.pictures.folder import CaptionedImage
from trainer.methods.method import add_trainables
from trainer.methods.trained import Trained
from trainer.options.config import Config
from trainer.training.cache import Cache, build_cache
from trainer.training.instances import find_instances
from trainer.training.objective import (
    Batch,
    Denoiser,
    DreamBooth,
    Losses,
    Objective,
    penalties,
    view_at,
)
from trainer.training.optimizers import lr_factor

PredictionType = Literal["epsilon", "v_prediction"]
MakeConfig = Callable[..., Config]


def make_cache(pipeline: StableDiffusionPipeline, config: Config, classes: int = 0) -> Cache:
    images = find_instances(config.instance)
    class_images = [CaptionedImage(image.path, "a toy") for image in images[:classes]]
    return build_cache(pipeline, images, class_images, config.instance, seed=0)


def dreambooth(pipeline: StableDiffusionPipeline, config: Config, classes: int = 0) -> DreamBooth:
    return DreamBooth(pipeline, make_cache(pipeline, config, classes), config)


def losses_of(
    pipeline: StableDiffusionPipeline,
    concept: DreamBooth,
    config: Config,
    batch: Batch,
    trained: Trained | None = None,
) -> Losses:
    """Return the objective of one concept on the pipeline."""
    nothing = Trained(("default",), {})
    objective = Objective([concept], trained or nothing, config)
    (losses,) = objective.losses(Denoiser(pipeline), [batch])
    return losses


def rows(batch: Batch) -> list[torch.Tensor]:
    return [batch.views, batch.timesteps, batch.noise, batch.posterior_noise]


def test_every_epoch_is_a_shuffle() -> None:
    pictures = [range(0, 1), range(1, 3), range(3, 5)]
    seen = [view_at(pictures, position, seed=0, kind=0) for position in range(300)]
    owner = {view: index for index, views in enumerate(pictures) for view in views}
    epochs = [tuple(owner[view] for view in seen[i : i + 3]) for i in range(0, 300, 3)]
    assert all(sorted(epoch) == [0, 1, 2] for epoch in epochs)
    assert len(set(epochs)) == 6
    assert set(Counter(seen)) == {0, 1, 2, 3, 4}
    other = [view_at(pictures, position, seed=1, kind=0) for position in range(300)]
    assert other != seen


def test_a_batch_follows_from_seed_and_step(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    first, second = (dreambooth(pipeline, make_config(), 2) for _ in range(2))
    first.draw(0)  # what was drawn before must not matter
    for left, right in zip(rows(first.draw(7)), rows(second.draw(7)), strict=True):
        assert torch.equal(left, right)
    other_seed = dreambooth(pipeline, make_config("--seed", "1"), 2)
    for other in (first.draw(8), other_seed.draw(7)):
        assert not torch.equal(first.draw(7).noise, other.noise)
    assert not torch.equal(first.draw(7).noise, first.draw(7).posterior_noise)


def test_two_processes_share_the_batch_of_one(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    offset = ("--noise_offset", "0.1")
    wide = dreambooth(pipeline, make_config("--train_batch_size", "4", *offset), 2).draw(3)
    narrow = dreambooth(pipeline, make_config("--train_batch_size", "2", *offset), 2)
    parts = [narrow.draw(3, process, 2) for process in range(2)]
    for whole, *shares in zip(rows(wide), *map(rows, parts), strict=True):
        concept = torch.cat([share[:2] for share in shares])
        classes = torch.cat([share[2:] for share in shares])
        assert torch.equal(whole, torch.cat([concept, classes]))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_the_mean_squared_error_of_the_base_s_prediction(
    prediction_type: str, pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    pipeline.scheduler.register_to_config(prediction_type=prediction_type)
    config = make_config("--prior_loss_weight", "0.5", "--noise_offset", "0.1")
    cache = make_cache(pipeline, config, classes=2)
    concept = DreamBooth(pipeline, cache, config)
    batch = concept.draw(0)
    with torch.no_grad():
        losses = losses_of(pipeline, concept, config, batch)
    errors = []
    for view, timestep, noise, posterior_noise in zip(*rows(batch), strict=True):
        alpha_bar = pipeline.scheduler.alphas_cumprod[timestep]
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        latent = cache.mean[view] + cache.std[view] * posterior_noise
        target = noise if prediction_type == "epsilon" else alpha * noise - sigma * latent
        state = cache.conditioning[STATES][cache.prompt_of_view[view]][None]
        with torch.no_grad():
            noisy = (alpha * latent + sigma * noise)[None]
            prediction = pipeline.unet(noisy, timestep, state).sample[0]
        errors.append(torch.nn.functional.mse_loss(prediction, target))
    instance, prior = (errors[0] + errors[1]) / 2, (errors[2] + errors[3]) / 2
    torch.testing.assert_close(losses.instance, instance)
    torch.testing.assert_close(losses.prior, prior)
    torch.testing.assert_close(losses.total, instance + 0.5 * prior)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_bound_the_x0_error(prediction_type: PredictionType) -> None:
    noise_scheduler = DDPMScheduler(prediction_type=prediction_type)
    timesteps = torch.tensor([0, 1, 100, 500, 999])
    snr = compute_snr(noise_scheduler, timesteps)
    expected = torch.minimum(snr, torch.full_like(snr, 5.0))
    expected /= snr if prediction_type == "epsilon" else snr + 1
    torch.testing.assert_close(min_snr_weights(noise_scheduler, timesteps, 5.0), expected)


def test_snr_gamma_weighs_the_loss(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    one = ("--train_batch_size", "1")
    config = make_config(*one)
    plain = dreambooth(pipeline, config)
    weighted = dreambooth(pipeline, make_config(*one, "--snr_gamma", "5"))
    batch = plain.draw(0)
    with torch.no_grad():
        expected = losses_of(pipeline, plain, config, batch).total
        got = losses_of(pipeline, weighted, config, batch).total
    snr = compute_snr(DDPMScheduler.from_config(pipeline.scheduler.config), batch.timesteps)
    torch.testing.assert_close(got, expected * snr.clamp(max=5)[0] / (snr[0] + 1))


NORMAL = ["--diagonal_init", "normal"]


def test_other_prediction_types_are_refused() -> None:
    with pytest.raises(LoLDUError, match="predicts sample"):
        training_noise_scheduler(DDPMScheduler(prediction_type="sample"))


@pytest.mark.parametrize(
    "more", [[*NORMAL, "--method", "loldu"], [*NORMAL, "--method", "svfit"], ["--method", "lora"]]
)
def test_against_the_base_a_fresh_adapter_has_no_prior_loss_and_no_gradient(
    more: list[str], pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    config = make_config("--prior_target", "base", *more)
    concept = dreambooth(pipeline, config, classes=2)
    trained = add_trainables(pipeline, {"default": config}, {})
    batch = concept.draw(0)
    losses = losses_of(pipeline, concept, config, batch, trained)
    assert losses.prior.item() == 0
    losses.prior.backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in trained.parameters())
    assert losses.instance.item() > 0
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1)
        assert losses_of(pipeline, concept, config, batch, trained).prior.item() > 0


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_the_learning_rate_is_diffusers(name: str, make_config: MakeConfig) -> None:
    config = make_config("--lr_scheduler", name, "--lr_warmup_steps", "3", "--max_train_steps", "9")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-2)
    theirs = get_scheduler(
        "constant_with_warmup" if name == "constant" else name,
        optimizer,
        num_warmup_steps=3,
        num_training_steps=9,
    )
    for step in range(9):
        if step >= 3:
            expected = theirs.get_last_lr()[0] / 1e-2
            assert lr_factor(config.optimization, step) == pytest.approx(expected)
        optimizer.step()
        theirs.step()
    warmup = [lr_factor(config.optimization, step) for step in range(3)]
    assert warmup == pytest.approx([1 / 3, 2 / 3, 1])  # theirs wastes a step at zero


def test_noise_offset_shifts_every_channel_of_every_row(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    rows_of_each = ("--train_batch_size", "64")
    plain = dreambooth(pipeline, make_config(*rows_of_each), 1)
    shifted = dreambooth(pipeline, make_config(*rows_of_each, "--noise_offset", "0.1"), 1)
    before, after = plain.draw(3), shifted.draw(3)
    for name in ("views", "timesteps", "posterior_noise"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    offset = (after.noise - before.noise).mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(after.noise, before.noise + offset)
    assert offset.std().item() == pytest.approx(0.1, rel=0.15)  # of 128 rows x 4 channels
    assert offset.flatten().unique().numel() == 128 * 4


def test_the_losses_of_parts_add_up(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    rows_of_each = ("--train_batch_size", "3", "--prior_batch_size", "2", "--snr_gamma", "5")
    config = make_config(*rows_of_each)
    concepts = [dreambooth(pipeline, config, 2), dreambooth(pipeline, config, 1)]
    objective = Objective(concepts, Trained(("one", "two"), {}), config)
    denoiser, batches = Denoiser(pipeline), objective.draw(0)

    def values(rows: slice) -> torch.Tensor:
        return torch.stack([x.values() for x in objective.losses(denoiser, batches, rows)])

    with torch.no_grad():
        whole = values(slice(None))
        assert whole.shape == (2, 3)
        for size in (1, 2, 4):
            slices = [slice(start, start + size) for start in range(0, objective.rows, size)]
            torch.testing.assert_close(sum(values(rows) for rows in slices), whole)


@pytest.mark.parametrize("delta", [0.1, 1.0])
def test_huber_is_straight_beyond_delta(delta: float) -> None:
    error = torch.linspace(-3, 3, 601, dtype=torch.float64)
    found = penalties(error, torch.zeros_like(error), delta)
    expected = [e * e if abs(e) <= delta else delta * (2 * abs(e) - delta) for e in error.tolist()]
    torch.testing.assert_close(found.tolist(), expected)
    smooth = torch.nn.functional.smooth_l1_loss(
        error, torch.zeros_like(error), beta=delta, reduction="none"
    )
    torch.testing.assert_close(found, 2 * delta * smooth)
    assert torch.equal(penalties(error, 2 * error, None), error.square())


def test_the_huber_loss_of_a_batch(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    plain, config = make_config(), make_config("--loss", "huber", "--huber_delta", "0.5")
    concept = dreambooth(pipeline, config)
    rows = concept.rows(batch := concept.draw(0))
    with torch.no_grad():
        errors = rows.answered_by(Denoiser(pipeline)) - rows.target
        assert losses_of(pipeline, concept, plain, batch).total == errors.square().mean()
        small = errors.abs() <= 0.5
        assert 0 < small.sum() < small.numel()
        expected = torch.where(small, errors.square(), errors.abs() - 0.25).mean()
        torch.testing.assert_close(losses_of(pipeline, concept, config, batch).total, expected)


def test_timesteps_stay_in_their_range(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    batch = ("--train_batch_size", "100")
    config = make_config("--min_timestep", "300", "--max_timestep", "320", *batch)
    concept = dreambooth(pipeline, config, 1)
    drawn = torch.cat([concept.draw(step).timesteps for step in range(4)])
    assert {*drawn.tolist()} == {*range(300, 320)}
    assert concept.draw_fixed(32).timesteps.min() >= 300
    first = dreambooth(pipeline, make_config(*batch)).draw(0)
    whole = dreambooth(pipeline, make_config(*batch, "--max_timestep", "1000")).draw(0)
    assert torch.equal(first.timesteps, whole.timesteps)
    assert first.timesteps.min() < 100 < 900 < first.timesteps.max()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--min_timestep", "500", "--max_timestep", "500"], "--min_timestep 500 is not below"),
        (["--huber_delta", "1"], "--huber_delta does nothing without --loss huber"),
    ],
)
def test_losses_that_cannot_be_meant_are_refused(
    more: list[str], message: str, make_config: MakeConfig
) -> None:
    with pytest.raises(LoLDUError, match=message):
        make_config(*more)


@pytest.mark.parametrize("method", ["loldu", "svfit"])
def test_the_penalty_is_the_squared_norm_of_all_changes_of_weights(
    method: str, pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    config = make_config("--method", method, "--delta_norm_penalty", "0.3", *NORMAL)
    trained = add_trainables(pipeline, {"default": config}, {})
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    layers = [module for module in pipeline.unet.modules() if isinstance(module, LoLDULayer)]
    changes = torch.stack([layer.get_delta_weight("default").square().sum() for layer in layers])
    expected = torch.autograd.grad(0.3 * changes.sum(), trained.parameters(), allow_unused=True)
    concept = dreambooth(pipeline, config)
    objective = Objective([concept], trained, config)
    denoiser, batches = Denoiser(pipeline), objective.draw(0)
    (whole,) = objective.losses(denoiser, batches)
    torch.testing.assert_close(whole.total - whole.instance, 0.3 * changes.sum())
    found = torch.autograd.grad(
        whole.total - whole.instance, trained.parameters(), allow_unused=True
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    (first,) = objective.losses(denoiser, batches, slice(0, 1))
    torch.testing.assert_close(first.total - first.instance, 0.15 * changes.sum())
