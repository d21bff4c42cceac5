"""A LoLDU adapter as an ordinary LoRA, for every program that reads one.

``delta_W = B diag(delta) A`` has rank r, so it is a LoRA: nothing is approximated. Three layouts of
keys: that of diffusers, that of PEFT, and that of kohya's scripts, which A1111 and ComfyUI read.
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
from loldu.concept.save import base_id
from loldu.errors import ConceptError
from loldu.files import write_atomically

EXPORT_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in get_args(ExportDtype)
}

_COMPONENT_OF_CLASS = {
    "UNet2DConditionModel": "unet",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
}


def export_lora(
    model_or_pipeline: Any,  # noqa: ANN401
    path: str | os.PathLike[str],
    layout: Layout = "diffusers",
    adapter_name: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an adapter as a LoRA that changes every weight as the adapter does.

    Like a concept file it holds the adapter at strength 1, as trained, whatever its strength is
    now: the program that loads it sets a strength of its own, and expects 1 to be the full effect.

    - ``"diffusers"``: one .safetensors file for ``pipeline.load_lora_weights``.
    - ``"kohya"``: one .safetensors file for A1111, ComfyUI and their kin, with one alpha for all
      layers: some readers drop an alpha of a single layer. (diffusers reads it too, but of a text
      encoder only where the output projections are among the adapted layers.)
    - ``"peft"``: a folder for ``PeftModel.from_pretrained``; of a pipeline, one such folder inside
      it for each adapted component. The only layout that takes fully trained modules
      (``modules_to_save``) along.

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a pipeline.
        path: The file or folder to write.
        layout: Who is to read it.
        adapter_name: The adapter to export; None takes the only one, or else the active one.
        dtype: float32, or float16 or bfloat16 for half the size at their rounding.
        metadata: Text for the header of the file (not of a PEFT folder).
        overwrite: Whether existing files may be replaced.

    Returns:
        The path.

    Raises:
        ConceptError: It is not clear which adapter is meant, the layout cannot hold it, or the
            file exists.
    """
    path = Path(path)
    if layout not in get_args(Layout):
        raise ConceptError(f"layout must be one of {', '.join(get_args(Layout))}, got '{layout}'")
    if dtype not in EXPORT_DTYPES.values():
        raise ConceptError(f"dtype must be one of {', '.join(EXPORT_DTYPES)}, got {dtype}")
    models = {name: bare(part) for name, part in components(model_or_pipeline).items()}
    adapter_name = adapter_name or _only_adapter(adapted_layers(model_or_pipeline))
    adapted = {
        component: layers
        for component, model in models.items()
        if (layers := layers_with(model, adapter_name))
    }
    if not adapted:
        raise ConceptError(
            f"there is no LoLDU adapter named '{adapter_name}' to export: check adapter_name"
        )
    if layout == "peft":
        base = base_id(model_or_pipeline)
        folders = {part: path if part == BARE else path / part for part in adapted}
        for folder in folders.values():
            _require_new(folder / SAFETENSORS_WEIGHTS_NAME, overwrite)
            _require_new(folder / CONFIG_NAME, overwrite)
        contents = {
            part: _peft_files(models[part], layers, adapter_name, base, dtype)
            for part, layers in adapted.items()
        }
        for part, folder in folders.items():
            # The config comes last: nothing loads a folder without it, should writing be cut short.
            (folder / CONFIG_NAME).unlink(missing_ok=True)
            for name, content in zip(
                (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME), contents[part], strict=True
            ):
                write_atomically(folder / name, content)
        return path
    check_file(path, overwrite)
    is_xl = "text_encoder_2" in getattr(model_or_pipeline, "components", {})
    tensors: dict[str, Tensor] = {}
    largest = max(layer.r[adapter_name] for layers in adapted.values() for layer in layers.values())
    for component, layers in adapted.items():
        _require_no_saved_modules(models[component], adapter_name, layout)
        component = _component_of(models[component]) if component == BARE else component
        for name, layer in layers.items():
            tensors |= (
                _diffusers_tensors(component, name, *_lora_factors(layer, adapter_name, dtype))
                if layout == "diffusers"
                else _kohya_tensors(component, name, layer, adapter_name, dtype, largest, is_xl)
            )
    write_atomically(path, serialize(tensors, {**(metadata or {}), "format": "pt"}))
    return path


