"""Reads a scene's attributes from a picture, to check whether it follows a prompt."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pocket.corpus import Corpus
from pocket.fitting import Losses, device, fit
from pocket.world import ATTRIBUTES, NEIGHBOR, Scene, as_seen

READABLE = ATTRIBUTES | NEIGHBOR


def _block(inputs: int, outputs: int, stride: int, kernel: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class AttributeClassifier(nn.Module):
    """A small convolutional network with one head per attribute of a scene."""

    def __init__(self, attributes: Iterable[str] = READABLE) -> None:
        """Start untrained, with a head for each of these attributes."""
        super().__init__()
        self.features = nn.Sequential(
            _block(3, 32, 2, 5),
            _block(32, 64, 1),
            _block(64, 96, 2),
            _block(96, 96, 1),
            _block(96, 160, 2),
        )
        self.layout = nn.Sequential(_block(160, 40, 1, 1), nn.Flatten())
        self.joint = nn.Sequential(nn.Linear(40 * 64 + 320, 256), nn.ReLU())
        self.heads = nn.ModuleDict(
            {name: nn.Linear(256 + 320, len(READABLE[name])) for name in attributes}
        )

    def forward(self, pixels: Float[Tensor, "b 3 64 64"]) -> dict[str, Float[Tensor, "b values"]]:
        """Return the logits of each attribute's values, for pictures in [-1, 1]."""
        features = self.features(pixels)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        joint = torch.cat([pooled, self.joint(torch.cat([pooled, self.layout(features)], 1))], 1)
        return {name: head(joint) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pixels: Float[Tensor, "b 3 64 64"]) -> list[Scene]:
        """Return the likeliest value of every attribute, even if the kind of object lacks it."""
        logits = self(pixels.to(next(self.parameters()).device))
        indices = {name: values.argmax(1).tolist() for name, values in logits.items()}
        return [
            {name: READABLE[name][column[i]] for name, column in indices.items()}
            for i in range(len(pixels))
        ]


def load_classifier(path: Path) -> AttributeClassifier:
    """Load a classifier for reading; older files lack the heads of the second thing."""
    state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
    classifier = AttributeClassifier([name for name in READABLE if f"heads.{name}.bias" in state])
    classifier.load_state_dict(state)
    return classifier.eval().requires_grad_(False)


def save_classifier(classifier: AttributeClassifier, path: Path) -> None:
    """Save a classifier in half precision."""
    state = classifier.state_dict()
    save_file(
        {k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()}, path
    )


def agreement(read: Sequence[Scene], wanted: Sequence[Scene]) -> dict[str, float]:
    """Return the share of pictures with the wanted value, per attribute in `wanted`."""
    hits: dict[str, list[bool]] = {}
    for seen, wish in zip(read, wanted, strict=True):
        for name, value in wish.items():
            hits.setdefault(name, []).append(seen[name] == value)
    return {name: sum(found) / len(found) for name, found in hits.items()}


def overall_agreement(read: Sequence[Scene], wanted: Sequence[Scene]) -> float:
    """Return the share of wanted attributes that the pictures show, over all pictures."""
    hits = [
        seen[name] == value
        for seen, wish in zip(read, wanted, strict=True)
        for name, value in wish.items()
    ]
    return sum(hits) / len(hits)


def attribute_targets(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Return class indices of every attribute; -100 if the kind of object lacks it."""
    return {
        name: torch.tensor([values.index(s[name]) if name in s else -100 for s in scenes])
        for name, values in READABLE.items()
    }


def pretrain_classifier(
    one: tuple[Corpus, Float[Tensor, "n 3 64 64"]],
    two: tuple[Corpus, Float[Tensor, "m 3 64 64"]],
    build: Path,
    steps: int,
    batch: int,
) -> AttributeClassifier:
    """Train on true renders and on the VAE's reconstructions of them, both with noise.

    Args:
        one: True renders of one thing, and reconstructions of the first n of them. The
            reconstructions teach the classifier to ignore the VAE's blur.
        two: The same for two things; a fifth of every batch.
        build: Folder for work files.
        steps: Optimizer steps.
        batch: Pictures per step.
    """
    classifier = AttributeClassifier().to(device())
    alone = [{"relation": "alone", **scene} for scene in one[0].scenes]
    sources = (
        (*one, attribute_targets(alone), batch - batch // 5),
        (*two, attribute_targets([as_seen(scene) for scene in two[0].scenes]), batch // 5),
    )

    def losses_at(step: int) -> Losses:
        pictures: list[Tensor] = []
        targets: list[dict[str, Tensor]] = []
        for renders, reconstructed, wanted, count in sources:
            blurred = torch.randint(len(reconstructed), (count // 5,))
            rows = torch.randint(len(renders), (count - count // 5,))
            pictures += [reconstructed[blurred].float(), renders.pixels(rows)]
            rows = torch.cat([blurred, rows])
            targets.append({name: values[rows] for name, values in wanted.items()})
        x = torch.cat(pictures).to(device())
        x = x + 0.08 * torch.rand(batch, 1, 1, 1, device=x.device) * torch.randn_like(x)
        total = x.new_zeros(())
        for name, values in classifier(x).items():
            target = torch.cat([part[name] for part in targets]).to(x.device)
            total = total + F.cross_entropy(values, target, ignore_index=-100, reduction="sum")
        return {"loss": total / batch}

    classifier.train()
    groups = [{"params": list(classifier.parameters()), "lr": 3e-3}]
    fit(
        "classifier",
        classifier,
        groups,
        losses_at,
        build=build,
        steps=steps,
        clip=20.0,
        weight_decay=0.02,
    )
    return classifier.eval().requires_grad_(False)
