"""Prompts in chunks, against A1111's rule written out token by token."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from loldu.base.config import BaseModelConfig
from loldu.base.draw import sample_images
from loldu.base.families import family_of
from loldu.base.long_prompts import equally_long, split_tokens
from loldu.base.open import load_pipeline
from loldu.base.stable_diffusion import STATES, TOKENS, embed

LONG = "a b c d e f g h i j k l m n o p q r s"
"""19 tokens; the tiny text encoder reads 14 at once."""
COMMA = 99


@pytest.fixture
def reads_long(base_folder: Path) -> StableDiffusionPipeline:
    return load_pipeline(BaseModelConfig(str(base_folder), prompt_chunks=3))


def chunked_by_a1111(tokens: list[int], size: int, backtrack: int = 20) -> list[list[int]]:
    """The rule as a machine that reads one token after the other."""
    done: list[list[int]] = []
    now: list[int] = []
    comma_at = None
    for token in tokens:
        if token == COMMA:
            comma_at = len(now)
        elif len(now) == size and comma_at is not None and size - comma_at <= backtrack:
            now, moved = now[: comma_at + 1], now[comma_at + 1 :]
            done.append(now)
            now, comma_at = moved, None
        if len(now) == size:
            done.append(now)
            now, comma_at = [], 0 if token == COMMA else None
        now = [*now, token]
    return [*done, now] if now or not done else done


@pytest.mark.parametrize("every", [0, 7, 13, 18, 25, 40, 60, 75, 76])
def test_chunks_are_those_of_a1111(every: int) -> None:
    for count in (0, 1, 74, 75, 76, 149, 150, 151, 200, 225, 226):
        tokens = [COMMA if every and place % every == 5 else place % 90 for place in range(count)]
        found = split_tokens(tokens, 75, COMMA)
        assert found == chunked_by_a1111(tokens, 75)
        assert [token for chunk in found for token in chunk] == tokens


def test_a_comma_near_the_end_moves_the_rest() -> None:
    tokens = [*range(60), COMMA, *range(100, 160)]
    assert split_tokens(tokens, 75, COMMA) == [tokens[:61], tokens[61:]]
    tokens = [*range(54), COMMA, *range(100, 160)]  # 21 tokens before the end
    assert split_tokens(tokens, 75, COMMA) == [tokens[:75], tokens[75:]]
    tokens = [*range(60), COMMA, *range(100, 114), COMMA, *range(200, 210)]
    assert split_tokens(tokens, 75, COMMA) == [tokens[:75], tokens[75:]]


def by_hand(pipeline: StableDiffusionPipeline, prompt: str) -> torch.Tensor:
    """Return the states of a prompt without commas, chunk by chunk."""
    tokenizer = pipeline.tokenizer
    tokens = tokenizer(prompt, add_special_tokens=False).input_ids
    states = []
    for start in range(0, len(tokens), 14):
        own = tokens[start : start + 14]
        row = [tokenizer.bos_token_id, *own, tokenizer.eos_token_id]
        row += [tokenizer.pad_token_id] * (16 - len(row))
        with torch.no_grad():
            states.append(pipeline.text_encoder(torch.tensor([row]))[0])
    return torch.cat(states, dim=1)


def test_states_of_long_prompts(reads_long: StableDiffusionPipeline) -> None:
    expected = by_hand(reads_long, LONG)
    assert expected.shape[1] == 32
    torch.testing.assert_close(embed(reads_long, [LONG]), expected)
    both = embed(reads_long, ["a b", LONG, f"{LONG} {LONG}"])
    assert both.shape[1] == math.lcm(16, 32, 48)
    torch.testing.assert_close(both[0], by_hand(reads_long, "a b")[0].repeat(6, 1))
    torch.testing.assert_close(both[1], expected[0].repeat(3, 1))
    torch.testing.assert_close(both[2], by_hand(reads_long, f"{LONG} {LONG}")[0].repeat(2, 1))


def test_short_prompts_stay_as_they_are(
    reads_long: StableDiffusionPipeline, pipeline: StableDiffusionPipeline
) -> None:
    prompts = ["a b", "a b c d e f g h i j k l m n"]
    ours = family_of(reads_long).encode_text(reads_long, prompts)
    theirs = family_of(pipeline).encode_text(pipeline, prompts)
    assert all(torch.equal(ours[name], theirs[name]) for name in (STATES, TOKENS))
    first, second = (
        sample_images(each, prompts, [1, 2], num_inference_steps=2)
        for each in (reads_long, pipeline)
    )
    assert [image.tobytes() for image in first] == [image.tobytes() for image in second]


def test_trained_text_encoders_read_the_same_chunks(reads_long: StableDiffusionPipeline) -> None:
    family = family_of(reads_long)
    conditioning = family.encode_text(reads_long, ["a b", LONG])
    with torch.no_grad():
        again = family.encode_again({"text_encoder": reads_long.text_encoder}, conditioning)
    torch.testing.assert_close(again[STATES], conditioning[STATES])


def test_a_repeated_prompt_draws_the_same_picture(
    reads_long: StableDiffusionPipeline, predict: Callable[..., torch.Tensor]
) -> None:
    states = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    once, twice = equally_long([states, torch.cat([states] * 2, dim=1)])
    assert torch.equal(once, twice)
    with torch.no_grad():
        short = reads_long.unet(latents, torch.tensor([10, 500]), states).sample
        long = reads_long.unet(latents, torch.tensor([10, 500]), once).sample
    torch.testing.assert_close(short, long, rtol=1e-4, atol=1e-5)


def test_pictures_of_long_prompts_do_not_depend_on_the_batch(
    reads_long: StableDiffusionPipeline, pipeline: StableDiffusionPipeline
) -> None:
    prompts, seeds = ["a b", LONG, f"{LONG} x {LONG}"], [3, 4, 5]
    together = sample_images(reads_long, prompts, seeds, num_inference_steps=2)
    for prompt, seed, image in zip(prompts, seeds, together, strict=True):
        (alone,) = sample_images(reads_long, [prompt], [seed], num_inference_steps=2)
        difference = [abs(a - b) for a, b in zip(alone.tobytes(), image.tobytes(), strict=True)]
        assert max(difference) <= 2
    (cut,) = sample_images(pipeline, [LONG], [4], num_inference_steps=2)
    assert cut.tobytes() != together[1].tobytes()


def test_what_is_too_long_for_all_chunks_is_named(
    reads_long: StableDiffusionPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    states = embed(reads_long, [f"{LONG} {LONG} y y y y y y"])
    assert states.shape[1] == 48
    (line,) = [record.getMessage() for record in caplog.records]
    assert 'has 44 tokens, and the base reads 42 of a prompt: "y y" is left out' in line


def test_the_pipeline_is_saved_copied_and_pickled_under_its_name(
    reads_long: StableDiffusionPipeline, tmp_path: Path
) -> None:
    assert type(reads_long).__name__ == "StableDiffusionPipeline"
    reads_long.save_pretrained(tmp_path)
    assert type(StableDiffusionPipeline.from_pretrained(tmp_path)) is StableDiffusionPipeline
    for again in (copy.deepcopy(reads_long), pickle.loads(pickle.dumps(reads_long))):
        assert again.prompt_chunks == 3
        assert torch.equal(embed(again, [LONG]), embed(reads_long, [LONG]))
