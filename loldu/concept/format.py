"""The concept file: one .safetensors with a few flat tensors and a JSON description.

Tensors: ``delta`` (all layers' deltas, one after another), ``pivots`` (likewise, in the smallest
integer type that holds them; absent for an SVD) and ``fingerprint`` (three numbers a layer).
The header's ``description`` holds the base's id, the table of layers and the user's metadata, and
``checksum`` covers all of it: whatever reads back is what was written.
"""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from loldu.errors import ConceptError
from loldu.files import write_atomically

Basis = Literal["partial", "complete", "svd"]

FORMAT = "loldu-concept"
VERSION = 1
BASE_DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
FINGERPRINT_SIZE = 3


def require_finite(strength: float | int, adapter_name: str | None) -> None:
    """Check a strength.

    Raises:
        ConceptError: It is not a finite number.
    """
    if not math.isfinite(strength):
        of = "" if adapter_name is None else f" of '{adapter_name}'"
        raise ConceptError(f"the strength{of} must be a finite number, got {strength}")


@dataclass(frozen=True)
class ConceptLayer:
    """What a concept changes in one layer of the base.

    Attributes:
        component: The pipeline's component, such as "unet", or "model" for a model on its own.
        name: The layer's name in its component.
        out_features: Rows of the base weight.
        in_features: Columns of the base weight.
        basis: Where the factors come from: LDU with partial or complete pivoting, or SVD.
        base_dtype: Dtype the base had, which bounds how well the fingerprint is known.
        delta: Change of the diagonal.
        pivots: Pivot rows, or pivot rows and columns for complete pivoting; None for an SVD.
        fingerprint: See `fingerprint`.
    """

    component: str
    name: str
    out_features: int
    in_features: int
    basis: Basis
    base_dtype: str
    delta: Float[Tensor, " r"]
    pivots: Int[Tensor, " r"] | Int[Tensor, "2 r"] | None
    fingerprint: Float[Tensor, "3"]


@dataclass(frozen=True)
class Concept:
    """The content of a concept file.

    Attributes:
        base: Id of the base model, as far as it was known.
        config: The configuration the adapter was trained with, by component.
        layers: The changed layers.
        metadata: What the user put in.
    """

    base: str
    config: dict[str, Any]
    layers: tuple[ConceptLayer, ...]
    metadata: dict[str, Any]


def same_base(layer: ConceptLayer, dtype: torch.dtype, fingerprint: Float[Tensor, "3"]) -> bool:
    """Whether a weight is the one a layer was made for, up to the coarser dtype's rounding."""
    if dtype not in BASE_DTYPES.values():
        return False
    coarser = max(torch.finfo(d).eps for d in (BASE_DTYPES[layer.base_dtype], dtype))
    # Rounding W moves a projection by 0.1 eps ‖W‖, one standard deviation; summing it moves less.
    tolerance = max(0.75 * coarser, 1e-6) * float(layer.fingerprint[0])
    return bool(((fingerprint - layer.fingerprint).abs() <= tolerance).all())


