"""Read the subjects of a benchmark ("suite"), with their real pictures and prompts.

A suite is a folder in the layout of DreamBooth's dataset or CustomConcept101, or a TOML file.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from string import Formatter, ascii_lowercase
from typing import Any

from loldu.errors import LoLDUError
from loldu.files import read_toml
from loldu.pictures.captions import is_text, read_json, read_lines, read_text

DREAMBOOTH, CUSTOM_CONCEPT = "prompts_and_classes.txt", "dataset.json"
LIVE = frozenset({"cat", "dog"})
"""Classes that use DreamBooth's prompts for live subjects."""
_TEMPLATE = re.compile(r"""^\s*((['"]).+\2)\s*\.format\(""")
_AFTER_MODIFIER = re.compile(r"<\S+>\s+(.+)")
"""Finds the class in CustomConcept101's prompts: `photo of a <new1> dice plushie`."""


@dataclass(frozen=True)
class SuiteSubject:
    """One subject of a benchmark.

    Attributes:
        name: Name of its folders.
        class_name: Class word.
        real: Folder of its real pictures.
        prompts: Templates with `{token}` and `{class_name}`.
    """

    name: str
    class_name: str
    real: Path
    prompts: Sequence[str]


@dataclass(frozen=True)
class Together:
    """Prompts that ask for several subjects in one picture.

    Attributes:
        name: Name of the folder of its pictures.
        subjects: Subjects, in the order of `{a}`, `{b}` and so on.
        prompts: Prompts with the class words of the subjects.
    """

    name: str
    subjects: Sequence[SuiteSubject]
    prompts: Sequence[str]

    @property
    def names(self) -> list[str]:
        """Names of the subjects."""
        return [subject.name for subject in self.subjects]


def read_suite(path: Path) -> list[SuiteSubject]:
    """Read a suite of any known layout.

    Raises:
        LoLDUError: If the layout is unknown, or a part of the suite is missing.
    """
    if path.name in (DREAMBOOTH, CUSTOM_CONCEPT):
        path = path.parent
    if path.is_file():
        subjects = _read_toml(path)
    elif (path / DREAMBOOTH).is_file():
        subjects = _read_dreambooth(path)
    elif (path / "dataset" / DREAMBOOTH).is_file():  # the root of its repository
        subjects = _read_dreambooth(path / "dataset")
    elif (path / CUSTOM_CONCEPT).is_file():
        subjects = _read_custom_concept(path)
    else:
        raise LoLDUError(
            f"--suite {path} is neither a .toml file nor a folder with {DREAMBOOTH} (DreamBooth's "
            f"dataset) or {CUSTOM_CONCEPT} (CustomConcept101)."
        )
    for name, count in Counter(subject.name for subject in subjects).items():
        if count > 1:
            raise LoLDUError(f"--suite {path} has {count} subjects named {name}; rename one.")
    together = {name for group in read_together(path, subjects) for name in group.names}
    for subject in subjects:
        if not subject.prompts and subject.name not in together:
            raise LoLDUError(f"{subject.name} of --suite {path} has no prompts; add some.")
    return subjects


def read_together(path: Path, subjects: Sequence[SuiteSubject]) -> list[Together]:
    """Read the `[[together]]` tables of a TOML suite; other layouts have none.

    Args:
        path: The suite.
        subjects: Its subjects.

    Raises:
        LoLDUError: If a table is not complete, or names something unknown.
    """
    if not path.is_file() or path.name in (DREAMBOOTH, CUSTOM_CONCEPT):
        return []
    rows = read_toml(path, "--suite").get("together", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise LoLDUError(f"together of --suite {path} is no [[together]]; docs/eval.md shows one.")
    known = {subject.name: subject for subject in subjects}
    groups = [_together(row, f"A [[together]] of --suite {path}", known) for row in rows]
    for name, count in Counter([*known, *(group.name for group in groups)]).items():
        if count > 1:
            raise LoLDUError(
                f"--suite {path} has {count} folders named {name}; rename a [[together]]."
            )
    return groups


def _together(row: Mapping[str, Any], where: str, known: Mapping[str, SuiteSubject]) -> Together:
    _check_keys(row, where, {"name"}, {"prompts", "subjects"})
    names, prompts = row.get("subjects"), row.get("prompts")
    if not isinstance(names, list) or len(names) < 2 or len(names) > len(ascii_lowercase):
        raise LoLDUError(f'{where} needs two subjects or more: subjects = ["my_dog", "my_cat"].')
    for name in names:
        if name not in known:
            raise LoLDUError(f"{where} has no [[subject]] {name}; it has {', '.join(known)}.")
    if len({*names}) < len(names):
        raise LoLDUError(f"{where} names a subject twice; its subjects must differ.")
    if not prompts:
        raise LoLDUError(f'{where} has no prompts; add some, such as "a {{a}} beside a {{b}}".')
    subjects = [known[name] for name in names]
    words = dict(zip(ascii_lowercase, (one.class_name for one in subjects), strict=False))
    for prompt in prompts:
        used = {name for _, name, _, _ in Formatter().parse(prompt) if name is not None}
        if used != {*words}:
            holes = " and ".join(f"{{{letter}}}" for letter in words)
            raise LoLDUError(f'{where} has the prompt "{prompt}"; it must have {holes}, once each.')
    return Together(row["name"], subjects, [prompt.format(**words) for prompt in prompts])


def _read_dreambooth(folder: Path) -> list[SuiteSubject]:
    """Read `prompts_and_classes.txt`: lines of name and class, then two Python lists of prompts."""
    path = folder / DREAMBOOTH
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"object": [], "live": []}
    section = "classes"
    for number, line in enumerate(read_lines(path), start=1):
        words = line.strip().lower()
        if words.startswith("object prompts"):
            section = "object"
        elif words.startswith("live subject prompts"):
            section = "live"
        elif section == "classes" and line.count(",") == 1 and words != "subject_name,class":
            name, class_name = (part.strip() for part in line.split(","))
            classes[name] = class_name
        elif section != "classes" and (match := _TEMPLATE.match(line)):
            prompts[section].append(_template(match[1], f"{path}, line {number}"))
    if not classes:
        raise LoLDUError(f"{path} has no subject; it needs lines such as 'dog,dog'.")
    return [
        SuiteSubject(name, kind, folder / name, prompts["live" if kind in LIVE else "object"])
        for name, kind in classes.items()
    ]


