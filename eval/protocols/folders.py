"""Folders of pictures: which belong to which subject, and what each was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.protocols.score import Picture
from loldu.errors import LoLDUError
from loldu.pictures.captions import METADATA, read_metadata, read_text
from loldu.pictures.folder import SUFFIXES, list_images

NUMBERED = re.compile(r"(\d+)-\d+")
"""The name of a picture that was drawn for a suite: prompt and seed."""


def subject_folders(generated: Path, real: Path) -> dict[str, tuple[Path, Path]]:
    """Pair the folders by name: a folder of pictures is one subject, a folder of folders many.

    Raises:
        LoLDUError: If a subject has no real pictures.
    """
    folders = split_by_subject(generated)
    if list(folders.values()) == [generated]:
        return {name: (generated, real) for name in folders}
    pairs = {name: (folder, real / name) for name, folder in folders.items()}
    for name, (_, folder) in pairs.items():
        if not folder.is_dir():
            raise LoLDUError(
                f"The subject {name} of {generated} has no folder {folder} of true pictures; both "
                "folders need the same names."
            )
    return pairs


def split_by_subject(folder: Path) -> dict[str, Path]:
    """The folders in a folder by name; itself, if it holds pictures or nothing else."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    inner = {p.name: p for p in entries if p.is_dir() and not p.name.startswith(".")}
    if not inner or any(path.suffix.lower() in SUFFIXES for path in entries):
        return {folder.absolute().name: folder}  # . has no name
    return inner


def generated_pictures(
    folder: Path,
    prompts: Path | None = None,
    prompt: str | None = None,
    numbered: Sequence[str] = (),
) -> list[Picture]:
    """The pictures of a folder with their prompts; what is given comes first, then what lies there.

    Args:
        folder: The pictures.
        prompts: A file of them: lines, or a JSON object by picture.
        prompt: The one of all.
        numbered: A suite's, for pictures whose names tell the number.

    Raises:
        LoLDUError: If prompts and pictures do not fit each other.
        LoLDUError: If there are no pictures, or captions cannot be read.
    """
    paths = list_images(folder)
    if prompts is not None:
        return _from_file(paths, prompts)
    if prompt is not None:
        return [Picture(path, prompt) for path in paths]
    if numbered and all(NUMBERED.fullmatch(path.stem) for path in paths):
        return [Picture(path, _numbered(path, numbered)) for path in paths]
    lines = read_metadata(folder, [path.name for path in paths])
    told = {path: line.text for path in paths if (line := lines.get(path.name)) and line.text}
    for path in paths:
        if (sidecar := path.with_suffix(".txt")).is_file():
            told[path] = read_text(sidecar).strip()
    if told and len(told) < len(paths):
        without = next(path for path in paths if path not in told)
        raise LoLDUError(
            f"{without} has no prompt, and others of {folder} have one: write it into "
            f"{without.with_suffix('.txt').name} beside it or into {METADATA}, or give --prompts."
        )
    return [Picture(path, told.get(path)) for path in paths]


def _numbered(path: Path, prompts: Sequence[str]) -> str:
    match = NUMBERED.fullmatch(path.stem)
    assert match is not None
    number = int(match[1])
    if number >= len(prompts):
        raise LoLDUError(
            f"{path} is named after prompt {number}, and the suite has {len(prompts)}, counted "
            "from 0; remove it, or draw into another folder."
        )
    return prompts[number]


def _from_file(paths: Sequence[Path], prompts: Path) -> list[Picture]:
    if not prompts.is_file():
        raise LoLDUError(f"--prompts {prompts} is not a file.")
    if prompts.suffix.lower() == ".json":
        told = read_prompts_json(prompts)
        for path in paths:
            if path.name not in told and path.stem not in told:
                raise LoLDUError(f"--prompts {prompts} has no prompt for {path.name}; add it.")
        keys = (path.name if path.name in told else path.stem for path in paths)
        return [Picture(path, told[key]) for path, key in zip(paths, keys, strict=True)]
    lines = read_text(prompts).splitlines()
    if len(lines) != len(paths):
        raise LoLDUError(
            f"--prompts {prompts} has {len(lines)} lines for the {len(paths)} pictures of "
            f"{paths[0].parent}; give a line a picture, in the order of their names."
        )
    return [Picture(path, line) for path, line in zip(paths, lines, strict=True)]


def read_prompts_json(path: Path) -> Mapping[str, str]:
    """An object from names to prompts.

    Raises:
        LoLDUError: If it is something else.
    """
    try:
        told: Any = json.loads(read_text(path))
    except ValueError as error:
        raise LoLDUError(f"{path} is not JSON ({error}).") from error
    if not isinstance(told, dict) or not all(isinstance(text, str) for text in told.values()):
        raise LoLDUError(f'{path} must be one object from names to prompts: {{"a": "a red dog"}}.')
    return told
