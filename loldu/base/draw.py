"""Pictures from a pipeline: one seed, one picture, whatever the batch."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm


@torch.no_grad()
def sample_images(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative_prompts: Sequence[str] | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    batch_size: int = 4,
    resolution: int | None = None,
    progress: bool = True,
) -> list[Image.Image]:
    """Draw `prompts[i]` from the noise of `seeds[i]`, on the pipeline's own device.

    Every picture has its own generator, on the CPU, so that neither the batch size nor the device
    changes it by more than rounding. Latents are decoded in the VAE's precision.

    Args:
        pipeline: its UNet may carry an adapter; its own progress bar is switched off.
        prompts: one a picture.
        seeds: one a picture.
        negative_prompts: one a picture, of what guidance leads away from; empty unless given.
        num_inference_steps: denoising steps.
        guidance_scale: weight of the prompt; 1 samples without guidance.
        batch_size: pictures at once; costs memory, changes nothing else.
        resolution: side in pixels; the base's own unless given.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        ValueError: when there are not as many seeds, or negative prompts, as prompts.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"There are {len(prompts)} prompts but {len(seeds)} seeds.")
    if negative_prompts is not None and len(negative_prompts) != len(prompts):
        raise ValueError(
            f"There are {len(prompts)} prompts but {len(negative_prompts)} negative prompts."
        )
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    hidden = None if progress else True  # None: where stderr is no terminal
    with tqdm(total=len(prompts), desc="drawing", unit="picture", disable=hidden) as bar:
        for start in range(0, len(prompts), batch_size):
            batch = slice(start, start + batch_size)
            output: Any = pipeline(
                prompt=list(prompts[batch]),
                negative_prompt=None if negative_prompts is None else list(negative_prompts[batch]),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[batch]],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                height=resolution,
                width=resolution,
                output_type="latent",
            )
            vae = pipeline.vae
            latents = output.images.to(vae.dtype) / vae.config["scaling_factor"]
            decoded = vae.decode(latents, return_dict=False)[0]
            drawn: Any = pipeline.image_processor.postprocess(decoded, output_type="pil")
            images += drawn
            bar.update(len(drawn))
    return images
