"""The noise schedule of Stable Diffusion: alphas, and networks that predict noise or velocity."""

# diffusers loads its public names lazily, which looks private to pyright.
# pyright: reportPrivateImportUsage=false

# diffusers is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from typing import Any

import numpy as np
from diffusers import ConfigMixin, DDPMScheduler
from jaxtyping import Float, Int
from torch import Tensor

from loldu.base.family import NoiseSchedule
from loldu.errors import LoLDUError


class AlphaSchedule(NoiseSchedule):
    """Noisy latents are sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise, with integer timesteps."""

    def __init__(self, noise_scheduler: ConfigMixin) -> None:
        """Take the noise scheduler of the base.

        Raises:
            LoLDUError: If the base predicts neither noise nor velocity.
        """
        self._noise_scheduler: Any = training_noise_scheduler(noise_scheduler)

    def draw_timesteps(
        self,
        rng: np.random.Generator,
        count: int,
        latent_shape: tuple[int, ...],
        span: tuple[float, float] = (0.0, 1.0),
    ) -> Int[np.ndarray, " rows"]:
        """Draw timesteps uniformly, from the start of the span up to its end, without it."""
        steps = self._noise_scheduler.config["num_train_timesteps"]
        first, end = (round(share * steps) for share in span)
        return rng.integers(first, max(end, first + 1), size=count)

    def noise_and_target(
        self,
        latents: Float[Tensor, "rows c h w"],
        noise: Float[Tensor, "rows c h w"],
        timesteps: Int[Tensor, " rows"],
    ) -> tuple[Float[Tensor, "rows c h w"], Float[Tensor, "rows c h w"]]:
        """Return the noisy latents, and the noise or the velocity that the base predicts."""
        target = noise
        if self._noise_scheduler.config["prediction_type"] == "v_prediction":
            target = self._noise_scheduler.get_velocity(latents, noise, timesteps)
        return self._noise_scheduler.add_noise(latents, noise, timesteps), target

    def min_snr_weights(
        self, timesteps: Int[Tensor, " rows"], gamma: float
    ) -> Float[Tensor, " rows"]:
        """Return Min-SNR weights for what the base predicts."""
        return min_snr_weights(self._noise_scheduler, timesteps, gamma)


def training_noise_scheduler(noise_scheduler: ConfigMixin) -> DDPMScheduler:
    """Return the base's noise schedule and prediction type, apart from its sampler's state.

    Raises:
        LoLDUError: If the prediction type is neither epsilon nor v_prediction.
    """
    scheduler = DDPMScheduler.from_config(noise_scheduler.config)
    assert isinstance(scheduler, DDPMScheduler)
    prediction_type = scheduler.config["prediction_type"]
    if prediction_type not in ("epsilon", "v_prediction"):
        raise LoLDUError(
            f"The base predicts {prediction_type}; only epsilon and v_prediction can be trained."
        )
    return scheduler


def min_snr_weights(
    noise_scheduler: DDPMScheduler, timesteps: Int[Tensor, " rows"], gamma: float
) -> Float[Tensor, " rows"]:
    """Return Min-SNR weights: min(SNR, gamma) on the x0 error, whatever the network predicts.

    The x0 error is the noise error divided by SNR, and the v error divided by SNR + 1.

    Source: Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, Sec. 3.4.
    """
    alpha_bar = noise_scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alpha_bar / (1 - alpha_bar)
    if noise_scheduler.config["prediction_type"] == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)


def check_alphas(noise_scheduler: ConfigMixin, name: str) -> None:
    """Refuse a base whose schedule does not fit its prediction, or is not one of alphas.

    Args:
        noise_scheduler: The noise scheduler of the base.
        name: Name of the base, for the message.

    Raises:
        LoLDUError: If it is such a base.
    """
    config = noise_scheduler.config
    if "sigma_data" in config:
        raise LoLDUError(
            f"{name} was trained with the noise of EDM ({type(noise_scheduler).__name__}), which "
            "cannot be trained here; give a base with a schedule of alphas."
        )
    if config["prediction_type"] == "epsilon" and config.get("rescale_betas_zero_snr"):
        raise LoLDUError(
            f"The noise schedule of {name} ends in pure noise (rescale_betas_zero_snr), from which "
            "epsilon draws nothing; if it predicts velocity, give --prediction_type v_prediction."
        )
