"""Prompts of more tokens than a text encoder reads at once: in chunks, as A1111 reads them."""

# diffusers and transformers are typed in part only, and load their public names lazily.
# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

import functools
import inspect
import math
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor

from loldu.base.source import quiet
from loldu.prompts import log_cut

_NEAR = 20
"""A chunk ends after a comma that is among its last tokens, as by default in A1111."""


class StableDiffusionPipeline(diffusers.StableDiffusionPipeline):
    """Stable Diffusion with prompts of several chunks.

    Each chunk is encoded by itself, with its own first and last token, and the states of all chunks
    stand one after the other. It keeps the name of its parent, which diffusers writes into
    `model_index.json`.

    Attributes:
        prompt_chunks: Most chunks of a prompt.
        whole_prompt: Tokens of the prompt whose chunks are being encoded, for the routing of text
            encoders.

    Source: AUTOMATIC1111, stable-diffusion-webui, modules/sd_hijack_clip.py.
    """

    prompt_chunks = 1
    whole_prompt: list[list[int]] | None = None

    @functools.wraps(diffusers.StableDiffusionPipeline.encode_prompt)  # routing reads its signature
    def encode_prompt(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Encode prompts as diffusers does, or all by chunks if one has more than one."""
        encode = super().encode_prompt
        given = inspect.signature(encode).bind(*args, **kwargs)
        given.apply_defaults()
        options = given.arguments
        prompts = _listed(options["prompt"] or "", 1)
        negatives: list[str] = []
        if options["do_classifier_free_guidance"]:
            negatives = _listed(options["negative_prompt"] or "", len(prompts))
        as_states = options["prompt_embeds"] is not None
        as_states = as_states or options["negative_prompt_embeds"] is not None
        chunks = [] if as_states else [prompt_tokens(self, text) for text in prompts + negatives]
        if all(len(own) == 1 for own in chunks):
            return encode(*args, **kwargs)
        states = torch.cat(equally_long([self._states(own) for own in chunks]))
        options |= {"prompt": None, "prompt_embeds": states[: len(prompts)]}
        if negatives:
            options |= {"negative_prompt": None, "negative_prompt_embeds": states[len(prompts) :]}
        return encode(*given.args, **given.kwargs)

    @torch.no_grad()
    def _states(self, chunks: Tensor) -> Tensor:
        """Return the states of a prompt's chunks, (1, chunks * length, dim)."""
        text_encoder: Any = self.text_encoder
        self.whole_prompt = [chunks.flatten().tolist()]
        try:
            return text_encoder(chunks.to(text_encoder.device))[0].flatten(0, 1)[None]
        finally:
            self.whole_prompt = None


def read_long_prompts(pipeline: Any, most_chunks: int) -> None:  # noqa: ANN401
    """Let a pipeline of Stable Diffusion read prompts of up to this many chunks."""
    pipeline.__class__ = StableDiffusionPipeline
    pipeline.prompt_chunks = most_chunks


def prompt_tokens(pipeline: Any, prompt: str) -> Tensor:  # noqa: ANN401
    """Return the tokens of a prompt's chunks, (chunks, length), with first and last tokens.

    Tokens beyond the pipeline's most chunks are left out, with a line of log.
    """
    tokenizer = pipeline.tokenizer
    length = tokenizer.model_max_length
    with quiet():  # transformers would say that the text encoder cannot read so much
        text = pipeline.maybe_convert_prompt(prompt, tokenizer)  # words of several vectors
        tokens = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    comma = tokenizer.get_vocab().get(",</w>")
    chunks = split_tokens(tokens, length - 2, comma)
    kept = chunks[: pipeline.prompt_chunks]
    if len(kept) < len(chunks):
        log_cut(prompt, tokens, sum(map(len, kept)), tokenizer.decode, "the base")
    first, last, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [[first, *own, last] + [pad] * (length - 2 - len(own)) for own in kept]
    return torch.tensor(rows)


def split_tokens(tokens: Sequence[int], size: int, comma: int | None) -> list[list[int]]:
    """Return tokens in chunks of at most `size`; there is always one.

    A chunk that would be cut elsewhere than before a comma ends after the last comma in its last 20
    tokens, if there is one.
    """
    rest, chunks = [*tokens], list[list[int]]()
    while len(rest) > size:
        near = range(size - 1, max(size - _NEAR, 0) - 1, -1)
        commas = [place for place in near if rest[place] == comma]
        end = commas[0] + 1 if commas and rest[size] != comma else size
        chunks.append(rest[:end])
        rest = rest[end:]
    return [*chunks, rest]


def equally_long(rows: Sequence[Tensor]) -> list[Tensor]:
    """Repeat tensors along their second dimension up to the least common multiple of the lengths.

    Attention gives the same result for states that are there several times as for the same states
    once. So a prompt has the same effect as alone, whatever stands in its batch.
    """
    length = math.lcm(*(row.shape[1] for row in rows))
    return [
        row if row.shape[1] == length else torch.cat([row] * (length // row.shape[1]), dim=1)
        for row in rows
    ]


def _listed(texts: str | Sequence[str], count: int) -> list[str]:
    return [texts] * count if isinstance(texts, str) else list(texts)
