"""The trained models of a run: one `Trainable` for each of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn

from loldu import route_concepts
from trainer.options.config import Config, OptimizationConfig

TEXT_ENCODER, WORDS = "text_encoder", "words"

State = dict[str, Tensor]


class Trainable(ABC):
    """The trained parameters of one model of the pipeline, such as its adapters.

    Attributes:
        gives_base_back: Whether `off` restores the base after training has begun.
        is_routable: Whether the words of a prompt can decide what its row of a batch has.
    """

    gives_base_back = True
    is_routable = False

    @abstractmethod
    def parameters(self, concept: str) -> list[nn.Parameter]:
        """Return the parameters of a concept."""

    @abstractmethod
    def state_dict(self) -> State:
        """Return the state for a checkpoint."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Load the state of a checkpoint."""

    def delta_norm(self, concept: str) -> Float[Tensor, ""] | None:
        """Return the Frobenius norm of a concept's change of the weights, if it is known.

        It stays on the device, so that the host waits once for all concepts.
        """
        return None

    def squared_delta_norm(self, concept: str) -> Float[Tensor, ""]:
        """Return the squared norm of a concept's change of the weights, with its graph.

        Raises:
            NotImplementedError: If the method has no such norm.
        """
        raise NotImplementedError

    def project(self, max_delta_norm: float) -> None:
        """Project the change of every weight onto a ball, if the method has such a limit."""
        return None

    def save_beside(self, folder: Path, concept: str, config: Config) -> None:
        """Write a file of its own beside the concept's result, if it has one."""
        return None

    def off(self) -> AbstractContextManager[None]:
        """Inside the block, the model is the base's, if `gives_base_back`."""
        return nullcontext()

    def only(self, concept: str) -> AbstractContextManager[None]:
        """Inside the block, every row of a batch has this concept."""
        return nullcontext()

    def free(self) -> AbstractContextManager[None]:
        """Inside the block, nothing else decides what a row has, if it `is_routable`."""
        return nullcontext()


@dataclass(frozen=True)
class Trained:
    """Everything that a run trains, for one concept or several independent ones.

    Attributes:
        concepts: Names of the concepts, which share the passes through the base.
        parts: Trainables by component of the pipeline, the network's first; new words are `WORDS`.
    """

    concepts: tuple[str, ...]
    parts: Mapping[str, Trainable]

    @property
    def trains_text(self) -> bool:
        """Whether the encoding of prompts changes with every step."""
        return any(key == WORDS or key.startswith(TEXT_ENCODER) for key in self.parts)

    @property
    def gives_base_back(self) -> bool:
        """Whether `off` restores the base after training has begun."""
        return all(part.gives_base_back for part in self.parts.values())

    def parameters(self, concept: str | None = None) -> list[nn.Parameter]:
        """Return the trained parameters, in fp32, of one concept or of all."""
        concepts = self.concepts if concept is None else [concept]
        return [
            parameter
            for name in concepts
            for part in self.parts.values()
            for parameter in part.parameters(name)
        ]

    def groups(self, optimization: OptimizationConfig) -> list[dict[str, Any]]:
        """Return the optimizer's groups: parameters and their learning rate."""
        rates = {TEXT_ENCODER: optimization.text_encoder_lr, WORDS: optimization.word_lr}
        return [
            {
                "params": [p for name in self.concepts for p in part.parameters(name)],
                # text_encoder_2 of a base with several has the rate of the first
                "lr": rates.get(key.rstrip("_0123456789")) or optimization.learning_rate,
            }
            for key, part in self.parts.items()
        ]

    def state_dict(self) -> State:
        """Return the state of all parts, for a checkpoint."""
        return {
            f"{key}.{name}": tensor
            for key, part in self.parts.items()
            for name, tensor in part.state_dict().items()
        }

    def load_state_dict(self, state: State) -> None:
        """Load the state of a checkpoint."""
        for key, part in self.parts.items():
            part.load_state_dict(below(key, state))

    def delta_norms(self) -> list[float | None]:
        """Return the norm of each concept's change of the network, or of its word alone.

        The host waits for the device once.
        """
        part = next(iter(self.parts.values()))  # the network comes first
        norms = [part.delta_norm(concept) for concept in self.concepts]
        known = [norm for norm in norms if norm is not None]
        return torch.stack(known).tolist() if known else [None] * len(norms)

    def penalty(self, concept: str, weight: float) -> Float[Tensor, ""] | float:
        """Return `weight` times the squared norms of a concept's changes of all models."""
        if not weight:
            return 0.0
        parts = [part for key, part in self.parts.items() if key != WORDS]
        squares = torch.stack([part.squared_delta_norm(concept) for part in parts])
        return weight * squares.sum().float()

    def project(self, max_delta_norm: float) -> None:
        """Project the change of every weight onto its ball.

        Source: LoLDU, Eq. (10)-(12).
        """
        for part in self.parts.values():
            part.project(max_delta_norm)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside the block, the pipeline is the base alone."""
        with ExitStack() as stack:
            for part in self.parts.values():
                stack.enter_context(part.off())
            yield

    @contextmanager
    def only(self, concept: str) -> Iterator[None]:
        """Inside the block, every row of a batch has this concept."""
        with ExitStack() as stack:
            for part in self.parts.values():
                stack.enter_context(part.only(concept))
            yield

    @contextmanager
    def drawing(
        self, pipeline: DiffusionPipeline, concept: str, words: str | None
    ) -> Iterator[bool]:
        """Inside the block, the pipeline draws as it will with the concept's file.

        With `words`, and a method that can, only prompts with these words get the concept, and
        guidance leads away from the base. All other pictures are the base's.

        Yields:
            Whether words call the concept; otherwise every picture has it.
        """
        if words is None or not any(part.is_routable for part in self.parts.values()):
            with self.only(concept):
                yield False
            return
        with ExitStack() as stack:
            for part in self.parts.values():
                stack.enter_context(part.free())
            route_concepts(pipeline, {concept: words})
            stack.callback(route_concepts, pipeline, None)
            yield True


def below(prefix: str, state: State) -> State:
    """Return the entries below a prefix, without the prefix."""
    return {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in state.items()
        if name.startswith(f"{prefix}.")
    }
