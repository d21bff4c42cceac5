"""Where a model comes from: check the place, load quietly, and turn failures into one sentence."""

# diffusers loads its public names lazily, which looks private to pyright.
# pyright: reportPrivateImportUsage=false

import json
import re
import warnings
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from loldu.errors import LoLDUError

INDEX = "model_index.json"
"""The file that every diffusers folder has."""


def check_source(name: str, flag: str, index: str = INDEX, *, may_be_file: bool = True) -> None:
    """Refuse a name that cannot be a model, before anything is loaded or downloaded.

    Args:
        name: A folder, a hub id or a file.
        flag: The option that gave the name, for the message.
        index: The file that such a folder contains.
        may_be_file: Whether a `.safetensors` file is allowed.

    Raises:
        LoLDUError: If no model can have this name.
    """
    path = Path(name)
    kinds = "a diffusers folder, a .safetensors file" if may_be_file else "a diffusers folder"
    if path.is_dir() and not (path / index).is_file():
        raise LoLDUError(
            f"{flag} {name} is not a diffusers folder: it has no {index}; give the folder that "
            "contains it."
        )
    if path.is_file() and not may_be_file:
        raise LoLDUError(f"{flag} {name} is a file; give a diffusers folder or a hub id.")
    if path.is_file() and path.suffix != ".safetensors":
        raise LoLDUError(f"{flag} {name} is a file, but not a .safetensors checkpoint.")
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1
    if not path.exists() and (looks_local or path.suffix == ".safetensors"):
        raise LoLDUError(
            f"{flag} {name} does not exist: give {kinds} or a hub id such as "
            "stable-diffusion-v1-5/stable-diffusion-v1-5."
        )


def check_parts(folder: Path, parts: Collection[str]) -> None:
    """Refuse a folder of a base that lacks the folder of a part.

    Raises:
        LoLDUError: If one is missing.
    """
    for part in parts:
        if not (folder / part).is_dir():
            raise LoLDUError(f"The base {folder} lacks its folder {part}; download it again.")


def config_of(folder: Path, part: str) -> Any:  # noqa: ANN401
    """Return the config of a part of a base, as its JSON file holds it."""
    return json.loads((folder / part / "config.json").read_text(encoding="utf-8"))


@contextmanager
def reading(part: str, name: str, layout: str | None = None) -> Generator[None]:
    """Turn the many ways in which loading fails into one sentence.

    Args:
        part: What is loaded, such as "base" or "VAE".
        name: Its folder, file or hub id.
        layout: Folder or hub id that describes the layout of a single file, if one was given.

    Raises:
        LoLDUError: If the block cannot load it.
    """
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from safetensors import SafetensorError

    try:
        yield
    except (
        *(OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, EOFError),
        *(SafetensorError, SingleFileComponentError, UnpicklingError),
    ) as error:
        path = Path(name)
        if _is_refused_pickle(error):
            raise LoLDUError(
                f"The {part} {name} has weights in a pickled file (.bin, .ckpt or .pt) that is "
                "damaged or would run code, so nothing of it was loaded; get the same model with "
                ".safetensors files."
            ) from error
        if isinstance(error, OSError) and not path.exists():
            raise LoLDUError(
                f"The {part} {name} is neither a local folder nor on the Hub: check the name, the "
                "connection and, for a gated model, your login."
            ) from error
        if isinstance(error, OSError) and path.is_file() and not (layout and Path(layout).is_dir()):
            raise LoLDUError(
                f"The {part} {name} does not describe its own layout, and the Hub does not give "
                f"{layout or 'it'}: give any diffusers folder of the same kind of base with "
                "--single_file_config."
            ) from error
        if isinstance(error, SingleFileComponentError | NotImplementedError):
            reason = "it lacks weights"
        else:
            reason = re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".:")
        reason = reason or type(error).__name__
        raise LoLDUError(f"The {part} {name} cannot be read ({reason}).") from error


def _is_refused_pickle(error: BaseException | None) -> bool:
    """Return whether a pickled file caused an error; diffusers raises another one after it."""
    while error is not None:
        if isinstance(error, UnpicklingError):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def quiet() -> Generator[None]:
    """Switch off the libraries' warnings and progress bars: what matters becomes an error here."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    bars = [
        (library, library.is_progress_bar_enabled())
        for library in (diffusers_logging, transformers_logging)
    ]
    libraries = (diffusers_logging, transformers_logging, hub_logging)
    levels = [library.get_verbosity() for library in libraries]
    for library, _ in bars:
        library.disable_progress_bar()
    for library in libraries:
        library.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
        for library, enabled in bars:
            if enabled:
                library.enable_progress_bar()
