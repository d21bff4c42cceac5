"""Options that choose and read the frozen base."""

from dataclasses import dataclass
from typing import Literal

from loldu.options import option


@dataclass(frozen=True)
class BaseModelConfig:
    """The frozen base model, and how to read it."""

    # A diffusers folder, a hub id or a single-file .safetensors checkpoint; the concept file works
    # on this base only.
    pretrained_model_name_or_path: str = option(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", resume="may_change", publish="name"
    )
    # A VAE (folder, hub id or .safetensors file) in place of the base's own;
    # stabilityai/sd-vae-ft-mse draws faces and small text better on SD v1.x. It runs in fp32, so
    # SDXL needs no other one for half precision.
    vae: str | None = option(None, resume="may_change", publish="name")
    # Commit, branch or tag of a hub id; pin a commit to get the same base next year.
    revision: str | None = None
    # Weight files of this variant, e.g. fp16: half the download, rounded weights.
    variant: str | None = None
    # A diffusers folder or hub id of the same kind of base, for the layout of a single file's parts
    # and its tokenizer and noise schedule; none of its weights are used. Needed without the hub,
    # which gives that of SD v1.5, 2.1 or XL otherwise.
    single_file_config: str | None = option(None, resume="may_change", publish="name")
    # What the UNet predicts, where the base does not say so itself: a single file never does, and
    # counts as epsilon (SD 1.x) or v_prediction (SD 2.x). The wrong one draws noise from the first
    # step on.
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    # Leave out this many of the text encoder's last layers, in training and drawing alike: 1 (which
    # A1111 calls 2) suits most anime bases, 0 the others. Concepts need it as they were trained.
    # Not for SDXL, which always leaves out one.
    clip_skip: int = option(0, at_least=0)
    # Read prompts of up to this many chunks of 75 tokens, in training and drawing alike, as A1111
    # does: 3 reads 225 tokens. 1 cuts longer prompts, with a line of log. Shorter prompts stay as
    # they are, bit for bit. Concepts need it as they were trained.
    prompt_chunks: int = option(1, at_least=1, at_most=10)
