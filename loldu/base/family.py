"""The seam between the project and a kind of base model.

A family is one module: a subclass of `Family`, and one line in `loldu/base/families.py`. Training,
scoring and the studio ask the family of a pipeline and name no pipeline class themselves.
"""

# diffusers loads its public names lazily, which looks private to pyright.
# pyright: reportPrivateImportUsage=false

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Num
from PIL import Image
from torch import Tensor, nn

from loldu.base.config import BaseModelConfig
from loldu.errors import LoLDUError
from loldu.pictures.crop import Framing

Conditioning = dict[str, Tensor]
"""Tensors that the network reads beside latents and time, with a row per prompt or view."""


class NoiseSchedule(ABC):
    """How training mixes latents with noise, and what the network should predict."""

    @abstractmethod
    def draw_timesteps(
        self,
        rng: np.random.Generator,
        count: int,
        latent_shape: tuple[int, ...],
        span: tuple[float, float] = (0.0, 1.0),
    ) -> Num[np.ndarray, " rows"]:
        """Draw the timesteps of `count` rows.

        Args:
            rng: Random numbers.
            count: Number of rows.
            latent_shape: Shape of a row's latents; some schedules give large pictures more noise.
            span: Part of the schedule, where 0 has no noise and 1 nothing else.
        """

    @abstractmethod
    def noise_and_target(
        self,
        latents: Float[Tensor, "rows ..."],
        noise: Float[Tensor, "rows ..."],
        timesteps: Num[Tensor, " rows"],
    ) -> tuple[Float[Tensor, "rows ..."], Float[Tensor, "rows ..."]]:
        """Return the noisy latents, and the prediction that is right for them."""

    def min_snr_weights(
        self, timesteps: Num[Tensor, " rows"], gamma: float
    ) -> Float[Tensor, " rows"]:
        """Return the Min-SNR weights of the rows' squared errors.

        Raises:
            LoLDUError: If the schedule has no such weights.
        """
        raise LoLDUError("This base cannot be trained with --snr_gamma; leave the option out.")


