"""Read a concept file with numpy alone: `loldu inspect` does not wait for torch."""

# safetensors is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from loldu.concept.metadata import check_metadata, require_plain, shown
from loldu.errors import ConceptError

FORMAT = "loldu-concept"
VERSION = 1
BASE_DTYPE_NAMES = ("float64", "float32", "float16", "bfloat16")
FINGERPRINT_SIZE = 3
_MOST_NAME, _MOST_BASE = 512, 1024
"""Characters of the name of a layer or component, and of the base; messages quote them."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Kind:
    """A kind of file that holds a concept's description and arrays, for messages about files.

    Attributes:
        format: Its name in the header.
        word: What messages call it.
        advice: What another .safetensors file may be, and what to do.
    """

    format: str
    word: str
    advice: str


CONCEPT = Kind(
    FORMAT, "concept", "(a LoRA or model weights?): load it with the library that wrote it"
)
PREDICTOR = Kind(
    "loldu-predictor",
    "predictor",
    "(a concept or model weights?): give a file that `python -m trainer.predictor` wrote",
)


@dataclass(frozen=True)
class LayerEntry:
    """A row of the table of layers in a concept file.

    Attributes:
        component: The pipeline's component, such as "unet", or "model" for a model on its own.
        name: The layer's name in its component.
        out_features: Rows of the base weight.
        in_features: Columns of the base weight.
        r: Number of directions.
        factorization: Name of the factorization of the base weight.
        base_dtype: Dtype of the base weight in training.
    """

    component: str
    name: str
    out_features: int
    in_features: int
    r: int
    factorization: str
    base_dtype: str


@dataclass(frozen=True)
class ConceptFile:
    """The content of a concept file: sizes agree with each other, pivots are not checked yet.

    Attributes:
        base: Id of the base model, or "" if it was unknown.
        config: The training configuration, by component.
        layers: The table of layers.
        metadata: Metadata that the user added.
        arrays: `delta`, `fingerprint` and, except for a factorization without them, `pivots`.
    """

    base: str
    config: dict[str, Any]
    layers: tuple[LayerEntry, ...]
    metadata: dict[str, Any]
    arrays: Arrays

    def deltas(self) -> list[NDArray[Any]]:
        """Return the delta of each layer, a float32 array of r numbers."""
        ends = list(accumulate(entry.r for entry in self.layers))
        return np.split(self.arrays["delta"].astype(np.float32), ends[:-1])


def read_file(path: str | os.PathLike[str], kind: Kind = CONCEPT) -> ConceptFile:
    """Read a concept file and verify its checksum; nothing in it is executed or trusted.

    Raises:
        ConceptError: If the file is missing, damaged, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ConceptError(f"{path} does not exist: check the path of the {kind.word} file")
    try:
        with safe_open(path, framework="numpy") as file:
            header: dict[str, str] = file.metadata() or {}
            _require_kind(header, path, kind)
            names: list[str] = file.keys()
            arrays: Arrays = {name: file.get_tensor(name) for name in names}
    except ConceptError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ConceptError(
            f"{path} is not a readable .safetensors file ({shown(str(error), 200)}): it is damaged "
            "or of another kind"
        ) from error
    if header.get("checksum") != checksum(header.get("description", ""), arrays):
        raise ConceptError(f"{path} is damaged, its checksum does not fit: get the file again")
    with sound_content(path, kind):
        content = json.loads(header["description"])
        layers = _layer_entries(content["components"], arrays)
        base, config, metadata = content["base"], content["config"], content["metadata"]
        if not isinstance(base, str) or not isinstance(config, dict) or len(base) > _MOST_BASE:
            raise TypeError("base and config")
        if not all(isinstance(options, dict) for options in config.values()):
            raise TypeError("config")
        if not isinstance(metadata, dict):
            raise TypeError("metadata")
        require_plain([base, config], "base and config")
        check_metadata(metadata)
        return ConceptFile(base, config, layers, metadata, arrays)


@contextmanager
def sound_content(path: Path, kind: Kind = CONCEPT) -> Generator[None]:
    """Turn an error about the content of a file into one sentence about the file.

    Raises:
        ConceptError: If the block raises the error of a content that loldu never writes.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConceptError(
            f"{path} does not hold what a {kind.word} file must ({shown(str(error), 200)}): "
            "it was not written by loldu"
        ) from error


def checksum(description: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of the description and of all arrays of a concept file."""
    digest = hashlib.sha256(description.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} torch.{array.dtype.name} {list(array.shape)}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _require_kind(header: dict[str, str], path: Path, kind: Kind) -> None:
    if header.get("format") != kind.format:
        raise ConceptError(
            f"{path} is a .safetensors file but not a LoLDU {kind.word} {kind.advice}"
        )
    if header.get("version") != str(VERSION):
        raise ConceptError(
            f"{path} has {kind.word} format version {shown(header.get('version'))}, this loldu "
            f"reads {VERSION}: install a newer loldu"
        )


def _layer_entries(components: dict[str, Any], arrays: Arrays) -> tuple[LayerEntry, ...]:
    """Return the table of layers, with every size checked against the arrays."""
    delta, fingerprints = arrays["delta"], arrays["fingerprint"]
    if delta.ndim != 1 or delta.dtype.name not in ("float32", "float16"):
        raise TypeError("delta")
    if not np.isfinite(delta).all():
        raise ValueError("delta")
    if fingerprints.dtype.name != "float32":
        raise TypeError("fingerprint")
    if not np.isfinite(fingerprints).all():  # any base is near an infinite norm
        raise ValueError("fingerprint")
    rows = [(c, part, row) for c, part in components.items() for row in part["layers"]]
    if not rows or fingerprints.shape != (len(rows), FINGERPRINT_SIZE):
        raise ValueError("fingerprint")
    if len({(component, row[0]) for component, _, row in rows}) != len(rows):
        raise ValueError("a layer occurs twice")
    entries: list[LayerEntry] = []
    left = delta.size
    for component, part, (name, *sizes) in rows:
        out_features, in_features, r = sizes
        factorization, base_dtype = part["basis"], part["base_dtype"]
        if any(type(size) is not int or size >= 2**31 for size in sizes) or not (
            is_name(name)
            and is_name(component)
            and isinstance(factorization, str)
            and base_dtype in BASE_DTYPE_NAMES
        ):
            raise TypeError(f"layer {shown(name)}")
        if not 1 <= r <= min(out_features, in_features, left):
            raise ValueError(f"rank of {name}")
        left -= r
        entries.append(
            LayerEntry(component, name, out_features, in_features, r, factorization, base_dtype)
        )
    if left:
        raise ValueError("numbers left over")
    return tuple(entries)


def is_name(value: object) -> bool:
    """Return whether a value can name a layer in a message: one line, not too long."""
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= _MOST_NAME
