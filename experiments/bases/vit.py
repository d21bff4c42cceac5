"""A small vision transformer, trained with labels: one head per attribute of the world.

It replaces the paper's ViT-B/16 on ImageNet-21k, in miniature: many labels, random crops and flips;
the heads are discarded.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.
"""

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import ViTImageProcessor, ViTModel

from experiments.bases.pretraining import BUILD, WEIGHTS
from pocket.classifier import attribute_targets
from pocket.corpus import Corpus, make_corpus
from pocket.dino import WIDTH, build_vit
from pocket.fitting import Losses, device, fit, half_precision
from pocket.render import SIZE_PX
from pocket.views import random_view
from pocket.world import ATTRIBUTES

logger = logging.getLogger(__name__)

LABELS = {name: values for name, values in ATTRIBUTES.items() if name not in ("size", "position")}
"""Attributes with a head; without size and position, which crops and flips change."""


@dataclass(frozen=True)
class VitPretraining:
    """Amounts of everything; the defaults made the shipped weights.

    Attributes:
        pictures: Pictures for training, shared with `python -m pocket pretrain`.
        held_out: Pictures for judging.
        steps: Optimizer steps.
        batch: Pictures per step.
        learning_rate: Peak learning rate.
        crop_scale_min: Smallest area of a crop, as a share of the picture.
    """

    pictures: int = 50_000
    held_out: int = 1_000
    steps: int = 5_000
    batch: int = 64
    learning_rate: float = 1e-3
    crop_scale_min: float = 0.4


SHIPPED = VitPretraining()


class _Labelled(nn.Module):
    """The transformer, with its heads on the CLS token."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = build_vit()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(WIDTH, len(values)) for name, values in LABELS.items()}
        )

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b values"]]:
        with half_precision():
            features = self.vit(pixel_values=pixels).last_hidden_state[:, 0]
            return {name: head(features).float() for name, head in self.heads.items()}


def pretrain_vit(
    output: Path = WEIGHTS / "vit", build: Path = BUILD, settings: VitPretraining = SHIPPED
) -> None:
    """Train the base of the image experiments on the world's labels. You can stop and restart it.

    Args:
        output: Folder for the model, in transformers' format; it is replaced.
        build: Folder for work files, 1 GB: the corpus, checkpoints, logs.
        settings: Amounts; the defaults take a quarter of an hour on one core.
    """
    build = build / f"world-{settings.pictures}-{settings.held_out}"
    train = make_corpus(build, "train", settings.pictures, seed=0)
    held_out = make_corpus(build, "held_out", settings.held_out, seed=1_000_000)
    torch.manual_seed(0)
    model = _Labelled().to(device())
    targets = {name: attribute_targets(train.scenes)[name] for name in LABELS}

    def losses_at(step: int) -> Losses:
        rows = torch.randint(len(train), (settings.batch,))
        pictures = train.pixels(rows).to(device())
        logits = model(random_view(pictures, SIZE_PX, settings.crop_scale_min, 1.0))
        total = pictures.new_zeros(())
        for name, values in logits.items():
            target = targets[name][rows].to(values.device)
            total = total + F.cross_entropy(values, target, ignore_index=-100, reduction="sum")
        return {"loss": total / settings.batch}

    def judged(step: int) -> dict[str, object]:
        accuracies = _accuracies(model, held_out)
        return {"accuracy": sum(accuracies.values()) / len(accuracies)}

    fit(
        "vit",
        model,
        [{"params": list(model.parameters()), "lr": settings.learning_rate}],
        losses_at,
        build=build,
        steps=settings.steps,
        warmup_steps=max(1, settings.steps // 20),
        betas=(0.9, 0.999),
        weight_decay=0.05,
        on_checkpoint=judged,
    )
    accuracies = _accuracies(model, held_out)
    _publish(output, model.vit, {"recipe": asdict(settings), "held_out_accuracy": accuracies})


@torch.no_grad()
def _accuracies(model: _Labelled, corpus: Corpus) -> dict[str, float]:
    """Return, per attribute, the accuracy on pictures that have the attribute."""
    model.eval()
    batches = [corpus.pixels(slice(i, i + 100)) for i in range(0, len(corpus), 100)]
    logits = [model(batch.to(device())) for batch in batches]
    model.train()
    targets = attribute_targets(corpus.scenes)
    accuracies = {}
    for name in LABELS:
        found = torch.cat([part[name] for part in logits]).argmax(1).cpu()
        there = targets[name] >= 0
        accuracies[name] = (found == targets[name])[there].float().mean().item()
    return accuracies


def _publish(output: Path, vit: ViTModel, record: dict[str, object]) -> None:
    """Write weights in half precision that load in single, the processor and the record."""
    shutil.rmtree(output, ignore_errors=True)
    vit.half().save_pretrained(output)
    config = output / "config.json"
    text = config.read_text(encoding="utf-8").replace('"dtype": "float16"', '"dtype": "float32"')
    config.write_text(text, encoding="utf-8")
    half = [0.5, 0.5, 0.5]
    size = {"height": SIZE_PX, "width": SIZE_PX}
    ViTImageProcessor(size=size, image_mean=half, image_std=half).save_pretrained(output)
    (output / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    logger.info("wrote %s", output)
