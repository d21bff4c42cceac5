"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, and a schedule of alphas."""

# diffusers loads its public names lazily, which looks private to pyright.
# pyright: reportPrivateImportUsage=false

# diffusers and transformers are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from loldu.base.alpha_schedule import AlphaSchedule, check_alphas
from loldu.base.config import BaseModelConfig
from loldu.base.family import Conditioning, Family, NoiseSchedule
from loldu.base.long_prompts import equally_long, prompt_tokens, read_long_prompts
from loldu.base.single_file import check_checkpoint, is_stable_diffusion, refuse_more_channels
from loldu.base.source import check_parts, check_source, config_of, quiet, reading
from loldu.concept.lora_names import PREFIXES
from loldu.errors import LoLDUError
from loldu.prompts import tell_of_cut

STATES, TOKENS = "encoder_hidden_states", "input_ids"
"""Names of the two tensors of a conditioning: the UNet's input and the text encoder's."""


class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x, from a folder, the Hub or a single file."""

    name = "Stable Diffusion 1.x and 2.x"
    pipeline_class = StableDiffusionPipeline
    network = "unet"
    lora_prefixes = PREFIXES
    licenses: ClassVar[Mapping[str, str]] = {
        "CompVis/stable-diffusion-v1-1": "creativeml-openrail-m",
        "CompVis/stable-diffusion-v1-2": "creativeml-openrail-m",
        "CompVis/stable-diffusion-v1-3": "creativeml-openrail-m",
        "CompVis/stable-diffusion-v1-4": "creativeml-openrail-m",
        "runwayml/stable-diffusion-v1-5": "creativeml-openrail-m",
        "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
        "stabilityai/stable-diffusion-2": "openrail++",
        "stabilityai/stable-diffusion-2-base": "openrail++",
        "stabilityai/stable-diffusion-2-1": "openrail++",
        "stabilityai/stable-diffusion-2-1-base": "openrail++",
    }
    file_text_encoders: ClassVar[tuple[str, ...]] = ("cond_stage_model.",)
    """Beginnings of the text encoders' keys in a single-file checkpoint."""
    has_safety_checker: ClassVar[bool] = True

    def matches(self, index: Mapping[str, Any]) -> bool:
        """Tell whether a folder has the UNet and the one text encoder of Stable Diffusion."""
        kinds = {part: index.get(part, [None, None])[1] for part in ("unet", "text_encoder")}
        wanted = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel"}
        return kinds == wanted and "text_encoder_2" not in index

    def matches_file(self, keys: Collection[str]) -> bool:
        """Tell whether a single file has the UNet of Stable Diffusion 1.x or 2.x."""
        return is_stable_diffusion(keys)

    def check_files(self, base: BaseModelConfig) -> None:
        """Refuse a folder without a part, and a file that is not a whole checkpoint.

        Raises:
            LoLDUError: If it is one of these.
        """
        path = Path(base.pretrained_model_name_or_path)
        if path.is_file():
            has_vae = base.vae is not None
            check_checkpoint(path, self.file_text_encoders, has_vae=has_vae)
        vae = (self.vae,) if base.vae is None else ()
        if path.is_dir():
            check_parts(path, (self.network, *self.text_encoders, *vae))

    def open(self, base: BaseModelConfig, *, torch_dtype: torch.dtype, safety_checker: bool) -> Any:  # noqa: ANN401
        """Load UNet and text encoders in `torch_dtype`, the VAE in float32: some overflow in fp16.

        Raises:
            LoLDUError: If the base cannot be read or trained.
        """
        name, path = base.pretrained_model_name_or_path, Path(base.pretrained_model_name_or_path)
        parts: dict[str, Any] = {}
        if base.vae is not None:
            layout = (base.single_file_config, None) if path.is_file() else (name, base.revision)
            parts["vae"] = _load_vae(base.vae, *layout)
        if path.is_file():
            pipeline = self._load_single_file(base, torch_dtype, parts)
        else:
            pipeline = self._load_folder(base, torch_dtype, parts, safety_checker=safety_checker)
        in_channels = pipeline.unet.config["in_channels"]
        refuse_more_channels(name, in_channels, pipeline.vae.config["latent_channels"])
        if base.prediction_type is not None:
            pipeline.scheduler.register_to_config(prediction_type=base.prediction_type)
        check_alphas(pipeline.scheduler, name)
        self._adjust(pipeline, base)
        pipeline.vae.enable_slicing()  # decoding a batch at once would need more than training does
        return pipeline

    def _load_folder(
        self,
        base: BaseModelConfig,
        torch_dtype: torch.dtype,
        parts: dict[str, Any],
        *,
        safety_checker: bool,
    ) -> Any:  # noqa: ANN401
        if self.has_safety_checker and not safety_checker:
            parts = {**parts, "safety_checker": None, "requires_safety_checker": False}
        name = base.pretrained_model_name_or_path
        with reading("base", name):
            return self.pipeline_class.from_pretrained(
                name,
                dtype={"vae": torch.float32, "default": torch_dtype},
                revision=base.revision,
                variant=base.variant,
                **parts,
            )

    def _load_single_file(
        self, base: BaseModelConfig, torch_dtype: torch.dtype, parts: dict[str, Any]
    ) -> Any:  # noqa: ANN401
        name, layout = base.pretrained_model_name_or_path, base.single_file_config
        kind: Any = self.pipeline_class
        if torch_dtype != torch.float32 and "vae" not in parts:
            parts = {**parts, "vae": _load_vae(name, layout, None)}
        with reading("base", name, layout):
            pipeline = kind.from_single_file(name, config=layout, torch_dtype=torch_dtype, **parts)
        # Concepts know their base by this name, so it must not depend on the file's folder.
        pipeline.register_to_config(_name_or_path=Path(name).name)
        if self.has_safety_checker:
            pipeline.safety_checker = None
        return pipeline

    def _adjust(self, pipeline: Any, base: BaseModelConfig) -> None:  # noqa: ANN401
        """Apply the options that say how prompts are read.

        Raises:
            LoLDUError: If the text encoder has too few layers.
        """
        _leave_out_last_layers(pipeline.text_encoder, base.clip_skip)
        if base.prompt_chunks > 1:
            read_long_prompts(pipeline, base.prompt_chunks)

    def encode_text(
        self,
        pipeline: Any,  # noqa: ANN401
        prompts: Sequence[str],
    ) -> Conditioning:
        """Encode prompts as the UNet's `encoder_hidden_states`, and keep their tokens."""
        tokenizer, device = pipeline.tokenizer, pipeline.text_encoder.device
        states = embed(pipeline, prompts)
        if states.shape[1] > tokenizer.model_max_length:
            chunks = [prompt_tokens(pipeline, prompt)[None] for prompt in prompts]
            return {STATES: states, TOKENS: torch.cat(equally_long(chunks)).to(device)}
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return {STATES: states, TOKENS: tokens.input_ids.to(device)}

    def encode_again(
        self, text_encoders: Mapping[str, nn.Module], conditioning: Conditioning
    ) -> Conditioning:
        """Encode the tokens anew, with a text encoder that is being trained."""
        tokens, text_encoder = conditioning[TOKENS], text_encoders["text_encoder"]
        if tokens.ndim == 2:
            return {**conditioning, STATES: text_encoder(tokens)[0]}
        # Several chunks a prompt, chunk by chunk: rows keep their order, by which concepts go.
        states = text_encoder(tokens.transpose(0, 1).flatten(0, 1))[0]
        states = states.unflatten(0, (-1, len(tokens))).transpose(0, 1).flatten(1, 2)
        return {**conditioning, STATES: states}

    @torch.no_grad()
    def encode_pictures(
        self,
        pipeline: Any,  # noqa: ANN401
        pixels: Float[Tensor, "rows 3 height width"],
    ) -> tuple[Float[Tensor, "rows c h w"], Float[Tensor, "rows c h w"]]:
        """Return mean and standard deviation of the VAE's posterior, scaled for the UNet."""
        vae = pipeline.vae
        posterior = vae.encode(pixels.to(vae.device, vae.dtype), return_dict=False)[0]
        shift, scale = latent_scaling(vae)
        return (posterior.mean - shift) * scale, posterior.std * scale

    def noise_schedule(self, pipeline: Any) -> NoiseSchedule:  # noqa: ANN401
        """Return the base's own schedule of alphas.

        Raises:
            LoLDUError: If the base predicts neither noise nor velocity.
        """
        return AlphaSchedule(pipeline.scheduler)

    def predict(
        self,
        network: nn.Module,
        noisy: Float[Tensor, "rows c h w"],
        timesteps: Int[Tensor, " rows"],
        conditioning: Conditioning,
    ) -> Float[Tensor, "rows c h w"]:
        """Call the UNet."""
        states = conditioning[STATES]
        return network(noisy.to(states.dtype), timesteps, states, return_dict=False)[0].float()

    @torch.no_grad()
    def draw(
        self,
        pipeline: Any,  # noqa: ANN401
        prompts: list[str],
        generators: list[torch.Generator],
        *,
        negative_prompts: list[str] | None,
        num_inference_steps: int,
        guidance_scale: float,
        resolution: int | None,
    ) -> list[Image.Image]:
        """Draw one picture per prompt; latents are decoded in the VAE's own precision."""
        with naming_cut_words(pipeline, [*prompts, *(negative_prompts or ())]):
            output = pipeline(
                prompt=prompts,
                negative_prompt=negative_prompts,
                generator=generators,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                height=resolution,
                width=resolution,
                output_type="latent",
            )
        vae = pipeline.vae
        shift, scale = latent_scaling(vae)
        latents = output.images.to(vae.dtype) / scale + shift
        decoded = vae.decode(latents, return_dict=False)[0]
        return pipeline.image_processor.postprocess(decoded, output_type="pil")

    def latent_shape(self, pipeline: Any, resolution: int) -> tuple[int, ...]:  # noqa: ANN401
        """Return channels, height and width of the latents of a square picture."""
        side = resolution // pipeline.vae_scale_factor
        return pipeline.unet.config["in_channels"], side, side

    def picture_multiple(self, pipeline: Any) -> int:  # noqa: ANN401
        """Return the factor by which VAE and UNet together shrink a picture: 64 for SD."""
        return pipeline.vae_scale_factor * 2 ** (len(pipeline.unet.config["down_block_types"]) - 1)

    def native_resolution(self, pipeline: Any) -> int | None:  # noqa: ANN401
        """Return the side that the UNet's config names: 512, 768 or 1024 pixels."""
        side = pipeline.unet.config.get("sample_size")
        return side * pipeline.vae_scale_factor if isinstance(side, int) else None

    def resolution_of_folder(self, folder: Path) -> int | None:
        """Return the side that the config of the UNet names, in pixels."""
        side, vae = config_of(folder, self.network)["sample_size"], config_of(folder, self.vae)
        return int(side) * 2 ** (len(vae["block_out_channels"]) - 1)

    def lora_architecture(self, pipeline: Any) -> str | None:  # noqa: ANN401
        """Return the modelspec name for the text encoder's width and the prediction type.

        Source: Stability AI, the model metadata standard (modelspec) 1.0.0.
        """
        width = pipeline.unet.config["cross_attention_dim"]
        return {
            (768, "epsilon"): "stable-diffusion-v1/lora",
            (1024, "epsilon"): "stable-diffusion-v2-512/lora",
            (1024, "v_prediction"): "stable-diffusion-v2-768-v/lora",
        }.get((width, pipeline.scheduler.config["prediction_type"]))


