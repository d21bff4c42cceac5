"""A small CLIP, trained contrastively on captioned pictures of the world.

The pipeline's text encoder starts from one. A second one, trained separately and for longer,
measures CLIP-I and CLIP-T.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from pocket.corpus import CAPTIONS_EACH, Corpus
from pocket.fitting import Losses, device, fit, half_precision
from pocket.render import SIZE_PX

WIDTH = 128


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return two towers, 128 wide and four layers deep, for 8 x 8 patches of 64 x 64 pictures."""
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    text = tower | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {"image_size": SIZE_PX, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    return CLIPModel(config)


def pretrain_clip(
    name: str,
    train: Corpus,
    token_ids: Tensor,
    tokenizer: CLIPTokenizer,
    build: Path,
    *,
    steps: int,
    batch: int,
    seed: int,
) -> CLIPModel:
    """Train a CLIP with the symmetric contrastive loss.

    Args:
        name: Name of the work files.
        train: The corpus.
        token_ids: Captions of the corpus, (n, captions, length).
        tokenizer: Tokenizer of the captions.
        build: Folder for work files.
        steps: Optimizer steps.
        batch: Pairs per step.
        seed: Seed of the initial weights, so that two CLIPs are independent.
    """
    torch.manual_seed(seed)
    clip = build_clip(tokenizer)
    clip.to(device())  # pyright: ignore[reportArgumentType]
    labels = torch.arange(batch, device=device())

    def losses_at(step: int) -> Losses:
        rows = torch.randint(len(train), (batch,))
        ids = token_ids[rows, torch.randint(CAPTIONS_EACH, (batch,))].to(device())
        with half_precision():
            output = clip(input_ids=ids, pixel_values=train.pixels(rows).to(device()))
        logits = output.logits_per_image.float()
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        return {"loss": loss, "top1": (logits.argmax(1) == labels).float().mean()}

    groups = [{"params": list(clip.parameters()), "lr": 1e-3}]
    fit(name, clip, groups, losses_at, build=build, steps=steps, weight_decay=0.05)
    return clip.eval().requires_grad_(False)
