"""Draw pictures with a pipeline: one seed, one picture, whatever the batch."""

# diffusers is typed in part only, and loads its public names lazily.
# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm import tqdm

from loldu.base.families import family_of


@torch.no_grad()
def sample_images(  # 9 parameters: everything but the first three is optional and named
    pipeline: DiffusionPipeline,
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

    Every picture has its own generator on the CPU, so the batch size and the device change it only
    by rounding.

    Args:
        pipeline: The base; its network may carry an adapter. Its own progress bar is switched off.
        prompts: One per picture.
        seeds: One per picture.
        negative_prompts: One per picture, which guidance leads away from; empty by default.
        num_inference_steps: Denoising steps.
        guidance_scale: Weight of the prompt; 1 samples without guidance.
        batch_size: Pictures drawn at once; it costs memory and changes nothing else.
        resolution: Side in pixels; the base's own by default.
        progress: Whether to show a bar on stderr, if that is a terminal.

    Raises:
        ValueError: If the number of seeds or negative prompts differs from that of the prompts.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"There are {len(prompts)} prompts but {len(seeds)} seeds.")
    if negative_prompts is not None and len(negative_prompts) != len(prompts):
        raise ValueError(
            f"There are {len(prompts)} prompts but {len(negative_prompts)} negative prompts."
        )
    family = family_of(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    hidden = None if progress else True  # None hides the bar only where stderr is no terminal
    with tqdm(total=len(prompts), desc="drawing", unit="picture", disable=hidden) as bar:
        for start in range(0, len(prompts), batch_size):
            batch = slice(start, start + batch_size)
            drawn = family.draw(
                pipeline,
                list(prompts[batch]),
                [torch.Generator().manual_seed(seed) for seed in seeds[batch]],
                negative_prompts=None
                if negative_prompts is None
                else list(negative_prompts[batch]),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                resolution=resolution,
            )
            images += drawn
            bar.update(len(drawn))
    return images
