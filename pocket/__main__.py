"""Builds what the project ships: ``python -m pocket pretrain | pretrain-... | concepts``."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from pocket.concepts import render_concept
from pocket.llama import Recipe as LlamaRecipe
from pocket.llama import pretrain_llama
from pocket.pretrain import Recipe, pretrain
from pocket.roberta import RobertaRecipe, pretrain_roberta
from pocket.vit import VitRecipe, pretrain_vit
from pocket.world import CONCEPTS

_HERE = Path(__file__).parent
_BUILD = Path.home() / ".cache" / "loldu" / "pocket"


@dataclass(frozen=True)
class Pretrain:
    """Render the world and train every part of the base; stop and start it as you like.

    Attributes:
        output: Where `base` and `encoders` are written.
        build: Work files, 2 GB: the corpus, checkpoints, logs.
        recipe: How much of everything.
    """

    output: Path = _HERE
    build: Path = _BUILD
    recipe: tyro.conf.OmitArgPrefixes[Recipe] = field(default_factory=Recipe)

    def run(self) -> None:
        """Runs the command."""
        pretrain(self.output, self.build, self.recipe)


@dataclass(frozen=True)
class PretrainVit:
    """Train the base of the image experiments on the world's labels; stop and start as you like.

    Attributes:
        output: The folder to write, in transformers' format; it is replaced.
        build: Work files, 1 GB: the corpus, checkpoints, logs.
        recipe: How much of everything; a quarter of an hour on one core.
    """

    output: Path = _HERE / "bases" / "vit"
    build: Path = _BUILD
    recipe: tyro.conf.OmitArgPrefixes[VitRecipe] = field(default_factory=VitRecipe)

    def run(self) -> None:
        """Runs the command."""
        pretrain_vit(self.output, self.build, self.recipe)


@dataclass(frozen=True)
class PretrainLlama:
    """Train the small LLaMA on texts of the world; stop and start it as you like.

    Attributes:
        output: The transformers folder to write.
        build: Work files: checkpoints, logs.
        recipe: How much of everything.
    """

    output: Path = _HERE / "bases" / "llama"
    build: Path = _BUILD
    recipe: tyro.conf.OmitArgPrefixes[LlamaRecipe] = field(default_factory=LlamaRecipe)

    def run(self) -> None:
        """Runs the command."""
        pretrain_llama(self.output, self.build, self.recipe)


@dataclass(frozen=True)
class PretrainRoberta:
    """Train the base of the text experiments by masking words; stop and start it as you like.

    Attributes:
        output: The folder to write, in transformers' format.
        build: Work files: checkpoints, logs.
        recipe: How much of everything; a quarter of an hour on one core.
    """

    output: Path = _HERE / "bases" / "roberta"
    build: Path = _BUILD
    recipe: tyro.conf.OmitArgPrefixes[RobertaRecipe] = field(default_factory=RobertaRecipe)

    def run(self) -> None:
        """Runs the command."""
        pretrain_roberta(self.output, self.build, self.recipe)


@dataclass(frozen=True)
class Concepts:
    """Render the concepts that training never saw: five pictures and up to six held-out ones each.

    Attributes:
        output: Where a folder a concept is written.
        token: The rare token of the captions.
    """

    output: Path = _HERE.parent / "datasets" / "concepts"
    token: str = "sks"

    def run(self) -> None:
        """Runs the command."""
        for name, look in CONCEPTS.items():
            render_concept(name, look, self.output / name, self.token)


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    commands = (
        Annotated[Pretrain, tyro.conf.subcommand("pretrain")]
        | Annotated[PretrainVit, tyro.conf.subcommand("pretrain-vit")]
        | Annotated[PretrainLlama, tyro.conf.subcommand("pretrain-llama")]
        | Annotated[PretrainRoberta, tyro.conf.subcommand("pretrain-roberta")]
        | Annotated[Concepts, tyro.conf.subcommand("concepts")]
    )
    tyro.cli(commands, prog="python -m pocket").run()  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
