"""``python -m pocket``: make and judge the embedded base, its predictor and example concepts."""

import json
import logging
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from loldu.command import run_command
from loldu.errors import LoLDUError
from loldu.options import values_of
from pocket.classifier import load_classifier
from pocket.concepts import render_concept
from pocket.corpus import make_corpus
from pocket.judge import judge_closely
from pocket.predictor import Predicting, make_predictor
from pocket.pretrain import ENCODERS, Encoder, Pretraining, pretrain, pretrain_encoders
from pocket.world import CONCEPTS

_HERE = Path(__file__).parent
_BUILD = Path.home() / ".cache" / "loldu" / "pocket"


def check_amounts(settings: object) -> None:
    """Check that every amount is at least 1, before anything is rendered.

    Raises:
        LoLDUError: If one is less.
    """
    for name, value in values_of(settings).items():
        if isinstance(value, int) and value < 1:
            raise LoLDUError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")


@dataclass(frozen=True)
class Pretrain:
    """Render the world and train every part of the base. You can stop and restart it.

    Attributes:
        output: Folder for `base` and `encoders`.
        build: Folder for work files, 2 GB: the corpus, checkpoints, logs.
        keep: Folder with a finished `base` and `encoders`, e.g. `pocket`. Its VAE and encoders are
            kept; only UNet and text encoder are trained.
        start: Checkpoint folder from which UNet and text encoder go on.
        settings: Amounts of everything.
    """

    output: Path = _HERE
    build: Path = _BUILD
    keep: Path | None = None
    start: Path | None = None
    settings: tyro.conf.OmitArgPrefixes[Pretraining] = field(default_factory=Pretraining)

    def run(self) -> None:
        """Run the command."""
        check_amounts(self.settings)
        pretrain(self.output, self.build, self.settings, self.keep, self.start)


@dataclass(frozen=True)
class Encoders:
    """Train the encoders of a finished base anew: the classifier of attributes, DINO and CLIP.

    Attributes:
        names: Encoders to train; the others stay as they are.
        folder: Folder with `base` and `encoders`.
        build: Folder for work files.
        settings: Amounts of everything.
    """

    names: tyro.conf.Positional[tuple[Encoder, ...]] = ENCODERS
    folder: Path = _HERE
    build: Path = _BUILD
    settings: tyro.conf.OmitArgPrefixes[Pretraining] = field(default_factory=Pretraining)

    def run(self) -> None:
        """Run the command."""
        check_amounts(self.settings)
        pretrain_encoders(self.folder, self.build, self.settings, self.names)


@dataclass(frozen=True)
class Judge:
    """Measure a base on held-out scenes: attributes, dots and stripes, edges, names.

    A ResNet-18 is also trained to tell samples from reconstructions: half an hour on two cores.

    Attributes:
        folder: Folder with `base` and `encoders`.
        base: Pipeline folder; `base` in `folder` by default.
        output: JSON file for the result, which is printed too.
        build: Folder for work files.
        pictures: Samples for the training of that ResNet-18; 1/8 more are its test.
        two: Scenes of two things.
    """

    folder: Path = _HERE
    base: Path | None = None
    output: Path | None = None
    build: Path = _BUILD
    pictures: int = 4_000
    two: int = 500

    def run(self) -> None:
        """Run the command."""
        from loldu.base.open import load_pipeline

        pipeline: Any = load_pipeline(str(self.base or self.folder / "base"))
        classifier = load_classifier(self.folder / "encoders" / "attributes.safetensors")
        one = make_corpus(self.build, "judged", self.pictures * 9 // 8, seed=6_000_000)
        two = make_corpus(self.build, "judged_two", self.two, seed=7_000_000)
        report = json.dumps(judge_closely(pipeline, classifier, one, two), indent=2) + "\n"
        if self.output:
            self.output.write_text(report, encoding="utf-8")
        sys.stdout.write(report)


@dataclass(frozen=True)
class Concepts:
    """Render the held-out concepts: for each, five pictures and up to six more for scoring.

    Attributes:
        output: Folder that gets one folder per concept.
        token: Rare token in the captions.
    """

    output: Path = _HERE.parent / "datasets" / "concepts"
    token: str = "sks"

    def run(self) -> None:
        """Run the command."""
        for name, look in CONCEPTS.items():
            render_concept(name, look, self.output / name, self.token)


@dataclass(frozen=True)
class Predictor:
    """Train the network that reads concepts off pictures. You can stop and restart it.

    Attributes:
        folder: Folder with `base` and `encoders`.
        output: File for the predictor; `predictor.safetensors` in `folder` by default.
        build: Folder for work files: pictures of things, checkpoints, logs.
        settings: Amounts of everything.
    """

    folder: Path = _HERE
    output: Path | None = None
    build: Path = _BUILD
    settings: tyro.conf.OmitArgPrefixes[Predicting] = field(default_factory=Predicting)

    def run(self) -> None:
        """Run the command."""
        check_amounts(self.settings)
        output = self.output or self.folder / "predictor.safetensors"
        make_predictor(self.folder, self.build, output, self.settings)


def main() -> int:
    """Run the command line and return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    commands = (
        Annotated[Pretrain, tyro.conf.subcommand("pretrain")]
        | Annotated[Encoders, tyro.conf.subcommand("encoders")]
        | Annotated[Judge, tyro.conf.subcommand("judge")]
        | Annotated[Concepts, tyro.conf.subcommand("concepts")]
        | Annotated[Predictor, tyro.conf.subcommand("predictor")]
    )
    parse = partial(tyro.cli, commands, prog="python -m pocket")  # type: ignore[arg-type]
    return run_command(lambda: parse().run())


if __name__ == "__main__":
    sys.exit(main())
