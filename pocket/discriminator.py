"""Trains a network to tell samples from reconstructions; near chance, the base is good."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pocket.fitting import device

_BATCH = 64


def tell_apart(
    samples: Float[Tensor, "n 3 h w"],
    reconstructions: Float[Tensor, "n 3 h w"],
    patience: int = 3,
    max_epochs: int = 40,
) -> dict[str, float]:
    """Train a ResNet-18 until its accuracy on held-out pictures has stopped rising.

    Args:
        samples: Pictures in [-1, 1]. The last ninth is held out.
        reconstructions: As many reconstructions by the VAE, of renders of the same scenes.
        patience: Epochs without a rise after which the training ends.
        max_epochs: Largest number of epochs.

    Returns:
        `accuracy`, the best on held-out pictures, and `epoch`, where it was reached. 0.5 is chance.
    """
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18(num_classes=1).to(device())
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    held_out = max(1, len(samples) // 9)
    train_x, train_y = _labelled(samples[:-held_out], reconstructions[:-held_out])
    test_x, test_y = _labelled(samples[-held_out:], reconstructions[-held_out:])
    best = {"accuracy": 0.0, "epoch": 0}
    for epoch in range(1, max_epochs + 1):
        network.train()
        for rows in torch.randperm(len(train_x)).split(_BATCH):
            x, y = train_x[rows].to(device()), train_y[rows].to(device())
            flipped = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
            logits = network(torch.where(flipped, x.flip(3), x)).squeeze(1)
            F.binary_cross_entropy_with_logits(logits, y).backward()
            optimizer.step()
            optimizer.zero_grad()
        accuracy = _accuracy(network, test_x, test_y)
        if accuracy > best["accuracy"]:
            best = {"accuracy": round(accuracy, 4), "epoch": epoch}
        elif epoch - best["epoch"] >= patience:
            break
    return best


def _labelled(samples: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
    labels = torch.cat([torch.ones(len(samples)), torch.zeros(len(reconstructions))])
    return torch.cat([samples, reconstructions]), labels


@torch.no_grad()
def _accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    network.eval()
    logits = torch.cat([network(part.to(device())).squeeze(1).cpu() for part in x.split(_BATCH)])
    return ((logits > 0) == (y > 0.5)).float().mean().item()
