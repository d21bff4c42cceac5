"""The steps after a training, for every family: scores, commands and the studio."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from eval.__main__ import run as evaluate
from loldu import hotswap_concept, load_concept
from loldu.__main__ import run as command
from loldu.base.draw import sample_images
from loldu.base.families import family_of
from loldu.base.flux2_klein import Flux2Klein
from loldu.base.open import load_pipeline
from tests.webui.concepts import entry_of
from trainer.__main__ import run as train
from webui.drawing.model import Use
from webui.drawing.studio import Studio, Task, Watch

PROMPT = "a photo of sks toy"


@pytest.fixture
def small_klein(klein_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FLUX.2 klein in miniature that draws 16 pixels by default; its pipeline says 128 latents."""
    opened = Flux2Klein.open

    def small(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        pipeline = opened(*args, **kwargs)
        pipeline.default_sample_size = 8
        return pipeline

    monkeypatch.setattr(Flux2Klein, "open", small)
    return klein_folder


@pytest.mark.parametrize(
    ("fixture", "more", "passes"),
    [("xl_folder", ["--train_text_encoder"], 2), ("small_klein", [], 4)],
)
def test_a_concept_of_every_family_is_scored_converted_swapped_and_drawn_in_the_studio(
    fixture: str,
    more: list[str],
    passes: int,
    flags: list[str],
    clip_folder: Path,
    dino_folder: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    more = ["--class_prompt", "a photo of toy", "--no_sample_at_end", *more]
    base, folder = str(request.getfixturevalue(fixture)), tmp_path / "run"
    steps = ["--max_train_steps", "2", "--learning_rate", "0.3"]
    assert train([*flags, "--pretrained_model_name_or_path", base, *more, *steps]) == 0
    concept = folder / "concept.safetensors"

    def drawn(pipeline: DiffusionPipeline) -> bytes:
        (image,) = sample_images(pipeline, [PROMPT], [3], num_inference_steps=2, progress=False)
        return image.tobytes()

    live = load_pipeline(base)
    before = drawn(live)
    load_concept(live, concept)
    after = drawn(live)
    assert after != before
    hotswap_concept(live, concept)
    assert drawn(live) == after

    scores = ["adapter", "--concept", str(concept), "--output_dir", str(tmp_path / "scores")]
    scores += ["--clip", str(clip_folder), "--dino", str(dino_folder), "--device", "cpu"]
    scores += ["--no_cache", "--bootstrap_samples", "20", "--num_inference_steps", "1"]
    scores += ["--prompts", "a {token} {class_name}", "--other_prompts", "a {class_name}"]
    assert evaluate([*scores, "--seeds", "3"]) == 0
    report = json.loads((tmp_path / "scores" / "report.json").read_text())
    assert report["gains"]["dino"]["mean"] != 0
    assert abs(report["others"]["drift"]) < 1e-6  # a prompt without the word is the base's

    for name in ("verify", "compare-clients"):
        assert command([name, str(concept), base]) == 0
    assert command(["merge", str(concept), base, str(tmp_path / "merged")]) == 0
    merged = load_pipeline(str(tmp_path / "merged"))
    always_on = load_pipeline(base)
    load_concept(always_on, concept, route=False)
    found, expected = (family_of(each).encode_text(each, [PROMPT]) for each in (merged, always_on))
    for name, states in expected.items():
        torch.testing.assert_close(found[name], states, rtol=1e-4, atol=1e-4)
    difference = np.frombuffer(drawn(merged), np.uint8).astype(int)
    difference -= np.frombuffer(drawn(always_on), np.uint8)
    assert np.abs(difference).max() <= 1

    studio = Studio(base)
    ticks: list[tuple[int, int]] = []
    watch = Watch(lambda *tick: ticks.append(tick), lambda _: None, threading.Event())
    task = Task((PROMPT,), (3,), "", 2, 7.5)
    (plain,) = studio.draw_base(task, [], watch)
    assert ticks == [(done + 1, passes) for done in range(passes)]
    (changed,) = studio.draw_concepts(task, [[Use(entry_of(folder), 1.0)]], watch)
    assert plain.image.tobytes() == before
    routed = load_pipeline(base)
    load_concept(routed, concept)
    assert changed.image.tobytes() == drawn(routed) != drawn(always_on)
    assert studio.seconds_a_pass(2, 16) > 0
