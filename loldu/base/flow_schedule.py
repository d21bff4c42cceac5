"""The noise schedule of flow matching: straight lines from the picture to the noise."""

# diffusers loads its public names lazily, which looks private to pyright.
# pyright: reportPrivateImportUsage=false

# diffusers is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from diffusers import ConfigMixin, FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor

from loldu.base.family import NoiseSchedule
from loldu.errors import LoLDUError

_NORMAL = NormalDist()
_EDGE = 1e-7
"""Distance that draws keep from pure picture and pure noise."""


class FlowSchedule(NoiseSchedule):
    """Noisy latents are (1 - t) x0 + t noise, and the network predicts noise - x0.

    t is logit-normal: logit(t) has the standard deviation 1 and the mean mu, the shift. Large
    pictures have a larger mu, because noise hides less of them. Mean 0 before the shift, and
    a shift that grows with the tokens of a picture, are the settings of the sources.

    Source: Esser et al., Scaling Rectified Flow Transformers, Sec. 3.1 (Eq. 19) and Sec. 5.3.2
    (Eq. 23: shifting by a factor adds its logarithm to the logit).
    """

    def __init__(self, noise_scheduler: ConfigMixin, name: str, *, patch: int = 1) -> None:
        """Take the noise scheduler of the base.

        Args:
            noise_scheduler: The noise scheduler.
            name: Name of the base, for the message.
            patch: Side of the square of latents that the network reads as one token.

        Raises:
            LoLDUError: If the base was not trained by flow matching.
        """
        if not isinstance(noise_scheduler, FlowMatchEulerDiscreteScheduler):
            raise LoLDUError(
                f"{name} has the noise schedule {type(noise_scheduler).__name__}, but its family "
                "is trained by flow matching; download it again."
            )
        self._config: Any = noise_scheduler.config
        self._patch = patch

    def shift(self, latent_shape: tuple[int, ...]) -> float:
        """Return mu, the mean of logit(t), for latents of this shape.

        It is the logarithm of the schedule's fixed shift or, if that depends on the resolution, a
        line through its two points (tokens, shift).
        """
        config = self._config
        if not config["use_dynamic_shifting"]:
            return math.log(config["shift"])
        tokens = math.prod(latent_shape[1:]) / self._patch**2
        least, most = config["base_image_seq_len"], config["max_image_seq_len"]
        rise = (config["max_shift"] - config["base_shift"]) / (most - least)
        mu = config["base_shift"] + rise * (tokens - least)
        return math.log(mu) if config["time_shift_type"] == "linear" else mu

    def draw_timesteps(
        self,
        rng: np.random.Generator,
        count: int,
        latent_shape: tuple[int, ...],
        span: tuple[float, float] = (0.0, 1.0),
    ) -> Float[np.ndarray, " rows"]:
        """Draw t from the part of its distribution that is inside the span."""
        mu = self.shift(latent_shape)
        low, high = (_NORMAL.cdf(_logit(edge) - mu) for edge in span)
        shares = np.clip(low + (high - low) * rng.random(count), _EDGE, 1 - _EDGE)
        logits = mu + np.array([_NORMAL.inv_cdf(share) for share in shares.tolist()])
        return np.clip(1 / (1 + np.exp(-logits)), *span).astype(np.float32)

    def noise_and_target(
        self,
        latents: Float[Tensor, "rows ..."],
        noise: Float[Tensor, "rows ..."],
        timesteps: Float[Tensor, " rows"],
    ) -> tuple[Float[Tensor, "rows ..."], Float[Tensor, "rows ..."]]:
        """Return (1 - t) x0 + t noise, and noise - x0."""
        t = timesteps.reshape(-1, *[1] * (latents.ndim - 1))
        return (1 - t) * latents + t * noise, noise - latents


def _logit(share: float) -> float:
    if not 0 < share < 1:
        return math.inf if share >= 1 else -math.inf
    return math.log(share / (1 - share))
