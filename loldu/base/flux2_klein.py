"""FLUX.2 klein: a flow transformer, which reads patches of latents and states of a frozen Qwen3."""

# diffusers loads its public names lazily, which looks private to pyright.
# pyright: reportPrivateImportUsage=false

# diffusers and transformers are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from loldu.base.config import BaseModelConfig
from loldu.base.family import Conditioning, Family, NoiseSchedule
from loldu.base.flow_schedule import FlowSchedule
from loldu.base.source import check_parts, check_source, config_of, reading
from loldu.concept.lora_names import FLUX2_PREFIXES
from loldu.errors import LoLDUError
from loldu.prompts import log_cut

STATES = "encoder_hidden_states"
"""Name of the tensor of a conditioning: the states of Qwen3, 512 tokens with padding."""
PATCH = 2
"""Side of the square of latents that is one token."""
_TOKENS = 512
"""Tokens of a prompt that the pipeline reads, its chat template included."""
_SIDE = 128
"""Side of the pictures that the pipeline draws by default, in latents."""
_MARKS = ("single_stream_modulation.lin.weight", "double_stream_modulation_img.lin.weight")
"""Ends of the names of tensors that only a single file of a FLUX.2 transformer has."""


class Flux2Klein(Family):
    """FLUX.2 klein, distilled or not, from a folder or the Hub.

    The pipeline reads three layers of Qwen3 and no pooled prompt. Latents are joined into patches
    of 2 x 2, and normalized by the running statistics of a batch norm in the VAE.
    """

    name = "FLUX.2 klein"
    pipeline_class = Flux2KleinPipeline
    network = "transformer"
    target_modules = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        "to_qkv_mlp_proj",
    )
    lora_prefixes = FLUX2_PREFIXES
    unused_options: ClassVar[Mapping[str, str]] = {
        "train_text_encoder": "its text encoder is a language model, which stays frozen",
        "placeholder_token": "its text encoder is a language model, which learns no new word here",
        "snr_gamma": "flow matching has no such weights, it draws middle times more often",
        "noise_offset": "its noise schedule ends in noise alone, which needs no offset",
    }
    licenses: ClassVar[Mapping[str, str]] = {
        "black-forest-labs/FLUX.2-klein-4B": "apache-2.0",
        "black-forest-labs/FLUX.2-klein-base-4B": "apache-2.0",
    }

    tag = "flux2-klein"
    half_dtype = torch.bfloat16

    def matches(self, index: Mapping[str, Any]) -> bool:
        """Tell whether a folder is of the pipeline for text to image, with its Qwen3."""
        kinds = {part: index.get(part, [None, None])[1] for part in ("transformer", "text_encoder")}
        wanted = {"transformer": "Flux2Transformer2DModel", "text_encoder": "Qwen3ForCausalLM"}
        return index.get("_class_name") == "Flux2KleinPipeline" and kinds == wanted

    def matches_file(self, keys: Collection[str]) -> bool:
        """Tell whether a single file is a transformer of FLUX.2, which `check_files` refuses."""
        return any(key.endswith(_MARKS) for key in keys)

    def check_files(self, base: BaseModelConfig) -> None:
        """Refuse single files, options of other families, and a folder without a part.

        Raises:
            LoLDUError: If it is one of these.
        """
        path = Path(base.pretrained_model_name_or_path)
        if path.is_file():
            raise LoLDUError(
                f"{path} is the transformer of a FLUX.2 alone, without its text encoder and VAE; "
                "give the diffusers folder or the hub id, such as "
                "black-forest-labs/FLUX.2-klein-base-4B."
            )
        plain = BaseModelConfig(base.pretrained_model_name_or_path)
        for option in ("single_file_config", "prediction_type", "clip_skip", "prompt_chunks"):
            if getattr(base, option) != getattr(plain, option):
                raise LoLDUError(f"--{option} is not for {self.name}; leave it out.")
        if path.is_dir():
            vae = () if base.vae else (self.vae,)
            check_parts(path, (self.network, *self.text_encoders, *vae))

    def open(self, base: BaseModelConfig, *, torch_dtype: torch.dtype, safety_checker: bool) -> Any:  # noqa: ANN401
        """Load transformer and text encoder in `torch_dtype`, the VAE in float32.

        Raises:
            LoLDUError: If the base cannot be read or trained.
        """
        name, parts = base.pretrained_model_name_or_path, {}
        if base.vae is not None:
            check_source(base.vae, "--vae", "config.json", may_be_file=False)
            with reading("VAE", base.vae):
                vae = AutoencoderKLFlux2.from_pretrained(base.vae, dtype=torch.float32)
            parts["vae"] = vae
        with reading("base", name):
            pipeline: Any = Flux2KleinPipeline.from_pretrained(
                name,
                dtype={"vae": torch.float32, "default": torch_dtype},
                revision=base.revision,
                variant=base.variant,
                **parts,
            )
        FlowSchedule(pipeline.scheduler, name)
        pipeline.vae.enable_slicing()  # decoding a batch at once would need more than training does
        return pipeline

    def network_targets(self, pipeline: Any) -> tuple[str, ...]:  # noqa: ANN401
        """Return the attention of both kinds of blocks, with the fused layers of the single ones.

        The outputs of the single blocks are named in full: `to_out` is a list in the others.
        """
        blocks = range(len(pipeline.transformer.single_transformer_blocks))
        out = tuple(f"single_transformer_blocks.{index}.attn.to_out" for index in blocks)
        return (*self.target_modules, *out)

    @torch.no_grad()
    def encode_text(
        self,
        pipeline: Any,  # noqa: ANN401
        prompts: Sequence[str],
    ) -> Conditioning:
        """Encode prompts one by one; they are frozen, so no tokens are kept."""
        _tell_of_cut(pipeline, prompts)
        device = pipeline.text_encoder.device
        states = [pipeline.encode_prompt(prompt, device=device)[0] for prompt in prompts]
        return {STATES: torch.cat(states)}

    @torch.no_grad()
    def encode_pictures(
        self,
        pipeline: Any,  # noqa: ANN401
        pixels: Float[Tensor, "rows 3 height width"],
    ) -> tuple[Float[Tensor, "rows c h w"], Float[Tensor, "rows c h w"]]:
        """Return the mode of the VAE's posterior in normalized patches, and a deviation of zero.

        The pipeline also encodes pictures by their mode.

        Raises:
            LoLDUError: If the sides of the pictures do not fit the patches.
        """
        vae, multiple = pipeline.vae, self.picture_multiple(pipeline)
        height, width = pixels.shape[-2:]
        if height % multiple or width % multiple:
            raise LoLDUError(
                f"Pictures of {width} x {height} pixels do not fit {self.name}, whose sides are "
                f"multiples of {multiple}; give such a --resolution."
            )
        posterior = vae.encode(pixels.to(vae.device, vae.dtype), return_dict=False)[0]
        mean, variance = (x[:, None, None] for x in (vae.bn.running_mean, vae.bn.running_var))
        deviation = torch.sqrt(variance + vae.config["batch_norm_eps"])
        latents = (pixel_unshuffle(posterior.mode(), PATCH) - mean) / deviation
        return latents, torch.zeros_like(latents)

    def noise_schedule(self, pipeline: Any) -> NoiseSchedule:  # noqa: ANN401
        """Return the base's schedule of flow matching; its latents are patches already."""
        return FlowSchedule(pipeline.scheduler, self.name)

    def predict(
        self,
        network: nn.Module,
        noisy: Float[Tensor, "rows c h w"],
        timesteps: Float[Tensor, " rows"],
        conditioning: Conditioning,
    ) -> Float[Tensor, "rows c h w"]:
        """Call the transformer on the patches in reading order, each with its place."""
        states = conditioning[STATES]
        places, words = position_ids(noisy.shape[-2:], states.shape[1], noisy.device)
        predicted = network(
            hidden_states=noisy.to(states.dtype).flatten(2).transpose(1, 2),
            encoder_hidden_states=states,
            timestep=timesteps,
            img_ids=places,
            txt_ids=words,
            guidance=None,
            return_dict=False,
        )[0]
        return predicted.transpose(1, 2).unflatten(2, noisy.shape[-2:]).float()

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
        """Draw one picture per prompt; latents are decoded in the VAE's own precision.

        A distilled base has learned guidance: it has no unconditional row, and the scale has no
        effect.

        Raises:
            LoLDUError: If a distilled base gets a negative prompt.
        """
        distilled, unconditional = pipeline.config["is_distilled"], None
        if any(negative_prompts or ()):
            if distilled:
                raise LoLDUError(
                    f"This {self.name} is distilled: it draws without guidance, so a negative "
                    "prompt has no effect; leave it out, or take a base that is not distilled."
                )
            unconditional = self.encode_text(pipeline, list(negative_prompts or ()))[STATES]
        _tell_of_cut(pipeline, prompts)
        output = pipeline(
            prompt=prompts,
            negative_prompt_embeds=unconditional,
            generator=generators,
            num_inference_steps=num_inference_steps,
            guidance_scale=1.0 if distilled else guidance_scale,
            height=resolution,
            width=resolution,
            output_type="latent",
        )
        vae = pipeline.vae
        decoded = vae.decode(output.images.to(vae.dtype), return_dict=False)[0]
        return pipeline.image_processor.postprocess(decoded, output_type="pil")

    def passes_a_step(self, pipeline: Any, guidance_scale: float) -> int:  # noqa: ANN401
        """Return 2 if a picture is guided: the unconditional pass is one of its own."""
        return 2 if guidance_scale > 1 and not pipeline.config["is_distilled"] else 1

    def latent_shape(self, pipeline: Any, resolution: int) -> tuple[int, ...]:  # noqa: ANN401
        """Return channels, height and width of the patches of a square picture."""
        side = resolution // self.picture_multiple(pipeline)
        return pipeline.transformer.config["in_channels"], side, side

    def picture_multiple(self, pipeline: Any) -> int:  # noqa: ANN401
        """Return the side of a patch in pixels: 16."""
        return pipeline.vae_scale_factor * PATCH

    def native_resolution(self, pipeline: Any) -> int | None:  # noqa: ANN401
        """Return the side of the pictures that the pipeline draws by default: 1024 pixels."""
        return pipeline.default_sample_size * pipeline.vae_scale_factor

    def resolution_of_folder(self, folder: Path) -> int | None:
        """Return the same for the VAE of a folder."""
        return _SIDE * 2 ** (len(config_of(folder, self.vae)["block_out_channels"]) - 1)


