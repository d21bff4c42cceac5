"""A small vision transformer trained without labels by self-distillation (DINO).

Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021. Three
things differ. Colors are jittered far less, because in this world colors distinguish things. The
two views that must agree show one thing in two settings: with crops of a single picture the
features distinguished backgrounds instead of things. And the features are centered afterwards:
before, pictures of different concepts had a mean cosine of 0.85, now 0.02.
"""

import copy
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from pocket.corpus import Corpus
from pocket.fitting import Losses, device, fit, half_precision
from pocket.render import SIZE_PX
from pocket.views import random_view, recolored

WIDTH = 128
_PROTOTYPES = 1024
_LOCAL_PX = 32


def build_vit(patch_size: int = 16) -> ViTModel:
    """Return a ViT, 128 wide with four layers: 0.9 million parameters at 16 x 16 patches."""
    config = ViTConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE_PX,
        patch_size=patch_size,
    )
    return ViTModel(config, add_pooling_layer=False)


class _Branch(nn.Module):
    """Backbone and projection head, student or teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = build_vit(patch_size=8)
        self.head = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, 64))
        self.prototypes = nn.Parameter(torch.randn(_PROTOTYPES, 64))

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b prototypes"]:
        with half_precision():
            whole = pixels.shape[-1] == SIZE_PX
            output = self.vit(pixel_values=pixels, interpolate_pos_encoding=not whole)
            embedding = self.head(output.last_hidden_state[:, 0])
        return F.normalize(embedding.float(), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


def _view(x: Float[Tensor, "b 3 h w"], size_px: int, low: float, high: float) -> Tensor:
    """Return one random crop per picture, slightly recolored."""
    return recolored(random_view(x, size_px, low, high))


class _Dino(nn.Module):
    """Student, teacher and the teacher's center: the content of a checkpoint."""

    center: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.student = _Branch()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("center", torch.zeros(_PROTOTYPES))


def pretrain_dino(pairs: Corpus, build: Path, steps: int, batch: int) -> ViTModel:
    """Train by self-distillation on whole and local views, and return the teacher's ViT.

    Args:
        pairs: Corpus with every thing twice, in two settings, one after the other.
        build: Folder for work files.
        steps: Optimizer steps.
        batch: Things per step.
    """
    torch.manual_seed(0)
    dino = _Dino().to(device())

    def losses_at(step: int) -> Losses:
        first = 2 * torch.randint(len(pairs) // 2, (batch,))
        pictures = [pairs.pixels(rows).to(device()) for rows in (first, first + 1)]
        momentum = 1 - 0.01 * (0.5 * (1 + math.cos(math.pi * step / steps)))
        with torch.no_grad():
            both = zip(dino.teacher.parameters(), dino.student.parameters(), strict=True)
            for slow, fast in both:
                slow.lerp_(fast, 1 - momentum)
            views = [_view(x, SIZE_PX, 0.5, 1.0) for x in pictures]
            local = [_view(x, _LOCAL_PX, 0.3, 0.7) for x in pictures]
            teacher = dino.teacher(torch.cat(views))
            sharp = 0.04 + 0.03 * min(1.0, 3 * step / steps)
            targets = ((teacher - dino.center) / sharp).softmax(-1).chunk(2)
            dino.center.lerp_(teacher.mean(0), 0.1)
        students = [
            *dino.student(torch.cat(views)).chunk(2),
            *dino.student(torch.cat(local)).chunk(2),
        ]
        terms = [
            -(target * (student / 0.1).log_softmax(-1)).sum(-1).mean()
            for i, target in enumerate(targets)
            for j, student in enumerate(students)
            if i != j % 2  # never two views of one picture
        ]
        used = targets[0].mean(0)
        entropy = -(used * (used + 1e-9).log()).sum()
        return {"loss": torch.stack(terms).mean(), "batch_entropy": entropy}

    groups = [{"params": list(dino.student.parameters()), "lr": 1e-3}]
    fit("dino", dino, groups, losses_at, build=build, steps=steps, clip=3.0, weight_decay=0.04)
    vit = dino.teacher.vit.eval()
    center_features(vit, pairs)
    return vit


@torch.no_grad()
def center_features(vit: ViTModel, corpus: Corpus, count: int = 2_000) -> None:
    """Give the features of the first `count` pictures of a corpus the mean 0.

    The bias of the last layer takes their mean off, so the result is an ordinary ViT.
    """
    features: list[Tensor] = []
    for start in range(0, min(count, len(corpus)), 100):
        pixels = corpus.pixels(slice(start, min(start + 100, count))).to(device())
        features.append(vit(pixel_values=pixels).last_hidden_state[:, 0])
    vit.layernorm.bias.sub_(torch.cat(features).mean(0))
