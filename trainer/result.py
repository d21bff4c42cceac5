"""The end of a run: the concept, the same as a LoRA, samples, the card, and the hub."""

import logging
from functools import partial

import torch
from diffusers import StableDiffusionPipeline

from loldu import ConceptError, export_lora
from trainer.cache import on_device
from trainer.card import CARD, Result, Sample, model_card
from trainer.checkpoint import CONFIG
from trainer.config import Config
from trainer.files import save_png, write_atomically
from trainer.hub import push
from trainer.loop import adapter_off
from trainer.lora_file import DTYPES, LORA, lora_header
from trainer.metadata import Training, describe
from trainer.methods import ADAPTER_NAME, save_result
from trainer.records import METRICS, SAMPLES, write_summary
from trainer.sampling import sample_images

logger = logging.getLogger(__name__)

MAX_SAMPLES = 4


def write_result(
    config: Config,
    pipeline: StableDiffusionPipeline,
    training: Training,
    device: torch.device,
    repository: str | None,
) -> None:
    """Write all that a run leaves, what matters most first, and push it where that is asked for.

    Args:
        config: The options.
        pipeline: The base with the trained adapter.
        training: What the run came to.
        device: Where to draw.
        repository: Where to push to, if anywhere.

    Raises:
        TrainerError: The adapter is not fit to be saved, or the hub does not take the result.
    """
    folder = config.run.output_dir
    metadata = describe(config, training, pipeline)
    concept = save_result(pipeline, config.adapter, folder, metadata)
    write_summary(folder, concept, training.parameters, training.progress)
    logger.info("Saved %s (%s bytes)", concept, f"{concept.stat().st_size:,}")
    if config.adapter.method != "lora" and config.result.lora_file != "no":
        _write_lora(config, pipeline, metadata)
    samples = draw_samples(config, pipeline, metadata["instance_prompt"], device)
    files = {
        name: (folder / name).stat().st_size
        for name in dict.fromkeys((concept.name, LORA, CONFIG, METRICS))
        if (folder / name).exists()
    }
    result = Result(config, metadata, training, files, samples, repository)
    write_atomically(folder / CARD, str(model_card(result)))
    if repository is not None:
        pictures = [name for sample in samples for name in (sample.base, sample.adapted)]
        push(config, repository, [CARD, *pictures, *(name for name in files if name != CONFIG)])
        logger.info("Pushed to https://huggingface.co/%s", repository)


def draw_samples(
    config: Config, pipeline: StableDiffusionPipeline, prompt: str, device: torch.device
) -> list[Sample]:
    """Draw the validation prompts, or else `prompt`, with base and concept from the same noise.

    One picture at a time, in the least memory; without it there are no samples, but a result.
    """
    run = config.run
    if not config.result.sample_at_end:
        return []
    prompts = run.validation_prompt[:MAX_SAMPLES] or (prompt,)
    draw = partial(
        sample_images,
        pipeline,
        prompts,
        [config.optimization.seed + index for index in range(len(prompts))],
        num_inference_steps=run.num_inference_steps,
        guidance_scale=run.guidance_scale,
        batch_size=1,
        resolution=config.instance.resolution,
    )
    try:
        with on_device(pipeline, device):
            adapted = draw()
            with adapter_off(pipeline.unet):
                base = draw()
    except torch.OutOfMemoryError:
        logger.warning("Not enough memory to draw samples: the card has none.")
        return []
    folder = run.output_dir / SAMPLES
    folder.mkdir(exist_ok=True)
    samples = [
        Sample(text, f"{SAMPLES}/{index}-base.png", f"{SAMPLES}/{index}-concept.png")
        for index, text in enumerate(prompts)
    ]
    for sample, *pictures in zip(samples, base, adapted, strict=True):
        for name, picture in zip((sample.base, sample.adapted), pictures, strict=True):
            save_png(picture, run.output_dir / name)
    return samples


def _write_lora(
    config: Config, pipeline: StableDiffusionPipeline, metadata: dict[str, object]
) -> None:
    """Export the concept; what no LoRA can hold does not cost the result."""
    path = config.run.output_dir / LORA
    try:
        export_lora(
            pipeline,
            path,
            "kohya",
            ADAPTER_NAME,
            dtype=DTYPES[config.result.lora_file],
            metadata=lora_header(pipeline, metadata),
            overwrite=True,
        )
    except ConceptError as error:
        logger.warning("There is no LoRA of the concept: %s.", error)
        return
    logger.info("Saved %s (%s bytes)", path, f"{path.stat().st_size:,}")
