"""The folder of a run: protect an earlier run in it, open it, and summarize a finished one."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loldu.base.record import CONFIG, SUMMARY
from loldu.errors import LoLDUError
from loldu.files import write_atomically
from trainer.methods.method import all_methods
from trainer.options.concepts import FOLDER
from trainer.options.config import Config, RunConfig, to_toml
from trainer.results.card import CARD, is_card
from trainer.training.checkpoint import PREFIX, Progress, checkpoints
from trainer.training.memory import peak_memory_mib
from trainer.training.tracking import TRACKING
from trainer.training.validation import VALIDATION

METRICS, SAMPLES = "metrics.jsonl", "samples"
SCORES, BEST, SCORES_OF_BEST = "validation.jsonl", "best", "scores.json"


def refuse_another_run(run: RunConfig, checkpoint: Path | None) -> None:
    """Check that the output folder holds no other run, before any work is done.

    Args:
        run: Options of the run.
        checkpoint: Checkpoint that the run continues from, if any.

    Raises:
        LoLDUError: If the folder holds a run that is neither continued nor overwritten.
            `--resume latest` may replace a run that left no checkpoint and no result.
    """
    folder = run.output_dir
    if folder.exists() and not folder.is_dir():
        raise LoLDUError(f"--output_dir {folder} is a file; name a folder.")
    if (folder / CARD).exists() and not is_card(folder / CARD):
        raise LoLDUError(
            f"{folder / CARD} is not a model card of this trainer, and would be overwritten; "
            "move it, or name another --output_dir."
        )
    if checkpoint is not None:
        continued = checkpoint.resolve().parent == folder.resolve()
    else:
        results = {SUMMARY, *(method.file_name for method in all_methods())}
        finished = any((folder / name).exists() for name in results)
        continued = run.resume is not None and not finished
    if _earlier_run(folder) and not continued and not run.overwrite:
        cure = "continue it with --resume latest, " if checkpoints(folder) else ""
        raise LoLDUError(
            f"--output_dir {folder} holds another run; {cure}replace it with --overwrite, or name "
            "another folder."
        )


def open_output_dir(
    config: Config, concepts: Mapping[str, Config], checkpoint: Path | None
) -> None:
    """Remove the run that --overwrite replaces, and write `config.toml` for run and concepts."""
    folder = config.run.output_dir
    if checkpoint is None:
        for path in _earlier_run(folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for own in (config, *concepts.values()):
        own.run.output_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(own.run.output_dir / CONFIG, to_toml(own))


def _earlier_run(folder: Path) -> list[Path]:
    """Return the files of an earlier run, but class pictures: a digest tells if they fit."""
    names = [CONFIG, METRICS, SUMMARY, VALIDATION, TRACKING, CARD, SCORES, BEST, f".{BEST}.tmp"]
    names += [FOLDER, *sorted({method.file_name for method in all_methods()})]
    written = [folder / name for name in names if (folder / name).exists()]
    written += [*folder.glob(f"{SAMPLES}/*-base.png"), *folder.glob(f"{SAMPLES}/*-concept.png")]
    return [*written, *folder.glob(f"{PREFIX}*"), *folder.glob(f".{PREFIX}*.tmp")]


def forget_after(path: Path, step: int) -> None:
    """Drop the lines after `step`, which a resumed run writes again, and a line cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except json.JSONDecodeError:
            break
        kept.append(line + "\n")
    write_atomically(path, "".join(kept))


def write_summary(
    output_dir: Path, result: Path, trainable_parameters: int, progress: Progress
) -> None:
    """Write `summary.json`, which has the numbers that tables of runs need."""
    summary: dict[str, Any] = {
        "trainable_parameters": trainable_parameters,
        "train_steps": progress.step,
        "train_seconds": round(progress.seconds, 3),
        "concept_bytes": size_bytes(result),
        "peak_memory_mib": round(peak_memory_mib(), 1),
    }
    best = output_dir / BEST / SCORES_OF_BEST
    if best.exists():
        summary["best"] = json.loads(best.read_text(encoding="utf-8"))
    write_atomically(output_dir / SUMMARY, json.dumps(summary, indent=2) + "\n")


def size_bytes(result: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    files = result.rglob("*") if result.is_dir() else [result]
    return sum(file.stat().st_size for file in files if file.is_file())
