"""A concept acts in the pictures whose prompt calls it, in ordinary diffusers pipelines."""

import ast
import copy
import inspect
import logging
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from loldu import (
    ConceptError,
    LoLDUConfig,
    hotswap_concept,
    load_concept,
    mix,
    route_concepts,
    save_concept,
    set_concepts,
    set_strength,
    unload_concept,
)
from loldu.adapter.components import adapted_layers, text_layers
from loldu.base.long_prompts import equally_long, read_long_prompts

TOKENIZER = Path(__file__).parents[3] / "pocket" / "base" / "tokenizer"
TOKENS = {"sks": "sks", "wug": "wug toy", "style": None}
PROMPTS = ["a photo of a toy", "a photo of a sks toy", "a red car", "a wug toy at night"]

Files = Callable[[str], Path]


@pytest.fixture
def pipeline(make_pipeline: Callable[[], StableDiffusionPipeline]) -> StableDiffusionPipeline:
    """A tiny base with a real tokenizer."""
    pipeline = make_pipeline()
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(4)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    text_encoder = CLIPTextModel(config).eval()
    pipeline.register_modules(tokenizer=tokenizer, text_encoder=text_encoder)
    return pipeline


@pytest.fixture
def base(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    return copy.deepcopy(pipeline)


@pytest.fixture
def files(base: StableDiffusionPipeline, tmp_path: Path) -> Files:
    """Concept files: two with words change both networks, a style without words the UNet."""
    for seed, (name, token) in enumerate(TOKENS.items()):
        source = copy.deepcopy(base)
        torch.manual_seed(seed)
        source.unet.add_adapter(LoLDUConfig(r=4, init_weights=False), "default")
        if token:
            source.text_encoder.add_adapter(LoLDUConfig(r=4, init_weights=False), "default")
        metadata = {"token": token} if token else {}
        save_concept(source, tmp_path / name, metadata=metadata)
    return tmp_path.joinpath


def draw(pipeline: Any, prompts: str | Sequence[str] | None, **options: Any) -> np.ndarray:  # noqa: ANN401
    """Two steps of every prompt from the noise of its place, as pixels."""
    count = len(prompts) if isinstance(prompts, list) else 1
    count *= options.get("num_images_per_prompt", 1)
    settings: dict[str, Any] = {
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "height": 8,
        "width": 8,
        "output_type": "np",
        "generator": [torch.Generator().manual_seed(seed) for seed in range(count)],
    }
    return pipeline(prompts, **settings | options).images


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Largest difference of each picture."""
    return abs(a - b).max(axis=(1, 2, 3))


@pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
def test_prompts_get_the_concepts_that_they_call(
    base: StableDiffusionPipeline,
    pipeline: StableDiffusionPipeline,
    files: Files,
    guidance_scale: float,
) -> None:
    options = {"guidance_scale": guidance_scale}
    plain = draw(base, PROMPTS, **options)
    load_concept(pipeline, files("sks"), "dog")
    load_concept(pipeline, files("wug"), "cat")
    drawn = draw(pipeline, PROMPTS, **options)
    # Without a word of a concept, the picture is the base's bit by bit.
    assert np.array_equal(drawn[[0, 2]], plain[[0, 2]])
    assert np.array_equal(draw(pipeline, "a red car"), draw(base, "a red car"))
    assert difference(drawn, plain)[[1, 3]].min() > 1e-3
    expected = draw_by_rows(copy.deepcopy(base), files, guidance_scale)
    np.testing.assert_allclose(drawn, expected, atol=1e-5)


def test_every_chunk_of_a_long_prompt_has_the_concept_that_any_of_them_calls(
    base: StableDiffusionPipeline, pipeline: StableDiffusionPipeline, files: Files
) -> None:
    for each in (base, pipeline):
        read_long_prompts(each, 3)
    filler = "a red car " * 20
    prompts = [f"sks {filler}", f"{filler} sks", filler]
    load_concept(pipeline, files("sks"), "dog")
    drawn = draw(pipeline, prompts)
    assert np.array_equal(drawn[2], draw(base, prompts)[2])
    by_hand = copy.deepcopy(base)
    load_concept(by_hand, files("sks"), "dog", route=False)
    set_concepts(by_hand.text_encoder, ["dog"])
    states = by_hand.encode_prompt(prompts[:2], "cpu", 1, False)[0]
    assert states.shape[1] > base.tokenizer.model_max_length
    set_concepts(by_hand.text_encoder, [None])
    nothing = by_hand.encode_prompt(["", ""], "cpu", 1, False)[0]
    set_concepts(by_hand.unet, [None, None, "dog", "dog"])
    states, nothing = equally_long([states, nothing])
    noise = [torch.Generator().manual_seed(seed) for seed in range(2)]
    embeds = {"prompt_embeds": states, "negative_prompt_embeds": nothing}
    expected = draw(by_hand, None, generator=noise, **embeds)
    np.testing.assert_allclose(drawn[:2], expected, atol=1e-5)


def draw_by_rows(
    pipeline: StableDiffusionPipeline, files: Files, guidance_scale: float
) -> np.ndarray:
    """Draw `PROMPTS` without routing: every row of every network is chosen by hand."""
    load_concept(pipeline, files("sks"), "dog", route=False)
    load_concept(pipeline, files("wug"), "cat", route=False)
    rows = [None, "dog", None, "cat"]
    set_concepts(pipeline.text_encoder, rows)
    states = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0]
    set_concepts(pipeline.text_encoder, [None])
    nothing = pipeline.encode_prompt([""] * len(rows), "cpu", 1, False)[0]
    set_concepts(pipeline.unet, [None] * (len(rows) if guidance_scale > 1 else 0) + rows)
    return draw(
        pipeline,
        None,
        prompt_embeds=states,
        negative_prompt_embeds=nothing,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(rows))],
    )


@pytest.mark.parametrize(
    ("prompt", "called"),
    [
        ("sks", True),
        ("a (SKS toy:1.2)", True),
        ("a toy, sks-like", True),
        ("the sks's house", True),
        ("two asks", False),
        ("a sksy toy", False),
        ("a s k s toy", False),
        ("a toy " * 80 + "sks", False),  # the text encoder reads 77 tokens
    ],
)
def test_words_are_whole_words_that_the_text_encoder_reads(
    base: StableDiffusionPipeline,
    pipeline: StableDiffusionPipeline,
    files: Files,
    prompt: str,
    called: bool,
) -> None:
    load_concept(pipeline, files("sks"))
    same = np.array_equal(draw(pipeline, prompt), draw(base, prompt))
    assert same is not called


def test_other_words_may_call_a_concept(
    base: StableDiffusionPipeline, pipeline: StableDiffusionPipeline, files: Files
) -> None:
    load_concept(pipeline, files("sks"), words="red car")
    same = difference(draw(pipeline, PROMPTS), draw(base, PROMPTS)) == 0
    assert same.tolist() == [True, True, False, True]


def test_every_picture_of_a_prompt_has_its_concept(
    base: StableDiffusionPipeline, pipeline: StableDiffusionPipeline, files: Files
) -> None:
    load_concept(pipeline, files("sks"))
    drawn = draw(pipeline, PROMPTS, num_images_per_prompt=2)
    same = difference(drawn, draw(base, PROMPTS, num_images_per_prompt=2)) == 0
    assert same.tolist() == [True, True, False, False, True, True, True, True]
    # All prompts call it: the unconditional rows alone are the base's.
    four = [torch.Generator().manual_seed(seed) for seed in range(8)][2:4]
    together = draw(pipeline, "a photo of a sks toy", num_images_per_prompt=2, generator=four)
    np.testing.assert_allclose(together, drawn[2:4], atol=1e-5)


def test_a_negative_prompt_calls_concepts_too(
    base: StableDiffusionPipeline, pipeline: StableDiffusionPipeline, files: Files
) -> None:
    load_concept(pipeline, files("sks"))
    for negative, same in (("a toy", True), ("a sks toy", False)):
        options = {"negative_prompt": negative}
        equal = np.array_equal(draw(pipeline, "a toy", **options), draw(base, "a toy", **options))
        assert equal is same
    options = {"negative_prompt": ["a toy", "a sks toy"]}
    drawn, plain = (draw(y, ["a toy", "a toy"], **options) for y in (pipeline, base))
    assert (difference(drawn, plain) == 0).tolist() == [True, False]


def test_strength_and_guidance(
    base: StableDiffusionPipeline, pipeline: StableDiffusionPipeline, files: Files
) -> None:
    prompt, always_on = "a sks toy", copy.deepcopy(base)
    load_concept(always_on, files("style"), route=False)
    load_concept(pipeline, files("style"), words="sks")
    routed = draw(pipeline, prompt)
    set_strength(pipeline, 0)
    assert np.array_equal(draw(pipeline, prompt), draw(base, prompt))
    set_strength(pipeline, 1)
    # At guidance 1 the unconditional rows have the concept, as if it were always on.
    route_concepts(pipeline, {"default": "sks"}, guidance=1)
    np.testing.assert_allclose(draw(pipeline, prompt), draw(always_on, prompt), atol=1e-5)
    assert difference(routed, draw(always_on, prompt)).max() > 1e-3


@pytest.mark.parametrize("chunks", [1, 3])
def test_every_picture_has_its_own_strengths(
    pipeline: StableDiffusionPipeline, files: Files, chunks: int
) -> None:
    read_long_prompts(pipeline, chunks)
    prompt = "a sks toy " + "and a red car " * (20 if chunks > 1 else 1)
    words = {"dog": "sks", "style": None}
    for name, file in (("dog", "sks"), ("style", "style")):
        load_concept(pipeline, files(file), name, route=False)
    strengths = [{"dog": 0.4}, {"dog": 1.3, "style": 0.5}, {"style": 1}, {}]
    noise = [torch.Generator().manual_seed(7) for _ in strengths]
    route_concepts(pipeline, words, pictures=strengths)
    together = draw(pipeline, [prompt] * 4, generator=noise)
    for own, picture in zip(strengths, together, strict=True):
        for name in words:
            set_strength(pipeline, own.get(name, 0), name)
        route_concepts(pipeline, words)
        alone = draw(pipeline, prompt, generator=torch.Generator().manual_seed(7))
        np.testing.assert_allclose(picture, alone[0], atol=1e-5)
    assert difference(together[:3], together[1:]).min() > 1e-3
    route_concepts(pipeline, words, pictures=strengths[:1])
    with pytest.raises(ConceptError, match="has the strengths of 1 pictures"):
        draw(pipeline, [prompt] * 2)
    with pytest.raises(ConceptError, match="finite"):
        route_concepts(pipeline, words, pictures=[{"dog": float("nan")}])


def test_a_concept_without_words_is_always_on(
    base: StableDiffusionPipeline, pipeline: StableDiffusionPipeline, files: Files
) -> None:
    style = copy.deepcopy(base)
    load_concept(style, files("style"))
    both = draw(style, PROMPTS)
    assert difference(both, draw(base, PROMPTS)).min() > 1e-3
    for order in (["style", "sks"], ["sks", "style"]):
        drawing = copy.deepcopy(pipeline)
        for name in order:
            load_concept(drawing, files(name), name)
        drawn = difference(draw(drawing, PROMPTS), both)
        assert drawn[[0, 2, 3]].max() < 1e-5
        assert drawn[1] > 1e-3


def test_embeddings_have_no_words(
    pipeline: StableDiffusionPipeline, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    always_on = copy.deepcopy(pipeline)
    load_concept(always_on, files("style"), route=False)
    load_concept(pipeline, files("style"), words="sks")
    states = pipeline.encode_prompt(["a toy"], "cpu", 1, False)[0]
    options = {"prompt_embeds": states, "negative_prompt_embeds": states * 0.5}
    for _ in range(2):
        drawn = draw(pipeline, None, **options)
        assert np.array_equal(drawn, draw(always_on, None, **options))
    assert len([y for y in caplog.records if "have no words" in y.message]) == 1


def test_other_choices_come_first(
    base: StableDiffusionPipeline, pipeline: StableDiffusionPipeline, files: Files
) -> None:
    load_concept(pipeline, files("sks"))
    routed, plain = draw(pipeline, PROMPTS), draw(base, PROMPTS)
    set_concepts(pipeline, [None])
    assert np.array_equal(draw(pipeline, PROMPTS), plain)
    set_concepts(pipeline, None)
    assert np.array_equal(draw(pipeline, PROMPTS), routed)
    mix(pipeline, {"default": 1.0})
    assert difference(draw(pipeline, PROMPTS), plain).min() > 1e-3
    route_concepts(pipeline, {"default": "sks"})
    assert np.array_equal(draw(pipeline, PROMPTS), routed)
    pipeline.disable_lora()
    assert np.array_equal(draw(pipeline, PROMPTS), plain)


@pytest.mark.parametrize(
    "unload", [unload_concept, lambda pipeline: pipeline.delete_adapters("default")]
)
def test_nothing_is_left_after_unloading(
    base: StableDiffusionPipeline,
    pipeline: StableDiffusionPipeline,
    files: Files,
    unload: Callable[[Any], None],
) -> None:
    load_concept(pipeline, files("sks"))
    draw(pipeline, PROMPTS)
    unload(pipeline)
    assert np.array_equal(draw(pipeline, PROMPTS), draw(base, PROMPTS))
    if unload is unload_concept:
        assert type(pipeline) is StableDiffusionPipeline
        assert vars(pipeline).keys() == vars(base).keys()
    for part in (pipeline.unet, pipeline.text_encoder):
        assert not any(module._forward_pre_hooks for module in part.modules())


def test_a_failed_call_leaves_the_networks_as_they_were(
    pipeline: StableDiffusionPipeline, files: Files
) -> None:
    load_concept(pipeline, files("sks"))

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(pipeline, PROMPTS, callback_on_step_end=fail)
    assert all(layer.rows is None for layer in adapted_layers(pipeline))


@pytest.mark.parametrize("kind", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline])
def test_pipelines_that_start_from_a_picture(
    base: StableDiffusionPipeline,
    pipeline: StableDiffusionPipeline,
    files: Files,
    kind: Any,  # noqa: ANN401
) -> None:
    picture = Image.new("RGB", (8, 8), "red")
    options: dict[str, Any] = {"image": [picture] * 4, "strength": 1.0}
    if kind is StableDiffusionInpaintPipeline:
        options["mask_image"] = [Image.new("L", (8, 8), 255)] * 4
    else:
        options |= {"height": None, "width": None}
    plain, drawing = kind.from_pipe(base), kind.from_pipe(pipeline)
    for y in (plain, drawing):
        y.set_progress_bar_config(disable=True)
    load_concept(drawing, files("sks"))
    options = {name: value for name, value in options.items() if value is not None}
    same = difference(call(drawing, PROMPTS, **options), call(plain, PROMPTS, **options))
    assert (same == 0).tolist() == [True, False, True, True]


def call(pipeline: Any, prompts: list[str], **options: Any) -> np.ndarray:  # noqa: ANN401
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return pipeline(
        prompts, num_inference_steps=2, guidance_scale=3.0, output_type="np",
        generator=generators, **options,
    ).images  # fmt: skip


@pytest.mark.parametrize(
    "made",
    [
        StableDiffusionImg2ImgPipeline.from_pipe,
        AutoPipelineForImage2Image.from_pipe,
        lambda pipeline: StableDiffusionImg2ImgPipeline(**pipeline.components),
    ],
    ids=["from_pipe", "auto", "components"],
)
def test_pipelines_made_of_routed_networks_route_too(
    base: StableDiffusionPipeline,
    pipeline: StableDiffusionPipeline,
    files: Files,
    made: Callable[[Any], Any],
) -> None:
    load_concept(pipeline, files("sks"))
    plain, drawing = made(base), made(pipeline)
    for y in (plain, drawing):
        y.set_progress_bar_config(disable=True)
    options = {"image": [Image.new("RGB", (8, 8), "red")] * 4, "strength": 1.0}
    unrouted = call(plain, PROMPTS, **options)
    same = difference(call(drawing, PROMPTS, **options), unrouted) == 0
    assert same.tolist() == [True, False, True, True]
    assert type(plain) is StableDiffusionImg2ImgPipeline
    # A class with routing makes pipelines without it, as long as their networks have none.
    assert type(type(drawing)(**base.components)) is StableDiffusionImg2ImgPipeline
    route_concepts(pipeline, None)  # each pipeline has words of its own
    again = difference(call(drawing, PROMPTS, **options), unrouted) == 0
    assert again.tolist() == [True, False, True, True]
    unload_concept(drawing)
    assert np.array_equal(call(drawing, PROMPTS, **options), unrouted)
    assert type(made(pipeline)) is StableDiffusionImg2ImgPipeline


def test_a_copied_pipeline_routes_on_its_own(
    base: StableDiffusionPipeline, pipeline: StableDiffusionPipeline, files: Files, tmp_path: Path
) -> None:
    load_concept(pipeline, files("sks"))
    routed = draw(pipeline, PROMPTS)
    for other in (copy.deepcopy(pipeline), pickle.loads(pickle.dumps(pipeline))):
        assert np.array_equal(draw(other, PROMPTS), routed)
        unload_concept(other)
        assert np.array_equal(draw(other, PROMPTS), draw(base, PROMPTS))
    assert np.array_equal(draw(pipeline, PROMPTS), routed)
    pipeline.save_pretrained(tmp_path / "saved")
    for name in ("__call__", "encode_prompt"):
        assert inspect.signature(getattr(pipeline, name)) == inspect.signature(getattr(base, name))


def test_a_swapped_concept_is_called_by_its_own_words(
    base: StableDiffusionPipeline, pipeline: StableDiffusionPipeline, files: Files
) -> None:
    load_concept(pipeline, files("sks"))
    hotswap_concept(pipeline, files("wug"))
    same = difference(draw(pipeline, PROMPTS), draw(base, PROMPTS)) == 0
    assert same.tolist() == [True, True, True, False]


def test_two_concepts_with_one_word(
    pipeline: StableDiffusionPipeline, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    alone = copy.deepcopy(pipeline)
    load_concept(alone, files("wug"), words="sks")
    load_concept(pipeline, files("sks"), "dog")
    with caplog.at_level(logging.WARNING):
        load_concept(pipeline, files("wug"), "cat", words="SKS")
    assert "'SKS' now calls 'cat' and no longer 'dog'" in caplog.text
    np.testing.assert_allclose(draw(pipeline, PROMPTS), draw(alone, PROMPTS), atol=1e-6)


def test_what_cannot_be_routed(pipeline: StableDiffusionPipeline, files: Files) -> None:
    load_concept(pipeline, files("sks"), "dog")
    load_concept(pipeline, files("wug"), "cat")
    before = draw(pipeline, PROMPTS)
    with pytest.raises(ConceptError, match="there is no concept named 'fox'"):
        route_concepts(pipeline, {"fox": "sks"})
    with pytest.raises(ConceptError, match="'dog' is called by '  ', which has no word"):
        route_concepts(pipeline, {"dog": "  "})
    with pytest.raises(ConceptError, match="the strength must be a finite number"):
        route_concepts(pipeline, {"dog": "sks"}, guidance=float("nan"))
    with pytest.raises(ConceptError, match="reads no prompts"):
        route_concepts(pipeline.unet, {"dog": "sks"})
    with pytest.raises(ConceptError, match="leave out words"):
        load_concept(pipeline.unet, files("style"), "new", words="sks")
    assert np.array_equal(draw(pipeline, PROMPTS), before)


def read_text(pipeline: Any, prompts: list[str], **options: Any) -> list[torch.Tensor]:  # noqa: ANN401
    """Keys and values that cross-attention reads off the prompts in the first step."""
    layers = [layer for name, layer in pipeline.unet.named_modules() if name.endswith(READERS)]
    found: list[torch.Tensor] = []
    handles = [y.register_forward_hook(lambda *args: found.append(args[2])) for y in layers]
    draw(pipeline, prompts, num_inference_steps=1, **options)
    for handle in handles:
        handle.remove()
    return [states[len(prompts) :] for states in found]  # without the unconditional rows


READERS = ("attn2.to_k", "attn2.to_v")


def places(pipeline: Any, prompt: str, words: str) -> list[bool]:  # noqa: ANN401
    """Return which tokens of a prompt are the words, by comparing token ids."""
    ids, wanted = (pipeline.tokenizer(text).input_ids for text in (prompt, words))
    wanted = wanted[1:-1]
    starts = [i for i in range(len(ids)) if ids[i : i + len(wanted)] == wanted]
    found = {i + j for i in starts for j in range(len(wanted))}
    return [i in found for i in range(pipeline.tokenizer.model_max_length)]


def test_a_gate_leaves_other_words_to_the_base(
    base: StableDiffusionPipeline, pipeline: StableDiffusionPipeline, files: Files
) -> None:
    prompts = ["a photo of a sks toy beside a red car", "a red car", "a SKS toy"]
    load_concept(pipeline, files("style"), words="sks toy")
    routed, full = draw(pipeline, prompts), read_text(pipeline, prompts)
    plain = read_text(base, prompts)
    assert len(plain) == len(text_layers(pipeline.unet)) == 2 * len(full) // 2 > 0
    own = torch.tensor([places(pipeline, prompt.lower(), "sks toy") for prompt in prompts])
    assert own.sum(1).tolist() == [own[0].sum(), 0, own[0].sum()]
    read = [len(pipeline.tokenizer(prompt).input_ids) - 1 for prompt in prompts]
    ends = torch.tensor([[i >= count for i in range(own.shape[1])] for count in read])
    ends[1] = False  # no concept is called there
    other = ~own & ~ends
    for gate, gate_end in ((0, None), (0.5, None), (0, 1), (0, 0.5)):
        route_concepts(pipeline, {"default": "sks toy"}, gate=gate, gate_end=gate_end)
        at_end = gate if gate_end is None else gate_end
        drawn = draw(pipeline, prompts)
        assert np.array_equal(drawn[1], draw(base, prompts)[1])
        assert difference(drawn, routed)[[0, 2]].min() > 1e-6
        for found, without, whole in zip(read_text(pipeline, prompts), plain, full, strict=True):
            for where, strength in ((own, 1), (other, gate), (ends, at_end)):
                expected = without + strength * (whole - without)
                torch.testing.assert_close(found[where], expected[where], atol=1e-5, rtol=1e-5)
                if strength == 0:
                    assert torch.equal(found[where], without[where])
    route_concepts(pipeline, {"default": "sks toy"}, gate=1)
    assert np.array_equal(draw(pipeline, prompts), routed)


def test_each_of_two_concepts_has_its_own_words(
    base: StableDiffusionPipeline, pipeline: StableDiffusionPipeline, files: Files
) -> None:
    prompt = ["a sks toy beside a wug toy at night"]
    load_concept(pipeline, files("style"), "dog", words="sks")
    full, plain = read_text(pipeline, prompt), read_text(base, prompt)
    load_concept(pipeline, files("style"), "cat", -1, words="wug toy")
    load_concept(pipeline, files("style"), "night", 0.5, route=False)
    route_concepts(pipeline, {"dog": "sks", "cat": "wug toy", "night": None}, gate=0)
    first, second = (
        torch.tensor(places(pipeline, prompt[0], words)) for words in ("sks", "wug toy")
    )
    strength = 0.5 + first.float() - second.float()  # the style is on all tokens
    for found, without, whole in zip(read_text(pipeline, prompt), plain, full, strict=True):
        expected = without + strength[:, None] * (whole - without)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_gate_finds_words_in_any_chunk(
    base: StableDiffusionPipeline, pipeline: StableDiffusionPipeline, files: Files
) -> None:
    for each in (base, pipeline):
        read_long_prompts(each, 3)
    prompts = ["a red car " * 10 + "sks", "a sks toy"]  # a chunk has 30 of its tokens
    load_concept(pipeline, files("style"), words="sks")
    route_concepts(pipeline, {"default": "sks"}, gate=0)
    found, plain = read_text(pipeline, prompts)[0], read_text(base, prompts)[0]
    changed = (found != plain).any(-1)
    assert changed.shape[1] == 64
    assert changed[0].nonzero().flatten().tolist() == [32 + 1]
    # The states of a short prompt are there twice.
    once = torch.tensor(places(pipeline, prompts[1], "sks")).nonzero().flatten().tolist()
    assert changed[1].nonzero().flatten().tolist() == [*once, *(32 + i for i in once)]


def test_what_cannot_be_gated(
    pipeline: StableDiffusionPipeline, base: StableDiffusionPipeline, tmp_path: Path
) -> None:
    source = copy.deepcopy(base)
    source.unet.add_adapter(LoLDUConfig(r=2, init_weights=False, target_modules=["to_q"]))
    load_concept(pipeline, save_concept(source, tmp_path / "queries"), words="sks")
    with pytest.raises(ConceptError, match="keys or values of cross-attention"):
        route_concepts(pipeline, {"default": "sks"}, gate=0.5)
    with pytest.raises(ConceptError, match="finite"):
        route_concepts(pipeline, {"default": "sks"}, gate_end=float("nan"))


def test_the_readme_runs_as_typed(
    base: StableDiffusionPipeline,
    pipeline: StableDiffusionPipeline,
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, kind, token in (("sks", "dog", "sks"), ("wug", "cat", "zwx")):
        source = copy.deepcopy(base)
        load_concept(source, files(name), route=False)
        concept = tmp_path / "runs" / kind / "concept.safetensors"
        concept.parent.mkdir(parents=True)
        save_concept(source, concept, metadata={"token": token})
    for each in (base, pipeline):  # two steps, without the GPU that the script asks for
        steps = each.scheduler.set_timesteps
        monkeypatch.setattr(each.scheduler, "set_timesteps", lambda _, s=steps, **y: s(2, **y))
    monkeypatch.setattr(StableDiffusionPipeline, "to", lambda self, *_: self)
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", lambda *_, **__: pipeline)
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    script = "".join(re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S))
    names: dict[str, Any] = {}
    drawn: list[list[bool]] = []
    for line in ast.parse(script).body:
        code = ast.unparse(line)
        if not code.startswith("pipeline("):
            exec(code, names)
            continue
        pictures = []
        for each in (pipeline, base):
            torch.manual_seed(0)
            pictures.append(np.stack(eval(code, {"pipeline": each}).images))
        same = (pictures[0] == pictures[1]).all(axis=(1, 2, 3))
        drawn.append(same.tolist())
    assert drawn == [[False, True], [False, False, False]]
    assert adapted_layers(pipeline)[0].strength == {"default": 0.7, "cat": 1.2}
