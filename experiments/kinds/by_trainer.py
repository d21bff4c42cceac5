"""Teaches a concept with the project's trainer: shared by all kinds that draw pictures."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config import Run
from experiments.data import Entry, entry
from experiments.memory import forget_peak_memory
from loldu.errors import LoLDUError
from loldu.presets import shipped_presets
from trainer.options.config import Config
from trainer.options.preset import PRESETS, configure
from trainer.train_dreambooth_loldu import main as train
from trainer.training.memory import peak_memory_mib

TOKEN, WORD = "sks", "<new>"
CLASS_PICTURES = Path("runs/experiments/class_pictures")


@dataclass(frozen=True)
class Taught:
    """Number of trained parameters, training time and memory of a finished training."""

    parameters: int = 0
    train_seconds: float = 0.0
    peak_memory_mib: float = 0.0


def teach(
    run: Run,
    work: Path,
    options: Mapping[str, Any],
    scorer: Any = None,  # noqa: ANN401
    pictures: Path | None = None,
) -> Taught:
    """Train a concept in `work`, from its last checkpoint if there is one.

    Args:
        run: The run.
        work: Output folder of the trainer.
        options: Options of the trainer, except those that `config_of` adds.
        scorer: Scorer for live scores instead of the trainer's own.
        pictures: Folder of the pictures; the dataset's own by default.

    Raises:
        LoLDUError: If the pictures are missing, or the trainer refuses an option.
    """
    subject = entry(run.data)
    pictures = pictures or Path(subject.folder)
    if not pictures.is_dir():
        raise LoLDUError(
            f"The pictures of {subject.name} are not in {pictures}: "
            f"put them there ({subject.note})."
        )
    if (token := token_of(run)) != TOKEN:
        renamed = work / "renamed"
        _copy_renamed(pictures, renamed, TOKEN, token)
        pictures = renamed
    config = config_of(run, subject, pictures, work, options)
    forget_peak_memory()
    train(config, scorer) if scorer else train(config)
    peak_mib = peak_memory_mib()
    summary = json.loads((work / "summary.json").read_text(encoding="utf-8"))
    return Taught(summary["trainable_parameters"], summary["train_seconds"], peak_mib)


def token_of(run: Run) -> str:
    """Return the concept's name in prompts: a new word if the run trains one, else a rare token."""
    trains_word = run.method == "textual_inversion" or "placeholder_token" in run.options
    return WORD if trains_word else run.options.get("token", TOKEN)


def config_of(
    run: Run, subject: Entry, pictures: Path, work: Path, options: Mapping[str, Any]
) -> Config:
    """Return the trainer's options: the given ones, and those that depend on the concept."""
    options = dict(options)
    token, thing = token_of(run), subject.extra["class_name"]
    start = subject.extra.get("initializer", thing.split()[-1])  # the trainer needs a single token
    preset = options.pop("preset")
    fixed: dict[str, Any] = {
        "method": run.method,
        "pretrained_model_name_or_path": run.model,
        "instance_data_dir": pictures,
        "instance_prompt": f"a photo of a {token} {thing}",
        "token": token,
        "class_data_dir": CLASS_PICTURES / run.experiment,
        "seed": run.seed,
        "output_dir": work,
    }
    if options.get("class_pictures") == "concept":  # no class picture is drawn
        del fixed["class_data_dir"]
    if token == WORD:
        fixed |= {"placeholder_token": WORD, "initializer_token": start}
    started = any(work.glob("checkpoint-*"))
    fixed |= {"resume": "latest"} if started else {"overwrite": True}
    values = {**shipped_presets(PRESETS)[preset].values, **options, **fixed}
    return configure(values, f"The row {run.row} of {run.experiment}")


def _copy_renamed(pictures: Path, copy: Path, old: str, new: str) -> None:
    """Copy a folder of pictures and captions, and replace one word in every caption."""
    shutil.copytree(pictures, copy, dirs_exist_ok=True)
    for caption in copy.glob("*.txt"):
        text = caption.read_text(encoding="utf-8").replace(old, new)
        caption.write_text(text, encoding="utf-8")
