"""Route prompts: a concept acts in the pictures whose prompt calls it, and in no other."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
import inspect
import itertools
import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from loldu.adapter.components import adapted_layers, components
from loldu.adapter.injection import require_loaded, require_mixable
from loldu.adapter.layer import LoLDULayer, set_rows
from loldu.adapter.mixing import Rows
from loldu.concept.called import as_read, called, called_by, decoded, listed, words_as_read
from loldu.concept.format import Concept, require_finite
from loldu.errors import ConceptError

logger = logging.getLogger(__name__)

_TEXT_ENCODER = "text_encoder"
"""How the names of components that encode prompts begin."""


def route_concepts(
    pipeline: Any,  # noqa: ANN401
    words: Mapping[str, str | None] | None,
    *,
    guidance: float | int | None = None,
    pictures: Sequence[Mapping[str, float | int]] | None = None,
) -> None:
    """Let every prompt of a pipeline get the concepts whose words it contains.

    One pass draws prompts with different concepts and prompts without. A picture without a concept
    is the base's, bit by bit. Words are found as the tokenizer sees them: whole words, in any case,
    next to any punctuation. Negative prompts and text encoders are routed likewise. Prompts given
    as embeddings have no words: they get the active adapters, with a warning.

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

    Raises:
        ConceptError: If a concept is not loaded, has empty words, `guidance` or a factor is not
            finite, or the pipeline reads no prompts. A call with more prompts than `pictures`
            raises it too.
    """
    if words is None:
        if isinstance(pipeline, _Routed):
            del pipeline.routing
            pipeline.__class__ = pipeline.unrouted
        return
    if guidance is None:
        guidance = pipeline.routing.guidance if isinstance(pipeline, _Routed) else 0.0
    require_finite(guidance, None)
    for name, factor in (each for own in pictures or () for each in own.items()):
        require_finite(factor, name)
    if not reads_prompts(pipeline):
        raise ConceptError(
            f"a {type(pipeline).__name__} reads no prompts, so no words can call a concept: choose "
            "concepts with set_concepts"
        )
    _check(pipeline, words)
    if not isinstance(pipeline, _Routed):
        pipeline.__class__ = _routed(type(pipeline))
    pipeline.routing = _Routing(dict(words), float(guidance), pictures)


def reads_prompts(pipeline: Any) -> bool:  # noqa: ANN401
    """Return whether an object is a pipeline whose prompts can be routed."""
    return hasattr(pipeline, "encode_prompt") and getattr(pipeline, "tokenizer", None) is not None


def words_of(concept: Concept, pipeline: Any) -> str | None:  # noqa: ANN401
    """Return the words that a file names for its concept, if prompts can be routed."""
    token = concept.metadata.get("token")
    return token if isinstance(token, str) and token.strip() and reads_prompts(pipeline) else None


def routed_words(pipeline: Any) -> dict[str, str | None]:  # noqa: ANN401
    """Return the words that call each concept of a pipeline, by adapter name."""
    return dict(pipeline.routing.words) if isinstance(pipeline, _Routed) else {}


def words_after_load(
    pipeline: Any,  # noqa: ANN401
    adapter_name: str,
    words: str | None,
) -> dict[str, str | None] | None:
    """Return the words of all concepts once one more is loaded; None if nothing is routed.

    Another concept with the same words is left out. The active concepts of a pipeline that is not
    routed stay on.
    """
    if words is None and not isinstance(pipeline, _Routed):
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


def _check(pipeline: Any, words: Mapping[str, str | None]) -> None:  # noqa: ANN401
    require_loaded(pipeline, words)
    require_mixable(pipeline, words)
    for name, text in words.items():
        if text is not None and not as_read(pipeline, [text])[0]:
            raise ConceptError(f"concept '{name}' is called by {text!r}, which has no word")


@dataclass
class _Routing:
    """The words and strengths of a routed pipeline, and where its call is.

    Where prompts and unconditional prompts are encoded apart, `passes` has the states and the rows
    of the network's pass on each; None instead of rows if they have no words.
    """

    words: dict[str, str | None]
    guidance: float
    pictures: Sequence[Mapping[str, float | int]] | None
    in_call: bool = False
    warned: bool = False
    passes: list[tuple[Tensor, list[dict[str, float]] | None]] = field(default_factory=list)

    def strengths(self, count: int, first: int = 0) -> Sequence[Mapping[str, float | int] | None]:
        """Return the factors of `count` pictures from `first` on; None for the concepts' own."""
        own = [None] * count if self.pictures is None else self.pictures[first : first + count]
        if len(own) < count:
            raise ConceptError(
                f"route_concepts has the strengths of {len(self.pictures or ())} pictures, and the "
                "call has more prompts: give strengths for each"
            )
        return own


