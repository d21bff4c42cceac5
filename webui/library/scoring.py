"""What a scoring draws and measures, how far it is, and what came of it."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.__main__ import PRESETS
from eval.commands.adapter import PICTURES, REPORT_JSON, Report
from eval.report.result import Result
from eval.report.sheet import gain_rows
from loldu.base.record import CONFIG
from loldu.pictures.folder import is_picture
from webui.engine.job import Job
from webui.engine.options import OPTIONS
from webui.library.entry import Entry

_BASE = "pretrained_model_name_or_path"
_USUAL = "dreambooth"


def presets() -> dict[str, dict[str, Any]]:
    """The prompts that eval ships, and what else is set with them."""
    return {
        path.stem: tomllib.loads(path.read_text(encoding="utf-8"))
        for path in sorted(PRESETS.glob("*.toml"))
    }


def preset_of(base: str) -> str:
    """The preset that names a base, or else the one of the literature."""
    named = {
        name: Path(preset[_BASE]).resolve() for name, preset in presets().items() if _BASE in preset
    }
    return next((name for name, path in named.items() if path == Path(base).resolve()), _USUAL)


def options_for(
    entry: Entry, base: str, preset: str, seeds: int, num_inference_steps: int
) -> dict[str, Any]:
    """The options of eval for a concept, measured as its training was and drawn as it draws.

    Args:
        entry: the concept.
        base: the model it changes.
        preset: name of one of `presets`.
        seeds: from how many every prompt is drawn.
        num_inference_steps: denoising steps.
    """
    run = _run(entry)
    models = run.get("scores", {})
    told = {
        "clip": models.get("clip"),
        "dino": models.get("dino"),
        "guidance_scale": run.get("run", {}).get("guidance_scale"),
        "mixed_precision": run.get("optimization", {}).get("mixed_precision"),
    }
    return {
        **presets()[preset],
        **{name: value for name, value in told.items() if value is not None},
        _BASE: base,
        "seeds": tuple(range(seeds)),
        "num_inference_steps": num_inference_steps,
    }


def usual_steps(entry: Entry, preset: str) -> int:
    """The denoising steps that its training drew with, or else the preset's."""
    steps = _run(entry).get("run", {}).get("num_inference_steps")
    return steps or presets()[preset]["num_inference_steps"]


def has_true_pictures(entry: Entry) -> bool:
    """Whether the pictures it was taught with are still where they were."""
    folder = _run(entry).get("instance", {}).get("instance_data_dir")
    if not folder or not Path(folder).is_dir():
        return False
    return any(is_picture(path) for path in Path(folder).iterdir())


def pictures_of(options: Mapping[str, Any]) -> int:
    """How many pictures are drawn, without the concept and with it."""
    prompts = len(options["prompts"]) + len(options["other_prompts"])
    return 2 * prompts * len(options["seeds"])


def drawn(job: Job) -> tuple[int, int]:
    """How many pictures of a scoring there are, and of how many."""
    options = tomllib.loads((job.folder / OPTIONS).read_text(encoding="utf-8"))
    there = sum(path.name[0] != "." for path in (job.folder / PICTURES).glob("*/*/*.png"))
    return there, pictures_of(options)


def report_rows(job: Job) -> Sequence[Sequence[str]]:
    """The table of a report, its heading first; written by another version it is not read.

    Raises:
        OSError: there is none.
        KeyError: it is of another version.
    """
    told = json.loads((job.folder / REPORT_JSON).read_text(encoding="utf-8"))
    before, after = (Result.from_json(told[which]) for which in ("base", "adapted"))
    return gain_rows(Report(told["name"], before, after, told["others"], told["real"], {}))


def _run(entry: Entry) -> dict[str, Any]:
    path = entry.folder / CONFIG
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
