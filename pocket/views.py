"""Random crops of pictures, for training vision transformers."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def random_view(
    x: Float[Tensor, "b 3 h w"], size_px: int, low: float, high: float
) -> Float[Tensor, "b 3 size size"]:
    """Return a random crop of each picture, with `low` to `high` of its area; flip half of them."""
    b = len(x)
    scale = torch.sqrt(low + (high - low) * torch.rand(b, device=x.device))
    flip = torch.where(torch.rand(b, device=x.device) < 0.5, 1.0, -1.0)
    shift = (2 * torch.rand(b, 2, device=x.device) - 1) * (1 - scale)[:, None]
    theta = torch.zeros(b, 2, 3, device=x.device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * flip, scale, shift
    grid = F.affine_grid(theta, [b, 3, size_px, size_px], align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def recolored(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Return pictures with slightly changed brightness and colors."""
    b = len(x)
    gain = 1 + 0.15 * (2 * torch.rand(b, 3, 1, 1, device=x.device) - 1)
    offset = 0.1 * (2 * torch.rand(b, 1, 1, 1, device=x.device) - 1)
    return x * gain + offset
