"""The concept file: one .safetensors with a few flat tensors and a JSON description.

Tensors: ``delta`` (the deltas of all layers, concatenated), ``pivots`` (likewise, in the smallest
integer type that holds them; absent without pivots) and ``fingerprint`` (three numbers per layer).
The header's ``description`` holds the id of the base, the table of layers and the metadata of the
user. ``checksum`` covers the description and the tensors.
"""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor

from loldu.adapter.factorization import FACTORIZATIONS
from loldu.concept.metadata import check_metadata
from loldu.concept.reader import (
    BASE_DTYPE_NAMES,
    CONCEPT,
    VERSION,
    ConceptFile,
    Kind,
    checksum,
    read_file,
    sound_content,
)
from loldu.errors import ConceptError
from loldu.files import write_atomically

BASE_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in BASE_DTYPE_NAMES}


def require_finite(strength: float | int, adapter_name: str | None) -> None:
    """Check a strength.

    Raises:
        ConceptError: If it is not a finite number.
    """
    if not math.isfinite(strength):
        of = "" if adapter_name is None else f" of '{adapter_name}'"
        raise ConceptError(f"the strength{of} must be a finite number, got {strength}")


@dataclass(frozen=True)
class ConceptLayer:
    """The change of one layer of the base by a concept.

    Attributes:
        component: The pipeline's component, such as "unet", or "model" for a model on its own.
        name: The layer's name in its component.
        out_features: Rows of the base weight.
        in_features: Columns of the base weight.
        factorization: Name of the factorization: "partial" or "complete" (pivoting of an LDU),
            "svd", or one that was registered.
        base_dtype: Dtype of the base weight, which limits the precision of the fingerprint.
        delta: Change of the diagonal.
        pivots: Pivot rows, or pivot rows and columns for complete pivoting; None for an SVD.
        fingerprint: Three numbers that identify the base weight.
    """

    component: str
    name: str
    out_features: int
    in_features: int
    factorization: str
    base_dtype: str
    delta: Float[Tensor, " r"]
    pivots: Int[Tensor, " r"] | Int[Tensor, "2 r"] | None
    fingerprint: Float[Tensor, "3"]


@dataclass(frozen=True)
class Concept:
    """The content of a concept file.

    Attributes:
        base: Id of the base model, or "" if it was unknown.
        config: The training configuration of the adapter, by component.
        layers: The changed layers.
        metadata: Metadata that the user added.
    """

    base: str
    config: dict[str, Any]
    layers: tuple[ConceptLayer, ...]
    metadata: dict[str, Any]


def write_concept(
    concept: Concept,
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    kind: Kind = CONCEPT,
    more: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a concept file, atomically.

    Args:
        concept: The content.
        path: The file.
        dtype: float32, or float16 for half the size.
        overwrite: Whether an existing file may be replaced.
        kind: Kind of the file.
        more: Other tensors that a file of this kind holds, by name.

    Raises:
        ConceptError: If the file exists and `overwrite` is False, or the metadata is not JSON.
    """
    if path.exists() and not overwrite:
        raise ConceptError(f"{path} exists: pass overwrite=True or choose another name")
    content = {
        "base": concept.base,
        "components": _tables(concept),
        "config": concept.config,
        "metadata": concept.metadata,
    }
    try:
        description = json.dumps(content, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConceptError(f"the metadata for {path} is not JSON: {error}") from error
    try:
        check_metadata(concept.metadata)
    except ValueError as error:
        raise ConceptError(f"the metadata for {path} cannot be stored: {error}") from error
    tensors = {
        "delta": torch.cat([layer.delta for layer in concept.layers]).to(dtype),
        "fingerprint": torch.stack([layer.fingerprint for layer in concept.layers]),
        **(more or {}),
    }
    pivots = [layer.pivots.flatten() for layer in concept.layers if layer.pivots is not None]
    if pivots:
        tensors["pivots"] = _smallest(torch.cat(pivots))
    header = {
        "format": kind.format,
        "version": str(VERSION),
        "checksum": checksum(description, {name: t.numpy() for name, t in tensors.items()}),
        "description": description,
    }
    write_atomically(path, serialize(tensors, header))


def _tables(concept: Concept) -> dict[str, Any]:
    """Return the table of layers of every component."""
    components: dict[str, Any] = {}
    for name, group in groupby(concept.layers, key=lambda layer: layer.component):
        layers = list(group)
        components[name] = {
            "basis": layers[0].factorization,
            "base_dtype": layers[0].base_dtype,
            "layers": [[y.name, y.out_features, y.in_features, y.delta.numel()] for y in layers],
        }
    return components


def read_concept(path: str | os.PathLike[str]) -> Concept:
    """Read a concept file; nothing in it is executed or trusted.

    Raises:
        ConceptError: If the file is missing, damaged, or not a concept.
    """
    return concept_in(read_file(path), Path(path))


def concept_in(file: ConceptFile, path: Path, kind: Kind = CONCEPT) -> Concept:
    """Return the concept of a file that was read, with its pivots checked.

    Raises:
        ConceptError: If the pivots are not those of such layers.
    """
    with sound_content(path, kind):
        fingerprints = torch.from_numpy(file.arrays["fingerprint"].copy())
        layers = tuple(
            ConceptLayer(
                entry.component,
                entry.name,
                entry.out_features,
                entry.in_features,
                entry.factorization,
                entry.base_dtype,
                torch.from_numpy(delta),
                pivots,
                fingerprint,
            )
            for entry, delta, pivots, fingerprint in zip(
                file.layers, file.deltas(), _pivots(file), fingerprints, strict=True
            )
        )
    return Concept(file.base, file.config, layers, file.metadata)


def _pivots(file: ConceptFile) -> list[Tensor | None]:
    """Cut the flat pivots into those of each layer, checking every index."""
    stored = file.arrays.get("pivots", np.empty(0, np.int32))
    if stored.ndim != 1 or stored.dtype.name not in ("uint8", "int16", "int32"):
        raise TypeError("pivots")
    flat = torch.from_numpy(stored.astype(np.int64))
    start, pivots = 0, list[Tensor | None]()
    for entry in file.layers:
        axes = FACTORIZATIONS[entry.factorization].pivot_axes
        end = start + axes * entry.r
        if end > flat.numel():
            raise ValueError(f"pivots of {entry.name}")
        ours = flat[start:end].view(axes, entry.r)
        for line, size in zip(ours, (entry.out_features, entry.in_features), strict=False):
            if line.min() < 0 or line.max() >= size or line.unique().numel() != entry.r:
                raise ValueError(f"pivots of {entry.name}")
        pivots.append(ours.squeeze(0) if axes else None)
        start = end
    if start != flat.numel():
        raise ValueError("numbers left over")
    return pivots


def _smallest(pivots: Int[Tensor, " n"]) -> Int[Tensor, " n"] | Tensor:
    largest = int(pivots.max())
    for dtype in (torch.uint8, torch.int16):
        if largest <= torch.iinfo(dtype).max:
            return pivots.to(dtype)
    return pivots.to(torch.int32)


def reason_of(error: Exception) -> str:
    """Return the first line of an error's message, to be quoted in a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def serialize(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return a .safetensors file: the same content is the same bytes.

    `save` alone puts the metadata in another order in every process.
    """
    content = save(tensors, metadata=metadata)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]
