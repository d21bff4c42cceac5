"""Benchmarks of personalization: subjects, their real pictures and prompts, as they are published.

A suite is read from a folder in DreamBooth's or CustomConcept101's own layout, or from a TOML file.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from trainer.prompts import token_and_class

DREAMBOOTH, CUSTOM_CONCEPT = "prompts_and_classes.txt", "dataset.json"
LIVE = frozenset({"cat", "dog"})
"""The classes of DreamBooth's set that its prompts for live subjects are for."""
_TEMPLATE = re.compile(r"""^\s*(['"])(.+)\1\s*\.format\(""")


@dataclass(frozen=True)
class SuiteSubject:
    """One subject of a benchmark.

    Attributes:
        name: Of its folders.
        class_name: What kind of thing it is.
        real: The folder of its true pictures.
        prompts: With `{token}` and `{class_name}` to be filled in.
    """

    name: str
    class_name: str
    real: Path
    prompts: Sequence[str]


def read_suite(path: Path) -> list[SuiteSubject]:
    """Read a benchmark, whichever layout it has.

    Raises:
        EvalError: If it is none of those known, or a part of it is missing.
    """
    if path.is_file():
        subjects = _read_toml(path)
    elif (path / DREAMBOOTH).is_file():
        subjects = _read_dreambooth(path)
    elif (path / "dataset" / DREAMBOOTH).is_file():  # the root of its repository
        subjects = _read_dreambooth(path / "dataset")
    elif (path / CUSTOM_CONCEPT).is_file():
        subjects = _read_custom_concept(path)
    else:
        raise EvalError(
            f"--suite {path} is neither a .toml file nor a folder with {DREAMBOOTH} (DreamBooth's "
            f"set) or {CUSTOM_CONCEPT} (CustomConcept101)."
        )
    for subject in subjects:
        if not subject.prompts:
            raise EvalError(f"{subject.name} of --suite {path} has no prompts; give it some.")
    return subjects


def _read_dreambooth(folder: Path) -> list[SuiteSubject]:
    """`prompts_and_classes.txt`: lines of name and class, then two Python lists of templates."""
    path = folder / DREAMBOOTH
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"object": [], "live": []}
    section = "classes"
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.strip().lower()
        if words.startswith("object prompts"):
            section = "object"
        elif words.startswith("live subject prompts"):
            section = "live"
        elif section == "classes" and line.count(",") == 1 and words != "subject_name,class":
            name, class_name = (part.strip() for part in line.split(","))
            classes[name] = class_name
        elif section != "classes" and (match := _TEMPLATE.match(line)):
            prompts[section].append(match[2].format("{token}", "{class_name}"))
    if not classes:
        raise EvalError(f"{path} names no subject; it should have lines such as 'dog,dog'.")
    return [
        SuiteSubject(name, kind, folder / name, prompts["live" if kind in LIVE else "object"])
        for name, kind in classes.items()
    ]


def _read_custom_concept(folder: Path) -> list[SuiteSubject]:
    """`dataset.json`: a list of concepts, each with a file of prompts around `{}`."""
    path = folder / CUSTOM_CONCEPT
    try:
        rows: Any = json.loads(path.read_text(encoding="utf-8"))
        return [_custom_concept(folder, row) for row in rows]
    except FileNotFoundError as error:
        raise EvalError(
            f"{path} names the prompts {error.filename}, which are not there."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise EvalError(
            f"{path} is not CustomConcept101's list of concepts ({type(error).__name__}: {error})."
        ) from error


def _custom_concept(folder: Path, row: Mapping[str, str]) -> SuiteSubject:
    real = folder / row["instance_data_dir"]
    told = token_and_class(row["instance_prompt"], [f"photo of a {row['class_prompt']}"])
    class_name = told[1] if told else row["class_prompt"]
    lines = (folder / row["prompt_filename"]).read_text(encoding="utf-8").splitlines()
    prompts = [line.strip().replace("{}", "{token} {class_name}") for line in lines if line.strip()]
    return SuiteSubject(real.name, class_name, real, prompts)


def _read_toml(path: Path) -> list[SuiteSubject]:
    """Ours: `prompts` for all, and `[[subject]]`s with name, class_name, real, perhaps prompts."""
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EvalError(f"--suite {path} cannot be read as TOML: {error}.") from error
    rows = told.get("subject")
    if not isinstance(rows, list) or not rows:
        raise EvalError(f"--suite {path} has no [[subject]]; docs/eval.md shows one.")
    known = {"name", "class_name", "real", "prompts"}
    for row in rows:
        missing = sorted({"name", "class_name", "real"} - row.keys())
        strange = sorted(row.keys() - known)
        if missing or strange:
            wrong = f"lacks {missing[0]}" if missing else f"has an unknown key {strange[0]}"
            raise EvalError(
                f"A [[subject]] of --suite {path} {wrong}; it takes name, class_name, real and "
                "prompts."
            )
    return [
        SuiteSubject(
            row["name"],
            row["class_name"],
            path.parent / row["real"],
            row.get("prompts", told.get("prompts", ())),
        )
        for row in rows
    ]
