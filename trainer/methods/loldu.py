"""LoLDU: train a diagonal between fixed LDU factors of each layer; the result is a concept file."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from loldu import (
    ConceptError,
    LoLDUConfig,
    hotswap_concept,
    predict_concept,
    project,
    read_concept,
    save_concept,
    set_concepts,
)
from loldu.adapter.components import layers_with
from loldu.errors import LoLDUError
from loldu.pictures.folder import CaptionedImage
from loldu.predict.predictor import read_predictor
from trainer.methods.method import Method, add_adapters
from trainer.methods.trained import State, Trainable, Trained, below
from trainer.options.concepts import SINGLE
from trainer.options.config import Config
from trainer.training.instances import split

logger = logging.getLogger(__name__)

CONCEPT = "concept.safetensors"
_ELSEWHERE = ": load it under another name"
"""The cure of `hotswap_concept`, which is not the trainer's."""


def add(
    pipeline: DiffusionPipeline,
    config: Config,
    concepts: Sequence[str],
    factorization: Literal["ldu", "svd"] = "ldu",
) -> dict[str, Trainable]:
    """Add an adapter for every concept."""
    adapter = config.adapter

    def make(model: Any, targets: list[str], rank: int) -> Diagonals:  # noqa: ANN401
        options: dict[str, Any] = {
            "r": rank,
            "alpha": adapter.alpha,
            "factorization": factorization,
            "diagonal_init": adapter.diagonal_init,
            "residual": adapter.residual,
            "pivoting": adapter.pivoting,
            "normalize_directions": adapter.normalize_directions,
            "train_scale": adapter.train_scale,
            "seed": config.optimization.seed,
            "target_modules": targets,
        }
        return Diagonals(model, {concept: LoLDUConfig(**options) for concept in concepts})

    return add_adapters(pipeline, adapter, make)


def read_starts(configs: Mapping[str, Config]) -> None:
    """Read every --init_concept and --init_predictor, before a base is loaded.

    Raises:
        LoLDUError: If one is not a sound file of its kind.
    """
    for config in configs.values():
        if config.adapter.init_concept is not None:
            read_concept(config.adapter.init_concept)
        if config.adapter.init_predictor is not None:
            read_predictor(config.adapter.init_predictor)


def start_from_concepts(
    pipeline: DiffusionPipeline,
    configs: Mapping[str, Config],
    instances: Mapping[str, Sequence[CaptionedImage]] | None = None,
) -> None:
    """Give the adapters the deltas of their --init_concept, or of what --init_predictor predicts.

    Directions beyond these stay at zero.

    Args:
        pipeline: The base, with the adapters.
        configs: Options of every concept.
        instances: Pictures of every concept, of which the predictor reads those to train on.

    Raises:
        LoLDUError: If a concept or predictor is of another base, or has layers or directions that
            its adapter lacks.
    """
    for name, config in configs.items():
        concept, predictor = config.adapter.init_concept, config.adapter.init_predictor
        if concept is not None:
            _start_from(pipeline, name, concept, f"--init_concept {concept}")
        elif predictor is not None:
            assert instances is not None  # a run has pictures
            pictures = [picture.path for picture in split(instances[name], config)[0]]
            with TemporaryDirectory() as folder:
                path, shown = Path(folder) / CONCEPT, f"--init_predictor {predictor}"
                try:
                    predict_concept(pipeline, pictures, predictor, path)
                except ConceptError as error:
                    raise LoLDUError(f"--init_predictor {error}") from error
                _start_from(pipeline, name, path, shown)


def _start_from(pipeline: DiffusionPipeline, name: str, path: Path, shown: str) -> None:
    """Give an adapter the deltas of a concept file, which messages call by its option."""
    try:
        hotswap_concept(pipeline, path, name)
    except ConceptError as error:
        reason, is_smaller, _ = str(error).partition(f"{_ELSEWHERE} with load_concept")
        cure = (
            ": start with the --method, --pivoting and --target_modules of its run, and with "
            "at least its --rank."
        )
        message = reason.replace(str(path), shown)
        raise LoLDUError(f"{message}{cure if is_smaller else ''}") from error
    adapter = "The adapter" if name == SINGLE else name
    logger.info("%s starts from %s", adapter, shown.partition(" ")[2])


