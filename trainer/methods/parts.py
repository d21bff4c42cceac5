"""What can be trained: adapters on UNet and text encoder, new words, or the whole UNet.

A part has parameters by concept, a state for checkpoints, and a way to be switched off.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from loldu import project, set_concepts
from loldu.adapter.components import layers_with

State = dict[str, Tensor]


class Part(ABC):
    """What is trained in one model of the pipeline."""

    gives_base_back = True
    """Whether `off` does."""

    @abstractmethod
    def parameters(self, concept: str) -> list[nn.Parameter]:
        """What is trained for a concept."""

    @abstractmethod
    def state_dict(self) -> State:
        """All that a checkpoint needs to put it back."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Put it back."""

    def delta_norm(self, concept: str) -> Float[Tensor, ""] | None:
        """How far a concept's weights are from the base's, as a Frobenius norm, where known.

        It stays on the device, so that the host waits once for all concepts.
        """
        return None

    def project(self, max_delta_norm: float) -> None:
        """Bring every weight's change back onto a ball, where it has one."""
        return None

    def off(self) -> AbstractContextManager[None]:
        """The base alone, for as long as the block lasts, where it can be had back."""
        return nullcontext()

    def only(self, concept: str) -> AbstractContextManager[None]:
        """One concept on every row of a batch, for as long as the block lasts."""
        return nullcontext()


class Diagonals(Part):
    """LoLDU or SVFit adapters on one model, a concept each; every row of a batch has its own."""

    def __init__(self, model: Any, configs: Mapping[str, PeftConfig]) -> None:  # noqa: ANN401
        """Put an adapter for every concept on a model (of diffusers or transformers).

        Raises:
            ValueError: the adapter refuses its options, or no layer matches.
        """
        self._model, self._concepts = model, [*configs]
        with warnings.catch_warnings():
            # PEFT warns whenever a model gets its second adapter this way, which is meant here.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            for concept, config in configs.items():
                model.add_adapter(config, adapter_name=concept)
        for concept in configs:  # PEFT trains the active one alone
            for parameter in self.parameters(concept):
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()
        self._give_rows(self._concepts)

    def parameters(self, concept: str) -> list[nn.Parameter]:
        """The offsets of a concept's diagonals, and scales."""
        layers = layers_with(self._model, concept).values()
        return [parameter for layer in layers for parameter in layer.diagonal(concept).parameters()]

    def state_dict(self) -> State:
        """Offsets, start and pivots of every concept."""
        return {
            f"{concept}.{name}": tensor
            for concept in self._concepts
            for name, tensor in get_peft_model_state_dict(self._model, adapter_name=concept).items()
        }

    def load_state_dict(self, state: State) -> None:
        """Put them back."""
        for concept in self._concepts:
            set_peft_model_state_dict(self._model, under(concept, state), adapter_name=concept)

    def delta_norm(self, concept: str) -> Float[Tensor, ""]:
        """‖delta_W‖_F over all layers together."""
        layers = layers_with(self._model, concept).values()
        return torch.stack([layer.delta_norm(concept) for layer in layers]).norm()

    def project(self, max_delta_norm: float) -> None:
        """Rescale every delta_W that is outside its ball."""
        for concept in self._concepts:
            project(self._model, max_delta_norm, concept)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base on every row."""
        with self._rows([None]):
            yield

    @contextmanager
    def only(self, concept: str) -> Iterator[None]:
        """A concept on every row."""
        with self._rows([concept]):
            yield

    @contextmanager
    def _rows(self, rows: Sequence[str | None]) -> Iterator[None]:
        set_concepts(self._model, rows)
        try:
            yield
        finally:
            self._give_rows(self._concepts)

    def _give_rows(self, concepts: Sequence[str]) -> None:
        # A single concept is the active adapter, which is the fastest way to have it on all rows.
        set_concepts(self._model, concepts if len(concepts) > 1 else None)


class Lora(Part):
    """PEFT's LoRA on one model, for one concept: the usual yardstick."""

    def __init__(self, model: Any, config: PeftConfig, concept: str) -> None:  # noqa: ANN401
        """Put it on a model (of diffusers or transformers); its B is zero.

        Raises:
            ValueError: no layer matches.
        """
        self._model, self._concept = model, concept
        model.add_adapter(config, adapter_name=concept)
        for parameter in self.parameters(concept):
            parameter.data = parameter.data.float()

    def parameters(self, concept: str) -> list[nn.Parameter]:
        """A and B of every layer."""
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def state_dict(self) -> State:
        """A and B of every layer."""
        return get_peft_model_state_dict(self._model, adapter_name=self._concept)

    def load_state_dict(self, state: State) -> None:
        """Put them back."""
        set_peft_model_state_dict(self._model, state, adapter_name=self._concept)

    @torch.no_grad()
    def delta_norm(self, concept: str) -> Float[Tensor, ""]:
        """‖B A‖_F over all layers together."""
        layers: list[Any] = [m for m in self._model.modules() if isinstance(m, BaseTunerLayer)]
        norms = [layer.get_delta_weight(concept).float().norm() for layer in layers]
        return torch.stack(norms).norm()

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base alone."""
        self._model.disable_adapters()
        try:
            yield
        finally:
            self._model.enable_adapters()


class WholeModel(Part):
    """Every weight of a model, for one concept: DreamBooth as it was published."""

    gives_base_back = False

    def __init__(self, model: nn.Module) -> None:
        """Let all of a model be trained, in fp32."""
        self._model = model.float().requires_grad_(True)

    def parameters(self, concept: str) -> list[nn.Parameter]:
        """All there are."""
        return [*self._model.parameters()]

    def state_dict(self) -> State:
        """All weights."""
        return self._model.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Put them back."""
        self._model.load_state_dict(state)


