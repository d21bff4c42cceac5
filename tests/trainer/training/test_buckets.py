"""Training of pictures in their own shapes."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from loldu import read_concept
from loldu.errors import LoLDUError
from loldu.pictures.folder import CaptionedImage
from tests.trainer.kills import check_twenty_kills
from trainer.__main__ import run
from trainer.methods.trained import Trained
from trainer.options.config import Config
from trainer.training.buckets import BucketedObjective, bucket_caches, place_of
from trainer.training.instances import find_instances
from trainer.training.objective import Denoiser, DreamBooth

MakeConfig = Callable[..., Config]
SIZES = [(24, 24), (36, 16), (16, 36), (80, 20), (20, 28)]
QUICK = ["--no_sample_at_end", "--lora_file", "no", "--aspect_buckets"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five pictures in five shapes, one with a mask; a file of metadata repeats one."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, (width, height) in enumerate(SIZES):
        noise = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    mask = Image.new("L", SIZES[1])
    mask.paste(255, (0, 0, 18, 16))
    mask.save(folder / "1-masklabel.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "2.png", "repeats": 2}\n')
    return folder


def buckets_of(
    pipeline: StableDiffusionPipeline, config: Config, classes: int = 0
) -> list[DreamBooth]:
    images = find_instances(config.instance)
    class_images = [CaptionedImage(image.path, "a toy") for image in images[:classes]]
    caches = bucket_caches(pipeline, images, class_images, config, [])
    return [DreamBooth(pipeline, cache, config) for cache in caches]


def objective_of(
    pipeline: StableDiffusionPipeline, config: Config, classes: int = 0
) -> BucketedObjective:
    buckets = {"default": buckets_of(pipeline, config, classes)}
    return BucketedObjective(buckets, Trained(("default",), {}), config)


@pytest.mark.parametrize("counts", [[1], [3], [1, 4, 2]])
def test_every_picture_has_its_share_of_the_passes(counts: list[int]) -> None:
    total = sum(counts)
    places = [place_of(index, counts, seed=1, kind=0) for index in range(5 * total)]
    for epoch in range(5):
        seen = Counter(bucket for bucket, _ in places[epoch * total : (epoch + 1) * total])
        assert [seen[bucket] for bucket in range(len(counts))] == counts
    for bucket in range(len(counts)):  # no turn is left out, and none comes twice
        turns = [turn for chosen, turn in places if chosen == bucket]
        assert turns == [*range(5 * counts[bucket])]


def test_every_pass_has_one_shape_and_every_picture_comes_equally_often(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    config = make_config("--aspect_buckets", "--train_batch_size", "2")
    objective = objective_of(pipeline, config)
    shapes: Counter[tuple[int, int]] = Counter()
    for index in range(12):  # six pictures, with the repeated one
        ((part,),) = objective.draw(index)
        rows = part.bucket.rows(part.batch)
        shapes[tuple(rows.noisy.shape[-2:])] += len(rows.noisy)
    assert sorted(shapes.values()) == [4, 4, 4, 4, 8]
    for height, width in shapes:
        assert height * width <= 64  # 16 x 16 pixels, halved by the VAE
        assert height % 2 == width % 2 == 0


def test_two_processes_share_the_batch_of_one(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    more = ["--aspect_buckets", "--noise_offset", "0.1", "--caption_dropout", "0.3"]
    wide = objective_of(pipeline, make_config(*more, "--train_batch_size", "4"), 2)
    narrow = objective_of(pipeline, make_config(*more, "--train_batch_size", "2"), 2)
    for index in range(4):
        (whole,) = wide.draw(index)
        shares = [narrow.draw(index, process, 2)[0] for process in range(2)]
        for part, *others in zip(whole, *shares, strict=True):
            for name in ("views", "timesteps", "noise", "posterior_noise", "prompts"):
                joined = torch.cat([getattr(other.batch, name) for other in others])
                assert torch.equal(getattr(part.batch, name), joined)


def test_the_loss_is_the_mean_of_the_rows_and_parts_add_up(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    more = ["--aspect_buckets", "--train_batch_size", "3", "--prior_batch_size", "2"]
    config = make_config(*more, "--prior_loss_weight", "0.5")
    objective, denoiser = objective_of(pipeline, config, 3), Denoiser(pipeline)
    assert objective.rows == 5
    drawn = objective.draw(2)
    with torch.no_grad():
        (whole,) = objective.losses(denoiser, drawn)
        means = []
        for part in drawn[0]:
            rows = part.bucket.rows(part.batch)
            squares = (rows.answered_by(denoiser) - rows.target).square()
            means.append(part.bucket.errors(squares, part.batch).mean())
        torch.testing.assert_close(whole.instance, means[0])
        torch.testing.assert_close(whole.total, means[0] + 0.5 * means[1])
        for size in (1, 2, 4):
            slices = [slice(start, start + size) for start in range(0, 5, size)]
            parts = [objective.losses(denoiser, drawn, rows)[0].values() for rows in slices]
            torch.testing.assert_close(sum(parts), whole.values())


def test_a_mask_has_the_shape_of_its_picture(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    config = make_config("--aspect_buckets", "--unmasked_weight", "0")
    caches = bucket_caches(pipeline, find_instances(config.instance), [], config, [])
    (masked,) = [cache for cache in caches if cache.weights is not None]
    weights = masked.weights
    assert weights is not None
    assert weights.shape[-1] > weights.shape[-2] == masked.mean.shape[-2]
    half = weights.shape[-1] // 2
    torch.testing.assert_close(weights[..., :half].mean(), torch.tensor(2.0), rtol=0, atol=0.1)
    assert weights[..., half + 1 :].abs().max() < 0.01  # of the scaling


def test_squares_train_as_without_buckets(flags: list[str], tmp_path: Path) -> None:
    square = tmp_path / "square"
    square.mkdir()
    rng = np.random.default_rng(1)
    for name in "abc":
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(
            square / f"{name}.png"
        )
    common = [*flags, "--instance_data_dir", str(square), "--caption_dropout", "0.3"]
    common += ["--random_flip", "--checkpointing_steps", "4", *QUICK[:-1]]
    files = []
    for name, more in (("squares", []), ("buckets", ["--aspect_buckets"])):
        assert run([*common, *more, "--output_dir", str(tmp_path / name)]) == 0
        files.append(tmp_path / name / "checkpoint-000004" / "trained.safetensors")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_resumed_run_ends_with_the_same_bits(
    flags: list[str], pictures: Path, tmp_path: Path
) -> None:
    common = [*flags, *QUICK, "--max_train_steps", "8", "--checkpointing_steps", "3"]
    common += ["--held_out_steps", "4", "--held_out_pictures", "1"]
    common += ["--with_prior_preservation", "--class_prompt", "a toy", "--num_class_images", "2"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run([*common, "--output_dir", str(whole)]) == 0
    checkpoint = ["--resume", str(whole / "checkpoint-000003")]
    assert run([*common, *checkpoint, "--output_dir", str(resumed)]) == 0
    name = "checkpoint-000006/trained.safetensors"
    ours, theirs = load_file(whole / name), load_file(resumed / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert '"held_out_loss"' in (whole / "metrics.jsonl").read_text()


def test_two_concepts_learn_what_each_would_learn_alone(
    flags: list[str], pictures: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for index, size in enumerate([(40, 16), (20, 20)]):
        Image.new("RGB", size, (20, 20, 180)).save(other / f"{index}.png")
    tables = tmp_path / "concepts.toml"
    tables.write_text(
        f'[one]\ninstance_data_dir = "{pictures}"\n[two]\ninstance_data_dir = "{other}"\n'
    )
    both = ["--concepts", str(tables), "--output_dir", str(tmp_path / "both")]
    assert run([*flags, *QUICK, *both]) == 0
    for name, folder in (("one", pictures), ("two", other)):
        alone = ["--instance_data_dir", str(folder), "--output_dir", str(tmp_path / name)]
        assert run([*flags, *QUICK, *alone]) == 0
        ours = read_concept(tmp_path / "both" / "concepts" / name / "concept.safetensors")
        theirs = read_concept(tmp_path / name / "concept.safetensors")
        for layer, same in zip(ours.layers, theirs.layers, strict=True):
            torch.testing.assert_close(layer.delta, same.delta, rtol=1e-3, atol=1e-5)


def test_what_does_not_go_with_buckets_is_refused(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig, tmp_path: Path
) -> None:
    tables = tmp_path / "concepts.toml"
    tables.write_text("")
    with pytest.raises(LoLDUError, match="does not go with --gradient_checkpointing"):
        make_config(
            *("--aspect_buckets", "--concepts", str(tables), "--gradient_checkpointing"),
        )
    config = make_config("--aspect_buckets", "--resolution", "8")
    pipeline.unet.register_to_config(down_block_types=["DownBlock2D"] * 4)
    with pytest.raises(LoLDUError, match="needs a --resolution of at least 16 with this base"):
        buckets_of(pipeline, config)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="it forks")
def test_twenty_kills_over_a_run_of_several_shapes(flags: list[str], tmp_path: Path) -> None:
    life = ["--checkpointing_steps", "1", "--checkpoints_total_limit", "1"]
    check_twenty_kills([*flags, *QUICK, *life], tmp_path)


def _run(argv: Sequence[str]) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # this is a fork of one process
    assert run(argv) == 0


@pytest.mark.slow
def test_two_processes_of_several_shapes_equal_one_with_twice_the_batch(
    flags: list[str], tmp_path: Path
) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    assert run([*flags, *QUICK, "--train_batch_size", "4", "--output_dir", str(one)]) == 0
    debug_launcher(_run, ([*flags, *QUICK, "--output_dir", str(two)],), num_processes=2)
    found = [read_concept(folder / "concept.safetensors").layers for folder in (two, one)]
    for layer, expected in zip(*found, strict=True):
        torch.testing.assert_close(layer.delta, expected.delta, rtol=1e-3, atol=1e-5)