def position_ids(
    size: Sequence[int], words: int, device: torch.device
) -> tuple[Int[Tensor, "patches 4"], Int[Tensor, "words 4"]]:
    """Return the places of patches and of tokens of the prompt: time, row, column, and token.

    Args:
        size: Rows and columns of patches.
        words: Tokens of a prompt.
        device: Device of the result.
    """
    height, width = size
    places = torch.zeros(height, width, 4, dtype=torch.long, device=device)
    places[..., 1] = torch.arange(height, device=device)[:, None]
    places[..., 2] = torch.arange(width, device=device)
    of_words = torch.zeros(words, 4, dtype=torch.long, device=device)
    of_words[:, 3] = torch.arange(words, device=device)
    return places.flatten(0, 1), of_words


def _tell_of_cut(pipeline: Any, prompts: Sequence[str]) -> None:  # noqa: ANN401
    """Log a line for every prompt whose end is beyond the tokens that the pipeline reads."""
    tokenizer = pipeline.tokenizer
    for prompt in prompts:
        message = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(message, tokenize=False, enable_thinking=False)
        before = len(tokenizer(text[: text.find(prompt)]).input_ids)
        tokens = tokenizer(prompt, verbose=False).input_ids
        if len(tokens) > _TOKENS - before:
            log_cut(prompt, tokens, _TOKENS - before, tokenizer.decode, "the base")