@torch.no_grad()
def embed(
    pipeline: Any,  # noqa: ANN401
    prompts: Sequence[str],
) -> Float[Tensor, "prompts tokens dim"]:
    """Return the UNet's `encoder_hidden_states` of each prompt."""
    device = pipeline.text_encoder.device
    with naming_cut_words(pipeline, prompts):
        states = [
            pipeline.encode_prompt(prompt, device, 1, do_classifier_free_guidance=False)[0]
            for prompt in prompts
        ]
        return torch.cat(equally_long(states))


def latent_scaling(vae: Any) -> tuple[Tensor | float, Tensor | float]:  # noqa: ANN401
    """Return what to subtract from a VAE's latents, and then the factor, for the network.

    Some VAEs know the mean and deviation of every channel; the others scale all channels alike.
    """
    factor, mean, std = map(vae.config.get, ("scaling_factor", "latents_mean", "latents_std"))
    if mean is None or std is None:
        return 0.0, factor
    shift, deviation = (torch.tensor(x, device=vae.device)[:, None, None] for x in (mean, std))
    return shift, factor / deviation


@contextmanager
def naming_cut_words(pipeline: Any, prompts: Sequence[str]) -> Generator[None]:  # noqa: ANN401
    """Log one plain line for every prompt that is too long, instead of the libraries' lines."""
    is_long = getattr(pipeline, "prompt_chunks", 1) > 1  # then `prompt_tokens` names them
    if not is_long and tell_of_cut(pipeline.tokenizer, prompts, "the base"):
        with quiet():
            yield
    else:
        yield


def _load_vae(vae: str, layout: str | None, revision: str | None) -> AutoencoderKL:
    check_source(vae, "--vae", "config.json")
    with reading("VAE", vae, layout):
        if Path(vae).is_file():
            options = {"config": layout, "subfolder": "vae", "config_revision": revision}
            return AutoencoderKL.from_single_file(vae, torch_dtype=torch.float32, **options)
        return AutoencoderKL.from_pretrained(vae, dtype=torch.float32)


def _leave_out_last_layers(text_encoder: Any, count: int) -> None:  # noqa: ANN401
    """Apply clip skip: training, drawing and saving all use the shortened text encoder."""
    layers = text_encoder.encoder.layers
    if count >= len(layers):
        raise LoLDUError(
            f"--clip_skip is {count}, but the text encoder of this base has {len(layers)} layers; "
            "it must be less."
        )
    text_encoder.encoder.layers = layers[: len(layers) - count]
    text_encoder.config.num_hidden_layers = len(layers) - count
