"""Train a table of concepts on a Ray cluster: passes of some concepts, each a task with retries."""

# Ray is an extra.
# pyright: reportMissingImports=false

import logging
import shutil
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from loldu.base.config import BaseModelConfig
from loldu.cluster import gpus_here, joined
from loldu.errors import LoLDUError, Stopped
from loldu.files import read_toml, write_atomically
from loldu.options import build, options, toml_value, values_of
from trainer.methods.method import method_named
from trainer.options.concepts import FOLDER, concept_configs
from trainer.options.config import Config
from trainer.results.lock import BusyError, locked
from trainer.results.places import in_places
from trainer.training.checkpoint import checkpoints
from trainer.training.memory import is_out_of_memory, out_of_memory_in_one_sentence

logger = logging.getLogger("trainer")

PASSES = "passes"
_RETRIES = 5
"""Workers that may die over one pass."""
_BUSY_S, _BUSY_TRIES = 5, 60
"""A worker that lost its driver may still be writing; the next one waits for it."""
_MOST_REPORTED = 10


@dataclass(frozen=True)
class Outcome:
    """The end of a pass.

    Attributes:
        error: Why it failed, or "".
        out_of_memory: Whether it needs more memory than there is.
    """

    error: str = ""
    out_of_memory: bool = False


def train_fleet(config: Config) -> None:
    """Train all concepts of a table on a Ray cluster.

    Every pass is an ordinary run of some of the concepts, in a folder of its own. So its concepts
    equal those of that run on one machine, bit by bit on equal hardware, with or without kills.

    Raises:
        LoLDUError: If an option does not go with --on, Ray is missing, or a pass fails; the other
            passes are finished first.
    """
    _check(config)
    configs = concept_configs(config)
    with locked(config.run.output_dir), joined(config.fleet.on or ""):
        passes = Passes(config, configs)
        with logging_redirect_tqdm():
            _train_all(passes)


def _check(config: Config) -> None:
    if config.instance.concepts is None:
        raise LoLDUError("--on trains the concepts of a table: give it with --concepts.")
    if config.run.overwrite:
        raise LoLDUError("--overwrite does not go with --on: name another --output_dir.")
    if config.run.resume not in (None, "latest"):
        raise LoLDUError("--on continues each pass from its last checkpoint: give --resume latest.")


