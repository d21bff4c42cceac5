"""Textual Inversion: learn the embedding of a new word, alone or beside another method.

Source: Gal et al., An Image is Worth One Word.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from loldu.errors import LoLDUError
from loldu.files import write_atomically
from trainer.methods.method import Method
from trainer.methods.trained import WORDS, State, Trainable
from trainer.options.config import Config

LEARNED_WORD = "learned_embeds.safetensors"


def learn_words(pipeline: DiffusionPipeline, configs: Mapping[str, Config]) -> dict[str, Trainable]:
    """Add the concepts' new words to tokenizer and text encoder, before any prompt is encoded.

    Raises:
        LoLDUError: If a word is not new, or its initializer is not one token.
    """
    initializers: dict[str, int] = {}
    for concept, config in configs.items():
        word, start = config.instance.placeholder_token, config.instance.initializer_token
        if word is None or start is None:
            continue
        tokenizer = pipeline.tokenizer
        ids = tokenizer.encode(start, add_special_tokens=False)
        if len(ids) != 1:
            raise LoLDUError(
                f"--initializer_token {start} is {len(ids)} tokens to this base; give a common "
                "word that is one, such as dog."
            )
        if len(tokenizer.encode(word, add_special_tokens=False)) == 1:
            raise LoLDUError(
                f"--placeholder_token {word} is a word that this base knows, or another "
                f"concept's; make one up, such as <{concept}>."
            )
        tokenizer.add_tokens(word)
        initializers[concept] = ids[0]
    return {WORDS: NewWords(pipeline.text_encoder, initializers)} if initializers else {}


class NewWords(Trainable):
    """The embeddings of new words, one for each concept that has a word."""

    gives_base_back = False

    def __init__(self, text_encoder: PreTrainedModel, initializers: Mapping[str, int]) -> None:
        """Give a text encoder the words that its tokenizer already has."""
        table = text_encoder.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        self.table = ExtendedEmbedding(table, initializers)
        text_encoder.set_input_embeddings(self.table)
        self._concepts = [*initializers]

    def parameters(self, concept: str) -> list[nn.Parameter]:
        """Return the one vector of a concept's word."""
        return [self.table.embedding(concept)]

    def state_dict(self) -> State:
        """Return the vectors."""
        return {concept: self.table.embedding(concept).detach() for concept in self._concepts}

    def load_state_dict(self, state: State) -> None:
        """Load the vectors."""
        for concept in self._concepts:
            self.table.embedding(concept).data.copy_(state[concept])

    def save_beside(self, folder: Path, concept: str, config: Config) -> None:
        """Write the embedding of the concept's word, as diffusers and A1111 read it."""
        if (word := config.instance.placeholder_token) is not None:
            vector = self.table.embedding(concept).detach().cpu()
            write_atomically(folder / LEARNED_WORD, save({word: vector}))

    @torch.no_grad()
    def delta_norm(self, concept: str) -> Float[Tensor, ""]:
        """Return the distance of the word's embedding from its start."""
        row = self._concepts.index(concept)
        return (self.table.embedding(concept) - self.table.start[row]).norm()


class ExtendedEmbedding(nn.Module):
    """A frozen embedding table followed by trained rows for new words."""

    def __init__(self, table: nn.Embedding, initializers: Mapping[str, int]) -> None:
        """Add a row for every concept's word.

        Args:
            table: Embedding table of the text encoder.
            initializers: By concept, the token whose embedding its word starts from.
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
        """Return rows of the table, and learned rows for the ids that follow it."""
        known = self.table.num_embeddings
        embedded = self.table(input_ids.clamp(max=known - 1))
        for row, vector in enumerate(self.learned):
            here = (input_ids == known + row)[..., None]
            embedded = torch.where(here, vector.to(embedded.dtype), embedded)
        return embedded

    def embedding(self, concept: str) -> nn.Parameter:
        """Return the embedding of a concept's word."""
        return self.learned[self._rows[concept]]


METHOD = Method(
    title="Textual Inversion",
    file_name=LEARNED_WORD,
    about="the embedding of its word, for A1111, ComfyUI and diffusers",
    add=lambda *_: {},  # `learn_words` has added the words, as for every method
    save=lambda *_: None,  # `NewWords` writes its file, as for every method
)
