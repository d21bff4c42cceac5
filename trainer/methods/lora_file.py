"""Write the one kind of LoRA file that A1111, ComfyUI and diffusers all read.

Its keys are those of kohya's scripts, the only ones that all three read. diffusers'
`load_lora_weights` looks for its name in a folder or repository with several files.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import get_peft_model_state_dict
from torch import Tensor

from loldu.base.families import family_of
from loldu.concept.format import serialize
from loldu.concept.lora_names import Place, joined, place_of

LORA = "pytorch_lora_weights.safetensors"
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}

_SIDES = {"A": "down", "B": "up"}


def lora_header(pipeline: DiffusionPipeline, metadata: dict[str, Any]) -> dict[str, str]:
    """Return the header of a LoRA file: what programs show of it, and all its metadata.

    Args:
        pipeline: The base.
        metadata: Metadata of the concept, as `describe` returns it.

    Source: Stability AI, the model metadata standard (modelspec) 1.0.0.
    """
    prediction_type = pipeline.scheduler.config.get("prediction_type")
    words = metadata.get("token"), metadata.get("class_name")
    trigger = " ".join(word for word in words if word) or metadata.get("instance_prompt")
    shown = {
        "sai_model_spec": "1.0.0",
        "architecture": family_of(pipeline).lora_architecture(pipeline),
        "implementation": "diffusers",
        "title": trigger,
        "trigger_phrase": trigger,
        "license": metadata.get("license"),
        "prediction_type": {"v_prediction": "v"}.get(prediction_type, prediction_type),
    }
    return {
        **{f"modelspec.{name}": value for name, value in shown.items() if value is not None},
        "training": json.dumps(metadata),
    }


def lora_bytes(
    models: Mapping[str, Any],
    adapter_name: str,
    header: dict[str, str],
    prefixes: Mapping[str, str],
) -> bytes:
    """Return the content of a LoRA file for PEFT's LoRA on some models of a pipeline.

    Readers scale a layer by alpha / r, and some keep only one alpha. So all layers get the alpha of
    the first model, and the up matrix is scaled by the rest.

    Args:
        models: Models by their names in the pipeline.
        adapter_name: Name of the LoRA.
        header: Header, as `lora_header` returns it.
        prefixes: Prefixes of the keys by model; the base's family has them.
    """
    alphas = [model.peft_config[adapter_name].lora_alpha for model in models.values()]
    found: dict[str, dict[Place, dict[str, Tensor]]] = {}
    for (component, model), alpha in zip(models.items(), alphas, strict=True):
        state = get_peft_model_state_dict(model, adapter_name=adapter_name)
        for name, value in state.items():
            layer, side = name.removesuffix(".weight").rsplit(".lora_", 1)
            place = place_of(prefixes[component], component, layer, model)
            factor = alpha / alphas[0] if side == "B" else 1
            sides = found.setdefault(place.key, {}).setdefault(place, {})
            sides[_SIDES[side]] = (factor * value).cpu().contiguous()
    tensors: dict[str, Tensor] = {}
    for key, places in found.items():
        factors = {place.part: (each["up"], each["down"]) for place, each in places.items()}
        up, down = joined(factors, next(iter(places)).parts)
        own = next(iter(factors.values()))[1].shape[0]
        tensors[f"{key}.alpha"] = torch.tensor(float(alphas[0]))
        tensors[f"{key}.lora_down.weight"] = down
        # Readers divide by the rank in the file.
        tensors[f"{key}.lora_up.weight"] = up * (down.shape[0] / own)
    return serialize(tensors, {**header, "format": "pt"})
