"""SDXL: two text encoders, a UNet that also reads pooled prompts and the framing of pictures."""

# diffusers loads its public names lazily, which looks private to pyright.
# pyright: reportPrivateImportUsage=false

# diffusers and transformers are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from loldu.base.config import BaseModelConfig
from loldu.base.family import Conditioning
from loldu.base.long_prompts import equally_long, prompt_tokens, read_long_prompts
from loldu.base.single_file import tensor_shapes
from loldu.base.stable_diffusion import STATES, TOKENS, StableDiffusion, naming_cut_words
from loldu.concept.lora_names import XL_PREFIXES
from loldu.errors import LoLDUError
from loldu.pictures.crop import Framing

POOLED, TIME_IDS, TOKENS_2, READ = "text_embeds", "time_ids", "input_ids_2", "is_read"
"""More names of a conditioning's tensors. `is_read` is 0 for prompts whose states are zeros."""
_LAST = "encoder.layers.{}.self_attn.{}"


class StableDiffusionXL(StableDiffusion):
    """SDXL, from a folder, the Hub or a single file; its refiner is not trained.

    Source: Podell et al., SDXL, Sec. 2.
    """

    name = "Stable Diffusion XL"
    pipeline_class = StableDiffusionXLPipeline
    text_encoders = ("text_encoder", "text_encoder_2")
    lora_prefixes = XL_PREFIXES
    licenses: ClassVar[Mapping[str, str]] = {
        "stabilityai/stable-diffusion-xl-base-1.0": "openrail++"
    }
    word_keys: ClassVar[Mapping[str, str]] = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    file_text_encoders = ("conditioner.embedders.0.", "conditioner.embedders.1.")
    has_safety_checker = False

    def matches(self, index: Mapping[str, Any]) -> bool:
        """Tell whether a folder has the UNet and both text encoders of SDXL.

        Raises:
            LoLDUError: If it is SDXL's refiner.
        """
        wanted = {
            "unet": "UNet2DConditionModel",
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "CLIPTextModelWithProjection",
        }
        kinds = {part: index.get(part, [None, None])[1] for part in wanted}
        if kinds == {**wanted, "text_encoder": None}:
            raise _refiner("The base")
        return kinds == wanted

    def matches_file(self, keys: Collection[str]) -> bool:
        """Tell whether a single file has text encoders where SDXL has them."""
        return any(key.startswith("conditioner.") for key in keys)

    def check_files(self, base: BaseModelConfig) -> None:
        """Refuse options that SDXL has no use for, the refiner, and a base without a part.

        Raises:
            LoLDUError: If it is one of these.
        """
        name, path = base.pretrained_model_name_or_path, Path(base.pretrained_model_name_or_path)
        if base.clip_skip:
            raise LoLDUError(
                f"--clip_skip {base.clip_skip} is for Stable Diffusion 1.x and 2.x: SDXL always "
                "reads the last layer but one, which other programs call clip skip 2; leave it out."
            )
        if path.is_file():
            first = {key[: len(self.file_text_encoders[0])] for key in tensor_shapes(path)}
            if self.file_text_encoders[0] in first and self.file_text_encoders[1] not in first:
                raise _refiner(name)
        super().check_files(base)

    def _adjust(self, pipeline: Any, base: BaseModelConfig) -> None:  # noqa: ANN401
        """Apply the length of prompts, and refuse a UNet that reads other numbers about a picture.

        Raises:
            LoLDUError: If it does, as the refiner's.
        """
        config = pipeline.unet.config
        known = pipeline.text_encoder_2.config.projection_dim
        known += 6 * (config.get("addition_time_embed_dim") or 0)
        if config.get("projection_class_embeddings_input_dim") != known:
            raise LoLDUError(
                f"The UNet of {base.pretrained_model_name_or_path} does not read the original size,"
                " crop and size of a picture, as SDXL's base does; give SDXL's base or a "
                "fine-tuned one."
            )
        if base.prompt_chunks > 1:
            read_long_prompts(pipeline, base.prompt_chunks)

    def text_targets(self, pipeline: Any) -> dict[str, tuple[str, ...]]:  # noqa: ANN401
        """Return the attention of both text encoders, without the layer that SDXL does not read.

        The UNet gets the states before the last layer, and the pooled prompt of the second text
        encoder. So the last layer of the first one has no effect.
        """
        layers = range(pipeline.text_encoder.config.num_hidden_layers - 1)
        read = tuple(_LAST.format(i, name) for i in layers for name in self.text_target_modules)
        return {"text_encoder": read, "text_encoder_2": self.text_target_modules}

    @torch.no_grad()
    def encode_text(
        self,
        pipeline: Any,  # noqa: ANN401
        prompts: Sequence[str],
    ) -> Conditioning:
        """Encode prompts as states and pooled states, and keep the tokens of both tokenizers.

        The empty prompt has zeros, if the base takes them for its unconditional prediction.
        """
        device = pipeline.text_encoder.device
        with naming_cut_words(pipeline, prompts):
            encoded = [
                pipeline.encode_prompt(prompt, device=device, do_classifier_free_guidance=False)
                for prompt in prompts
            ]
        states = torch.cat(equally_long([each[0] for each in encoded]))
        pooled = torch.cat([each[2] for each in encoded])
        is_long = states.shape[1] > pipeline.tokenizer.model_max_length
        tokens = [
            _tokens(pipeline, tokenizer, prompts, is_long=is_long).to(device)
            for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2)
        ]
        zero = pipeline.config["force_zeros_for_empty_prompt"]
        is_read = torch.tensor([bool(prompt) or not zero for prompt in prompts], device=device)
        texts = {TOKENS: tokens[0], TOKENS_2: tokens[1], READ: is_read}
        return {**_zeroed(states, pooled, is_read), **texts}

    def encode_again(
        self, text_encoders: Mapping[str, nn.Module], conditioning: Conditioning
    ) -> Conditioning:
        """Encode the tokens anew, with text encoders that are being trained."""
        states: list[Tensor] = []
        pooled: Tensor | None = None
        for name, tokens in zip(self.text_encoders, (TOKENS, TOKENS_2), strict=True):
            ids = conditioning[tokens]
            rows = len(ids)
            if ids.ndim == 3:  # chunk by chunk: rows keep their order, by which concepts go
                ids = ids.transpose(0, 1).flatten(0, 1)
            output = text_encoders[name](ids, output_hidden_states=True)
            own = output.hidden_states[-2].unflatten(0, (-1, rows))
            states.append(own.transpose(0, 1).flatten(1, 2))
            pooled = output[0][:rows]  # the second one's projection, of the first chunk
        assert pooled is not None
        return {**conditioning, **_zeroed(torch.cat(states, -1), pooled, conditioning[READ])}

    def describe_views(self, framings: Sequence[Framing]) -> Conditioning:
        """Return original size, crop and size of every view, each as height and width.

        Source: Podell et al., SDXL, Sec. 2.2.
        """
        rows = [
            [*reversed(each.picture), *reversed(each.corner), *reversed(each.shape)]
            for each in framings
        ]
        return {TIME_IDS: torch.tensor(rows, dtype=torch.float32)}  # bf16 would round them

    def predict(
        self,
        network: nn.Module,
        noisy: Float[Tensor, "rows c h w"],
        timesteps: Int[Tensor, " rows"],
        conditioning: Conditioning,
    ) -> Float[Tensor, "rows c h w"]:
        """Call the UNet."""
        states = conditioning[STATES]
        return network(
            noisy.to(states.dtype),
            timesteps,
            states,
            added_cond_kwargs={name: conditioning[name] for name in (POOLED, TIME_IDS)},
            return_dict=False,
        )[0].float()

    def draw(
        self,
        pipeline: Any,  # noqa: ANN401
        prompts: list[str],
        generators: list[torch.Generator],
        *,
        negative_prompts: list[str] | None,
        **how: Any,  # noqa: ANN401
    ) -> list[Image.Image]:
        """Draw one picture per prompt.

        The pipeline takes zeros for all negative prompts of a batch or for none. So those that are
        empty are drawn apart, and a picture does not depend on its batch.
        """
        zero = pipeline.config["force_zeros_for_empty_prompt"]
        if negative_prompts is None or not zero or all(negative_prompts):
            return super().draw(
                pipeline, prompts, generators, negative_prompts=negative_prompts, **how
            )
        drawn: dict[int, Image.Image] = {}
        for is_read in (False, True):
            rows = [row for row, text in enumerate(negative_prompts) if bool(text) == is_read]
            if rows:
                images = super().draw(
                    pipeline,
                    [prompts[row] for row in rows],
                    [generators[row] for row in rows],
                    negative_prompts=[negative_prompts[row] for row in rows] if is_read else None,
                    **how,
                )
                drawn |= dict(zip(rows, images, strict=True))
        return [drawn[row] for row in range(len(prompts))]

    def picture_multiple(self, pipeline: Any) -> int:  # noqa: ANN401
        """Return twice the factor by which VAE and UNet shrink a picture: 64, as SDXL was trained.

        Source: Podell et al., SDXL, App. I.
        """
        return 2 * super().picture_multiple(pipeline)

    def lora_architecture(self, pipeline: Any) -> str | None:  # noqa: ANN401
        """Return the modelspec name of a LoRA for SDXL.

        Source: Stability AI, the model metadata standard (modelspec) 1.0.0.
        """
        return "stable-diffusion-xl-v1-base/lora"


def _tokens(
    pipeline: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    prompts: Sequence[str],
    *,
    is_long: bool,
) -> Int[Tensor, "prompts ..."]:
    """Return the tokens of prompts, as rows or, if one of them is long, as rows of chunks."""
    if is_long:
        chunks = [prompt_tokens(pipeline, prompt, tokenizer)[None] for prompt in prompts]
        return torch.cat(equally_long(chunks))
    return tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def _zeroed(
    states: Float[Tensor, "prompts tokens dim"],
    pooled: Float[Tensor, "prompts width"],
    is_read: Tensor,
) -> Conditioning:
    """Return states and pooled states, with zeros for prompts that are not read."""
    return {STATES: states * is_read[:, None, None], POOLED: pooled * is_read[:, None]}


def _refiner(name: str) -> LoLDUError:
    return LoLDUError(
        f"{name} is SDXL's refiner, which only sharpens the pictures of SDXL's base and is not "
        "trained here; give the base, such as stabilityai/stable-diffusion-xl-base-1.0."
    )
