"""Read the folder that PEFT's `save_pretrained` writes for a LoLDU adapter as a concept."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from loldu.adapter.base_check import pivots_fit, start_fits
from loldu.adapter.base_weight import dtype_name
from loldu.adapter.components import bare, fingerprint_of, part_with, weight_of
from loldu.adapter.config import LoLDUConfig, LoLDUPeftType
from loldu.adapter.diagonal import LoLDUDiagonal
from loldu.adapter.factorization import FACTORIZATIONS
from loldu.adapter.factors import Factors
from loldu.concept.format import BASE_DTYPES, Concept, ConceptLayer, reason_of
from loldu.concept.metadata import shown
from loldu.concept.reader import is_name
from loldu.errors import ConceptError

_DIAGONAL = ".loldu_diagonal."


def read_peft_folder(path: Path, parts: Mapping[str, nn.Module]) -> Concept:
    """Read a folder that PEFT's `save_pretrained` wrote for one adapter of one model.

    It holds the state of the training, from which delta follows. It identifies its base less
    precisely than a concept file: by names and sizes of layers, and by the diagonal d if the scale
    was trained or the base perturbed. All of these are compared.

    Args:
        path: The folder, with adapter_config.json and adapter_model.safetensors.
        parts: The models it may belong to, by component; the names of its layers decide.

    Raises:
        ConceptError: If it is not such a folder, or was made for another base.
    """
    config = _read_config(path)
    states = _read_states(path)
    component, part = part_with(parts, states)
    modules = dict(bare(part).named_modules())
    layers = [
        _read_layer(path, component, name, states[name], modules.get(name), config)
        for name in sorted(states)
    ]
    base = str(config.base_model_name_or_path or "")
    return Concept(base, {component: config.plain_values()}, tuple(layers), {})


def _read_config(path: Path) -> LoLDUConfig:
    file = path / CONFIG_NAME
    if not file.is_file():
        raise ConceptError(
            f"{path} has no {CONFIG_NAME}: give a concept file, or the folder that PEFT's "
            "save_pretrained wrote for one adapter"
        )
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        method = values.get("peft_type")
        if method != LoLDUPeftType.LOLDU:
            raise ConceptError(
                f"{path} holds a {shown(method)} adapter and not a LoLDU one: load it with PEFT "
                "itself"
            )
        config: Any = LoLDUConfig.from_peft_type(**values)
        config.plain_values()  # a list of targets may hold anything
    except ConceptError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = shown(reason_of(error), 200)
        raise ConceptError(f"{file} is not a LoLDU configuration ({reason})") from error
    if config.modules_to_save:
        modules = shown(", ".join(map(str, config.modules_to_save)))
        raise ConceptError(
            f"the adapter in {path} also trained {modules} in full "
            "(modules_to_save), which a concept cannot hold: use PeftModel.from_pretrained"
        )
    return config


def _read_states(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the state of the diagonal of each layer, by the name of the layer."""
    file = path / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        raise ConceptError(
            f"{path} has no {SAFETENSORS_WEIGHTS_NAME}: save the adapter with "
            "safe_serialization=True"
        )
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ConceptError(
            f"{file} is not a readable .safetensors file ({shown(reason_of(error), 200)})"
        ) from error
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, found, entry = key.removeprefix("base_model.model.").partition(_DIAGONAL)
        if not found or not is_name(layer):
            raise ConceptError(f"{file} holds '{shown(key)}', which is not part of a LoLDU adapter")
        states.setdefault(layer, {})[entry] = tensor
    if not states:
        raise ConceptError(f"{file} holds no layers: save the adapter again")
    return states


def _read_layer(
    path: Path,
    component: str,
    name: str,
    state: dict[str, Tensor],
    module: nn.Module | None,
    config: LoLDUConfig,
) -> ConceptLayer:
    weight = weight_of(module)
    if weight is None:
        raise ConceptError(
            f"{path} was made for another base model: it changes layer '{name}', which this model "
            "does not have as a linear layer; load the base it was trained on"
        )
    base_dtype = dtype_name(weight)
    if weight.is_meta or base_dtype not in BASE_DTYPES:
        raise ConceptError(
            f"layer '{name}' has no floating weight here: load the base's weights, not quantized, "
            f"before {path}"
        )
    try:
        diagonal = _restore(state, config.rank_and_sigma(name)[1], config.factorization_name)
        factors = _factors_of(weight, diagonal)
    except ValueError as error:
        raise ConceptError(
            f"{path} does not fit layer '{name}' ({shown(reason_of(error), 200)}): it is damaged, "
            "or was made for another base model"
        ) from error
    delta = diagonal.delta().detach()
    if not torch.isfinite(delta).all():
        raise ConceptError(f"the delta of layer '{name}' in {path} is not finite")
    fits = start_fits(diagonal, factors.diagonal.cpu(), (config.diagonal_init, config.seed), name)
    if fits is None and diagonal.pivots is not None:
        fits = pivots_fit(factors.left)
    if fits is False:
        dtype = ", in its dtype" if diagonal.pivots is None else ""
        raise ConceptError(
            f"{path} was made for another base model: the weight of layer '{name}' is not the one "
            f"here; load the base it was trained on{dtype}"
        )
    return ConceptLayer(
        component,
        name,
        weight.shape[0],
        weight.shape[1],
        config.factorization_name,
        base_dtype,
        delta,
        diagonal.pivots,
        fingerprint_of(module),
    )


def _restore(state: dict[str, Tensor], sigma_0: float, factorization: str) -> LoLDUDiagonal:
    """Return the diagonal in its state at the end of training.

    Raises:
        ValueError: If an entry is missing, unexpected or of another size.
    """
    diagonal = LoLDUDiagonal(
        state["dz"].numel() if "dz" in state else 0,
        sigma_0,
        factorization=factorization,
        train_scale="ds" in state,
        perturbs="perturbation" in state,
        has_units="unit" in state,
    )
    wanted = {key: tensor.shape for key, tensor in diagonal.state_dict().items()}
    given = {key: tensor.shape for key, tensor in state.items()}
    if wrong := sorted(key for key, _ in wanted.items() ^ given.items()):
        raise ValueError(f"{', '.join(dict.fromkeys(wrong))} missing, or not of this size")
    diagonal.load_state_dict(state)
    return diagonal


def _factors_of(weight: Float[Tensor, "out in"], diagonal: LoLDUDiagonal) -> Factors:
    """Return the factors of a weight at the saved pivots.

    Raises:
        ValueError: If the pivots or their number do not fit the weight.
    """
    r = diagonal.dz.numel()
    if not 1 <= r <= min(weight.shape):
        raise ValueError(f"{r} directions of a weight with {tuple(weight.shape)}")
    factorize = FACTORIZATIONS[diagonal.factorization].factorize
    return factorize(weight.detach(), r, diagonal.pivots)
