"""Teaches a diffusion model a concept by the project's trainer and scores what it draws.

The trainer measures as it goes (DINO and CLIP-I against the concept's pictures, CLIP-T against the
prompts), so a result also holds the way there, and a strip of pictures of it: the concept's own,
then what is drawn for the first prompt at every step that was measured.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from PIL import Image, ImageOps

from experiments.config import Run
from experiments.data import Entry, entry
from experiments.memory import forget_peak_memory
from experiments.outcome import Outcome
from experiments.renaming import copy_renamed
from loldu.base.open import load_pipeline, weights_digest
from loldu.errors import LoLDUError
from loldu.files import save_png
from loldu.pictures.folder import list_images
from loldu.pictures.open import load_image
from loldu.presets import shipped_presets
from trainer.options.config import Config
from trainer.options.preset import PRESETS, configure
from trainer.train_dreambooth_loldu import main as train
from trainer.training.memory import peak_memory_mib
from trainer.training.scores import read_scores

METRICS = ("dino", "clip_t", "clip_i")
TOKEN, WORD = "sks", "<new>"
CLASS_PICTURES = Path("runs/experiments/class_pictures")
STRIP_PX = 96


def run(run: Run, work: Path) -> Outcome:
    """Train a concept, from the last checkpoint in `work` if there is one.

    Raises:
        LoLDUError: The pictures are not there, or the trainer refuses an option.
    """
    subject = entry(run.data)
    folder = Path(subject.folder)
    if not folder.is_dir():
        raise LoLDUError(
            f"The pictures of {subject.name} are not in {folder}: put them there ({subject.note})."
        )
    word = run.method == "textual_inversion"
    pictures = work / "renamed" if word else folder
    if word:
        copy_renamed(folder, pictures, TOKEN, WORD)
    config = _config(run, subject, WORD if word else TOKEN, pictures, work)
    forget_peak_memory()
    train(config)
    peak_mib = peak_memory_mib()
    points = read_scores(work)
    summary = json.loads((work / "summary.json").read_text(encoding="utf-8"))
    scores = {name: points[-1][name] for name in (*METRICS, "drift")}
    images = list_images(folder)
    drawn = work / "validation" / "pictures"
    steps = [drawn / "base-00.png", *sorted(drawn.glob("[0-9]*-00.png"))]
    save_png(_strip([images[0], *steps]), work / "strip.png")
    return Outcome(
        score=mean(scores[name] for name in METRICS),
        scores=scores,
        history=points,
        parameters=summary["trainable_parameters"],
        train_seconds=summary["train_seconds"],
        peak_memory_mib=peak_mib,
        facts={
            "base": weights_digest(load_pipeline(run.model)),
            "instance_images": len(images),
        },
        picture=work / "strip.png",
    )


def _config(run: Run, subject: Entry, token: str, pictures: Path, work: Path) -> Config:
    """Return the trainer's options: those of the row, and those that depend on the concept."""
    options = dict(run.options)
    thing = subject.extra["class_name"]
    first = subject.extra.get("initializer", thing.split()[-1])  # which must be one token

    def filled(templates: list[str]) -> list[str]:
        return [t.format(token=token, class_name=thing) for t in templates]

    prompts = filled(options.pop("prompts"))
    drift = filled(options.pop("drift_prompts"))
    preset = options.pop("preset")
    if options.get("with_prior_preservation") and "class_prompt" not in options:
        options["class_prompt"] = [f"a photo of a {thing}"]
    words = {"placeholder_token": WORD, "initializer_token": first} if token == WORD else {}
    fixed = {
        "method": run.method,
        "pretrained_model_name_or_path": run.model,
        "instance_data_dir": pictures,
        "instance_prompt": f"a photo of a {token} {thing}",
        "token": token,
        "class_data_dir": CLASS_PICTURES,
        "seed": run.seed,
        "output_dir": work,
        "validation_prompt": prompts,
        "drift_prompt": drift,
        "validation_scores": True,
        "sample_at_end": False,
        "lora_file": "no",
        **words,
    }
    again = any(work.glob("checkpoint-*"))
    start = {"resume": "latest"} if again else {"overwrite": True}
    values = {**shipped_presets(PRESETS)[preset].values, **options, **fixed, **start}
    return configure(values, f"The row {run.method}")


def _strip(files: Sequence[Path]) -> Image.Image:
    """Pictures side by side, each cut to a square."""
    strip = Image.new("RGB", (STRIP_PX * len(files), STRIP_PX))
    for place, file in enumerate(files):
        square = ImageOps.fit(load_image(file), (STRIP_PX, STRIP_PX), Image.Resampling.LANCZOS)
        strip.paste(square, (place * STRIP_PX, 0))
    return strip
