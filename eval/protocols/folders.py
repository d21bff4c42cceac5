"""Find the pictures of each subject in folders, and the prompt of each picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.protocols.prompts import prompt_number
from eval.protocols.score import Picture
from loldu.errors import LoLDUError
from loldu.pictures.captions import (
    METADATA,
    is_text,
    read_json,
    read_lines,
    read_metadata,
    read_text,
)
from loldu.pictures.folder import SUFFIXES, beside, list_images


def subject_folders(generated: Path, real: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folders of generated and real pictures of each subject, paired by name.

    A folder of pictures is one subject; in a folder of folders, each is a subject.

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
                f"The subject {name} of {generated} has no folder {folder} of real pictures; both "
                "folders need the same names."
            )
    return pairs


def split_by_subject(folder: Path) -> dict[str, Path]:
    """Return the subfolders by name, or the folder itself if it has pictures or no subfolder."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    inner = {p.name: p for p in entries if p.is_dir() and not p.name.startswith(".")}
    if not inner or any(path.suffix.lower() in SUFFIXES for path in entries):
        return {folder.absolute().name: folder}  # Path(".") has no name
    return inner


def generated_pictures(
    folder: Path,
    prompts: Path | None = None,
    prompt: str | None = None,
    numbered: Sequence[str] = (),
) -> list[Picture]:
    """Return the pictures of a folder with their prompts.

    The arguments win over the .txt and metadata files in the folder.

    Args:
        folder: Folder of pictures.
        prompts: File with a line for each picture, or a JSON object from file names to prompts.
        prompt: One prompt for all pictures.
        numbered: Prompts of a suite, for pictures whose names hold the number of the prompt.

    Raises:
        LoLDUError: If there are no pictures, a caption cannot be read, or a picture lacks a prompt.
    """
    paths = list_images(folder)
    if prompts is not None:
        return _from_file(paths, prompts)
    if prompt is not None:
        return [Picture(path, prompt) for path in paths]
    if numbered and all(prompt_number(path) is not None for path in paths):
        return [Picture(path, _numbered(path, numbered)) for path in paths]
    lines = read_metadata(folder, [path.name for path in paths])
    found = {path: line.text for path in paths if (line := lines.get(path.name)) and line.text}
    found |= {path: read_text(file).strip() for path, file in beside(paths, ".txt").items()}
    if found and len(found) < len(paths):
        without = next(path for path in paths if path not in found)
        raise LoLDUError(
            f"{without} has no prompt, but other pictures of {folder} have one: write it to "
            f"{without.with_suffix('.txt').name} beside it or to {METADATA}, or give --prompts."
        )
    return [Picture(path, found.get(path)) for path in paths]


def _numbered(path: Path, prompts: Sequence[str]) -> str:
    number = prompt_number(path)
    assert number is not None
    if number >= len(prompts):
        raise LoLDUError(
            f"{path} is named after prompt {number}, but the suite has {len(prompts)} prompts, "
            "counted from 0; remove it, or use another folder."
        )
    return prompts[number]


def _from_file(paths: Sequence[Path], prompts: Path) -> list[Picture]:
    if not prompts.is_file():
        raise LoLDUError(f"--prompts {prompts} is not a file.")
    if prompts.suffix.lower() == ".json":
        by_name = read_prompts_json(prompts)
        for path in paths:
            if path.name not in by_name and path.stem not in by_name:
                raise LoLDUError(f"--prompts {prompts} has no prompt for {path.name}; add it.")
        keys = (path.name if path.name in by_name else path.stem for path in paths)
        return [Picture(path, by_name[key]) for path, key in zip(paths, keys, strict=True)]
    lines = read_lines(prompts)
    if len(lines) != len(paths):
        raise LoLDUError(
            f"--prompts {prompts} has {len(lines)} lines for the {len(paths)} pictures of "
            f"{paths[0].parent}; write one line a picture, in the order of their names."
        )
    return [Picture(path, line) for path, line in zip(paths, lines, strict=True)]


def read_prompts_json(path: Path) -> Mapping[str, str]:
    """Read a JSON object from file names to prompts.

    Raises:
        LoLDUError: If the file is anything else.
    """
    content = read_json(read_text(path), str(path))
    if not isinstance(content, dict) or not all(map(is_text, content.values())):
        raise LoLDUError(
            f'{path} must be an object from file names to prompts: {{"a": "a red dog"}}.'
        )
    return content
