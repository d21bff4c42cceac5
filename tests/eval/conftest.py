"""The flags of tiny scoring models."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def scoring(clip_folder: Path, dino_folder: Path) -> list[str]:
    """Return flags for the tiny models without a cache."""
    models = ["--clip", str(clip_folder), "--dino", str(dino_folder)]
    return [*models, "--device", "cpu", "--no_cache"]
