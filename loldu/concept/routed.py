"""Pipelines that route their prompts: what happens while one of them is called."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
import inspect
import itertools
import logging
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from loldu.adapter.components import adapted_layers, components, text_layers
from loldu.adapter.layer import LoLDULayer, set_rows
from loldu.adapter.mixing import Rows
from loldu.concept.called import called, called_by, decoded, listed, token_gates, words_as_read
from loldu.errors import ConceptError

T = TypeVar("T")
logger = logging.getLogger(__name__)

_TEXT_ENCODER = "text_encoder"
"""How the names of components that encode prompts begin."""

_PIPELINES: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""All routed pipelines, by id."""


def reads_prompts(pipeline: Any) -> bool:  # noqa: ANN401
    """Return whether an object is a pipeline whose prompts can be routed."""
    return hasattr(pipeline, "encode_prompt") and getattr(pipeline, "tokenizer", None) is not None


@dataclass
class Routing:
    """The words and strengths of a routed pipeline, and where its call is.

    Where prompts and unconditional prompts are encoded apart, `passes` has the states and the rows
    of the network's pass on each; None instead of rows if they have no words.
    """

    words: dict[str, str | None]
    guidance: float = 0.0
    pictures: Sequence[Mapping[str, float | int]] | None = None
    gate: float = 1.0
    gate_end: float = 1.0
    in_call: bool = False
    warned: bool = False
    passes: list[tuple[Tensor, list[dict[str, float]] | None]] = field(default_factory=list)

    @property
    def is_gated(self) -> bool:
        """Whether concepts act on some tokens more than on others."""
        return (self.gate, self.gate_end) != (1.0, 1.0)

    def strengths(self, count: int, first: int = 0) -> Sequence[Mapping[str, float | int] | None]:
        """Return the factors of `count` pictures from `first` on; None for the concepts' own."""
        own = [None] * count if self.pictures is None else self.pictures[first : first + count]
        if len(own) < count:
            raise ConceptError(
                f"route_concepts has the strengths of {len(self.pictures or ())} pictures, and the "
                "call has more prompts: give strengths for each"
            )
        return own


class Routed:
    """Marks a pipeline that routes its prompts."""

    unrouted: type
    routing: Routing
    tokenizer: Any

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401
        """Copy and pickle by the pipeline's own class, which can be imported."""
        return _unpickled, (self.unrouted,), self.__dict__


def _unpickled(cls: type) -> object:
    pipeline = object.__new__(_routed(cls))
    _PIPELINES[id(pipeline)] = pipeline
    return pipeline


def begin_routing(pipeline: Any, routing: Routing) -> None:  # noqa: ANN401
    """Let a pipeline route its prompts, and every pipeline that is made of its networks later."""
    cls = pipeline.unrouted if isinstance(pipeline, Routed) else type(pipeline)
    pipeline.__class__ = _routed(cls)
    pipeline.routing = routing
    _PIPELINES[id(pipeline)] = pipeline
    _follow_networks(cls)


def end_routing(pipeline: Any) -> None:  # noqa: ANN401
    """Make a pipeline an ordinary one again."""
    if isinstance(pipeline, Routed):
        _PIPELINES.pop(id(pipeline), None)
        del pipeline.routing
        pipeline.__class__ = pipeline.unrouted


def _follow_networks(cls: type) -> None:
    """Let new pipelines route their prompts as the pipelines that they get their networks from do.

    diffusers makes them in several ways (`from_pipe`, `AutoPipelineForImage2Image.from_pipe`,
    ``Pipeline(**other.components)``), and all call `register_modules`.
    """
    owner: Any = next((y for y in cls.__mro__ if "register_modules" in vars(y)), None)
    if owner is None or hasattr(owner.register_modules, "follows_networks"):
        return
    register: Any = owner.register_modules

    @functools.wraps(register)
    def register_modules(self: Any, **modules: Any) -> None:  # noqa: ANN401
        register(self, **modules)
        if not isinstance(self, Routed) and reads_prompts(self):
            source = _routed_by_networks(modules.values())
            if source is not None:
                copied = replace(source, words={**source.words}, pictures=None)
                begin_routing(self, replace(copied, in_call=False, passes=[]))

    followed: Any = register_modules
    followed.follows_networks = True
    owner.register_modules = followed


def _routed_by_networks(modules: Collection[Any]) -> Routing | None:
    """Return the routing of a pipeline with one of these networks, if concepts change it."""
    for pipeline in [*_PIPELINES.values()]:
        if "routing" in vars(pipeline):  # a copy gets its attributes last
            parts = components(pipeline).values()
            if any(part is y and adapted_layers(part) for part in parts for y in modules):
                return pipeline.routing
    return None


