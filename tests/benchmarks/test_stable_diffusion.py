from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from benchmarks.stable_diffusion import (
    SIZES,
    build_parts,
    letters_tokenizer,
    save_random_base,
    save_random_pictures,
)
from loldu.pictures.folder import list_images


def test_sd15_has_the_parameters_of_stable_diffusion() -> None:
    with torch.device("meta"):
        parts = build_parts(SIZES["sd15"], letters_tokenizer())
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert counts == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}


def test_the_smallest_is_a_pipeline_that_draws(tmp_path: Path) -> None:
    size = SIZES["smallest"]
    save_random_base(tmp_path / "base", size, seed=0, dtype=torch.float32, device="cpu")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "base")
    assert pipeline.tokenizer("a dog").input_ids == [72, 36, 3, 14, 42, 73]  # d and o go on, g ends
    picture = pipeline("a dog", num_inference_steps=1).images[0]
    assert picture.size == (128, 128)
    save_random_pictures(tmp_path / "pictures", 2, 128, seed=0)
    assert len(list_images(tmp_path / "pictures")) == 2
