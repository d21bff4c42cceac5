"""Concepts without a training."""

from collections.abc import Callable
from pathlib import Path

import torch

from loldu import Concept, ConceptLayer, LoLDUConfig, save_concept
from loldu.base.open import load_pipeline
from loldu.concept.format import write_concept
from webui.drawing.model import Use
from webui.library.entry import Entry

MakeUse = Callable[..., Use]
LAYER = ConceptLayer(
    component="unet",
    name="to_q",
    out_features=3,
    in_features=2,
    factorization="svd",
    base_dtype="float32",
    delta=torch.tensor([0.5, -1.0]),
    pivots=None,
    fingerprint=torch.tensor([1.0, 2.0, 3.0]),
)
METADATA = {
    "token": "sks",
    "class_name": "toy",
    "instance_prompt": "a photo of a sks toy",
    "steps": 300,
    "scores": {"dino": 0.5, "clip_i": 0.75},
}


def write(path: Path, of: str = "tiny", **metadata: object) -> Path:
    """Write a concept file of one layer, with other metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_concept(Concept(of, {}, (LAYER,), METADATA | metadata), path, overwrite=True)
    return path


def teach(folder: Path, path: Path, seed: int, prompt: str | None, **metadata: object) -> None:
    """Save a random concept of a base: the same one for the same seed."""
    pipeline = load_pipeline(str(folder))
    torch.manual_seed(seed)
    pipeline.unet.add_adapter(LoLDUConfig(r=4, init_weights=False, seed=seed))
    save_concept(pipeline, path, metadata={"instance_prompt": prompt, **metadata})


def entry_of(folder: Path) -> Entry:
    return Entry(folder.name, folder.name, None, folder, 0.0)
