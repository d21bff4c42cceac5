"""Textual Inversion: learn the embedding of a new word, alone or beside another method.

Source: Gal et al., An Image is Worth One Word.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from loldu.base.families import family_of
from loldu.errors import LoLDUError
from loldu.files import write_atomically
from trainer.methods.method import Method
from trainer.methods.trained import TEXT_ENCODER, WORDS, State, Trainable
from trainer.options.config import Config

LEARNED_WORD = "learned_embeds.safetensors"


def learn_words(pipeline: DiffusionPipeline, configs: Mapping[str, Config]) -> dict[str, Trainable]:
    """Add the concepts' new words to tokenizers and text encoders, before any prompt is encoded.

    Raises:
        LoLDUError: If a word is not new, or its initializer is not one token.
    """
    family = family_of(pipeline)
    starts: dict[str, dict[str, int]] = {encoder: {} for encoder in family.text_encoders}
    for concept, config in configs.items():
        word, start = config.instance.placeholder_token, config.instance.initializer_token
        if word is None or start is None:
            continue
        for encoder, of_concepts in starts.items():
            tokenizer = getattr(pipeline, encoder.replace(TEXT_ENCODER, "tokenizer"))
            of_concepts[concept] = _add_word(tokenizer, concept, word, start)
    encoders = {encoder: getattr(pipeline, encoder) for encoder in starts}
    return {WORDS: NewWords(encoders, starts, family.word_keys)} if any(starts.values()) else {}


def _add_word(tokenizer: Any, concept: str, word: str, start: str) -> int:  # noqa: ANN401
    """Add a word to a tokenizer, and return the token that it starts from."""
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
    return ids[0]


class NewWords(Trainable):
    """The embeddings of new words: one for each concept that has a word, in each text encoder."""

    gives_base_back = False

    def __init__(
        self,
        text_encoders: Mapping[str, PreTrainedModel],
        initializers: Mapping[str, Mapping[str, int]],
        word_keys: Mapping[str, str],
    ) -> None:
        """Give text encoders the words that their tokenizers already have.

        Args:
            text_encoders: Text encoders by name.
            initializers: By text encoder and concept, the token whose embedding its word starts
                from.
            word_keys: Keys of the vectors in the file of a word; without them it is the word.
        """
        self.tables: dict[str, ExtendedEmbedding] = {}
        for name, text_encoder in text_encoders.items():
            table = text_encoder.get_input_embeddings()
            assert isinstance(table, nn.Embedding)
            self.tables[name] = ExtendedEmbedding(table, initializers[name])
            text_encoder.set_input_embeddings(self.tables[name])
        self._concepts = [*next(iter(initializers.values()))]
        self._word_keys = word_keys

    def parameters(self, concept: str) -> list[nn.Parameter]:
        """Return the vectors of a concept's word, one for each text encoder."""
        return [table.embedding(concept) for table in self.tables.values()]

    def state_dict(self) -> State:
        """Return the vectors."""
        return {key: vector.detach() for key, vector in self._vectors().items()}

    def load_state_dict(self, state: State) -> None:
        """Load the vectors."""
        for key, vector in self._vectors().items():
            vector.data.copy_(state[key])

    def _vectors(self) -> dict[str, nn.Parameter]:
        """Return every vector by concept; those of the text encoders after the first by both."""
        first, *more = self.tables
        named = {concept: self.tables[first].embedding(concept) for concept in self._concepts}
        return named | {
            f"{concept}.{name}": self.tables[name].embedding(concept)
            for name in more
            for concept in self._concepts
        }

    def save_beside(self, folder: Path, concept: str, config: Config) -> None:
        """Write the embeddings of the concept's word, as diffusers and A1111 read them."""
        if (word := config.instance.placeholder_token) is not None:
            vectors: dict[str, Tensor] = {}
            for name, table in self.tables.items():
                vector, key = table.embedding(concept).detach().cpu(), self._word_keys.get(name)
                vectors[key or word] = vector if key is None else vector[None]
            write_atomically(folder / LEARNED_WORD, save(vectors))

    @torch.no_grad()
    def delta_norm(self, concept: str) -> Float[Tensor, ""]:
        """Return the distance of the word's embeddings from their start."""
        row = self._concepts.index(concept)
        moved = [table.embedding(concept) - table.start[row] for table in self.tables.values()]
        return torch.cat(moved).norm()


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
