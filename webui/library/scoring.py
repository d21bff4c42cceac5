"""Options, progress and results of the jobs that score concepts."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.__main__ import PRESETS
from eval.report.before_after import PICTURES, REPORT_JSON, BeforeAfter
from eval.report.tables import before_after_rows
from loldu.base.record import CONFIG
from loldu.pictures.folder import is_picture
from loldu.presets import shipped_presets
from webui.engine.job import Job
from webui.engine.options import OPTIONS
from webui.library.entry import Entry

_BASE = "pretrained_model_name_or_path"
_USUAL = "dreambooth"


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
    run = _run(entry)
    models = run.get("scores", {})
    recorded = {
        "clip": models.get("clip"),
        "dino": models.get("dino"),
        "guidance_scale": run.get("run", {}).get("guidance_scale"),
        "mixed_precision": run.get("optimization", {}).get("mixed_precision"),
    }
    return {
        **presets()[preset],
        **{name: value for name, value in recorded.items() if value is not None},
        _BASE: base,
        "seeds": tuple(range(seeds)),
        "num_inference_steps": num_inference_steps,
    }


def usual_steps(entry: Entry, preset: str) -> int:
    """Return the denoising steps of its training's pictures, or else of the preset."""
    steps = _run(entry).get("run", {}).get("num_inference_steps")
    return steps or presets()[preset]["num_inference_steps"]


def has_true_pictures(entry: Entry) -> bool:
    """Return whether the folder of its training pictures still exists and has pictures."""
    folder = _run(entry).get("instance", {}).get("instance_data_dir")
    if not folder or not Path(folder).is_dir():
        return False
    return any(is_picture(path) for path in Path(folder).iterdir())


def pictures_of(options: Mapping[str, Any]) -> int:
    """Return how many pictures are drawn, without and with the concept together."""
    prompts = len(options["prompts"]) + len(options["other_prompts"])
    return 2 * prompts * len(options["seeds"])


def drawn(job: Job) -> tuple[int, int]:
    """Return how many pictures of a job are drawn, and how many there will be."""
    options = tomllib.loads((job.folder / OPTIONS).read_text(encoding="utf-8"))
    done = sum(path.name[0] != "." for path in (job.folder / PICTURES).glob("*/*/*.png"))
    return done, pictures_of(options)


def report_rows(job: Job) -> Sequence[Sequence[str]]:
    """Return the table of a finished job, its heading first.

    Raises:
        OSError: If there is no report.
        KeyError: If another version wrote it.
    """
    content = json.loads((job.folder / REPORT_JSON).read_text(encoding="utf-8"))
    return before_after_rows(BeforeAfter.from_json(content))


def _run(entry: Entry) -> dict[str, Any]:
    path = entry.folder / CONFIG
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