class Passes:
    """The passes of a fleet, each with a table of its concepts in the folder `passes`.

    The tables are written once, so that a concept stays in its pass when the fleet goes on, also
    with more concepts.
    """

    def __init__(self, config: Config, configs: Mapping[str, Config]) -> None:
        """Read the tables of an earlier start, and put the other concepts into new ones.

        Args:
            config: Options of the fleet.
            configs: Options of every concept.

        Raises:
            LoLDUError: If the folder has another run, or a concept of an earlier start is missing.
        """
        self._config = config
        self._configs = configs
        self.folder = config.run.output_dir.absolute() / PASSES
        known = {path.stem: [*read_toml(path, "The table")] for path in self._tables()}
        if in_places(config.run.output_dir) or (known and config.run.resume is None):
            cure = "continue it with --resume latest, or " * bool(known)
            raise LoLDUError(
                f"--output_dir {config.run.output_dir} holds another run; {cure}name another "
                "folder."
            )
        placed = {name: number for number, names in known.items() for name in names}
        if gone := [name for name in placed if name not in configs]:
            raise LoLDUError(
                f"{config.instance.concepts} lacks the concept {gone[0]}, which is in the table "
                f"{self.folder / placed[gone[0]]}.toml of this fleet: put it back."
            )
        self._names = known
        self._add([name for name in configs if name not in placed])

    @property
    def count(self) -> int:
        """Number of concepts."""
        return len(self._configs)

    def open(self) -> dict[str, Config]:
        """Return the options of the passes that are not finished, by number."""
        return {y: self._options(y) for y, own in self._names.items() if not self._is_done(own)}

    def concepts(self, number: str) -> list[str]:
        """Return the names of the concepts of a pass."""
        return self._names[number]

    def halve(self, number: str) -> dict[str, Config]:
        """Replace a pass that has no checkpoint by two of half its concepts, and return these."""
        names = self._names.pop(number)
        middle = len(names) // 2
        (self.folder / f"{number}.toml").unlink()  # a concept without a table gets a new one
        shutil.rmtree(self.folder / number, ignore_errors=True)
        new = self._add(names[:middle]) + self._add(names[middle:])
        return {number: self._options(number) for number in new}

    def _add(self, names: list[str]) -> list[str]:
        """Write the tables of new passes, and return their numbers."""
        size = self._config.fleet.concepts_a_pass
        first = max((int(number) for number in self._names), default=-1) + 1
        new: list[str] = []
        for place in range(0, len(names), size):
            number = f"{first + len(new):06d}"
            self._names[number] = names[place : place + size]
            tables = {name: _table(self._configs[name]) for name in self._names[number]}
            write_atomically(self.folder / f"{number}.toml", tomli_w.dumps(tables))
            new.append(number)
        return new

    def _tables(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.toml"))

    def _is_done(self, names: list[str]) -> bool:
        return all(result_of(self._config, name).is_file() for name in names)

    def _options(self, number: str) -> Config:
        values = {name: _absolute(name, value) for name, value in values_of(self._config).items()}
        values |= {
            "concepts": self.folder / f"{number}.toml",
            "output_dir": self.folder / number,
            "resume": "latest",
            "on": None,
            "preset": None,
        }
        return build(Config, values)


def result_of(config: Config, name: str) -> Path:
    """Return the file in which a fleet gathers the result of a concept."""
    file = Path(method_named(config.adapter.method).file_name)
    return config.run.output_dir.absolute() / FOLDER / f"{name}{file.suffix}"


def _table(config: Config) -> dict[str, Any]:
    """Return the options of a concept as its table has them, with absolute paths."""
    known, values = options(Config), values_of(config)
    return {
        name: toml_value(_absolute(name, values[name]))
        for name, each in known.items()
        if each.per_concept and values[name] not in (None, ())
    }


def _absolute(name: str, value: Any) -> Any:  # noqa: ANN401
    """Return a value with an absolute path if it is a path, also that of a base which is here."""
    if isinstance(value, Path):
        return value.absolute()
    is_place = name in options(BaseModelConfig) and isinstance(value, str) and Path(value).exists()
    return str(Path(value).absolute()) if is_place else value


def _train_all(passes: Passes) -> None:
    """Keep the cluster busy with passes until all are finished, with one line of progress."""
    import ray
    from ray.exceptions import RayError

    gpus = min(1, gpus_here())
    task = ray.remote(train_pass).options(
        num_cpus=1, num_gpus=gpus, max_retries=_RETRIES, retry_exceptions=[Stopped]
    )
    waiting = deque(passes.open().items())
    running: dict[Any, str] = {}
    failed: list[str] = []
    done = passes.count - sum(len(passes.concepts(number)) for number, _ in waiting)
    with tqdm(total=passes.count, initial=done, desc="fleet", unit="concept", disable=None) as bar:
        while waiting or running:
            while waiting and len(running) < _most_running(gpus):
                number, config = waiting.popleft()
                running[task.remote(config, str(passes.folder.parent))] = number
            bar.set_postfix_str(f"{len(running)} passes running, {len(waiting)} waiting")
            finished, _ = ray.wait([*running], timeout=5)
            for reference in finished:
                number = running.pop(reference)
                try:
                    outcome = ray.get(reference)
                except RayError as error:
                    outcome = Outcome(_reason(error))
                names = passes.concepts(number)
                if outcome.out_of_memory and len(names) > 1:
                    logger.warning("Pass %s does not fit: it goes on in halves.", number)
                    waiting.extend(_halved(passes, number, waiting))
                elif outcome.error:
                    failed.append(f"pass {number} ({', '.join(names[:5])}): {outcome.error}")
                    logger.warning("Failed: %s", failed[-1])
                else:
                    done += len(names)
                    bar.update(len(names))
                    if bar.disable:  # there is no terminal
                        logger.info("%d of %d concepts are trained", done, passes.count)
    if failed:
        sentences = "\n".join(failed[:_MOST_REPORTED])
        raise LoLDUError(
            f"{len(failed)} passes failed, and --resume latest tries them again:\n{sentences}"
        )
    logger.info("%d concepts are in %s", passes.count, passes.folder.parent / FOLDER)


def _halved(
    passes: Passes, number: str, waiting: "deque[tuple[str, Config]]"
) -> list[tuple[str, Config]]:
    """Return both halves of a pass, and those of waiting passes that are as large."""
    most = len(passes.concepts(number)) - 1
    large = [y for y, own in waiting if len(passes.concepts(y)) > most and not _has_begun(own)]
    for each in [pair for pair in waiting if pair[0] in large]:
        waiting.remove(each)
    return [half for each in (number, *large) for half in passes.halve(each).items()]


def _has_begun(config: Config) -> bool:
    return bool(checkpoints(config.run.output_dir))


def _most_running(gpus: int) -> int:
    """Return how many passes are handed to Ray: twice as many as run now, so that it can grow."""
    import ray

    return 2 * int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1)) + 2


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    first = next(iter(str(cause).splitlines()), "").rstrip(".")
    return f"{type(cause).__name__}: {first}. The log of its worker says more."


def train_pass(config: Config, fleet: str) -> Outcome:
    """Train the concepts of a pass in this process, and gather their results.

    Args:
        config: Options of the pass, which continues from its last checkpoint.
        fleet: Output folder of the fleet.

    Raises:
        Stopped: If the machine goes away; the pass has a checkpoint, and goes on elsewhere.
    """
    from trainer.train_dreambooth_loldu import main

    logging.basicConfig(format="%(message)s")
    for package in ("loldu", "trainer"):
        logging.getLogger(package).setLevel(logging.INFO)
    if not _has_begun(config):  # what a killed worker left without a checkpoint is worth nothing
        config = build(Config, values_of(config) | {"overwrite": True})
    try:
        with out_of_memory_in_one_sentence(config):
            for attempt in range(_BUSY_TRIES):
                try:
                    main(config)
                    break
                except BusyError:
                    if attempt == _BUSY_TRIES - 1:
                        raise
                    time.sleep(_BUSY_S)
        file = method_named(config.adapter.method).file_name
        for name in concept_configs(config):
            content = (config.run.output_dir / FOLDER / name / file).read_bytes()
            target = Path(fleet) / FOLDER / f"{name}{Path(file).suffix}"
            write_atomically(target, content)
    except LoLDUError as error:
        cause = error.__cause__
        is_memory = isinstance(cause, RuntimeError) and is_out_of_memory(cause)
        return Outcome(str(error), is_memory)
    except OSError as error:
        return Outcome(f"{error.filename or 'A file'} cannot be read or written: {error.strerror}.")
    return Outcome()
