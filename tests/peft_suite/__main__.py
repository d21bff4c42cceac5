"""Run PEFT's own tests with LoLDU in its tables: `make peft-suite`, `python -m tests.peft_suite`.

Everything is kept in one folder, so that a second run starts at once: the tests of the installed
PEFT (from its source distribution), the tiny models, and each file's outcomes.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from . import hub
from .rows import CONTROL, ROW

FILES = (
    "test_config",
    "test_custom_models",
    "test_decoder_models",
    "test_encoder_decoder_models",
    "test_feature_extraction_models",
    "test_seq_classifier",
    "test_token_classification_qa",
    "test_stablediffusion",
    "test_low_level_api",
)
PACKAGE = "peft_tests"
OUTCOMES = ("passed", "skipped", "expected", "as LoRA", "failed")


@dataclass
class Outcome:
    """The outcome of one file of tests.

    Attributes:
        tests: How many of LoLDU's tests had each outcome; "as LoRA" failed for LoRA's own row too.
        reasons: Tests by outcome and reason, for all that did not pass.
        left_out: Rows of LoRA's that LoLDU has no counterpart of, and why.
        wall_s: Time it took, with LoRA's rows.
    """

    file: str
    tests: Counter[str] = field(default_factory=Counter[str])
    reasons: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    wall_s: float = 0.0


def fetch_tests(folder: Path) -> Path:
    """Return the folder with the tests of the installed PEFT; fetch missing ones."""
    version = metadata.version("peft")
    root = folder / f"peft-{version}"
    if root.exists():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        wanted = ["--no-deps", "--no-binary", "peft", "--dest", temporary, f"peft=={version}"]
        subprocess.run([*pip, *wanted], check=True)
        (archive,) = Path(temporary).glob("peft-*.tar.gz")
        with tarfile.open(archive) as tar:
            # Early releases of Python 3.11 have no filters.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            tar.extractall(temporary)
        staging = Path(temporary) / "staging"
        tests = Path(temporary) / archive.name.removesuffix(".tar.gz") / "tests"
        shutil.copytree(tests, staging / PACKAGE)
        # The source distribution leaves out the empty file that makes it a package.
        (staging / PACKAGE / "__init__.py").touch()
        os.replace(staging, root)
    return root


def run_file(file: str, root: Path, home: Path, options: Iterable[str]) -> Outcome:
    """Run one file of tests in a process of its own, without network and without a GPU."""
    results = root / f"{file}.json"
    results.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join([os.getcwd(), str(root)]),
    }
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(root)]
    command += ["-p", "tests.peft_suite.rows", "-p", "no:cacheprovider", "--quiet", "--tb=short"]
    command += ["--import-mode=importlib", "--disable-warnings", "--loldu-results", str(results)]
    start = time.perf_counter()
    with (root / f"{file}.log").open("w") as log:
        status = subprocess.run(
            [*command, f"{PACKAGE}/{file}.py", *options],
            cwd=root,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"{file} did not run to its end: see {log.name}")
    outcome = summarize(file, json.loads(results.read_text()))
    outcome.wall_s = time.perf_counter() - start
    return outcome


def summarize(file: str, record: dict[str, Any]) -> Outcome:
    """Count LoLDU's tests by outcome, with a group for those that fail for LoRA's row too."""
    results, outcome = record["results"], Outcome(file, left_out=record["left_out"])
    for test, result in results.items():
        if CONTROL in {variant for variant, _ in ROW.findall(test)}:
            continue
        what = result["outcome"]
        control = results.get(ROW.sub(rf"{CONTROL}\2", test), {})
        if what == "failed" and control.get("outcome") == "failed":
            what = "as LoRA"
        outcome.tests[what] += 1
        if what != "passed":
            name = re.sub(r"^.*?::", "", test)
            outcome.reasons.setdefault((what, result["reason"]), []).append(name)
    return outcome


def print_summary(outcomes: list[Outcome], console: Console) -> None:
    """Print a line for every file, and every reason for which a test did not pass."""
    table = Table(*("file", *OUTCOMES, "s"))
    for outcome in outcomes:
        counts = [str(outcome.tests[what]) for what in OUTCOMES]
        table.add_row(outcome.file.removeprefix("test_"), *counts, f"{outcome.wall_s:.0f}")
    total = sum((outcome.tests for outcome in outcomes), Counter[str]())
    seconds = sum(outcome.wall_s for outcome in outcomes)
    table.add_section()
    table.add_row("total", *(str(total[what]) for what in OUTCOMES), f"{seconds:.0f}")
    for outcome in outcomes:
        for (what, reason), tests in sorted(outcome.reasons.items()):
            console.print(f"{outcome.file}: {len(tests)} {what}: {reason}", markup=False)
            if what == "failed":
                console.print(*(f"    {test}" for test in tests), sep="\n", markup=False)
    rows = Counter(reason for outcome in outcomes for reason in outcome.left_out.values())
    for reason, count in rows.most_common():
        console.print(f"{count} rows of LoRA's left out: {reason}", markup=False)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.peft_suite", description=__doc__)
    known = f"PEFT's files to run, of {', '.join(FILES)}"
    parser.add_argument("files", nargs="*", default=FILES, help=known)
    parser.add_argument("--folder", type=Path, default=Path("runs/peft_suite"))
    parser.add_argument("-k", dest="keyword", help="run the tests this matches, as pytest's -k")
    options = parser.parse_args()
    if unknown := {*options.files} - {*FILES}:
        parser.error(f"no file named {', '.join(sorted(unknown))}: give {known}")
    folder = options.folder.resolve()
    root = fetch_tests(folder)
    # Building a model tells of every step.
    logging.disable_progress_bar()
    hub.fill(folder / "hub")
    console, outcomes = Console(soft_wrap=True), []
    for file in options.files:
        chosen = ["-k", options.keyword] if options.keyword else []
        outcomes.append(run_file(file, root, folder / "hub", chosen))
        counts = ", ".join(f"{outcomes[-1].tests[what]} {what}" for what in OUTCOMES)
        console.print(f"{file}: {counts} in {outcomes[-1].wall_s:.0f} s")
    print_summary(outcomes, console)
    sys.exit(any(outcome.tests["failed"] for outcome in outcomes))


if __name__ == "__main__":
    main()
