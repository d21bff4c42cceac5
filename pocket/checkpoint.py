"""Writes pipelines, checkpoints and encoders, and opens a checkpoint to go on from it."""

# diffusers and transformers type their models' parts and options loosely or wrongly.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import copy
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    ViTImageProcessor,
    ViTModel,
)

from loldu.errors import LoLDUError
from loldu.files import drafted
from pocket.denoiser import build_noise_scheduler, place_rare_tokens
from pocket.render import SIZE_PX

_PROGRESS = "progress.json"
_SIZE = {"height": SIZE_PX, "width": SIZE_PX}
_HALF = [0.5, 0.5, 0.5]


def build_pipeline(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """Return a pipeline of these parts, with the noise schedule of this base."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def open_checkpoint(
    start: Path, tokenizer: CLIPTokenizer, batch: int
) -> tuple[UNet2DConditionModel, CLIPTextModel, int]:
    """Return UNet and text encoder of a checkpoint, and the number of steps behind them."""
    progress = start / _PROGRESS
    if not progress.exists():
        raise LoLDUError(
            f"{start} has no {_PROGRESS}, so it is no checkpoint of this training. Give the "
            "folder `checkpoint` from the work files."
        )
    text_encoder = CLIPTextModel.from_pretrained(start / "text_encoder", dtype=torch.float32)
    if text_encoder.config.vocab_size != len(tokenizer):
        raise LoLDUError(
            f"The text encoder in {start} has {text_encoder.config.vocab_size} tokens and the "
            f"tokenizer has {len(tokenizer)}. Start from a checkpoint of this recipe."
        )
    unet = UNet2DConditionModel.from_pretrained(start / "unet", torch_dtype=torch.float32)
    return unet, text_encoder, json.loads(progress.read_text(encoding="utf-8"))["pictures"] // batch


def save_checkpoint(pipeline: StableDiffusionPipeline, folder: Path, pictures: int) -> None:
    """Write the pipeline and the number of pictures behind it; replace the folder at the end."""
    with drafted(folder, finish=lambda _: shutil.rmtree(folder, ignore_errors=True)) as draft:
        publish_pipeline(draft, pipeline)
        (draft / _PROGRESS).write_text(json.dumps({"pictures": pictures}) + "\n", encoding="utf-8")


def publish_pipeline(folder: Path, pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """Write the pipeline in half precision, and return a copy with the written weights.

    The rare tokens of the copy are placed among the names.
    """
    shutil.rmtree(folder, ignore_errors=True)
    models = (pipeline.vae, pipeline.text_encoder, pipeline.unet)
    vae, text_encoder, unet = (copy.deepcopy(model).eval() for model in models)
    place_rare_tokens(text_encoder, pipeline.tokenizer)
    written = build_pipeline(vae, text_encoder, pipeline.tokenizer, unet)
    written.to(dtype=torch.float16).save_pretrained(folder)
    # transformers would load the text encoder in the dtype of its config; the UNet's is float32.
    config = folder / "text_encoder" / "config.json"
    text = config.read_text(encoding="utf-8").replace('"dtype": "float16"', '"dtype": "float32"')
    config.write_text(text, encoding="utf-8")
    return written.to(dtype=torch.float32)


def publish_clip(folder: Path, clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Write a CLIP for scores in half precision."""
    clip.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": SIZE_PX}, crop_size=_SIZE, image_mean=_HALF, image_std=_HALF
    ).save_pretrained(folder)


def publish_dino(folder: Path, dino: ViTModel) -> None:
    """Write a DINO for scores in half precision."""
    dino.half().save_pretrained(folder)
    ViTImageProcessor(size=_SIZE, image_mean=_HALF, image_std=_HALF).save_pretrained(folder)
