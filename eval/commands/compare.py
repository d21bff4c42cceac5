"""`python -m eval compare`: by how much results differ, and whether that is more than chance."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from eval.config import CompareConfig
from eval.metrics.bootstrap import Estimate, estimate
from eval.report.output import refuse_to_overwrite, write
from eval.report.page import compare_page
from eval.report.plot import draw_plot
from eval.report.result import METRICS, Result, ScoredSubject, markdown_table, read_result
from loldu.errors import LoLDUError
from loldu.files import write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """Results over the pictures that all of them have.

    Attributes:
        results: By name; the first is what the others are compared with.
        differences: Of every other, by metric: its score less the first's, picture by picture.
    """

    results: dict[str, Result]
    differences: dict[str, dict[str, Estimate]]

    @property
    def metrics(self) -> list[str]:
        """Those that all have."""
        return [m for m in METRICS if all(m in result.metrics for result in self.results.values())]


def compare(config: CompareConfig) -> None:
    """Read the results, and leave table, plot and files.

    Raises:
        LoLDUError: If a file is no result, or results were not made in the same way.
    """
    output = config.output
    refuse_to_overwrite([output.json, output.html, config.plot], overwrite=output.overwrite)
    if config.plot is not None and config.plot.suffix.lower() != ".svg":
        raise LoLDUError(f"--plot {config.plot} must end in .svg, for that is what is drawn.")
    comparison = compare_results(_read(config), samples=config.bootstrap_samples)
    tables = [score_rows(comparison), difference_rows(comparison)]
    scores = {
        name: {metric: result.estimates[metric] for metric in comparison.metrics}
        for name, result in comparison.results.items()
    }
    plot = draw_plot(
        {METRICS[m]: {n: own[m] for n, own in scores.items()} for m in comparison.metrics}
    )
    if config.plot is not None:
        write_atomically(config.plot, plot)
        logger.info("Wrote %s", config.plot)
    told = {
        "scores": {n: {m: asdict(e) for m, e in own.items()} for n, own in scores.items()},
        "differences": {
            name: {metric: asdict(value) for metric, value in own.items()}
            for name, own in comparison.differences.items()
        },
    }
    text = "\n\n".join(markdown_table(rows) for rows in tables)
    write(output, text, told, lambda: compare_page(tables, plot))


def compare_results(results: dict[str, Result], *, samples: int = 2000) -> Comparison:
    """Pair the pictures by subject and name, and take the differences.

    Raises:
        LoLDUError: If the results were made in different ways, or share no picture.
    """
    names = list(results)
    for name in names[1:]:
        _check_alike(names[0], results[names[0]], name, results[name])
    shared = _shared(results)
    differences = {
        name: {
            metric: estimate(
                [
                    ours.values(metric) - theirs.values(metric)
                    for ours, theirs in zip(
                        shared[name].subjects, shared[names[0]].subjects, strict=True
                    )
                ],
                aggregate=shared[name].protocol.aggregate,
                samples=samples,
            )
            for metric in shared[name].metrics
            if metric in shared[names[0]].metrics
        }
        for name in names[1:]
    }
    return Comparison(shared, differences)


def score_rows(comparison: Comparison) -> list[list[str]]:
    """The scores of all results."""
    rows = [["result", *(METRICS[metric] for metric in comparison.metrics)]]
    for name, result in comparison.results.items():
        rows.append([name, *(str(result.estimates[metric]) for metric in comparison.metrics)])
    return rows


def difference_rows(comparison: Comparison) -> list[list[str]]:
    """What differs, marked where chance alone would hardly do it."""
    first = next(iter(comparison.results))
    rows = [[f"less {first}", *(METRICS[metric] for metric in comparison.metrics)]]
    for name, own in comparison.differences.items():
        cells = []
        for metric in comparison.metrics:
            value = own[metric]
            mark = " *" if value.low > 0 or value.high < 0 else ""
            cells.append(f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]{mark}")
        rows.append([name, *cells])
    return rows


def _read(config: CompareConfig) -> dict[str, Result]:
    if len(config.results) < 2:
        raise LoLDUError(
            "Give two results or more to compare: files that --json or a report wrote."
        )
    names = config.names or _names(config.results)
    if len(names) != len(config.results) or len(set(names)) < len(names):
        raise LoLDUError(
            f"--names must give the {len(config.results)} results a name each, all different: it "
            f"has {', '.join(names)}."
        )
    return {name: read_result(path) for name, path in zip(names, config.results, strict=True)}


def _names(paths: Sequence[Path]) -> list[str]:
    """File names, or where they are alike the folders they are in, or else the whole paths."""
    for name_of in (lambda p: p.stem, lambda p: p.resolve().parent.name, str):
        names = [name_of(path) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{number} {path}" for number, path in enumerate(paths, start=1)]


def _check_alike(first: str, a: Result, second: str, b: Result) -> None:
    """Refuse results whose numbers mean different things."""
    for kind in ("dino", "clip"):
        ours, theirs = (
            {key: value for key, value in result.extractors[kind].items() if key != "library"}
            for result in (a, b)
        )
        for key in ("weights", "preprocess"):
            if ours[key] != theirs[key]:
                raise LoLDUError(
                    f"{first} and {second} do not compare: {kind} had other {key} "
                    f"({ours['name']}, {theirs['name']}); score both with the same --{kind}."
                )
    deciding = ("pairs", "clip_t_scale", "keep_token", "aggregate")
    for key in deciding:
        ours, theirs = getattr(a.protocol, key), getattr(b.protocol, key)
        if ours != theirs:
            raise LoLDUError(
                f"{first} and {second} do not compare: --{key} was {ours} and {theirs}; score both "
                "in one way."
            )


def _shared(results: dict[str, Result]) -> dict[str, Result]:
    """The results cut to the pictures that all have, in one order."""
    if all(len(result.subjects) == 1 for result in results.values()):
        # Of one folder each: whatever those are called, they are what is to be compared.
        (first,) = next(iter(results.values())).subjects
        results = {
            name: replace(result, subjects=[replace(result.subjects[0], name=first.name)])
            for name, result in results.items()
        }
    names_of = {
        name: {(s.name, p.path.name) for s in result.subjects for p in s.pictures}
        for name, result in results.items()
    }
    shared = set.intersection(*names_of.values())
    if not shared:
        raise LoLDUError(
            "The results have no picture in common: pictures are paired by subject and file name; "
            "draw both from the same prompts and seeds."
        )
    left = max(len(own) for own in names_of.values()) - len(shared)
    if left:
        logger.warning("Left out %d pictures that not all results have.", left)

    def cut(result: Result) -> Result:
        subjects = []
        for subject in sorted(result.subjects, key=lambda subject: subject.name):
            own = [p for p in subject.pictures if (subject.name, p.path.name) in shared]
            if own:
                own.sort(key=lambda picture: picture.path.name)
                subjects.append(ScoredSubject(subject.name, own, subject.real))
        return replace(result, subjects=subjects)

    return {name: cut(result) for name, result in results.items()}