class Family(ABC):
    """One kind of base model; it has no state, every method takes the pipeline or its network.

    Attributes:
        name: Name of the family in messages.
        pipeline_class: Class of its pipelines.
        network: Component that denoises and carries the adapter.
        text_encoders: Components that encode prompts.
        vae: Component that encodes pictures.
        target_modules: Layers of the network that adapters change by default.
        text_target_modules: Layers of the text encoders that adapters change.
        word_keys: By text encoder, the key of its vector in the file of a learned word; a family
            with one text encoder uses the word itself.
        lora_prefixes: By component, the prefix of its keys in a LoRA file with kohya's names.
        unused_options: By name, the trainer's options that make no sense here, and why.
        licenses: Licences of well-known bases, whose terms also bind what is derived from them.
        tag: Tag of its results on the Hub.
        half_dtype: Dtype in which a GPU draws with it.
    """

    name: ClassVar[str]
    pipeline_class: ClassVar[type[DiffusionPipeline]]
    network: ClassVar[str]
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    vae: ClassVar[str] = "vae"
    target_modules: ClassVar[tuple[str, ...]] = ("to_k", "to_q", "to_v", "to_out.0")
    text_target_modules: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "out_proj")
    word_keys: ClassVar[Mapping[str, str]] = {}
    lora_prefixes: ClassVar[Mapping[str, str]]
    unused_options: ClassVar[Mapping[str, str]] = {}
    licenses: ClassVar[Mapping[str, str]] = {}
    tag: ClassVar[str] = "stable-diffusion"
    half_dtype: ClassVar[torch.dtype] = torch.float16

    @abstractmethod
    def matches(self, index: Mapping[str, Any]) -> bool:
        """Tell whether a folder with this `model_index.json` is of the family.

        Raises:
            LoLDUError: If it is a model of the family that cannot be trained.
        """

    def matches_file(self, keys: Collection[str]) -> bool:
        """Tell whether a single-file checkpoint with tensors of these names is of the family."""
        return False

    def check_files(self, base: BaseModelConfig) -> None:
        """Check a base before its weights are loaded: the options, and the parts of a local one.

        Raises:
            LoLDUError: If an option is not for this family, or a part is missing.
        """
        return

    @abstractmethod
    def open(
        self,
        base: BaseModelConfig,
        *,
        torch_dtype: torch.dtype,
        safety_checker: bool,
    ) -> DiffusionPipeline:
        """Load the pipeline on the CPU; the caller freezes and moves it.

        Args:
            base: Where the base is and how it is read.
            torch_dtype: Dtype of network and text encoders; the VAE is float32.
            safety_checker: Whether to keep the base's own safety checker.

        Raises:
            LoLDUError: If the base cannot be read or trained.
        """

    @abstractmethod
    def encode_text(self, pipeline: DiffusionPipeline, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, on the text encoders' device.

        The result also holds the tokens, if `encode_again` starts from them.
        """

    def encode_again(
        self, text_encoders: Mapping[str, nn.Module], conditioning: Conditioning
    ) -> Conditioning:
        """Encode the tokens in `conditioning` anew, with text encoders that are being trained.

        Raises:
            LoLDUError: If the text encoders of the family are never trained.
        """
        raise LoLDUError(f"The text encoder of {self.name} is not trained here.")

    def network_targets(self, pipeline: DiffusionPipeline) -> tuple[str, ...]:
        """Return the layers of this pipeline's network that adapters change by default."""
        return self.target_modules

    def text_targets(self, pipeline: DiffusionPipeline) -> dict[str, tuple[str, ...]]:
        """Return the layers of each text encoder that adapters change.

        Raises:
            LoLDUError: If the text encoders of the family are never trained.
        """
        return dict.fromkeys(self.text_encoders, self.text_target_modules)

    @abstractmethod
    def encode_pictures(
        self, pipeline: DiffusionPipeline, pixels: Float[Tensor, "rows 3 height width"]
    ) -> tuple[Float[Tensor, "rows ..."], Float[Tensor, "rows ..."]]:
        """Return mean and standard deviation of pictures' latents, scaled for the network.

        Args:
            pipeline: The base.
            pixels: Pictures in [-1, 1].
        """

    def describe_views(self, framings: Sequence[Framing]) -> Conditioning:
        """Return tensors with one row per view, if the network reads how pictures were cropped.

        They join the encoded prompts as `conditioning` of `predict`.
        """
        return {}

    @abstractmethod
    def noise_schedule(self, pipeline: DiffusionPipeline) -> NoiseSchedule:
        """Return the noise schedule that the base was trained with.

        Raises:
            LoLDUError: If the base predicts something that cannot be trained.
        """

    @abstractmethod
    def predict(
        self,
        network: nn.Module,
        noisy: Float[Tensor, "rows ..."],
        timesteps: Num[Tensor, " rows"],
        conditioning: Conditioning,
    ) -> Float[Tensor, "rows ..."]:
        """Call the network; the prediction is float32.

        Args:
            network: The network.
            noisy: Noisy latents.
            timesteps: How noisy they are.
            conditioning: The encoded prompts and the description of the views, row by row.
        """

    @abstractmethod
    def draw(
        self,
        pipeline: DiffusionPipeline,
        prompts: list[str],
        generators: list[torch.Generator],
        *,
        negative_prompts: list[str] | None,
        num_inference_steps: int,
        guidance_scale: float,
        resolution: int | None,
    ) -> list[Image.Image]:
        """Draw one picture per prompt, each from the noise of its own generator."""

    def passes_a_step(self, pipeline: DiffusionPipeline, guidance_scale: float) -> int:
        """Return how often a denoising step of `draw` calls the network."""
        return 1

    @abstractmethod
    def latent_shape(self, pipeline: DiffusionPipeline, resolution: int) -> tuple[int, ...]:
        """Return the shape of the latents of one square picture of `resolution` pixels."""

    def picture_multiple(self, pipeline: DiffusionPipeline) -> int:
        """Return what the sides of pictures in other shapes than a square are multiples of.

        Raises:
            LoLDUError: If the family takes no such pictures.
        """
        raise LoLDUError("This base is trained on squares only; leave out --aspect_buckets.")

    def native_resolution(self, pipeline: DiffusionPipeline) -> int | None:
        """Return the side in pixels of the pictures that the base was trained on, if it says so."""
        return None

    def resolution_of_folder(self, folder: Path) -> int | None:
        """Return the same for the folder of a base, without loading its weights."""
        return None

    def lora_architecture(self, pipeline: DiffusionPipeline) -> str | None:
        """Return the architecture that the header of a LoRA file names, if it has a name.

        Source: Stability AI, the model metadata standard (modelspec) 1.0.0.
        """
        return None