def save(
    path: Path,
    pipeline: DiffusionPipeline,
    trained: Trained,
    concept: str,
    metadata: dict[str, Any],
) -> None:
    """Write the concept file.

    Raises:
        LoLDUError: If the adapter cannot be saved, such as after training diverged.
    """
    try:
        save_concept(pipeline, path, concept, metadata, overwrite=True)
    except ConceptError as error:
        raise LoLDUError(f"The concept cannot be saved: {error}.") from error


class Diagonals(Trainable):
    """Adapters on one model, one for each concept; every row of a batch has its own."""

    is_routable = True

    def __init__(self, model: Any, configs: Mapping[str, PeftConfig]) -> None:  # noqa: ANN401
        """Add an adapter for every concept to a model of diffusers or transformers.

        Raises:
            ValueError: If the adapter refuses its options, or no layer matches.
        """
        self._model, self._concepts = model, [*configs]
        with warnings.catch_warnings():
            # PEFT warns whenever a model gets its second adapter this way, which is meant here.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            for concept, config in configs.items():
                model.add_adapter(config, adapter_name=concept)
        for concept in configs:  # PEFT trains only the active one
            for parameter in self.parameters(concept):
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()
        self._set_rows(self._concepts)

    def parameters(self, concept: str) -> list[nn.Parameter]:
        """Return the offsets of a concept's diagonals and scales."""
        layers = layers_with(self._model, concept).values()
        return [parameter for layer in layers for parameter in layer.diagonal(concept).parameters()]

    def state_dict(self) -> State:
        """Return offsets, start and pivots of every concept."""
        return {
            f"{concept}.{name}": tensor
            for concept in self._concepts
            for name, tensor in get_peft_model_state_dict(self._model, adapter_name=concept).items()
        }

    def load_state_dict(self, state: State) -> None:
        """Load offsets, start and pivots of every concept."""
        for concept in self._concepts:
            set_peft_model_state_dict(self._model, below(concept, state), adapter_name=concept)

    def delta_norm(self, concept: str) -> Float[Tensor, ""]:
        """Return ‖delta_W‖_F over all layers together."""
        layers = layers_with(self._model, concept).values()
        return torch.stack([layer.delta_norm(concept) for layer in layers]).norm()

    def squared_delta_norm(self, concept: str) -> Float[Tensor, ""]:
        """Return ‖delta_W‖_F² over all layers together, with its graph."""
        layers = layers_with(self._model, concept).values()
        return torch.stack([layer.squared_delta_norm(concept) for layer in layers]).sum()

    def project(self, max_delta_norm: float) -> None:
        """Rescale every delta_W that is outside its ball."""
        for concept in self._concepts:
            project(self._model, max_delta_norm, concept)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside the block, every row is the base's."""
        with self._rows([None]):
            yield

    @contextmanager
    def only(self, concept: str) -> Iterator[None]:
        """Inside the block, every row has this concept."""
        with self._rows([concept]):
            yield

    @contextmanager
    def free(self) -> Iterator[None]:
        """Inside the block, the words of prompts decide what a row has."""
        with self._rows(None):
            yield

    @contextmanager
    def _rows(self, rows: Sequence[str | None] | None) -> Iterator[None]:
        set_concepts(self._model, rows)
        try:
            yield
        finally:
            self._set_rows(self._concepts)

    def _set_rows(self, concepts: Sequence[str]) -> None:
        # A single concept is the active adapter: the fastest way to have it on all rows.
        set_concepts(self._model, concepts if len(concepts) > 1 else None)


METHOD = Method(
    title="[LoLDU](https://arxiv.org/abs/2410.13618)",
    file_name=CONCEPT,
    about="the concept, exactly as trained, for LoLDU on this base",
    add=add,
    save=save,
    makes_concept=True,
    is_adapter=True,
)
