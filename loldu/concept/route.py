"""Route prompts: a concept acts in the pictures whose prompt calls it, and in no other."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from loldu.adapter.components import adapted_layers, text_layers
from loldu.adapter.injection import require_loaded, require_mixable
from loldu.concept.called import as_read
from loldu.concept.format import Concept, require_finite
from loldu.concept.routed import (
    Routed,
    Routing,
    begin_routing,
    encodes_both,
    end_routing,
    parts_of,
    reads_prompts,
)
from loldu.errors import ConceptError

logger = logging.getLogger(__name__)


def route_concepts(
    pipeline: Any,  # noqa: ANN401
    words: Mapping[str, str | None] | None,
    *,
    guidance: float | int | None = None,
    pictures: Sequence[Mapping[str, float | int]] | None = None,
    gate: float | int | None = None,
    gate_end: float | int | None = None,
) -> None:
    """Let every prompt of a pipeline get the concepts whose words it contains.

    One pass draws prompts with different concepts and prompts without. A picture without a concept
    is the base's, bit by bit. Words are found as the tokenizer sees them: whole words, in any case,
    next to any punctuation. Negative prompts and text encoders are routed likewise. Prompts given
    as embeddings have no words: they get the active adapters, with a warning.

    A gate protects the other things of a prompt: in the layers that read the text (keys and values
    of cross-attention) a concept acts at full strength on the tokens of its words, and by the gate
    on the others. Layers that read pixels have no words, so there it acts in the whole picture, and
    so it does in a text encoder. Pipelines that are made of this one's networks later, such as by
    `from_pipe`, route their prompts by the same words.

    `load_concept` calls this function for a file that names its words. `set_concepts` overrides it
    until ``set_concepts(pipeline, None)``; `mix` ends it.

    Args:
        pipeline: A pipeline whose `encode_prompt` reads the prompts.
        words: The words that call each concept, by adapter name; None for a concept that is always
            on. Concepts with the same words act together. Loaded concepts that are not named stay
            off. None instead of a mapping ends routing.
        guidance: Strength of a picture's concepts in the unconditional prediction that guidance
            leads away from, as a factor on their own strength; 0 leads away from the base's. By
            default it stays as it is; it starts at 0.
        pictures: For every prompt of the next calls, factors on the strength of the concepts that
            it calls, by adapter name; a concept without one stays off. So one pass draws a prompt
            at several strengths. By default every concept has its own strength.
        gate: Strength of a concept on tokens other than its words, as a factor; 0 leaves them to
            the base, 1 is no gate. By default it stays as it is; it starts at 1.
        gate_end: The same on the tokens after the text and its padding, whose states stand for the
            whole prompt. By default it is `gate`, or stays as it is without one.

    Raises:
        ConceptError: If a concept is not loaded, has empty words, a number is not finite, the
            pipeline reads no prompts, or there is a gate and no adapted layer that reads text. A
            call with more prompts than `pictures` raises it too.
    """
    if words is None:
        end_routing(pipeline)
        return
    before = pipeline.routing if isinstance(pipeline, Routed) else Routing({})
    if gate_end is None:
        gate_end = before.gate_end if gate is None else gate
    gate = before.gate if gate is None else gate
    guidance = before.guidance if guidance is None else guidance
    routing = Routing(dict(words), float(guidance), pictures, float(gate), float(gate_end))
    _check(pipeline, routing)
    begin_routing(pipeline, routing)


def words_of(concept: Concept, pipeline: Any) -> str | None:  # noqa: ANN401
    """Return the words that a file names for its concept, if prompts can be routed."""
    token = concept.metadata.get("token")
    return token if isinstance(token, str) and token.strip() and reads_prompts(pipeline) else None


def routed_words(pipeline: Any) -> dict[str, str | None]:  # noqa: ANN401
    """Return the words that call each concept of a pipeline, by adapter name."""
    return dict(pipeline.routing.words) if isinstance(pipeline, Routed) else {}


def words_after_load(
    pipeline: Any,  # noqa: ANN401
    adapter_name: str,
    words: str | None,
) -> dict[str, str | None] | None:
    """Return the words of all concepts once one more is loaded; None if nothing is routed.

    Another concept with the same words is left out. The active concepts of a pipeline that is not
    routed stay on.
    """
    if words is None and not isinstance(pipeline, Routed):
        return None
    known = routed_words(pipeline) or dict.fromkeys(
        name
        for layer in adapted_layers(pipeline)
        for name in layer.active_adapters
        if name in layer.r
    )
    if words is not None:
        said = as_read(pipeline, [words])[0]
        for name, text in list(known.items()):
            if text is not None and as_read(pipeline, [text])[0] == said:
                logger.warning(
                    "'%s' now calls '%s' and no longer '%s': to draw both, load one of them with "
                    "more words, such as words='sks dog'.",
                    *(words, adapter_name, name),
                )
                del known[name]
    return {**known, adapter_name: words}


def forget_words(pipeline: Any, adapter_name: str) -> None:  # noqa: ANN401
    """End the routing of a concept, and that of the pipeline with its last concept."""
    known = routed_words(pipeline)
    if known.pop(adapter_name, None) is not None or known:
        pipeline.routing.words = known
    if not known:
        route_concepts(pipeline, None)


def _check(pipeline: Any, routing: Routing) -> None:  # noqa: ANN401
    for number in (routing.guidance, routing.gate, routing.gate_end):
        require_finite(number, None)
    for name, factor in (each for own in routing.pictures or () for each in own.items()):
        require_finite(factor, name)
    if not reads_prompts(pipeline):
        raise ConceptError(
            f"a {type(pipeline).__name__} reads no prompts, so no words can call a concept: choose "
            "concepts with set_concepts"
        )
    require_loaded(pipeline, routing.words)
    require_mixable(pipeline, routing.words)
    for name, text in routing.words.items():
        if text is not None and not as_read(pipeline, [text])[0]:
            raise ConceptError(f"concept '{name}' is called by {text!r}, which has no word")
    networks = parts_of(pipeline, encode=False).values()
    if routing.is_gated and not (encodes_both(pipeline) and any(map(text_layers, networks))):
        raise ConceptError(
            "a gate needs a concept that changes keys or values of cross-attention, and this "
            f"{type(pipeline).__name__} has none: call route_concepts with gate=1"
        )
