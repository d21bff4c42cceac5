"""Writes measured tables into documents, between marks.

The text between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` is generated: from the config and
results of the experiment NAME, or from the claims. People write the rest.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from experiments.claims import claims_table, read_claims
from experiments.config import Experiment, experiment_names, read_experiment
from experiments.kinds import table_of
from experiments.results import Results
from experiments.table import records_of
from loldu.errors import LoLDUError
from loldu.files import write_atomically
from loldu.pictures.captions import read_json, read_text
from loldu.presets import installed_path

POCKET = "./pocket/base"
_PART = re.compile(r"(<!-- begin (\S+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def fill(document: Path, results: Results) -> None:
    """Generate every marked part of a document anew.

    Raises:
        LoLDUError: If the document cannot be read, or a mark names no experiment.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise LoLDUError(f"{document} cannot be read: {error.strerror}.") from error
    write_atomically(document, filled(text, results))


def filled(text: str, results: Results) -> str:
    """Return a document with its marked parts generated anew.

    Raises:
        LoLDUError: If a mark names no experiment.
    """
    parts: dict[str, Callable[[], str]] = {
        "claims": lambda: claims_table(read_claims(), "pocket", results)
    }
    for name in experiment_names():
        parts[name] = lambda name=name: section(read_experiment(name), results)
    return replace_parts(text, parts)


def replace_parts(text: str, parts: Mapping[str, Callable[[], str]]) -> str:
    """Return a document with its marked parts replaced by what `parts` returns for their names.

    Raises:
        LoLDUError: If a mark has another name.
    """

    def part(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in parts:
            raise LoLDUError(f"The document marks {name}: choose from {', '.join(parts)}.")
        return f"{begin}\n{parts[name]()}\n\n{end}"

    return _PART.sub(part, text)


def section(experiment: Experiment, results: Results) -> str:
    """Return an experiment as Markdown: description, results, decisions and remarks on rows.

    For the project's own experiments this is the tables alone. Results of another pocket base than
    the shipped one are named as such.
    """
    if not experiment.source:
        tables = [table_of(experiment, scale, results) for scale in experiment.scales]
        return "\n\n".join([*tables, *_other_base(experiment, results)])
    parts = [f"**{experiment.title}** ({experiment.source}). {experiment.about}".rstrip()]
    if "pocket" in experiment.scales:
        here = experiment.at("pocket")
        parts.append(
            f"At pocket scale (`{here.model}`, seeds {_joined(here.seeds)}), {experiment.metric}, "
            f"{here.summary} ± standard deviation over seeds:"
        )
        parts.append(table_of(experiment, "pocket", results))
        parts += _other_base(experiment, results)
    if "full" in experiment.scales:
        here = experiment.at("full")
        seeds = _joined(here.seeds)
        parts.append(
            f"At full scale: `python -m experiments run {experiment.name} --scale full` "
            f"(`{here.model}`, seeds {seeds}). Expected: {here.cost}."
        )
        parts.append(table_of(experiment, "full", results))
    return "\n\n".join([*parts, *_choices(experiment), *_notes(experiment)])


def _other_base(experiment: Experiment, results: Results) -> list[str]:
    """Return a sentence if results are of another pocket base than the shipped one."""
    if "pocket" not in experiment.scales or experiment.at("pocket").model != POCKET:
        return []
    shipped = read_json(read_text(Path(installed_path(f"{POCKET}.json"))), "base.json")["weights"]
    rows = experiment.rows_at("pocket")
    records = [r for row in rows for r in records_of(experiment, row, "pocket", results)]
    found = {record["facts"]["base"] for record in records if "base" in record["facts"]}
    if not (others := sorted(found - {shipped})):
        return []
    return [
        f"These results are of an earlier pocket base (`{'`, `'.join(others)}`); the one in this "
        f"repository is `{shipped}`. `python -m experiments run {experiment.name} --again` repeats "
        "them."
    ]


def _choices(experiment: Experiment) -> list[str]:
    lines = [
        f"- *{c.subject}*: {c.made}. Alternative: {c.alternative}." for c in experiment.choices
    ]
    return ["Decisions:", "\n".join(lines)] if lines else []


def _notes(experiment: Experiment) -> list[str]:
    noted: dict[str, list[str]] = {}
    for row in experiment.rows:
        if row.note:
            noted.setdefault(row.note.removesuffix("."), []).append(row.label)
    lines = [f"- {'; '.join(labels)}: {note}." for note, labels in noted.items()]
    return ["Notes on rows:", "\n".join(lines)] if lines else []


def _joined(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))
