"""Export a LoLDU adapter as an ordinary LoRA, for every program that reads one.

``delta_W = B diag(delta) A`` has rank r, so it is a LoRA: nothing is approximated. There are three
layouts of keys: diffusers, PEFT and kohya's scripts, which A1111 and ComfyUI read.
"""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Float
from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import save
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loldu.adapter.components import BARE, adapted_layers, bare, components, layers_with
from loldu.adapter.config import LoLDUConfig
from loldu.adapter.layer import LoLDULayer
from loldu.concept import ExportDtype, Layout
from loldu.concept.format import serialize
from loldu.concept.lora_names import (
    XL_PREFIXES,
    Place,
    component_of,
    joined,
    layer_in_full,
    place_of,
    prefixes_of,
)
from loldu.concept.save import base_id
from loldu.errors import ConceptError
from loldu.files import write_atomically

EXPORT_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in get_args(ExportDtype)
}


def export_lora(
    model_or_pipeline: Any,  # noqa: ANN401
    path: str | os.PathLike[str],
    layout: Layout = "kohya",
    adapter_name: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an adapter as a LoRA that changes every weight exactly as the adapter does.

    Like a concept file, it holds the adapter at strength 1, whatever its strength is now: the
    program that loads it sets its own strength and expects 1 to be the full effect.

    - ``"kohya"``: one .safetensors file for A1111, ComfyUI, kohya's scripts and diffusers, with one
      alpha for all layers, because some readers ignore the alpha of a single layer. diffusers reads
      a text encoder in it only if its output projections are adapted.
    - ``"diffusers"``: one .safetensors file for diffusers' ``load_lora_weights`` alone. ComfyUI
      reads the text encoder in it, and no U-Net: half a concept.
    - ``"peft"``: a folder for ``PeftModel.from_pretrained``; for a pipeline, it has one such folder
      for each adapted component. This is the only layout that includes fully trained modules
      (``modules_to_save``).

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a pipeline.
        path: The file or folder to write.
        layout: Layout of the keys, by the program that reads them.
        adapter_name: The adapter to export; None means the only one, or the active one.
        dtype: float32, or float16 or bfloat16 for half the size at their rounding.
        metadata: Strings for the header of the file (unused by the PEFT layout).
        overwrite: Whether existing files may be replaced.

    Returns:
        The path.

    Raises:
        ConceptError: If it is not clear which adapter is meant, the layout cannot hold it, or the
            file exists.
    """
    path = Path(path)
    if layout not in get_args(Layout):
        raise ConceptError(f"layout must be one of {', '.join(get_args(Layout))}, got '{layout}'")
    if dtype not in EXPORT_DTYPES.values():
        raise ConceptError(f"dtype must be one of {', '.join(EXPORT_DTYPES)}, got {dtype}")
    models = {name: bare(part) for name, part in components(model_or_pipeline).items()}
    adapter_name = adapter_name or only_adapter(adapted_layers(model_or_pipeline))
    adapted = adapted_layers_of(models, adapter_name)
    if layout == "peft":
        base = base_id(model_or_pipeline)
        _write_peft(path, models, adapted, adapter_name, base, dtype, overwrite=overwrite)
        return path
    check_file(path, overwrite)
    prefixes = prefixes_of({**getattr(model_or_pipeline, "components", {}), **models})
    tensors = _file_tensors(models, adapted, adapter_name, layout, dtype, prefixes)
    write_atomically(path, serialize(tensors, {**(metadata or {}), "format": "pt"}))
    return path


@torch.no_grad()
def low_rank(
    layer: LoLDULayer, adapter_name: str, dtype: torch.dtype, factor: float = 1.0
) -> tuple[Float[Tensor, "out r"], Float[Tensor, "r in"]]:
    """Return up and down with ``factor · delta_W = up @ down``, at strength 1.

    The whole delta goes into `up`: a product in float64, rounded once. `down` is the factor itself,
    so that float32 loses half a unit in the last place (sqrt|delta| on both sides would round
    both). Then a power of two balances the two sides of each direction, which rounds nothing and
    avoids overflow and underflow in half precision.

    Raises:
        ConceptError: If the numbers are not finite.
    """
    shared, r = layer.factors_of(adapter_name), layer.r[adapter_name]
    delta = layer.diagonal(adapter_name).delta().double() * shared.gain[:r].double()
    up = shared.left[:, :r].double() * (factor * delta)
    down = shared.right[:r].double()
    exponent_up = torch.frexp(up.abs().amax(0)).exponent
    exponent_down = torch.frexp(down.abs().amax(1)).exponent
    half = (exponent_up - exponent_down).div(2, rounding_mode="floor")
    balance = torch.ldexp(torch.ones_like(delta), half)
    up, down = (up / balance).to(dtype).cpu(), (down * balance[:, None]).to(dtype).cpu()
    if not (up.isfinite().all() and down.isfinite().all()):
        raise ConceptError(
            f"layer '{layer.layer_name}' has a change that is not finite: training diverged"
        )
    return up.contiguous(), down.contiguous()


def _lora_factors(
    layer: LoLDULayer, adapter_name: str, dtype: torch.dtype, factor: float = 1.0
) -> tuple[Float[Tensor, "out r ..."], Float[Tensor, "r in ..."]]:  # noqa: F821  a shape
    """Return up and down in the shapes that readers of LoRA expect: kernels for a convolution.

    Raises:
        ConceptError: If the layer is an embedding, a convolution with padding or dilation that no
            reader supports, or the numbers are not finite.
    """
    base = layer.get_base_layer()
    if isinstance(base, nn.Embedding):
        raise ConceptError(
            f"'{layer.layer_name}' is an embedding, which only a PEFT LoRA can hold: use "
            "layout='peft', or leave it out"
        )
    up, down = low_rank(layer, adapter_name, dtype, factor)
    if isinstance(base, nn.Conv2d):
        wide = base.kernel_size != (1, 1)
        # "same" pads a kernel of one point by nothing.
        pads = wide if isinstance(base.padding, str) else any(base.padding)
        if (pads and base.padding_mode != "zeros") or (wide and base.dilation != (1, 1)):
            raise ConceptError(
                f"'{layer.layer_name}' is a convolution with padding_mode='{base.padding_mode}' "
                f"and dilation={base.dilation}, and readers of LoRA pad by zeros and dilate by "
                "nothing: merge the adapter, or leave the layer out"
            )
        return up[:, :, None, None], down.unflatten(1, base.weight.shape[1:])
    return up, down


def _file_tensors(
    models: Mapping[str, nn.Module],
    adapted: Mapping[str, Mapping[str, LoLDULayer]],
    adapter_name: str,
    layout: Layout,
    dtype: torch.dtype,
    prefixes: Mapping[str, str],
) -> dict[str, Tensor]:
    """Return the tensors of a single LoRA file, in the layout of diffusers or kohya.

    Raises:
        ConceptError: If the layout cannot hold a layer.
    """
    tensors: dict[str, Tensor] = {}
    places: dict[str, dict[Place, LoLDULayer]] = {}
    known = {**XL_PREFIXES, **prefixes}
    largest = max(layer.r[adapter_name] for layers in adapted.values() for layer in layers.values())
    for component, layers in adapted.items():
        model = models[component]
        _require_no_saved_modules(model, adapter_name, layout)
        if component == BARE:
            component = component_of(model)
            known |= prefixes_of({component: model})
        if layout == "kohya" and component not in known:
            raise ConceptError(
                f"the kohya layout has no names for a {component}: use layout='diffusers'"
            )
        for name, layer in layers.items():
            if layout == "diffusers":
                factors = _lora_factors(layer, adapter_name, dtype)
                tensors |= _diffusers_tensors(component, name, *factors)
            else:
                place = place_of(known[component], component, name, model)
                places.setdefault(place.key, {})[place] = layer
    for own in places.values():
        tensors |= _kohya_tensors(own, adapter_name, dtype, largest)
    return tensors


def _diffusers_tensors(component: str, name: str, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    """Return the tensors with diffusers' keys; without an alpha, the scale of a layer is 1."""
    key = f"{component}.{layer_in_full(component, name)}"
    if component.startswith("text_encoder"):
        # diffusers does not recognise `lora_A` in a text encoder if only its MLP is adapted.
        return {
            f"{key}.lora_linear_layer.down.weight": down,
            f"{key}.lora_linear_layer.up.weight": up,
        }
    return {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}


def _kohya_tensors(
    layers: Mapping[Place, LoLDULayer], adapter_name: str, dtype: torch.dtype, alpha: int
) -> dict[str, Tensor]:
    """Return the tensors of the layers that share a key of kohya's.

    `up` undoes the factor alpha / r of the readers, where r is the rank in the file.
    """
    factor = sum(layer.r[adapter_name] for layer in layers.values()) / alpha
    (key, parts) = next((place.key, place.parts) for place in layers)
    factors = {
        place.part: _lora_factors(layer, adapter_name, dtype, factor)
        for place, layer in layers.items()
    }
    up, down = joined(factors, parts)
    return {
        f"{key}.alpha": torch.tensor(float(alpha)),
        f"{key}.lora_down.weight": down,
        f"{key}.lora_up.weight": up,
    }


def _write_peft(
    path: Path,
    models: Mapping[str, nn.Module],
    adapted: Mapping[str, Mapping[str, LoLDULayer]],
    adapter_name: str,
    base: str,
    dtype: torch.dtype,
    *,
    overwrite: bool,
) -> None:
    """Write a folder for `PeftModel.from_pretrained`, or one such folder for each component."""
    folders = {part: path if part == BARE else path / part for part in adapted}
    for folder in folders.values():
        _require_new(folder / SAFETENSORS_WEIGHTS_NAME, overwrite)
        _require_new(folder / CONFIG_NAME, overwrite)
    contents = {
        part: _peft_files(models[part], layers, adapter_name, base, dtype)
        for part, layers in adapted.items()
    }
    for part, folder in folders.items():
        weights, config = contents[part]
        # The config comes last: a folder without it is not loaded, if writing is interrupted.
        (folder / CONFIG_NAME).unlink(missing_ok=True)
        write_atomically(folder / SAFETENSORS_WEIGHTS_NAME, weights)
        write_atomically(folder / CONFIG_NAME, config)


def _peft_files(
    model: Any,  # noqa: ANN401
    layers: Mapping[str, LoLDULayer],
    adapter_name: str,
    base: str,
    dtype: torch.dtype,
) -> tuple[bytes, bytes]:
    """Return the weights and the config of a PEFT LoRA adapter, as the content of two files."""
    config: LoLDUConfig = model.peft_config[adapter_name]
    ranks = {name: layer.r[adapter_name] for name, layer in layers.items()}
    largest = max(ranks.values())
    smaller = {f"^{re.escape(name)}": r for name, r in ranks.items() if r < largest}
    lora_config = LoraConfig(
        task_type=config.task_type,
        base_model_name_or_path=base,
        inference_mode=True,
        r=largest,
        lora_alpha=largest,
        rank_pattern=smaller,
        alpha_pattern=dict(smaller),
        # A list would also match names that end in one of these names.
        target_modules="|".join(re.escape(name) for name in layers),
        modules_to_save=config.modules_to_save,
        fan_in_fan_out=any(isinstance(y.get_base_layer(), Conv1D) for y in layers.values()),
    )
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors |= _peft_tensors(name, layer, adapter_name, dtype)
    for name, saved in _saved_modules(model, adapter_name).items():
        values: dict[str, Tensor] = saved.state_dict()
        tensors |= {f"{name}.{key}": value.cpu().contiguous() for key, value in values.items()}
    in_peft = {f"base_model.model.{key}": tensor for key, tensor in tensors.items()}
    with tempfile.TemporaryDirectory() as draft:
        lora_config.save_pretrained(draft)
        config_content = (Path(draft) / CONFIG_NAME).read_bytes()
    return save(in_peft, metadata={"format": "pt"}), config_content


def _peft_tensors(
    name: str, layer: LoLDULayer, adapter_name: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the tensors with PEFT's keys; PEFT transposes the LoRA of an embedding."""
    if isinstance(layer.get_base_layer(), nn.Embedding):
        up, down = low_rank(layer, adapter_name, dtype)
        transposed = {"A": up.T.contiguous(), "B": down.T.contiguous()}
        return {f"{name}.lora_embedding_{key}": factor for key, factor in transposed.items()}
    up, down = _lora_factors(layer, adapter_name, dtype)
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}


def _saved_modules(model: nn.Module, adapter_name: str) -> dict[str, nn.Module]:
    """Return the modules that an adapter trains in full, by name."""
    return {
        name: module.modules_to_save[adapter_name]
        for name, module in model.named_modules()
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save
    }


def only_adapter(layers: Sequence[LoLDULayer]) -> str:
    """Return the only adapter, or else the only active one.

    Raises:
        ConceptError: If there is none, or more than one.
    """
    present = {name for layer in layers for name in layer.r}
    if not present:
        raise ConceptError("there is no LoLDU adapter to export: load or train one first")
    active = {name for layer in layers for name in layer.active_adapters if name in layer.r}
    candidates = present if len(present) == 1 else active
    if len(candidates) != 1:
        names = ", ".join(f"'{name}'" for name in sorted(present))
        raise ConceptError(f"there are the adapters {names}: say which with adapter_name")
    return candidates.pop()


def adapted_layers_of(
    models: Mapping[str, nn.Module], adapter_name: str
) -> dict[str, dict[str, LoLDULayer]]:
    """Return the layers that have the adapter, by component and name.

    Raises:
        ConceptError: If there are none.
    """
    adapted = {name: layers_with(model, adapter_name) for name, model in models.items()}
    if not any(adapted.values()):
        raise ConceptError(
            f"there is no LoLDU adapter named '{adapter_name}' to export: check adapter_name"
        )
    return {name: layers for name, layers in adapted.items() if layers}


def check_file(path: Path, overwrite: bool) -> None:
    """Check that a .safetensors file can be written here.

    Raises:
        ConceptError: If the name does not end in .safetensors, or the file exists.
    """
    if path.is_dir() or path.suffix != ".safetensors":
        raise ConceptError(f"{path} cannot be the file to write: its name must end in .safetensors")
    _require_new(path, overwrite)


def _require_new(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise ConceptError(f"{path} exists: choose another name, or ask to overwrite it")


def _require_no_saved_modules(model: nn.Module, adapter_name: str, layout: Layout) -> None:
    if saved := _saved_modules(model, adapter_name):
        raise ConceptError(
            f"adapter '{adapter_name}' also trains {', '.join(saved)} in full (modules_to_save), "
            f"which the {layout} layout cannot hold: use layout='peft'"
        )
