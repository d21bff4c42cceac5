"""A concept file, and what truncation left of it, told to people."""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from loldu.concept.format import VERSION, Concept, ConceptLayer
from loldu.concept.truncate import Truncation

_METHODS = {
    "partial": "LoLDU (LDU, partial pivoting)",
    "complete": "LoLDU (LDU, complete pivoting)",
    "svd": "SVFit (SVD)",
}
# What a layer does, without the place of its block: "attn1.to_q".
_BLOCK = re.compile(r"^.*(?:block|layer)s?\.\d+\.")


def report_concept(concept: Concept, path: Path) -> str:
    """Return a concept as text: where it comes from, what it changes and by how much."""
    layers = concept.layers
    count = sum(layer.delta.numel() for layer in layers)
    facts: list[tuple[str, Any]] = [
        ("format", f"loldu-concept {VERSION}"),
        ("base", concept.base or "unknown"),
        ("method", ", ".join(sorted({_METHODS[layer.basis] for layer in layers}))),
        ("trained on", ", ".join(sorted({layer.base_dtype for layer in layers}))),
        ("layers", len(layers)),
        ("rank", _span([layer.delta.numel() for layer in layers])),
        ("parameters", f"{count:,}"),
        ("bytes", f"{path.stat().st_size:,}"),
    ]
    lines = [_plain(path.name), *_pairs(facts)]
    lines += ["", *_table(layers)]
    for component, options in concept.config.items():
        lines += ["", f"trained with ({_plain(component)})", *_pairs(sorted(options.items()))]
    if concept.metadata:
        lines += ["", "metadata", *_pairs(list(concept.metadata.items()))]
    return "\n".join(lines) + "\n"


def _table(layers: Sequence[ConceptLayer]) -> Iterator[str]:
    """One line for each kind of layer, with the size of its deltas."""
    groups: dict[tuple[str, str], list[ConceptLayer]] = {}
    for layer in layers:
        groups.setdefault((layer.component, _BLOCK.sub("", layer.name)), []).append(layer)
    rows = [("component", "layers", "count", "weights", "rank", "|delta| rms", "largest")]
    for (component, kind), members in groups.items():
        deltas = torch.cat([layer.delta for layer in members]).double()
        shapes = sorted({(layer.out_features, layer.in_features) for layer in members})
        ends = [shapes[0], shapes[-1]] if len(shapes) > 1 else shapes
        rows.append(
            (
                _plain(component),
                _plain(kind),
                str(len(members)),
                " to ".join(f"{rows} x {columns}" for rows, columns in ends),
                _span([layer.delta.numel() for layer in members]),
                f"{deltas.square().mean().sqrt():.2e}",
                f"{deltas.abs().max():.2e}",
            )
        )
    yield from _aligned(rows)


def report_truncation(before: Concept, result: Truncation) -> str:
    """Return how much of a concept is left, and how near it is, by component and in total."""
    rows = [("component", "layers", "rank", "parameters", "relative error")]
    components = dict.fromkeys(cut.component for cut in result.layers)
    for name, part in [*((c, result.of(c)) for c in components), ("total", result)]:
        ranks = [cut.delta.numel() for cut in part.layers]
        numbers = (str(len(ranks)), _span(ranks), f"{sum(ranks):,}", f"{part.total:.3e}")
        rows.append((_plain(name), *numbers))
    count = sum(layer.delta.numel() for layer in before.layers)
    return "\n".join([*_aligned(rows), f"  of {count:,} parameters before"]) + "\n"


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
    """One line of text that cannot steer a terminal: a file may say anything."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