class _Routed:
    """Marks a pipeline that routes its prompts."""

    unrouted: type
    routing: _Routing
    tokenizer: Any

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401
        """Copy and pickle by the pipeline's own class, which can be imported."""
        return _unpickled, (self.unrouted,), self.__dict__


def _unpickled(cls: type) -> object:
    return object.__new__(_routed(cls))


@functools.cache
def _routed(cls: Any) -> type:  # noqa: ANN401
    """Return a pipeline's class with routing; its name and its signatures stay the same."""

    class Routed(_Routed, cls):
        unrouted = cls

        @functools.wraps(cls.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            layers = adapted_layers(self)
            if not _is_free(layers):
                return super().__call__(*args, **kwargs)
            self.routing.in_call = True
            try:
                with ExitStack() as hooks:
                    if not _encodes_both(self):
                        for part in _parts(self, encode=False).values():
                            hooks.enter_context(_pass_routed(self, part))
                    return super().__call__(*args, **kwargs)
            finally:
                self.routing.in_call = False
                self.routing.passes.clear()
                set_rows(layers, None)

        @functools.wraps(cls.encode_prompt)
        def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            encode = super().encode_prompt
            with ExitStack() as hooks:
                if _is_free(adapted_layers(self)):
                    for name, part in _parts(self, encode=True).items():
                        hooks.enter_context(_text_routed(self, name, part))
                result = encode(*args, **kwargs)
            if self.routing.in_call:
                options = inspect.signature(encode).bind(*args, **kwargs)
                options.apply_defaults()
                if _encodes_both(self):
                    _route_network(self, options.arguments)
                else:
                    _add_pass(self, options.arguments, result[0])
            return result

    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(Routed, name, getattr(cls, name))
    return Routed


def _is_free(layers: list[LoLDULayer]) -> bool:
    """Return whether neither `set_concepts` nor a merge has decided what the layers do."""
    return not any(layer.merged or layer.rows is not None for layer in layers)


def _parts(pipeline: Any, *, encode: bool) -> dict[str, nn.Module]:  # noqa: ANN401
    """Return the adapted components that encode prompts, or those that do not."""
    return {
        name: part
        for name, part in components(pipeline).items()
        if name.startswith(_TEXT_ENCODER) == encode and adapted_layers(part)
    }


@contextmanager
def _text_routed(pipeline: Any, name: str, part: nn.Module) -> Generator[None]:  # noqa: ANN401
    """Inside the block, a text encoder reads every prompt with the prompt's own concepts."""
    tokenizer = getattr(pipeline, name.replace(_TEXT_ENCODER, "tokenizer"))
    layers, words = adapted_layers(part), words_as_read(pipeline)
    routing: _Routing = pipeline.routing
    encoded = itertools.count()

    def choose(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = args[0] if args else kwargs["input_ids"]
        if (whole := getattr(pipeline, "whole_prompt", None)) is None:
            said, own = decoded(tokenizer, rows), routing.strengths(len(rows))
        else:  # the rows are its chunks; prompts come first, then as many negative ones
            place = next(encoded) % len(routing.pictures or (0,))
            said, own = decoded(tokenizer, whole) * len(rows), [*routing.strengths(1, place)]
            own *= len(rows)
        of_rows = [called(words, *each) for each in zip(said, own, strict=True)]
        set_rows(layers, Rows.of(of_rows, _names(part, words)))

    handle = part.register_forward_pre_hook(choose, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        set_rows(layers, None)


def _encodes_both(pipeline: Any) -> bool:  # noqa: ANN401
    """Return whether one call of `encode_prompt` encodes prompts and unconditional prompts."""
    return "do_classifier_free_guidance" in inspect.signature(pipeline.encode_prompt).parameters


def _add_pass(pipeline: Any, options: Mapping[str, Any], states: Tensor) -> None:  # noqa: ANN401
    """Note the concepts of the network's pass on some states.

    A call encodes its prompts first, and then the prompts of its unconditional rows, which have the
    concepts of its prompts as far as guidance says so.
    """
    routing: _Routing = pipeline.routing
    rows: list[dict[str, float]] | None = None
    if routing.passes:
        if (of_prompts := routing.passes[0][1]) is not None:
            g = routing.guidance
            rows = [{name: g * f for name, f in row.items() if g} for row in of_prompts]
    elif not _has_no_words(routing, options):
        own = called_by(pipeline, listed(options["prompt"], 1), options.get("prompt_2"))
        rows = _repeated(own, options.get("num_images_per_prompt") or 1)
    routing.passes.append((states, rows))


@contextmanager
def _pass_routed(pipeline: Any, part: nn.Module) -> Generator[None]:  # noqa: ANN401
    """Inside the block, every pass of a network has the concepts of the states that it reads."""
    layers, routing = adapted_layers(part), pipeline.routing
    names = _names(part, words_as_read(pipeline))

    def choose(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = [*args, *kwargs.values()]
        read = [rows for states, rows in routing.passes if any(states is x for x in inputs)]
        rows = next(iter(read or [rows for _, rows in routing.passes]), None)
        set_rows(layers, None if rows is None else Rows.of(rows, names))

    hook: Any = torch.compiler.disable(choose)  # it compares tensors by identity
    handle = part.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _has_no_words(routing: _Routing, options: Mapping[str, Any]) -> bool:
    """Return whether prompts are given as embeddings, and log that once."""
    if options.get("prompt") is not None and options.get("prompt_embeds") is None:
        return False
    if not routing.warned:
        logger.warning(
            "Prompts given as embeddings have no words, so the active concepts change all of "
            "these pictures: pass the prompts as text, or choose with set_concepts."
        )
    routing.warned = True
    return True


def _route_network(pipeline: Any, options: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Give the rows of the network's batches the concepts of their prompts.

    The batch has every prompt as often as it is drawn; under guidance the same number of
    unconditional rows comes first.
    """
    routing: _Routing = pipeline.routing
    if _has_no_words(routing, options):
        return
    prompts = listed(options["prompt"], 1)
    rows = called_by(pipeline, prompts, options.get("prompt_2"))
    unconditional: list[dict[str, float]] = []
    if options.get("do_classifier_free_guidance"):
        negative = listed(options.get("negative_prompt") or "", len(prompts))
        of_negatives = called_by(pipeline, negative, options.get("negative_prompt_2"))
        unconditional = [
            {name: factor * routing.guidance for name, factor in row.items()} | of_negative
            for row, of_negative in zip(rows, of_negatives, strict=True)
        ]
    times = options.get("num_images_per_prompt") or 1
    rows, unconditional = _repeated(rows, times), _repeated(unconditional, times)
    blank = 0 if any(any(row.values()) for row in unconditional) else len(unconditional)
    for part in _parts(pipeline, encode=False).values():
        names = _names(part, words_as_read(pipeline))
        batch = Rows.of(rows if blank else unconditional + rows, names, blank)
        set_rows(adapted_layers(part), batch)


def _names(part: nn.Module, words: Mapping[str, str | None]) -> tuple[str, ...] | None:
    """Return all concepts if the part is compiled, so that one graph serves any prompts."""
    compiled = hasattr(part, "_orig_mod") or any(
        module._compiled_call_impl is not None  # pyright: ignore[reportPrivateUsage]
        for module in part.modules()
    )
    return tuple(words) if compiled else None


def _repeated(rows: list[dict[str, float]], times: int) -> list[dict[str, float]]:
    return [row for row in rows for _ in range(times)]
