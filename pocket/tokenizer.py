"""A CLIPTokenizer with a small vocabulary, in CLIP's own layout: bytes, bytes</w>, merges."""

import json
import random

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, CLIPTokenizer

from pocket.captions import random_caption
from pocket.world import INDIVIDUALS, RARE_TOKENS, random_scene, two_things

MAX_LENGTH = 32
_MERGES = 240


def build_tokenizer(captions: int = 20_000) -> CLIPTokenizer:
    """Learn byte-pair merges from captions of the world.

    The vocabulary holds every byte with and without the end-of-word mark, so no text has unknown
    tokens. They would look like the end of the text, where CLIP pools.
    """
    rng = random.Random(0)
    texts = [random_caption(random_scene(rng), rng) for _ in range(captions)]
    two = (two_things(rng) for _ in range(captions // 5))
    texts += [random_caption(scene, rng) for scene in two if "name" not in scene]
    texts += [f"{token} toy" for token in RARE_TOKENS for _ in range(captions // 20)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + _MERGES,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    learned = bpe.get_vocab()
    known = {*alphabet, *(byte + "</w>" for byte in alphabet)}
    words = sorted((t for t in learned if t not in known), key=learned.__getitem__)
    merges = [(first, second) for first, second in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet), *words]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,  # pyright: ignore[reportArgumentType]
        model_max_length=MAX_LENGTH,
    )


def add_names(tokenizer: CLIPTokenizer) -> None:
    """Give the name of every individual its own token, after all others."""
    tokenizer.add_tokens([AddedToken(name, single_word=True) for name in INDIVIDUALS])