def write_concept(
    concept: Concept, path: Path, *, dtype: torch.dtype = torch.float32, overwrite: bool = False
) -> None:
    """Write a concept file, atomically.

    Raises:
        ConceptError: The file exists and is not to be overwritten, or the metadata is not JSON.
    """
    if path.exists() and not overwrite:
        raise ConceptError(f"{path} exists: pass overwrite=True or choose another name")
    components: dict[str, Any] = {}
    for name, group in groupby(concept.layers, key=lambda layer: layer.component):
        layers = list(group)
        components[name] = {
            "basis": layers[0].basis,
            "base_dtype": layers[0].base_dtype,
            "layers": [[y.name, y.out_features, y.in_features, y.delta.numel()] for y in layers],
        }
    content = {
        "base": concept.base,
        "components": components,
        "config": concept.config,
        "metadata": concept.metadata,
    }
    try:
        description = json.dumps(content, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConceptError(f"the metadata for {path} is not JSON: {error}") from error
    tensors = {
        "delta": torch.cat([layer.delta for layer in concept.layers]).to(dtype),
        "fingerprint": torch.stack([layer.fingerprint for layer in concept.layers]),
    }
    pivots = [layer.pivots.flatten() for layer in concept.layers if layer.pivots is not None]
    if pivots:
        tensors["pivots"] = _smallest(torch.cat(pivots))
    header = {
        "format": FORMAT,
        "version": str(VERSION),
        "checksum": checksum(description, tensors),
        "description": description,
    }
    write_atomically(path, serialize(tensors, header))


def read_concept(path: str | os.PathLike[str]) -> Concept:
    """Read a concept file; nothing in it is executed or trusted.

    Raises:
        ConceptError: The file is missing, damaged, or not a concept.
    """
    path = Path(path)
    if not path.is_file():
        raise ConceptError(f"{path} does not exist: check the path of the concept file")
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            _require_ours(header, path)
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ConceptError(
            f"{path} is not a readable .safetensors file ({error}): it is damaged or of another "
            "kind"
        ) from error
    if header.get("checksum") != checksum(header.get("description", ""), tensors):
        raise ConceptError(f"{path} is damaged, its checksum does not fit: get the file again")
    try:
        content = json.loads(header["description"])
        layers = tuple(_layers(content["components"], tensors))
        base, config, metadata = content["base"], content["config"], content["metadata"]
        if not isinstance(base, str) or not isinstance(config, dict):
            raise TypeError("base and config")
        if not isinstance(metadata, dict):
            raise TypeError("metadata")
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConceptError(
            f"{path} does not hold what a concept file must ({error}): it was not written by loldu"
        ) from error
    return Concept(base, config, layers, metadata)


def _require_ours(header: dict[str, str], path: Path) -> None:
    if header.get("format") != FORMAT:
        raise ConceptError(
            f"{path} is a .safetensors file but not a LoLDU concept (a LoRA or model weights?): "
            "load it with the library that wrote it"
        )
    if header.get("version") != str(VERSION):
        raise ConceptError(
            f"{path} has concept format version {header.get('version')}, this loldu reads "
            f"{VERSION}: install a newer loldu"
        )


def _layers(components: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[ConceptLayer]:
    """Cut the flat tensors into layers, checking every size and index against the others."""
    delta, fingerprints = tensors["delta"], tensors["fingerprint"]
    pivots = tensors.get("pivots", torch.empty(0, dtype=torch.int32))
    if delta.ndim != 1 or delta.dtype not in (torch.float32, torch.float16):
        raise TypeError("delta")
    if not torch.isfinite(delta).all():
        raise ValueError("delta")
    if pivots.ndim != 1 or pivots.dtype not in (torch.uint8, torch.int16, torch.int32):
        raise TypeError("pivots")
    if fingerprints.dtype != torch.float32:
        raise TypeError("fingerprint")
    pivots = pivots.to(torch.int64)
    rows = [(c, part, row) for c, part in components.items() for row in part["layers"]]
    if not rows or fingerprints.shape != (len(rows), FINGERPRINT_SIZE):
        raise ValueError("fingerprint")
    if len({(component, row[0]) for component, _, row in rows}) != len(rows):
        raise ValueError("a layer occurs twice")
    start = pivot_start = 0
    for (component, part, (name, *sizes)), numbers in zip(rows, fingerprints, strict=True):
        out_features, in_features, r = sizes
        basis, base_dtype = part["basis"], part["base_dtype"]
        if any(type(size) is not int or size >= 2**31 for size in sizes) or not (
            isinstance(name, str) and basis in get_args(Basis) and base_dtype in BASE_DTYPES
        ):
            raise TypeError(f"layer {name!r}")
        axes = {"svd": 0, "partial": 1, "complete": 2}[basis]
        ours = pivots[pivot_start : pivot_start + axes * r]
        if not 1 <= r <= min(out_features, in_features, delta.numel() - start):
            raise ValueError(f"rank of {name}")
        if ours.numel() != axes * r:
            raise ValueError(f"pivots of {name}")
        for line, size in zip(ours.view(axes, r), (out_features, in_features), strict=False):
            if line.min() < 0 or line.max() >= size or line.unique().numel() != r:
                raise ValueError(f"pivots of {name}")
        yield ConceptLayer(
            component,
            name,
            out_features,
            in_features,
            basis,
            base_dtype,
            delta[start : start + r].to(torch.float32),
            None if axes == 0 else ours.view(axes, r).squeeze(0),
            numbers.to(torch.float32),
        )
        start, pivot_start = start + r, pivot_start + axes * r
    if start != delta.numel() or pivot_start != pivots.numel():
        raise ValueError("numbers left over")


def _smallest(pivots: Int[Tensor, " n"]) -> Int[Tensor, " n"] | Tensor:
    largest = int(pivots.max())
    for dtype in (torch.uint8, torch.int16):
        if largest <= torch.iinfo(dtype).max:
            return pivots.to(dtype)
    return pivots.to(torch.int32)


def checksum(description: str, tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of everything a concept file says."""
    digest = hashlib.sha256(description.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def reason_of(error: Exception) -> str:
    """Return what an error says, in one line that a sentence can quote."""
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
