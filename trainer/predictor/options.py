"""The options of a predictor's training, with their trade-offs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from loldu.base.config import BaseModelConfig
from loldu.options import option
from trainer.options.config import Rank


@dataclass(frozen=True)
class DataConfig:
    """The subjects to learn from."""

    # Folder with a folder for each subject, each with at least two pictures; or a benchmark in the
    # layout of DreamBooth's dataset (prompts_and_classes.txt) or CustomConcept101 (dataset.json).
    # name.txt beside name.jpg, or else its line of metadata.jsonl, is the prompt of that picture;
    # name-masklabel.png marks what counts. The predictor is good for things like these: hundreds of
    # subjects are few.
    subjects: Path | None = None
    # Prompt of pictures without one of their own; benchmarks give the class name.
    prompt: str = "a photo of a {token} {class_name}"
    # The word that calls every concept; each prompt must contain it.
    token: str = "sks"
    # Side in pixels of the pictures that the base is trained on: its own.
    resolution: int = option(512, at_least=8, multiple_of=8)
    # Subjects that are measured and not trained on; a twentieth by default, at most 200.
    held_out_subjects: int | None = option(None, at_least=0)


@dataclass(frozen=True)
class ReaderOptions:
    """The network, and what it predicts."""

    # Folder or hub id of a ViT or DINOv2 that the network begins with, e.g. facebook/dinov2-small;
    # it is trained on. A new small ViT by default, which needs far more subjects.
    backbone: str | None = None
    # Side in pixels of the pictures that a new ViT reads; a pretrained one reads its own size.
    picture_px: int = option(64, at_least=8, multiple_of=8)
    # Width of the vector that describes a concept: the file holds this many numbers for every
    # number of a concept.
    embedding: int = option(256, at_least=8)
    # Also learn a spread, from which `loldu predict --seed` draws; weight of its divergence from a
    # standard normal distribution, such as 1e-4. 0 predicts the mean alone.
    spread_weight: float = option(0.0, at_least=0)
    # Directions per layer of the predicted concepts, as the trainer's --rank.
    rank: Rank = option("full", at_least=1)
    # Pivoting of the concepts, as the trainer's.
    pivoting: Literal["partial", "complete"] = "partial"
    # Predict in units in which every direction changes its weight equally, which learns better.
    normalize_directions: bool = True
    # Ends of the names of the layers that concepts change; the attention projections by default.
    target_modules: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")


@dataclass(frozen=True)
class FittingConfig:
    """How it is trained."""

    # Optimizer steps; the learning rate falls to zero at the last one.
    max_train_steps: int = option(20_000, at_least=1)
    # Pictures that the base denoises in a step, each with its own predicted concept.
    train_batch_size: int = option(64, at_least=1)
    # Of these, how many share a subject: more read fewer pictures in a step, and are cheaper.
    rows_per_subject: int = option(2, at_least=1)
    # Most pictures that are read of a subject at once; one or two are drawn most often.
    most_pictures: int = option(4, at_least=1)
    # Peak of AdamW's learning rate for the new parts of the network.
    learning_rate: float = option(1e-3, above=0)
    # Peak for the backbone; a pretrained one wants less.
    backbone_lr: float = option(3e-4, above=0)
    # Share of the steps before the learning rates fall.
    lr_hold: float = option(0.5, at_least=0, below=1)
    # Steps in which they rise from zero.
    lr_warmup_steps: int = option(200, at_least=0)
    # Weight decay of AdamW.
    adam_weight_decay: float = option(1e-3, at_least=0)
    # Add this much of the squared Frobenius norms of the predicted changes of weights to the loss,
    # exactly; 0 turns it off.
    delta_norm_penalty: float = option(0.0, at_least=0)
    # Smallest timestep that is trained, of 1000: the lowest have next to no noise, and teach little
    # about a thing.
    min_timestep: int = option(100, at_least=0, at_most=999)
    # Timesteps below this one are trained.
    max_timestep: int = option(1000, at_least=1, at_most=1000)
    # Min-SNR weighting, as the trainer's; the plain loss by default.
    snr_gamma: float | None = option(None, above=0)
    # Precision of the frozen base; the network stays fp32.
    mixed_precision: Literal["no", "bf16"] = "no"
    # Seed of everything that is drawn.
    seed: int = option(0, at_least=0)


@dataclass(frozen=True)
class OutputConfig:
    """Where it goes."""

    # Folder for predictor.safetensors, checkpoint.pt and metrics.jsonl.
    output_dir: Path
    # latest: continue exactly from the checkpoint in the output_dir, with the same options.
    resume: Literal["latest"] | None = None
    # Steps between checkpoints, which also write the predictor as it is and measure the held-out
    # subjects.
    checkpointing_steps: int = option(1000, at_least=1)
    # Steps between lines of metrics.jsonl, each a mean since the last line.
    logging_steps: int = option(50, at_least=1)


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Train a network that reads a concept off one to five pictures, for one base.

    Every row of a batch is denoised with the concept that the network predicts for it, and its
    error teaches the network. The picture that is denoised is never among those that are read, so
    that the network predicts the thing and not its picture.

    `loldu predict` reads concepts with the result; `--init_predictor` of the trainer starts there.
    """

    base: BaseModelConfig = field(default_factory=BaseModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reader: ReaderOptions = field(default_factory=ReaderOptions)
    fitting: FittingConfig = field(default_factory=FittingConfig)
    output: OutputConfig