@torch.no_grad()
def low_rank(
    layer: LoLDULayer, adapter_name: str, dtype: torch.dtype, factor: float = 1.0
) -> tuple[Float[Tensor, "out r"], Float[Tensor, "r in"]]:
    """Return up and down with ``factor · delta_W = up @ down``, at strength 1.

    delta goes to one side as a whole: a product in float64, rounded once, while the other side is
    the factor itself, so that float32 loses half a unit in the last place (sqrt|delta| on both
    sides would round both). Each direction is then balanced between the sides by a power of two,
    which rounds nothing and keeps half precision clear of its smallest and largest numbers.

    Raises:
        ConceptError: The numbers are not finite.
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
) -> tuple[Float[Tensor, "out r ..."], Float[Tensor, "r in ..."]]:
    """Up and down in the shapes that readers of LoRA expect: a convolution's are kernels.

    Raises:
        ConceptError: It is an embedding, a convolution that pads or dilates as no reader does, or
            the numbers are not finite.
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


def _diffusers_tensors(component: str, name: str, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    """Keys of diffusers; without an alpha, every layer's scale is 1 there."""
    key = f"{component}.{_in_full(component, name)}"
    if component.startswith("text_encoder"):
        # diffusers does not recognise `lora_A` in a text encoder of which only the MLP is adapted.
        return {
            f"{key}.lora_linear_layer.down.weight": down,
            f"{key}.lora_linear_layer.up.weight": up,
        }
    return {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}


def _kohya_tensors(
    component: str,
    name: str,
    layer: LoLDULayer,
    adapter_name: str,
    dtype: torch.dtype,
    alpha: int,
    is_xl: bool,
) -> dict[str, Tensor]:
    """Keys of kohya's scripts; readers scale a layer by alpha / r, which is undone in its up."""
    prefixes = {
        "unet": "lora_unet",
        "text_encoder": "lora_te1" if is_xl else "lora_te",
        "text_encoder_2": "lora_te2",
    }
    if component not in prefixes:
        raise ConceptError(
            f"the kohya layout has no names for a {component}: use layout='diffusers'"
        )
    key = f"{prefixes[component]}_{_in_full(component, name)}".replace(".", "_")
    factor = layer.r[adapter_name] / alpha
    up, down = _lora_factors(layer, adapter_name, dtype, factor)
    return {
        f"{key}.alpha": torch.tensor(float(alpha)),
        f"{key}.lora_down.weight": down,
        f"{key}.lora_up.weight": up,
    }


def _in_full(component: str, name: str) -> str:
    """A layer's name with the `text_model.` that transformers 5 leaves out of CLIP's."""
    is_short = component.startswith("text_encoder") and name.startswith("encoder.layers.")
    return f"text_model.{name}" if is_short else name


def _peft_files(
    model: Any,  # noqa: ANN401
    layers: Mapping[str, LoLDULayer],
    adapter_name: str,
    base: str,
    dtype: torch.dtype,
) -> tuple[bytes, bytes]:
    """The weights and the config of a PEFT LoRA adapter."""
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
        # As a list, names would also match where they are the end of a longer one.
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
    """Keys of PEFT, where an embedding's LoRA is that of its transpose."""
    if isinstance(layer.get_base_layer(), nn.Embedding):
        up, down = low_rank(layer, adapter_name, dtype)
        transposed = {"A": up.T.contiguous(), "B": down.T.contiguous()}
        return {f"{name}.lora_embedding_{key}": factor for key, factor in transposed.items()}
    up, down = _lora_factors(layer, adapter_name, dtype)
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}


def _saved_modules(model: nn.Module, adapter_name: str) -> dict[str, nn.Module]:
    """The modules that an adapter trains in full, by name."""
    return {
        name: module.modules_to_save[adapter_name]
        for name, module in model.named_modules()
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save
    }


def _only_adapter(layers: Sequence[LoLDULayer]) -> str:
    """The only adapter there is, or else the only active one.

    Raises:
        ConceptError: There is none, or more than one.
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


def _component_of(model: nn.Module) -> str:
    """The place in a pipeline of a model given on its own.

    Raises:
        ConceptError: It cannot be told from its class.
    """
    kind = type(model).__name__
    if kind not in _COMPONENT_OF_CLASS:
        raise ConceptError(
            f"a {kind} on its own has no place in a diffusers pipeline: pass the whole pipeline, "
            "or use layout='peft'"
        )
    return _COMPONENT_OF_CLASS[kind]


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
