"""Pictures of noise; all are different."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def save_noise(folder: Path, names: Sequence[str], seed: int = 0) -> list[Path]:
    """Save a picture of 32 x 32 pixels under every name."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / name for name in names]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return paths