def _template(literal: str, where: str) -> str:
    """Return the string of a Python literal, with our names for its placeholders."""
    try:
        return str(ast.literal_eval(literal)).format("{token}", "{class_name}")
    except (SyntaxError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise LoLDUError(
            f"{where} is not a template such as 'a {{0}} {{1}} in the snow' ({error})."
        ) from error


def _read_custom_concept(folder: Path) -> list[SuiteSubject]:
    """Read `dataset.json`: a list of concepts, each with a file of prompts around `{}`."""
    path = folder / CUSTOM_CONCEPT
    try:
        rows = read_json(read_text(path), str(path))
        subjects = [_custom_concept(folder, row) for row in rows]
    except OSError as error:
        raise LoLDUError(
            f"{path} names the prompt file {error.filename}, which cannot be read "
            f"({error.strerror})."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoLDUError(
            f"{path} is not CustomConcept101's list of concepts ({type(error).__name__}: {error})."
        ) from error
    if not subjects:
        raise LoLDUError(f"{path} has no concept.")
    return subjects


def _custom_concept(folder: Path, row: Any) -> SuiteSubject:  # noqa: ANN401  any JSON
    """Read one concept; its instance prompt names the class more precisely than `class_prompt`."""
    real = folder / row["instance_data_dir"]
    instance = _AFTER_MODIFIER.search(row["instance_prompt"])
    class_name = instance[1].strip() if instance else row["class_prompt"]
    if not is_text(class_name):
        raise TypeError(f"the class {class_name!r} is not a string")
    lines = read_lines(folder / row["prompt_filename"])
    prompts = [line.strip().replace("{}", "{token} {class_name}") for line in lines if line.strip()]
    return SuiteSubject(real.name, class_name, real, prompts)


def _read_toml(path: Path) -> list[SuiteSubject]:
    """Read a TOML file: `prompts` for all, and a `[[subject]]` table for each subject."""
    content = read_toml(path, "--suite")
    rows = content.get("subject")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise LoLDUError(f"--suite {path} has no [[subject]]; docs/eval.md shows one.")
    _check_keys(content, f"--suite {path}", set(), {"prompts", "subject", "together"})
    for row in rows:
        where = f"A [[subject]] of --suite {path}"
        _check_keys(row, where, {"name", "class_name", "real"}, {"prompts"})
    return [
        SuiteSubject(
            row["name"],
            row["class_name"],
            path.parent / row["real"],
            row.get("prompts", content.get("prompts", ())),
        )
        for row in rows
    ]


def _check_keys(table: Mapping[str, Any], where: str, needed: Set[str], more: Set[str]) -> None:
    """Raise an error if a table lacks a key, has an unknown key or has a value of another type."""
    known = ", ".join(sorted(needed | more))
    for key in sorted(needed - table.keys()):
        raise LoLDUError(f"{where} lacks {key}; it takes {known}.")
    for key in sorted(table.keys() - needed - more):
        raise LoLDUError(f"{where} has an unknown key {key}; it takes {known}.")
    for key in sorted(needed):
        if not isinstance(table[key], str):
            raise LoLDUError(f"{where} has the {key} {table[key]!r}; write it in quotes.")
    prompts = table.get("prompts", [])
    if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
        raise LoLDUError(
            f'{where} has prompts that are not a list of strings such as ["a {{token}} in a box"].'
        )
