"""Reports of a concept file and of a truncation, as text. Needs no torch."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loldu.concept.reader import VERSION, ConceptFile, LayerEntry

_METHODS = {
    "partial": "LoLDU (LDU, partial pivoting)",
    "complete": "LoLDU (LDU, complete pivoting)",
    "svd": "SVFit (SVD)",
}
# Strips the place of the block off a layer's name, which leaves for instance "attn1.to_q".
_BLOCK = re.compile(r"^.*(?:block|layer)s?\.\d+\.")


def report_concept(concept: ConceptFile, path: Path) -> str:
    """Return a concept as text: its base, its layers and the size of their changes."""
    layers = concept.layers
    ranks = [layer.r for layer in layers]
    methods = {_METHODS.get(layer.factorization, layer.factorization) for layer in layers}
    facts: list[tuple[str, Any]] = [
        ("format", f"loldu-concept {VERSION}"),
        ("base", concept.base or "unknown"),
        ("method", ", ".join(sorted(methods))),
        ("trained on", ", ".join(sorted({layer.base_dtype for layer in layers}))),
        ("layers", len(layers)),
        ("rank", _span(ranks)),
        ("parameters", f"{sum(ranks):,}"),
        ("bytes", f"{path.stat().st_size:,}"),
    ]
    lines = [_plain(path.name), *_pairs(facts)]
    lines += ["", *_table(concept)]
    for component, options in concept.config.items():
        lines += ["", f"trained with ({_plain(component)})", *_pairs(sorted(options.items()))]
    if concept.metadata:
        lines += ["", "metadata", *_pairs(list(concept.metadata.items()))]
    return "\n".join(lines) + "\n"


def _table(concept: ConceptFile) -> Iterator[str]:
    """Yield one line for each kind of layer, with the size of its deltas."""
    groups: dict[tuple[str, str], list[tuple[LayerEntry, NDArray[Any]]]] = {}
    for layer, delta in zip(concept.layers, concept.deltas(), strict=True):
        kind = layer.component, _BLOCK.sub("", layer.name)
        groups.setdefault(kind, []).append((layer, delta))
    rows = [("component", "layers", "count", "weights", "rank", "|delta| rms", "largest")]
    for (component, kind), members in groups.items():
        deltas = np.concatenate([delta for _, delta in members]).astype(np.float64)
        shapes = sorted({(layer.out_features, layer.in_features) for layer, _ in members})
        ends = [shapes[0], shapes[-1]] if len(shapes) > 1 else shapes
        rows.append(
            (
                _plain(component),
                _plain(kind),
                str(len(members)),
                " to ".join(f"{rows} x {columns}" for rows, columns in ends),
                _span([layer.r for layer, _ in members]),
                f"{np.sqrt(np.square(deltas).mean()):.2e}",
                f"{np.abs(deltas).max():.2e}",
            )
        )
    yield from _aligned(rows)


def report_truncation(
    parameters_before: int, parts: Mapping[str, tuple[Sequence[int], float]]
) -> str:
    """Return the ranks that a truncation kept and its relative errors, as text.

    Args:
        parameters_before: Number of parameters of the whole concept.
        parts: Rank of each layer and the relative error, by component and in total.
    """
    rows = [("component", "layers", "rank", "parameters", "relative error")]
    for name, (ranks, error) in parts.items():
        numbers = (str(len(ranks)), _span(ranks), f"{sum(ranks):,}", f"{error:.3e}")
        rows.append((_plain(name), *numbers))
    return "\n".join([*_aligned(rows), f"  of {parameters_before:,} parameters before"]) + "\n"


def report_clients(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Return what programs make of a LoRA file as text.

    Args:
        comparisons: The fields of `loldu.concept.clients.Comparison`, for each program.
    """
    rows = [("program", "weights", "relative error", "greatest difference", "in layer")]
    for each in comparisons:
        numbers = (str(each["weights"]), f"{each['error']:.1e}", f"{each['greatest']:.1e}")
        rows.append((each["client"], *numbers, _plain(each["layer"])))
    return "\n".join(_aligned(rows)) + "\n"


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        yield "  " + "  ".join(cells).rstrip()


def _pairs(items: Sequence[tuple[str, Any]]) -> Iterator[str]:
    width = max((len(_plain(name)) for name, _ in items), default=0)
    for name, value in items:
        yield f"  {_plain(name).ljust(width)}  {_plain(value)}"


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _plain(value: object) -> str:
    """Return one line without control characters: a file may contain any text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
