"""Options, progress and results of the jobs that score concepts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.__main__ import PRESETS
from eval.report.before_after import PICTURES, REPORT_JSON, BeforeAfter
from loldu.errors import LoLDUError
from loldu.pictures.folder import is_picture
from loldu.presets import shipped_presets
from webui.engine.job import Job
from webui.engine.options import stored_options
from webui.library.entry import Entry

_BASE = "pretrained_model_name_or_path"
_USUAL = "dreambooth"
MOST_STEPS = 200
"""Limit of the denoising steps of a scoring."""


def presets() -> dict[str, Mapping[str, Any]]:
    """Return the values of eval's shipped presets, by name."""
    return {name: preset.values for name, preset in shipped_presets(PRESETS).items()}


def preset_of(base: str) -> str:
    """Return the name of the preset for a base, or else the standard one."""
    named = {
        name: Path(preset[_BASE]).resolve() for name, preset in presets().items() if _BASE in preset
    }
    return next((name for name, path in named.items() if path == Path(base).resolve()), _USUAL)


def options_for(
    entry: Entry, base: str, preset: str, seeds: int, num_inference_steps: int
) -> dict[str, Any]:
    """Return the options to score a concept, with the models and guidance of its training.

    Args:
        entry: Concept to score.
        base: Base model of the concept.
        preset: Name of one of `presets`.
        seeds: Number of pictures of each prompt.
        num_inference_steps: Denoising steps.
    """
    run = entry.run
    recorded = ("clip", "dino", "guidance_scale", "mixed_precision")
    return {
        **presets()[preset],
        **{name: run[name] for name in recorded if name in run},
        _BASE: base,
        "seeds": tuple(range(seeds)),
        "num_inference_steps": num_inference_steps,
    }


def usual_steps(entry: Entry, preset: str) -> int:
    """Return the denoising steps of its training's pictures, or else of the preset."""
    steps = entry.run.get("num_inference_steps")
    usual: int = presets()[preset]["num_inference_steps"]
    return steps if type(steps) is int and 1 <= steps <= MOST_STEPS else usual


def has_true_pictures(entry: Entry) -> bool:
    """Return whether the folder of its training pictures still exists and has pictures."""
    folder = entry.run.get("instance_data_dir")
    try:
        return isinstance(folder, str) and any(map(is_picture, Path(folder).iterdir()))
    except (OSError, ValueError):  # it is gone, or no path
        return False


def pictures_of(options: Mapping[str, Any]) -> int:
    """Return how many pictures are drawn, without and with the concept together."""
    prompts = len(options["prompts"]) + len(options["other_prompts"])
    return 2 * prompts * len(options["seeds"])


def drawn(job: Job) -> tuple[int, int]:
    """Return how many pictures of a job are drawn, and how many there will be."""
    done = sum(path.name[0] != "." for path in (job.folder / PICTURES).glob("*/*/*.png"))
    try:
        return done, pictures_of(stored_options(job.folder))
    except (LoLDUError, LookupError, TypeError):  # the file of its options is gone or damaged
        return done, max(1, done)


def report_of(job: Job) -> BeforeAfter:
    """Return the report of a finished job.

    Raises:
        OSError: If there is no report.
        KeyError: If another version wrote it.
    """
    content = json.loads((job.folder / REPORT_JSON).read_text(encoding="utf-8"))
    return BeforeAfter.from_json(content)