class Words(nn.Module):
    """A text encoder's embedding table with new words, whose embeddings are trained.

    Source: Gal et al., An Image is Worth One Word (Textual Inversion).
    """

    def __init__(self, table: nn.Embedding, initializers: Mapping[str, int]) -> None:
        """Put a word for every concept after the table's own, which stays as it is.

        Args:
            table: the text encoder's embedding.
            initializers: by concept, the token whose embedding its word starts from.
        """
        super().__init__()
        self.table = table
        self._rows = {concept: row for row, concept in enumerate(initializers)}
        starts = table.weight.detach()[[*initializers.values()]].float()
        self.learned = nn.ParameterList([nn.Parameter(start.clone()) for start in starts])
        self.start = nn.Buffer(starts, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The frozen table; transformers reads its dtype and device."""
        return self.table.weight

    def forward(self, input_ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Rows of the table, and learned rows for the ids that follow it."""
        known = self.table.num_embeddings
        embedded = self.table(input_ids.clamp(max=known - 1))
        for row, vector in enumerate(self.learned):
            here = (input_ids == known + row)[..., None]
            embedded = torch.where(here, vector.to(embedded.dtype), embedded)
        return embedded

    def embedding(self, concept: str) -> nn.Parameter:
        """What a concept's word has become."""
        return self.learned[self._rows[concept]]


class NewWords(Part):
    """The embeddings of new words, one a concept."""

    gives_base_back = False

    def __init__(self, text_encoder: PreTrainedModel, initializers: Mapping[str, int]) -> None:
        """Give a text encoder the words that its tokenizer already knows."""
        table = text_encoder.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        self.words = Words(table, initializers)
        text_encoder.set_input_embeddings(self.words)
        self._concepts = [*initializers]

    def parameters(self, concept: str) -> list[nn.Parameter]:
        """One vector."""
        return [self.words.embedding(concept)]

    def state_dict(self) -> State:
        """The vectors."""
        return {concept: self.words.embedding(concept).detach() for concept in self._concepts}

    def load_state_dict(self, state: State) -> None:
        """Put them back."""
        for concept in self._concepts:
            self.words.embedding(concept).data.copy_(state[concept])

    @torch.no_grad()
    def delta_norm(self, concept: str) -> Float[Tensor, ""]:
        """How far the word is from where it started."""
        row = self._concepts.index(concept)
        return (self.words.embedding(concept) - self.words.start[row]).norm()


def under(prefix: str, state: State) -> State:
    """The entries below a prefix, without it."""
    return {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in state.items()
        if name.startswith(f"{prefix}.")
    }
