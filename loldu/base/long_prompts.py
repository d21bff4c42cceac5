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

    def prompt_tokens(self, prompt: str) -> list[int]:
        """Return the tokens of all chunks of a prompt, for the gate of routed concepts."""
        return prompt_tokens(self, prompt).flatten().tolist()

    @torch.no_grad()
    def _states(self, chunks: Tensor) -> Tensor:
        """Return the states of a prompt's chunks, (1, chunks * length, dim)."""
        text_encoder: Any = self.text_encoder
        self.whole_prompt = [chunks.flatten().tolist()]
        try:
            return text_encoder(chunks.to(text_encoder.device))[0].flatten(0, 1)[None]
        finally:
            self.whole_prompt = None


class StableDiffusionXLPipeline(diffusers.StableDiffusionXLPipeline):
    """SDXL with prompts of several chunks: both text encoders read each chunk by itself.

    The pooled state is that of the first chunk, as in A1111.

    Attributes:
        prompt_chunks: Most chunks of a prompt.
        whole_prompt: Tokens of the prompt whose chunks are being encoded, for the routing of text
            encoders.

    Source: AUTOMATIC1111, stable-diffusion-webui, modules/sd_hijack_clip.py.
    """

    prompt_chunks = 1
    whole_prompt: list[list[int]] | None = None

    @functools.wraps(diffusers.StableDiffusionXLPipeline.encode_prompt)
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
        texts = [prompts, _listed(options["prompt_2"] or prompts, len(prompts))]
        zeros = options["negative_prompt"] is None and self.config["force_zeros_for_empty_prompt"]
        has_negatives = options["do_classifier_free_guidance"] and not zeros
        if has_negatives:
            negatives = _listed(options["negative_prompt"] or "", len(prompts))
            texts[0] = texts[0] + negatives
            texts[1] = texts[1] + _listed(options["negative_prompt_2"] or negatives, len(prompts))
        given_states = options["prompt_embeds"], options["negative_prompt_embeds"]
        if any(states is not None for states in given_states):
            return encode(*args, **kwargs)
        chunks = [
            [prompt_tokens(self, text, tokenizer) for text in own]
            for own, tokenizer in zip(texts, (self.tokenizer, self.tokenizer_2), strict=True)
        ]
        if all(len(own) == 1 for of_encoder in chunks for own in of_encoder):
            return encode(*args, **kwargs)
        encoded = [self._encoded(*both) for both in zip(*chunks, strict=True)]
        states = torch.cat(equally_long([each[0] for each in encoded]))
        pooled, count = torch.cat([each[1] for each in encoded]), len(prompts)
        options |= {"prompt": None, "prompt_embeds": states[:count]}
        options["pooled_prompt_embeds"] = pooled[:count]
        if has_negatives:
            options |= {"negative_prompt": None, "negative_prompt_embeds": states[count:]}
            options["negative_pooled_prompt_embeds"] = pooled[count:]
        return encode(*given.args, **given.kwargs)

    def prompt_tokens(self, prompt: str) -> list[int]:
        """Return the tokens of all chunks of a prompt, for the gate of routed concepts."""
        return prompt_tokens(self, prompt).flatten().tolist()

    @torch.no_grad()
    def _encoded(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return a prompt's states, (1, chunks * length, dim), and its pooled state, (1, width)."""
        states: list[Tensor] = []
        pooled = first
        for encoder, chunks in ((self.text_encoder, first), (self.text_encoder_2, second)):
            text_encoder: Any = encoder
            self.whole_prompt = [chunks.flatten().tolist()]
            try:
                output = text_encoder(chunks.to(text_encoder.device), output_hidden_states=True)
            finally:
                self.whole_prompt = None
            states.append(output.hidden_states[-2].flatten(0, 1)[None])
            pooled = output[0][:1]  # the second one's projection
        return torch.cat(equally_long(states), dim=-1), pooled


def read_long_prompts(pipeline: Any, most_chunks: int) -> None:  # noqa: ANN401
    """Let a pipeline of Stable Diffusion or SDXL read prompts of up to this many chunks."""
    is_xl = isinstance(pipeline, diffusers.StableDiffusionXLPipeline)
    pipeline.__class__ = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    pipeline.prompt_chunks = most_chunks


def prompt_tokens(pipeline: Any, prompt: str, tokenizer: Any = None) -> Tensor:  # noqa: ANN401
    """Return the tokens of a prompt's chunks, (chunks, length), with first and last tokens.

    Tokens beyond the pipeline's most chunks are left out, with a line of log.

    Args:
        pipeline: The pipeline.
        prompt: The prompt.
        tokenizer: The tokenizer; the pipeline's first one by default.
    """
    tokenizer = tokenizer or pipeline.tokenizer
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
