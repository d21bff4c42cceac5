"""The loaded base model and the concepts loaded on it."""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from eval.protocols.drawing import file_digest
from loldu import (
    ConceptError,
    load_concept,
    mix,
    read_concept,
    route_concepts,
    set_strength,
    unload_concept,
)
from loldu.base.config import BaseModelConfig
from loldu.base.open import check_base, load_pipeline, weights_digest
from loldu.base.record import base_options, public_base
from loldu.concept.route import words_of
from loldu.errors import LoLDUError
from webui.drawing.safety import SafetyChecker
from webui.drawing.settings import Used
from webui.library.entry import Entry, named_errors

MAX_LOADED = 8


@dataclass(frozen=True)
class Use:
    """A concept at a strength."""

    entry: Entry
    strength: float | int


@dataclass(frozen=True)
class _Loaded:
    written_ns: int
    adapter: str
    digest: str
    words: str | None


class Model:
    """A pipeline, the safety checker of its base, and the concepts used last.

    A concept is an adapter: changing a strength sets a number, mixing adds diagonals, and the base
    weights are never changed. A concept with a token acts where a prompt contains it. Every picture
    of a batch may have its own concepts and strengths.
    """

    def __init__(
        self, options: BaseModelConfig, device: str, most_loaded: int | None = None
    ) -> None:
        """Load a base.

        Args:
            options: The base and how to read it.
            device: Device of the pipeline.
            most_loaded: Concepts that stay loaded after a batch; 8 by default.

        Raises:
            LoLDUError: If it does not exist, or cannot be used.
        """
        self.options = options
        dtype = check_base(options).half_dtype if device == "cuda" else torch.float32
        self.pipeline = load_pipeline(
            options, torch_dtype=dtype, device=device, safety_checker=True
        )
        self.safety = SafetyChecker(self.pipeline)
        self.base = {**public_base(options), "fingerprint": weights_digest(self.pipeline)}
        self._most_loaded = most_loaded or MAX_LOADED
        self._loaded: OrderedDict[Path, _Loaded] = OrderedDict()
        self._names = (f"concept-{number}" for number in itertools.count())

    def apply(self, rows: Sequence[Sequence[Use]]) -> list[tuple[Used, ...]]:
        """Apply concepts to the next pictures, and return those of each as settings name them.

        Args:
            rows: The concepts of each picture; no rows for the base alone.

        Raises:
            ConceptError: If one is damaged or made for another base; the others stay loaded.
        """
        mix(self.pipeline, {})
        entries = {use.entry.path: use.entry for row in rows for use in row}
        loaded = {path: self._load(entry) for path, entry in entries.items()}
        while len(self._loaded) > max(self._most_loaded, len(loaded)):
            _, oldest = self._loaded.popitem(last=False)
            unload_concept(self.pipeline, oldest.adapter)
        for concept in loaded.values():
            set_strength(self.pipeline, 1, concept.adapter)
        if loaded:
            words = {concept.adapter: concept.words for concept in loaded.values()}
            strengths = [
                {loaded[use.entry.path].adapter: use.strength for use in row} for row in rows
            ]
            route_concepts(self.pipeline, words, pictures=strengths)
        return [tuple(_used(use, loaded[use.entry.path]) for use in row) for row in rows]

    def _load(self, entry: Entry) -> _Loaded:
        """Load a concept, unless it is loaded and its file is unchanged.

        The old version is unloaded last: a refused file changes nothing, and factors stay shared.
        """
        path = entry.path
        with named_errors(path, entry.name):
            if not path.is_file():
                raise ConceptError(f"{path} is gone: reload the page and choose another concept")
            written_ns = path.stat().st_mtime_ns
            before = self._loaded.get(path)
            if before is None or before.written_ns != written_ns:
                adapter = next(self._names)
                concept = load_concept(self.pipeline, path, adapter, route=False)
                words = words_of(concept, self.pipeline)
                self._loaded[path] = _Loaded(written_ns, adapter, file_digest(path), words)
                if before is not None:
                    unload_concept(self.pipeline, before.adapter)
        self._loaded.move_to_end(path)
        return self._loaded[path]


def _used(use: Use, concept: _Loaded) -> Used:
    return Used(use.entry.name, concept.digest, float(use.strength), concept.words)


def options_for(base: str, uses: Sequence[Use]) -> BaseModelConfig:
    """Return the base options that concepts were trained with.

    Raises:
        LoLDUError: If they differ between the concepts.
        ConceptError: If one is damaged.
    """
    found: list[BaseModelConfig] = []
    for use in uses:
        with named_errors(use.entry.path, use.entry.name):
            found.append(base_options(read_concept(use.entry.path), use.entry.path, base))
    for use, options in zip(uses, found, strict=True):
        if options != found[0]:
            raise LoLDUError(
                f"{uses[0].entry.name} and {use.entry.name} were trained with different options of "
                f"the base ({_difference(found[0], options)}), so they cannot be drawn "
                "together: draw one after the other."
            )
    return found[0] if found else BaseModelConfig(base)


def _difference(one: BaseModelConfig, other: BaseModelConfig) -> str:
    first, second = asdict(one), asdict(other)
    return ", ".join(
        f"{name} {first[name]} and {second[name]}" for name in first if first[name] != second[name]
    )
