"""Makes missing results, several at a time, in worker processes that keep their base models."""

import hashlib
import json
import logging
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from experiments.config import Experiment, Run, check_method
from experiments.kinds import methods_of, perform
from experiments.results import Results
from loldu.errors import LoLDUError

WORK = Path("runs/experiments/work")
Job = tuple[str, Run]
"""Kind of experiment, and one of its runs."""


def jobs_of(
    experiments: Sequence[Experiment], scale: str, rows: Sequence[str], data: Sequence[str]
) -> list[Job]:
    """Return the runs that tables need, each once, row by row.

    Args:
        experiments: The tables.
        scale: "pocket" or "full".
        rows: Names of rows; empty for all.
        data: Names of datasets; empty for all.

    Raises:
        LoLDUError: If no table has such a row or dataset, or a method is unknown.
    """
    found: dict[tuple[object, ...], Job] = {}
    known_rows = {row.name for e in experiments for row in e.rows_at(scale)}
    known_data = {name for e in experiments for name in e.at(scale).data}
    for what, asked, known in (("row", rows, known_rows), ("dataset", data, known_data)):
        if unknown := [name for name in asked if name not in known]:
            names = ", ".join(e.name for e in experiments)
            raise LoLDUError(
                f"{names} at {scale} scale has no {what} {unknown[0]}: "
                f"choose from {', '.join(sorted(known))}."
            )
    for experiment in experiments:
        wanted = [d for d in experiment.at(scale).data if not data or d in data]
        for row in experiment.rows_at(scale):
            if rows and row.name not in rows:
                continue
            for run in experiment.runs(row, scale, wanted):
                check_method(run.method, methods_of(experiment.kind))
                found.setdefault((run.experiment, *run.key), (experiment.kind, run))
    return list(found.values())


def run_missing(jobs: Sequence[Job], results: Results, *, processes: int, again: bool) -> int:
    """Make every missing result; after a failed run the others continue.

    Returns:
        The number of failed runs.

    Raises:
        LoLDUError: If a person interrupts it.
    """
    missing = [job for job in jobs if again or results.read(job[1]) is None]
    if not missing:
        return 0
    failed, queue = 0, missing
    with tqdm(total=len(missing), desc="runs", smoothing=0.05, disable=None) as bar:
        try:
            while queue:
                more, queue = _run_queue(queue, results, processes, again=again, bar=bar)
                failed += more
        except KeyboardInterrupt:
            then = "starts again" if again else "continues"
            raise LoLDUError(f"Stopped. Finished runs are kept; the same command {then}.") from None
    return failed


def _run_queue(
    queue: Sequence[Job], results: Results, processes: int, *, again: bool, bar: tqdm
) -> tuple[int, list[Job]]:
    """Work through a queue until its end, or until one of the processes is killed.

    Returns:
        The number of failed runs, including those that ran when a process was killed, and the
        remaining queue.
    """
    processes = min(processes, len(queue))
    failed, left = 0, list(queue)
    with _pool(processes) as pool:
        futures: dict[Future[float], Job] = {
            pool.submit(_perform, kind, run, results, sys.argv[1:], again): (kind, run)
            for kind, run in queue
        }
        for future in as_completed(futures):
            if isinstance(future.exception(), BrokenProcessPool):
                break
            left.remove(futures[future])
            failed += _report(bar, futures[future][1], future)
        else:
            return failed, []
    # Jobs start in the order of the queue: the first remaining ones were running.
    for _, run in left[:processes]:
        bar.update()
        bar.write(
            f"{run.name} failed: a process was killed, perhaps for lack of memory", file=sys.stderr
        )
    return failed + len(left[:processes]), left[processes:]


def _report(bar: tqdm, run: Run, future: Future[float]) -> int:
    """Print one line about a finished run; return 1 if it failed, else 0."""
    bar.update()
    try:
        bar.write(f"{run.name}: {future.result():.2f}", file=sys.stderr)
        return 0
    except LoLDUError as error:
        bar.write(f"{run.name} failed: {error}", file=sys.stderr)
    except Exception as error:  # the other runs must continue
        trace = "".join(traceback.format_exception(error))
        bar.write(f"{run.name} failed:\n{trace}", file=sys.stderr)
    return 1


def _perform(kind: str, run: Run, results: Results, argv: list[str], again: bool = False) -> float:
    """Make and write a result, and hide what libraries print meanwhile.

    Args:
        kind: Kind of the experiment.
        run: Run to perform.
        results: Store for the result.
        argv: Arguments of the command, for the record.
        again: Start anew instead of resuming an interrupted run.

    Returns:
        The score.
    """
    work = _work_of(run, results)
    if again:
        shutil.rmtree(work, ignore_errors=True)
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        outcome = perform(kind, run, work)
    results.write(run, outcome, argv)
    shutil.rmtree(work, ignore_errors=True)
    return outcome.score


def _work_of(run: Run, results: Results) -> Path:
    """Return the folder for checkpoints of a run: one for each settings and each store."""
    store = str(results.file(run.experiment).resolve())
    what = json.dumps([run.settings(), store], sort_keys=True)
    digest = hashlib.sha256(what.encode()).hexdigest()[:8]
    return WORK / run.experiment / run.place.with_name(f"{run.place.name}-{digest}")


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    context = get_context("spawn")
    # With as many processes as cores, two threads a process are far slower than one.
    share = max(1, (os.cpu_count() or 1) // processes)
    threads = int(os.environ.get("OMP_NUM_THREADS", share))
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's huge pages: steps 2 to 8% faster
    pool = ProcessPoolExecutor(processes, context, _begin, (threads,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    """Prepare a worker: its share of the cores, no log lines, exit together with its parent."""
    import torch  # the commands that make no result do not need it

    torch.set_num_threads(threads)
    logging.disable(logging.WARNING)
    parent = os.getppid()

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
