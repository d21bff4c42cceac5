import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loldu.base.open import load_pipeline
from webui.engine.job import Status
from webui.engine.jobs import Jobs
from webui.teaching.estimate import (
    drawn_pictures,
    duration,
    estimated_seconds,
    measured_pass,
    rows_a_step,
)

OPTIONS = {
    "pretrained_model_name_or_path": "pocket/base",
    "resolution": 64,
    "train_batch_size": 5,
    "prior_batch_size": 10,
    "with_prior_preservation": True,
    "num_class_images": 96,
    "max_train_steps": 300,
    "validation_prompt": ["a", "b"],
    "validation_steps": 30,
    "num_inference_steps": 20,
}


def test_rows_and_drawn_pictures_are_counted() -> None:
    assert rows_a_step(OPTIONS) == 15
    assert rows_a_step(OPTIONS | {"with_prior_preservation": False}) == 5
    # 96 of the class, two prompts at 11 steps, of the base, and of each side for the card
    assert drawn_pictures(OPTIONS) == 96 + 2 * (11 + 2)
    scores = {"validation_scores": True, "validation_images": 1, "drift_prompt": ["c"]}
    # the prompt of other things at 11 steps and with the base; at step 0 also the concept's prompts
    assert drawn_pictures(OPTIONS | scores) == 96 + 2 * 13 + 11 + 1 + 2


def test_without_a_training_a_pass_is_measured() -> None:
    asked: list[tuple[int, int]] = []

    def measure(rows: int, side: int) -> float:
        asked.append((rows, side))
        return 0.3

    seconds = estimated_seconds(OPTIONS, (), measure)
    assert asked == [(15, 64)]
    assert seconds == pytest.approx(300 * 2 * 0.3 + 122 * 40 * 0.3 / 15)


def test_class_pictures_of_an_earlier_training_are_not_drawn_again(jobs: Jobs) -> None:
    options = OPTIONS | {"instance_data_dir": "x", "instance_prompt": "a sks toy"}
    options |= {"class_prompt": ("a toy",), "class_data_dir": "shared"}
    job = jobs.submit("rabbit", "ann", options)
    assert drawn_pictures(options, [job]) == 2 * 13
    assert drawn_pictures(options | {"class_prompt": ["a car"]}, [job]) == 96 + 2 * 13
    assert drawn_pictures(options | {"seed": 7}, [job]) == 96 + 2 * 13


def test_a_finished_training_gives_a_better_estimate(jobs: Jobs) -> None:
    options = {"instance_data_dir": "pictures", "instance_prompt": "a photo of sks toy"}
    job = jobs.submit("rabbit", "ann", options)
    jobs.begin(job, "cpu")
    jobs.end(job, Status.FINISHED)
    job = jobs.get(job.id)
    (job.folder / "options.toml").write_text(
        '[base]\npretrained_model_name_or_path = "pocket/base"\n'
        "[all]\nresolution = 32\ntrain_batch_size = 2\nwith_prior_preservation = false\n"
        "max_train_steps = 10\n"
    )
    line = {"step": 10, "seconds": 4.0}
    (job.folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    plain = {"max_train_steps": 100, "resolution": 64, "train_batch_size": 3}
    base = {"pretrained_model_name_or_path": "pocket/base"}
    # 0.2 s a row, four times that at twice the side
    resumed = replace(job, started=100.0, ended=102.0)
    seconds = estimated_seconds(base | plain, [resumed], lambda *_: 1.0)
    assert seconds == pytest.approx(100 * 3 * 0.8)
    # It took 7 seconds; its steps took 4 of them.
    whole = replace(job, started=100.0, ended=107.0)
    seconds = estimated_seconds(base | plain, [whole], lambda *_: 1.0)
    assert seconds == pytest.approx(100 * 3 * 0.8 + 3)
    # Its two pictures passed 40 times each, as much as 20 of its steps' rows: another 8 seconds.
    stored = job.folder / "options.toml"
    drawing = "validation_prompt = ['a']\nnum_inference_steps = 20\n"
    stored.write_text(stored.read_text() + drawing)
    seconds = estimated_seconds(base | plain, [replace(whole, ended=117.0)], lambda *_: 1.0)
    assert seconds == pytest.approx(100 * 3 * 0.8 + 17 - 4 - 8)
    other = {"pretrained_model_name_or_path": "another"}
    assert estimated_seconds(other | plain, [job], lambda *_: 1.0) == pytest.approx(100 * 2)
    assert job.folder != Path()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (2.0, "about 1 minute"),
        (150.0, "about 2 minutes"),
        (3590.0, "about 1 h"),
        (5000.0, "about 1 h 20 min"),
    ],
)
def test_durations_in_words(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_only_the_unet_is_timed(base_folder: Path) -> None:
    pipeline = load_pipeline(str(base_folder))
    shapes: list[tuple[torch.Size, torch.Size]] = []
    pipeline.unet.register_forward_pre_hook(
        lambda _, given: shapes.append((given[0].shape, given[2].shape))
    )
    assert measured_pass(pipeline, 3, 64) > 0
    side, width = 64 // pipeline.vae_scale_factor, pipeline.text_encoder.config.hidden_size
    assert shapes == [((3, 4, side, side), (3, 16, width))] * 2
