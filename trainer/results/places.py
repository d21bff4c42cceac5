"""The names of a run's files, and the files at these names that no run wrote."""

import json
import logging
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loldu.base.record import CONFIG, SUMMARY
from loldu.files import remove
from trainer.methods.lora_file import LORA
from trainer.methods.method import all_methods
from trainer.methods.textual_inversion import LEARNED_WORD
from trainer.options.concepts import FOLDER
from trainer.results.card import CARD, is_card
from trainer.results.manifest import Manifest
from trainer.training.checkpoint import FILES as CHECKPOINT_FILES
from trainer.training.checkpoint import PREFIX, checkpoints
from trainer.training.control import CONTROL
from trainer.training.tracking import TRACKING
from trainer.training.validation import PICTURES, VALIDATION

logger = logging.getLogger(__name__)

METRICS, SAMPLES = "metrics.jsonl", "samples"
SCORES, BEST, SCORES_OF_BEST = "validation.jsonl", "best", "scores.json"
RESULTS = tuple(sorted({LORA, LEARNED_WORD, *(method.file_name for method in all_methods())}))

_PLACES = re.compile(
    "|".join(
        [
            *map(re.escape, (CONFIG, METRICS, SUMMARY, CARD, SCORES)),
            rf"({'|'.join(map(re.escape, RESULTS))}|{BEST}|{PREFIX}\d{{6,}})(/.*)?",
            rf"{VALIDATION}/(\d{{6,}}|progress|scores)\.png",
            rf"{VALIDATION}/{PICTURES}/(base|\d{{6,}})-\d+\.png",
            rf"{SAMPLES}/\d+-(base|concept)\.png",
            *(VALIDATION, SAMPLES, FOLDER, TRACKING, CONTROL),  # if they are files
        ]
    )
)
"""Paths, in the folder of a run or a concept, at which a run may replace or delete a file."""
_FOLDERS = re.compile(rf"{VALIDATION}|{SAMPLES}|{BEST}|{PREFIX}\d{{6,}}|{'|'.join(RESULTS)}")
_IN_FOLDERS = {CONFIG, SCORES_OF_BEST, *CHECKPOINT_FILES, *RESULTS}
_DRAFTS = re.compile(rf"\.({BEST}|{PREFIX}\d{{6,}})\.tmp|\.(?P<file>.+)\.\d+\.tmp")
"""Names of drafts that a killed run of an earlier version left."""


def in_places(folder: Path) -> list[Path]:
    """Return the files in a folder that have a name of a run's files."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_symlink() or not path.is_dir()]
    for path in folder.iterdir():
        if path not in found and _FOLDERS.fullmatch(path.name):
            found += [file for file in path.rglob("*") if file.is_symlink() or not file.is_dir()]
    return sorted(path for path in found if _is_place(path, folder))


def strangers(folder: Path) -> list[Path]:
    """Return the files at names of a run that no run wrote as they are now.

    In a folder without a manifest, an earlier version may have written them. They count as a run's
    if there is a checkpoint of ours, or `config.toml` and `metrics.jsonl` are ours, and if no file
    is obviously of another program.
    """
    found = in_places(folder)
    if Manifest(folder).exists:
        return Manifest(folder).strangers(found)
    theirs = [path for path in found if not _may_be_ours(path, folder)]
    config, metrics = folder / CONFIG, folder / METRICS
    by_options = config in found and (found == [config] or metrics in found)
    return theirs if by_options or checkpoints(folder) else found


def adopt(folder: Path) -> None:
    """Record the files of a run that an earlier version wrote, and delete drafts that it left."""
    if Manifest(folder).exists or strangers(folder) or not (found := in_places(folder)):
        return
    if not (folder / BEST).exists() and (half := folder / f".{BEST}.tmp" / SCORES_OF_BEST).exists():
        half.parent.rename(folder / BEST)  # killed between two renames
    for within in ("", VALIDATION, f"{VALIDATION}/{PICTURES}", SAMPLES):
        for path in (folder / within).glob(".*.tmp"):
            name = _DRAFTS.fullmatch(path.name)
            if name and (not name["file"] or _is_place(folder / within / name["file"], folder)):
                remove(path)
    Manifest(folder).adopt(in_places(folder))
    logger.info(
        "An earlier version wrote %s: its %d files were recognized, and are recorded from now on.",
        folder,
        len(found),
    )


def read_best(folder: Path) -> dict[str, Any] | None:
    """Return step and scores of the best step, or None if there is none."""
    path = folder / BEST / SCORES_OF_BEST
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _may_be_ours(path: Path, folder: Path) -> bool:
    """Tell whether a file in the folder of an earlier version's run may be what its name says."""
    if path.is_symlink() or not path.is_file():
        return False
    top, *inside = path.relative_to(folder).parts
    if inside and top.startswith(PREFIX):
        known = len(inside) > 1 or path.name in _IN_FOLDERS or path.name.startswith("concept.")
        return known and folder / top in checkpoints(folder)
    try:
        if inside and top == BEST:
            return "by" in _mapping(read_best(folder)) and inside[0] in _IN_FOLDERS
        if top == CARD:
            return is_card(path)
        if top in (METRICS, SCORES):
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
            return all("step" in _mapping(json.loads(line)) for line in lines)
        if top == CONFIG:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
            return {"output_dir", "checkpointing_steps"} <= _mapping(tables.get("run")).keys()
        if top == SUMMARY:
            return "train_steps" in _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False
    return True


def _is_place(path: Path, folder: Path) -> bool:
    return _PLACES.fullmatch(path.relative_to(folder).as_posix()) is not None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