@functools.cache
def _routed(cls: Any) -> type:  # noqa: ANN401
    """Return a pipeline's class with routing; its name and its signatures stay the same."""

    class RoutedPipeline(Routed, cls):
        unrouted = cls

        @functools.wraps(cls.__init__)
        def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            self.__class__ = cls  # routing follows the networks, not the class
            cls.__init__(self, *args, **kwargs)

        @functools.wraps(cls.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            layers = adapted_layers(self)
            if not _is_free(layers):
                return super().__call__(*args, **kwargs)
            self.routing.in_call = True
            try:
                with ExitStack() as hooks:
                    if not encodes_both(self):
                        for part in parts_of(self, encode=False).values():
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
                    for name, part in parts_of(self, encode=True).items():
                        hooks.enter_context(_text_routed(self, name, part))
                result = encode(*args, **kwargs)
            if self.routing.in_call:
                options = inspect.signature(encode).bind(*args, **kwargs)
                options.apply_defaults()
                if encodes_both(self):
                    _route_network(self, options.arguments, result[0])
                else:
                    _add_pass(self, options.arguments, result[0])
            return result

    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(RoutedPipeline, name, getattr(cls, name))
    return RoutedPipeline


def _is_free(layers: list[LoLDULayer]) -> bool:
    """Return whether neither `set_concepts` nor a merge has decided what the layers do."""
    return not any(layer.merged or layer.rows is not None for layer in layers)


def parts_of(pipeline: Any, *, encode: bool) -> dict[str, nn.Module]:  # noqa: ANN401
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
    routing: Routing = pipeline.routing
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


def encodes_both(pipeline: Any) -> bool:  # noqa: ANN401
    """Return whether one call of `encode_prompt` encodes prompts and unconditional prompts."""
    return "do_classifier_free_guidance" in inspect.signature(pipeline.encode_prompt).parameters


def _add_pass(pipeline: Any, options: Mapping[str, Any], states: Tensor) -> None:  # noqa: ANN401
    """Note the concepts of the network's pass on some states.

    A call encodes its prompts first, and then the prompts of its unconditional rows, which have the
    concepts of its prompts as far as guidance says so.
    """
    routing: Routing = pipeline.routing
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


def _has_no_words(routing: Routing, options: Mapping[str, Any]) -> bool:
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


def _route_network(pipeline: Any, options: Mapping[str, Any], states: Tensor) -> None:  # noqa: ANN401
    """Give the rows of the network's batches the concepts of their prompts.

    The batch has every prompt as often as it is drawn; under guidance the same number of
    unconditional rows comes first. If concepts are gated, the layers that read text have a strength
    for every token.
    """
    routing: Routing = pipeline.routing
    if _has_no_words(routing, options):
        return
    texts, second = listed(options["prompt"], 1), options.get("prompt_2")
    rows = called_by(pipeline, texts, second)
    negatives: list[str] = []
    unconditional: list[dict[str, float]] = []
    second_negative = options.get("negative_prompt_2")
    if options.get("do_classifier_free_guidance"):
        negatives = listed(options.get("negative_prompt") or "", len(texts))
        of_negatives = called_by(pipeline, negatives, second_negative)
        unconditional = [
            {name: factor * routing.guidance for name, factor in row.items()} | of_negative
            for row, of_negative in zip(rows, of_negatives, strict=True)
        ]
    times, gates = options.get("num_images_per_prompt") or 1, None
    if routing.is_gated:
        length = states.shape[1]
        gates = _repeated(token_gates(pipeline, negatives, second_negative, length), times)
        gates += _repeated(token_gates(pipeline, texts, second, length), times)
    rows, unconditional = _repeated(rows, times), _repeated(unconditional, times)
    blank = 0 if any(any(row.values()) for row in unconditional) else len(unconditional)
    for part in parts_of(pipeline, encode=False).values():
        names = _names(part, words_as_read(pipeline))
        batch = Rows.of(rows if blank else unconditional + rows, names, blank)
        set_rows(adapted_layers(part), batch)
        if gates is not None:
            set_rows(text_layers(part), Rows.of(unconditional + rows, names, gates=gates))


def _names(part: nn.Module, words: Mapping[str, str | None]) -> tuple[str, ...] | None:
    """Return all concepts if the part is compiled, so that one graph serves any prompts."""
    compiled = hasattr(part, "_orig_mod") or any(
        module._compiled_call_impl is not None  # pyright: ignore[reportPrivateUsage]
        for module in part.modules()
    )
    return tuple(words) if compiled else None


def _repeated(rows: list[T], times: int) -> list[T]:
    return [row for row in rows for _ in range(times)]
