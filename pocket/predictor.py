"""The predictor of the pocket base: a world of things to read, and its training."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loldu.base.config import BaseModelConfig
from loldu.base.families import family_of
from loldu.base.open import load_pipeline, weights_digest
from loldu.files import drafted
from pocket.captions import called_caption
from pocket.corpus import PICTURES_OF_A_THING, Corpus, make_corpus
from pocket.fitting import device
from pocket.pretrain import latents_of
from pocket.render import SIZE_PX
from trainer.predictor.fit import new_predictor, train_predictor
from trainer.predictor.options import (
    DataConfig,
    FittingConfig,
    OutputConfig,
    PredictorConfig,
    ReaderOptions,
)
from trainer.predictor.subjects import Subjects
from trainer.results.lock import locked
from trainer.training.cache import Cache

TOKEN = "sks"


@dataclass(frozen=True)
class Predicting:
    """Amounts of everything.

    Attributes:
        things: Things to learn from, in five pictures each.
        held_out: Of these, how many are measured and not trained on.
        steps: Optimizer steps.
        batch: Pictures that the base denoises in a step.
        rows_per_thing: How many of them show one thing.
        lr: Peak learning rate of the network.
        backbone_lr: Peak learning rate of the DINO that it begins with.
        checkpoint_every: Steps between checkpoints.
    """

    things: int = 8_000
    held_out: int = 200
    steps: int = 6_000
    batch: int = 64
    rows_per_thing: int = 2
    lr: float = 1e-3
    backbone_lr: float = 3e-4
    checkpoint_every: int = 500


def make_predictor(folder: Path, build: Path, output: Path, settings: Predicting) -> None:
    """Render things, train a predictor of the base in `folder`, and write it.

    A stopped training goes on from its last checkpoint.

    Args:
        folder: Folder with `base` and `encoders`.
        build: Folder for work files.
        output: File for the predictor.
        settings: Amounts of everything.
    """
    pipeline: Any = load_pipeline(str(folder / "base"), device=device())
    recipe = hashlib.sha256(repr((settings, weights_digest(pipeline))).encode()).hexdigest()[:8]
    config = predictor_config(folder, build / f"predictor-{recipe}", settings)
    predictor = new_predictor(config, pipeline)
    corpus = make_corpus(build, "things", settings.things * PICTURES_OF_A_THING, seed=8_000_000)
    subjects = encode_things(pipeline, corpus, build)
    with locked(config.output.output_dir):
        trained = train_predictor(config, pipeline, predictor, subjects)
        with drafted(output) as draft:
            shutil.copyfile(trained, draft)


def predictor_config(folder: Path, work: Path, settings: Predicting) -> PredictorConfig:
    """Return the options of the training, as `python -m trainer.predictor` has them."""
    return PredictorConfig(
        base=BaseModelConfig(str(folder / "base")),
        data=DataConfig(token=TOKEN, resolution=SIZE_PX, held_out_subjects=settings.held_out),
        reader=ReaderOptions(backbone=str(folder / "encoders" / "dino")),
        fitting=FittingConfig(
            max_train_steps=settings.steps,
            train_batch_size=settings.batch,
            rows_per_subject=settings.rows_per_thing,
            learning_rate=settings.lr,
            backbone_lr=settings.backbone_lr,
        ),
        output=OutputConfig(work, resume="latest", checkpointing_steps=settings.checkpoint_every),
    )


def encode_things(pipeline: Any, corpus: Corpus, build: Path) -> Subjects:  # noqa: ANN401
    """Return the things of a corpus, encoded by the base; latents are stored in `build`."""
    coded = build / f"things-{weights_digest(pipeline)}"
    coded.mkdir(exist_ok=True)
    latents = latents_of(pipeline.vae, corpus, coded, "things").float().to(pipeline.device)
    captions = [called_caption(scene, TOKEN) for scene in corpus.scenes]
    prompts = sorted({*captions})
    place = {prompt: row for row, prompt in enumerate(prompts)}
    count, each = len(corpus), PICTURES_OF_A_THING
    cache = Cache(
        mean=latents,
        std=torch.zeros_like(latents),
        conditioning=family_of(pipeline).encode_text(pipeline, prompts),
        prompt_of_view=torch.tensor([place[c] for c in captions], device=pipeline.device),
        instances=[range(i, i + 1) for i in range(count)],
        classes=[],
    )
    digest = hashlib.sha256("\n".join(captions).encode()).hexdigest()[:16]
    things = [range(i, i + each) for i in range(0, count, each)]
    return Subjects(corpus.pictures, cache, things, digest)
