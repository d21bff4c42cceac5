"""A result as the one LoRA file that A1111, ComfyUI and diffusers all read.

Its keys are those of kohya's scripts, the only ones that all three know; its name is the one that
diffusers' `load_lora_weights` looks for in a folder or repository with several files.
"""

import json
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import get_peft_model_state_dict

from loldu.concept_file import serialize

LORA = "pytorch_lora_weights.safetensors"
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}

_ARCHITECTURES = {
    (768, "epsilon"): "stable-diffusion-v1/lora",
    (1024, "epsilon"): "stable-diffusion-v2-512/lora",
    (1024, "v_prediction"): "stable-diffusion-v2-768-v/lora",
}


def lora_header(pipeline: StableDiffusionPipeline, metadata: dict[str, Any]) -> dict[str, str]:
    """What programs show of a LoRA, by its trigger phrase and its licence, and all its metadata.

    Args:
        pipeline: The base.
        metadata: That of the concept, as `describe` gives it.

    Source: Stability AI, the model metadata standard (modelspec) 1.0.0.
    """
    kind = pipeline.unet.config["cross_attention_dim"], pipeline.scheduler.config["prediction_type"]
    words = metadata.get("token"), metadata.get("class_name")
    trigger = " ".join(word for word in words if word) or metadata.get("instance_prompt")
    told = {
        "sai_model_spec": "1.0.0",
        "architecture": _ARCHITECTURES.get(kind),
        "implementation": "diffusers",
        "title": trigger,
        "trigger_phrase": trigger,
        "license": metadata.get("license"),
        "prediction_type": {"v_prediction": "v"}.get(kind[1], kind[1]),
    }
    return {
        **{f"modelspec.{name}": value for name, value in told.items() if value is not None},
        "training": json.dumps(metadata),
    }


def lora_bytes(unet: UNet2DConditionModel, adapter_name: str, header: dict[str, str]) -> bytes:
    """PEFT's LoRA on a UNet as the content of the file, with the scale it was trained with."""
    state = get_peft_model_state_dict(unet, adapter_name=adapter_name)
    tensors = convert_state_dict_to_kohya({f"unet.{name}": value for name, value in state.items()})
    alpha = float(unet.peft_config[adapter_name].lora_alpha)
    for name, value in tensors.items():  # diffusers takes the rank for alpha
        is_alpha = name.endswith(".alpha")
        tensors[name] = torch.tensor(alpha) if is_alpha else value.cpu().contiguous()
    return serialize(tensors, {**header, "format": "pt"})
