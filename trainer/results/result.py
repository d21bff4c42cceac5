"""Write the result of a run: the concept, the same as a LoRA, samples and the model card."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from loldu import ConceptError, export_lora
from loldu.base.draw import sample_images
from loldu.base.families import family_of
from loldu.base.record import CONFIG
from loldu.concept.clients import compare_clients
from loldu.files import png_bytes
from trainer.methods.lora_file import DTYPES, LORA, lora_header
from trainer.methods.method import method_named, save_result
from trainer.methods.textual_inversion import LEARNED_WORD
from trainer.methods.trained import Trained
from trainer.options.config import Config
from trainer.results.card import CARD, Result, Sample, model_card
from trainer.results.manifest import Manifest
from trainer.results.metadata import Training, called_by, describe
from trainer.results.output_dir import size_bytes, write_summary
from trainer.results.places import METRICS, SAMPLES
from trainer.training.cache import on_device
from trainer.training.checkpoint import saving, size_of
from trainer.training.scoring_plan import with_seeds

logger = logging.getLogger(__name__)

MAX_SAMPLES = 4


def write_result(
    config: Config,
    concept: str,
    pipeline: DiffusionPipeline,
    trained: Trained,
    training: Training,
    device: torch.device,
    repository: str | None,
) -> list[str]:
    """Write the files of a concept's result, the most important first.

    Args:
        config: Options of the concept.
        concept: Name of the concept in the run.
        pipeline: The base, with what was trained on it.
        trained: What was trained.
        training: Facts about the training.
        device: Where to draw.
        repository: Name of the repository on the hub, if the result is pushed.

    Returns:
        The files to push, by their names in the output folder; the options are not among them.

    Raises:
        LoLDUError: If what was trained cannot be saved.
    """
    folder = config.run.output_dir
    manifest = Manifest(folder)
    metadata = describe(config, training, pipeline)
    method = method_named(config.adapter.method)
    main = folder / method.file_name
    with saving(main, size_of(trained.state_dict())), manifest.collected() as draft:
        save_result(pipeline, trained, concept, config, metadata, draft)
        checked = ""
        if method.makes_concept and config.result.lora_file != "no":
            checked = _write_lora(draft / LORA, config, concept, pipeline, metadata)
    write_summary(folder, main, training.parameters, training.progress)
    for path in dict.fromkeys((main, folder / LORA)):
        if path.exists():
            logger.info("Saved %s (%s bytes)", path, f"{size_bytes(path):,}")
    samples = draw_samples(config, concept, pipeline, trained, metadata["instance_prompt"], device)
    names = dict.fromkeys((main.name, LORA, LEARNED_WORD, CONFIG, METRICS))
    files = {name: size_bytes(folder / name) for name in names if (folder / name).exists()}
    family, kind = family_of(pipeline), type(pipeline).__name__
    about = kind, checked, family.word_keys, family.tag
    result = Result(config, metadata, training, files, samples, repository, *about)
    manifest.write(folder / CARD, str(model_card(result)))
    pictures = [name for sample in samples for name in (sample.base, sample.adapted) if name]
    return [CARD, *pictures, *(name for name in files if name != CONFIG)]


def draw_samples(
    config: Config,
    concept: str,
    pipeline: DiffusionPipeline,
    trained: Trained,
    prompt: str,
    device: torch.device,
) -> list[Sample]:
    """Draw the validation prompts, or else `prompt`, with base and concept from the same noise.

    One picture at a time, to need the least memory; if there is too little, there are no samples.
    The base is not drawn if training has overwritten it, or if it lacks a word of the prompt.
    """
    run = config.run
    if not config.result.sample_at_end:
        return []
    prompts = run.validation_prompt[:MAX_SAMPLES] or (prompt,)
    draw = partial(
        sample_images,
        pipeline,
        prompts,
        [seed for _, seed in with_seeds(prompts, config)],
        num_inference_steps=run.num_inference_steps,
        guidance_scale=run.guidance_scale,
        batch_size=1,
        resolution=config.instance.resolution,
        progress=False,
    )
    logger.info("Drawing samples for the model card, with the base and with the concept")
    names = [f"{SAMPLES}/{index}-concept.png" for index in range(len(prompts))]
    base_names: list[str | None] = [None] * len(prompts)
    try:
        with on_device(pipeline, device):
            with trained.drawing(pipeline, concept, called_by(config)):
                pictures = dict(zip(names, draw(), strict=True))
            if trained.gives_base_back:
                base_names = [f"{SAMPLES}/{index}-base.png" for index in range(len(prompts))]
                with trained.off():
                    pictures |= dict(zip(base_names, draw(), strict=True))
    except torch.OutOfMemoryError:
        logger.warning("Not enough memory to draw samples: the card has none.")
        return []
    for name, picture in pictures.items():
        Manifest(run.output_dir).write(run.output_dir / str(name), png_bytes(picture))
    return [Sample(*sample) for sample in zip(prompts, names, base_names, strict=True)]


def _write_lora(
    path: Path,
    config: Config,
    concept: str,
    pipeline: DiffusionPipeline,
    metadata: dict[str, Any],
) -> str:
    """Export the concept as a LoRA and return how other programs read it.

    If the export is impossible, warn and keep the concept.
    """
    dtype, header = DTYPES[config.result.lora_file], lora_header(pipeline, metadata)
    try:
        export_lora(pipeline, path, "kohya", concept, dtype=dtype, metadata=header)
    except ConceptError as error:
        logger.warning("There is no LoRA of the concept: %s.", error)
        return ""
    try:
        compared = compare_clients(pipeline, path, concept)
    except ConceptError as error:
        logger.warning("The LoRA is not the concept for every program: %s.", error)
        return ""
    return ", ".join(f"{each.error:.0e} in {each.client}" for each in compared)
