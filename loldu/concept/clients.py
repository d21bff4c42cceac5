"""Compare a LoRA file with its concept by the arithmetic of the programs that read it.

ComfyUI and A1111 find a weight by its name with underscores, and add ``alpha / r · up @ down`` to
it. ComfyUI computes this in float32. A1111 rounds both factors and their product to float16, unless
it is started with --no-half.

Source: ComfyUI's comfy/lora.py and comfy/weight_adapter/lora.py; A1111's networks.py and
network_lora.py.
"""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from loldu.adapter.components import adapted_layers, bare, components
from loldu.adapter.layer import LoLDULayer
from loldu.concept.export import adapted_layers_of, only_adapter
from loldu.concept.lora_names import Place, place_of, prefixes_of
from loldu.errors import ConceptError

CLIENTS = {
    "ComfyUI": torch.float32,
    "A1111": torch.float16,
    "A1111 --no-half": torch.float32,
}
"""Programs, with the dtype in which they multiply the factors."""
_OF_TRANSFORMERS = ("ComfyUI",)
"""Programs that also draw with transformers; A1111 has UNets alone."""
_SIDES = ("lora_down.weight", "lora_up.weight", "alpha")
_TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""The layers of a text encoder for which the programs have names."""


@dataclass(frozen=True)
class Comparison:
    """The changes by one program, compared with those of the concept.

    Attributes:
        client: Name of the program.
        weights: How many weights it changes.
        error: ‖change - delta_W‖ / ‖delta_W‖ over all weights.
        greatest: Greatest difference of a number in any weight.
        layer: Name of the layer with that number.
    """

    client: str
    weights: int
    error: float
    greatest: float
    layer: str


@torch.no_grad()
def compare_clients(
    pipeline: Any,  # noqa: ANN401
    lora: str | os.PathLike[str],
    adapter_name: str | None = None,
) -> list[Comparison]:
    """Return how far the changes by each program are from those of the concept at strength 1.

    Args:
        pipeline: The base with the concept loaded, as for `export_lora`.
        lora: The file, in the layout kohya.
        adapter_name: The adapter; None means the only one, or the active one.

    Raises:
        ConceptError: If the programs would ignore a key of the file, or the file lacks a layer of
            the concept.
        OSError: If the file cannot be read.
    """
    adapter_name = adapter_name or only_adapter(adapted_layers(pipeline))
    parts = {name: bare(part) for name, part in components(pipeline).items()}
    adapted = {
        f"{component}.{name}": layer
        for component, layers in adapted_layers_of(parts, adapter_name).items()
        for name, layer in layers.items()
    }
    try:
        tensors = load_file(lora)
    except SafetensorError as error:
        raise ConceptError(f"{lora} is not a .safetensors file ({error})") from error
    found = _places_by_layer(parts, tensors, Path(lora), adapted)
    if missing := [name for name in adapted if name not in found]:
        raise ConceptError(
            f"{lora} lacks {len(missing)} of the {len(adapted)} layers that the concept changes, "
            f"such as {missing[0]}: export the concept again"
        )
    if more := [name for name in found if name not in adapted]:
        raise ConceptError(
            f"{lora} also changes {more[0]}, which the concept does not: it is of another one"
        )
    expected = {name: _delta(layer, adapter_name) for name, layer in adapted.items()}
    return [
        _compared(client, expected, {n: _change(tensors, found[n], dtype) for n in expected})
        for client, dtype in CLIENTS.items()
        if "transformer" not in parts or client in _OF_TRANSFORMERS
    ]


def _places_by_layer(
    parts: Mapping[str, nn.Module],
    tensors: Mapping[str, Tensor],
    lora: Path,
    adapted: Collection[str],
) -> dict[str, Place]:
    """Return where the file has the change of each layer, as the programs match keys.

    Of layers that a file joins, those that it leaves as they are count only if they are `adapted`.

    Raises:
        ConceptError: If no layer has the name of a key, or a key is incomplete.
    """
    prefixes = prefixes_of(parts)
    names: dict[str, dict[str, Place]] = {}
    for part in prefixes.keys() & parts.keys():
        for name, _ in parts[part].named_modules():
            if not part.startswith("text_encoder") or name.endswith(_TEXT_LAYERS):
                with suppress(ConceptError):  # no program has a name for it
                    place = place_of(prefixes[part], part, name, parts[part])
                    names.setdefault(place.key, {})[f"{part}.{name}"] = place
    found: dict[str, Place] = {}
    for key in dict.fromkeys(name.split(".", 1)[0] for name in tensors):
        if key not in names:
            raise ConceptError(
                f"{lora} changes {key}, which ComfyUI and A1111 do not find in this base: export "
                "the concept from this base with the layout kohya"
            )
        if absent := [side for side in _SIDES if f"{key}.{side}" not in tensors]:
            raise ConceptError(f"{lora} lacks {key}.{absent[0]}: export the concept again")
        for name, place in names[key].items():
            up = tensors[f"{key}.lora_up.weight"].chunk(place.parts)[place.part]
            if place.parts == 1 or name in adapted or up.any():
                found[name] = place
    return found


def _delta(layer: LoLDULayer, adapter_name: str) -> Float[Tensor, "out in"]:
    """Return delta_W at strength 1 in float64, from the factors."""
    factors, r = layer.factors_of(adapter_name), layer.r[adapter_name]
    delta = layer.diagonal(adapter_name).delta().double() * factors.gain[:r].double()
    return (factors.left[:, :r].double() * delta @ factors.right[:r].double()).cpu()


def _change(
    tensors: Mapping[str, Tensor], place: Place, dtype: torch.dtype
) -> Float[Tensor, "out in"]:
    """Return what a program adds to a weight at strength 1."""
    down, up, alpha = (tensors[f"{place.key}.{side}"] for side in _SIDES)
    up = up.chunk(place.parts)[place.part]
    scale = float(alpha) / down.shape[0]
    # GPUs add float16 products in float32 and round the sum.
    product = up.to(dtype).float().flatten(1) @ down.to(dtype).float().flatten(1)
    return (product.to(dtype) * scale).double()


def _compared(
    client: str, expected: Mapping[str, Tensor], changes: Mapping[str, Tensor]
) -> Comparison:
    errors = {name: changes[name] - delta for name, delta in expected.items()}
    size = torch.stack([delta.norm() for delta in expected.values()]).norm()
    error = torch.stack([each.norm() for each in errors.values()]).norm()
    worst = max(errors, key=lambda name: float(errors[name].abs().max()))
    greatest = float(errors[worst].abs().max())
    return Comparison(client, len(errors), float(error / size), greatest, worst)
