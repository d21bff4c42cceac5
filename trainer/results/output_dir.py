"""The folder of a run: protect other files in it, open it, and summarize a finished run."""

import json
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from loldu.base.record import CONFIG, SUMMARY
from loldu.errors import LoLDUError
from trainer.options.concepts import FOLDER
from trainer.options.config import Config, to_toml
from trainer.results.manifest import OWN, Manifest
from trainer.results.places import BEST, RESULTS, adopt, in_places, read_best, strangers
from trainer.training.checkpoint import PREFIX, Progress, checkpoints
from trainer.training.memory import peak_memory_mib

logger = logging.getLogger(__name__)


def refuse_another_run(
    config: Config, concepts: Mapping[str, Config], checkpoint: Path | None
) -> None:
    """Check, before any work is done, that the run neither replaces nor deletes other files.

    Args:
        config: Options of the run.
        concepts: Options of every concept.
        checkpoint: Checkpoint that the run continues from, if any.

    Raises:
        LoLDUError: If a file of somebody else is in the way, or the folder holds a run that is
            neither continued nor overwritten. `--resume latest` may replace a run that left no
            checkpoint and no result.
    """
    run = config.run
    folders = _folders(config, concepts)
    for folder in folders:
        if foreign := strangers(folder):
            more = f" (and {len(foreign) - 1} more there)" if foreign[1:] else ""
            raise LoLDUError(
                f"{foreign[0]}{more} would be replaced or deleted, but this trainer did not write "
                "it, or it was changed since; move it away, or name another --output_dir."
            )
    finished = any((folder / name).exists() for folder in folders for name in (SUMMARY, *RESULTS))
    continues = _is_in(checkpoint, run.output_dir) if checkpoint else run.resume and not finished
    if any(map(in_places, folders)) and not continues and not run.overwrite:
        cure = "continue it with --resume latest, " if checkpoints(run.output_dir) else ""
        raise LoLDUError(
            f"--output_dir {run.output_dir} holds another run; {cure}replace it with --overwrite, "
            "or name another folder."
        )


def open_output_dir(
    config: Config, concepts: Mapping[str, Config], checkpoint: Path | None, step: int
) -> None:
    """Make the folders of run and concepts ready to go on after a step.

    Drafts of a killed run are deleted, and so is the run that --overwrite replaces. When a run goes
    back to an earlier checkpoint, the later ones are renamed and kept. Every folder gets its
    `config.toml`.

    Args:
        config: Options of the run.
        concepts: Options of every concept.
        checkpoint: Checkpoint that the run continues from, if any.
        step: Its step, or 0.
    """
    root, own = config.run.output_dir, _folders(config, concepts)
    earlier = [path for path in root.glob(f"{FOLDER}/*/") if path not in own]
    for folder in (*earlier, *own):
        adopt(folder)
        for empty in folder.glob(f"{PREFIX}[0-9]*"):  # of an earlier version, killed in a deletion
            with suppress(OSError):  # it has files
                empty.rmdir()
        manifest = Manifest(folder)
        manifest.tidy()
        if checkpoint is None or not _is_in(checkpoint, root):
            manifest.clear()
    for folder in earlier:
        with suppress(OSError):  # it has files: of somebody else, or of the run that continues
            (folder / OWN).rmdir()
            folder.rmdir()
    later = [path for path in checkpoints(root) if int(path.name.removeprefix(PREFIX)) > step]
    _set_aside(later, step)
    for options in (config, *concepts.values()):
        folder, best = options.run.output_dir, read_best(options.run.output_dir)
        if best and best["step"] > (step if later else options.optimization.max_train_steps):
            _set_aside([folder / BEST], step)
        folder.mkdir(parents=True, exist_ok=True)
        Manifest(folder).write(folder / CONFIG, to_toml(options))


def _folders(config: Config, concepts: Mapping[str, Config]) -> list[Path]:
    """Return the folders of the run and its concepts, without doubles."""
    return [*dict.fromkeys(each.run.output_dir for each in (config, *concepts.values()))]


def _is_in(checkpoint: Path, folder: Path) -> bool:
    return checkpoint.resolve().parent == folder.resolve()


def _set_aside(folders: Iterable[Path], step: int) -> None:
    for folder in folders:
        kept = Manifest(folder.parent).set_aside(folder)
        logger.info("Going back to step %d: %s is kept as %s.", step, folder, kept.name)


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
    Manifest(path.parent).write(path, "".join(kept))


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
    if best := read_best(output_dir):
        summary["best"] = best
    Manifest(output_dir).write(output_dir / SUMMARY, json.dumps(summary, indent=2) + "\n")


def size_bytes(result: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    files = result.rglob("*") if result.is_dir() else [result]
    return sum(file.stat().st_size for file in files if file.is_file())
