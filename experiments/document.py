"""Writes what was measured into ``docs/reproduction.md``, between its marks.

A part of the document that stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` is made
from the configs and results of the experiment NAME, or from the claims; the rest is a person's.
"""

import re
from collections.abc import Callable
from pathlib import Path

from experiments.claims import claims_table, read_claims
from experiments.config import Experiment, experiment_names, read_experiment
from experiments.results import Results
from experiments.table import markdown
from loldu.errors import LoLDUError
from loldu.files import write_atomically

_PART = re.compile(r"(<!-- begin (\S+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def fill(document: Path, results: Results) -> None:
    """Make every marked part of a document anew.

    Raises:
        LoLDUError: The document is not there, or marks what is no experiment.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise LoLDUError(f"{document} cannot be read: {error.strerror}.") from error
    write_atomically(document, filled(text, results))


def filled(text: str, results: Results) -> str:
    """A document with its marked parts made anew.

    Raises:
        LoLDUError: It marks what is no experiment.
    """
    parts: dict[str, Callable[[], str]] = {
        "claims": lambda: claims_table(read_claims(), "pocket", results)
    }
    for name in experiment_names():
        parts[name] = lambda name=name: section(read_experiment(name), results)

    def part(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in parts:
            raise LoLDUError(f"The document marks {name}: choose from {', '.join(parts)}.")
        return f"{begin}\n{parts[name]()}\n\n{end}"

    return _PART.sub(part, text)


def section(experiment: Experiment, results: Results) -> str:
    """What an experiment does, what was settled in it, its results and its full scale."""
    parts = [f"**{experiment.title}** ({experiment.source}). {experiment.about}".rstrip()]
    if "pocket" in experiment.scales:
        here = experiment.at("pocket")
        parts.append(
            f"At pocket scale (`{here.model}`, seeds {_listed(here.seeds)}), {experiment.metric}, "
            f"{here.summary} ± standard deviation over seeds:"
        )
        parts.append(markdown(experiment, "pocket", results))
    if "full" in experiment.scales:
        here = experiment.at("full")
        seeds = _listed(here.seeds)
        parts.append(
            f"At full scale: `python -m experiments run {experiment.name} --scale full` "
            f"(`{here.model}`, seeds {seeds}). Expected: {here.cost}."
        )
        parts.append(markdown(experiment, "full", results))
    if experiment.choices:
        parts.append("Settled:")
        parts.append(
            "\n".join(
                f"- *{c.subject}*: {c.made}. Alternative: {c.alternative}."
                for c in experiment.choices
            )
        )
    noted: dict[str, list[str]] = {}
    for row in experiment.rows:
        if row.note:
            noted.setdefault(row.note.removesuffix("."), []).append(row.label)
    if noted:
        lines = [f"- {'; '.join(labels)}: {note}." for note, labels in noted.items()]
        parts.append("Of rows:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _listed(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))
