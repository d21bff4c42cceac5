"""Teaches a diffusion model a concept with the project's trainer, and scores its pictures.

The trainer measures during training: DINO and CLIP-I against the concept's pictures, CLIP-T against
the prompts. A result therefore holds the scores of every step, and a strip of pictures: one of the
concept's own, then the model's picture of the first prompt at every measured step.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from PIL import Image, ImageOps

from experiments.config import Run
from experiments.data import Entry, entry
from experiments.kinds.by_trainer import teach, token_of
from experiments.outcome import Outcome
from loldu.base.open import load_pipeline, weights_digest
from loldu.files import save_png
from loldu.pictures.folder import list_images
from loldu.pictures.open import load_image
from loldu.presets import installed_path
from trainer.training.scores import read_scores

METRICS = ("dino", "clip_t", "clip_i")
STRIP_PX = 96


def run(run: Run, work: Path) -> Outcome:
    """Train a concept, from the last checkpoint in `work` if there is one.

    Raises:
        LoLDUError: If the pictures are missing, or the trainer refuses an option.
    """
    subject = entry(run.data)
    taught = teach(run, work, trainer_options(run, subject))
    points = read_scores(work)
    scores = {name: points[-1][name] for name in (*METRICS, "drift")}
    images = list_images(Path(installed_path(subject.folder)))
    drawn = work / "validation" / "pictures"
    steps = [drawn / "base-00.png", *sorted(drawn.glob("[0-9]*-00.png"))]
    save_png(_strip([images[0], *steps]), work / "strip.png")
    return Outcome(
        score=mean(scores[name] for name in METRICS),
        scores=scores,
        history=points,
        facts={
            "base": weights_digest(load_pipeline(run.model)),
            "instance_images": len(images),
        },
        picture=work / "strip.png",
        **vars(taught),
    )


def trainer_options(run: Run, subject: Entry) -> dict[str, Any]:
    """Return the trainer's options: the row's, with prompts about the concept."""
    options, thing = dict(run.options), subject.extra["class_name"]

    def filled(templates: Sequence[str]) -> list[str]:
        return [t.format(token=token_of(run), class_name=thing) for t in templates]

    prompts, drift = filled(options.pop("prompts")), filled(options.pop("drift_prompts"))
    if options.get("with_prior_preservation") and "class_prompt" not in options:
        options["class_prompt"] = [f"a photo of a {thing}"]
    return options | {
        "validation_prompt": prompts,
        "drift_prompt": drift,
        "validation_scores": True,
        "sample_at_end": False,
        "lora_file": "no",
    }


def _strip(files: Sequence[Path]) -> Image.Image:
    """Put pictures side by side, each cut to a square."""
    strip = Image.new("RGB", (STRIP_PX * len(files), STRIP_PX))
    for place, file in enumerate(files):
        square = ImageOps.fit(load_image(file), (STRIP_PX, STRIP_PX), Image.Resampling.LANCZOS)
        strip.paste(square, (place * STRIP_PX, 0))
    return strip
