"""Makes the results that are missing, several at a time, each in a process that keeps its bases."""

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

import torch
from tqdm import tqdm

from experiments.config import Experiment, Run
from experiments.kinds import methods_of, perform
from experiments.methods import check_method
from experiments.results import Results
from loldu.errors import LoLDUError

WORK = Path("runs/experiments/work")
Job = tuple[str, Run]
"""A kind of experiment, and a run of it."""


def jobs_of(
    experiments: Sequence[Experiment], scale: str, rows: Sequence[str], data: Sequence[str]
) -> list[Job]:
    """The runs that tables need, each once, in an order that fills the tables row by row.

    Args:
        experiments: The tables.
        scale: "pocket" or "full".
        rows: Only these rows; all where there are none.
        data: Only these data sets; all where there are none.

    Raises:
        LoLDUError: A row or a data set belongs to none of the tables, or a method is unknown.
    """
    found: dict[tuple[str, Path], Job] = {}
    known_rows = {row.name for e in experiments for row in e.rows_at(scale)}
    known_data = {name for e in experiments for name in e.at(scale).data}
    for what, asked, known in (("row", rows, known_rows), ("data set", data, known_data)):
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
                found.setdefault((run.experiment, run.place), (experiment.kind, run))
    return list(found.values())


def run_missing(jobs: Sequence[Job], results: Results, *, processes: int, again: bool) -> int:
    """Make every result that is not there yet; one that fails is told and the others go on.

    Returns:
        How many failed.
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
            goes_on = "the same command begins again" if again else "the same command goes on"
            raise LoLDUError(f"Stopped: what was finished is kept, and {goes_on}.") from None
    return failed


def _run_queue(
    queue: Sequence[Job], results: Results, processes: int, *, again: bool, bar: tqdm
) -> tuple[int, list[Job]]:
    """Work through a queue until its end, or until one of the processes is killed from outside.

    Returns:
        How many failed, those that went on in the killed pool among them; what is left to do.
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
            failed += _tell(bar, futures[future][1], future)
        else:
            return failed, []
    # Jobs are begun in the order of the queue: the first that are left were going on.
    for _, run in left[:processes]:
        bar.update()
        bar.write(
            f"{run.name} failed: a process was killed, for want of memory perhaps", file=sys.stderr
        )
    return failed + len(left[:processes]), left[processes:]


def _tell(bar: tqdm, run: Run, future: Future[float]) -> int:
    """A line about a run that has ended; 1 if it failed."""
    bar.update()
    try:
        bar.write(f"{run.name}: {future.result():.2f}", file=sys.stderr)
        return 0
    except LoLDUError as error:
        bar.write(f"{run.name} failed: {error}", file=sys.stderr)
    except Exception as error:  # a run must not take the others with it
        trace = "".join(traceback.format_exception(error))
        bar.write(f"{run.name} failed:\n{trace}", file=sys.stderr)
    return 1


def _perform(kind: str, run: Run, results: Results, argv: list[str], again: bool = False) -> float:
    """Make and keep a result; what libraries and the trainer print on the way is not wanted.

    Args:
        kind: Of the experiment.
        run: What to make.
        results: Where it is kept.
        argv: The command.
        again: Whether to begin anew instead of going on from what an earlier run has left.
    """
    work = _work_of(run, results)
    if again:
        shutil.rmtree(work, ignore_errors=True)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        outcome = perform(kind, run, work)
    results.write(run, outcome, argv)
    shutil.rmtree(work, ignore_errors=True)
    return outcome.score


def _work_of(run: Run, results: Results) -> Path:
    """Where a run leaves what it can go on from: a folder for these settings and these results."""
    what = json.dumps([run.settings(), str(results.file(run).resolve())], sort_keys=True)
    digest = hashlib.sha256(what.encode()).hexdigest()[:8]
    return WORK / run.experiment / run.place.with_name(f"{run.place.stem}-{digest}")


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    context = get_context("spawn")
    # One process that fights others for cores is far slower with two threads than with one.
    share = max(1, (os.cpu_count() or 1) // processes)
    threads = int(os.environ.get("OMP_NUM_THREADS", share))
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's huge pages: steps 2 to 8% faster
    pool = ProcessPoolExecutor(processes, context, _begin, (threads,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    """What a process begins with: its share of the cores, no chatter, an end with its parent."""
    torch.set_num_threads(threads)
    logging.disable(logging.WARNING)
    parent = os.getppid()

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
