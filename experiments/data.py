"""Datasets by name: their entries in ``datasets/*.toml``, and their rows.

A manifest entry is a TOML table: the source of the rows (the hub, or the procedural world of
`pocket`), the splits, the names of the columns, the licence.
"""

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow as pa

from experiments.pretrained import first_line
from loldu.errors import LoLDUError, hint
from loldu.files import read_toml

_BESIDE = Path(__file__).parent / "datasets"  # where an installed package keeps them
MANIFESTS = _BESIDE if _BESIDE.is_dir() else Path(__file__).parent.parent / "datasets"


@dataclass(frozen=True)
class Split:
    """Rows of a hub dataset: its name, configuration and split, and the expected number of rows."""

    id: str
    split: str
    config: str | None = None
    revision: str | None = None
    rows: int | None = None


@dataclass(frozen=True)
class Entry:
    """An entry of a manifest.

    Attributes:
        name: Name in experiments.
        title: Name for people.
        licence: Licence of the data.
        generator: "module:name" under `experiments.bases.tasks`, for the procedural world.
        folder: Folder of pictures, for a concept.
        splits: Hub splits by our names: "train", "test".
        columns: Our column names -> the dataset's own; other columns are dropped.
        note: Remark for people.
        extra: Values for the kind of experiment: "num_labels", "metric", "class_name".
    """

    name: str
    title: str
    licence: str
    generator: str = ""
    folder: str = ""
    splits: dict[str, Split] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    note: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


@cache
def entries() -> dict[str, Entry]:
    """Return all entries of all manifests, by name.

    Raises:
        LoLDUError: If a manifest has a mistake.
    """
    found: dict[str, Entry] = {}
    for file in sorted(MANIFESTS.glob("*.toml")):
        for name, table in read_toml(file, "The manifest").items():
            if name in found:
                raise LoLDUError(f"{file} has a second entry {name}: names are used once.")
            found[name] = _entry(name, table, file)
    return found


def entry(name: str) -> Entry:
    """Return an entry by its name.

    Raises:
        LoLDUError: If there is no such entry.
    """
    known = entries()
    if name not in known:
        perhaps = hint(name, known)
        raise LoLDUError(f"No manifest in datasets/ has an entry {name}; {perhaps}.")
    return known[name]


@cache
def load_data(name: str) -> datasets.DatasetDict:
    """Return the rows of an entry, loaded once a process.

    Raises:
        LoLDUError: If the entry is unknown, or its rows are unavailable or not as it says.
    """
    found = entry(name)
    if found.generator:
        module, _, generator = found.generator.partition(":")
        generators: Mapping[str, Callable[[], datasets.DatasetDict]] = importlib.import_module(
            f"experiments.bases.tasks.{module}"
        ).GENERATORS
        return generators[generator]()
    return datasets.DatasetDict(
        {name: _from_hub(found, split) for name, split in found.splits.items()}
    )


def data_facts(data: datasets.DatasetDict) -> dict[str, Any]:
    """Return the digest of a dataset and the number of rows of each split, for the record."""
    return {"data": digest(data), "rows": {name: len(rows) for name, rows in data.items()}}


def digest(data: datasets.DatasetDict) -> str:
    """Return the first digits of a SHA-256 over all rows of all splits."""
    sha = hashlib.sha256()
    for name in sorted(data):
        sha.update(str(name).encode())
        sink = pa.BufferOutputStream()
        table: pa.Table = data[name].flatten_indices().data.table
        table = table.combine_chunks().replace_schema_metadata()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        sha.update(sink.getvalue())
    return sha.hexdigest()[:16]


def _from_hub(found: Entry, split: Split) -> datasets.Dataset:
    try:
        rows = cast(
            datasets.Dataset,
            datasets.load_dataset(
                split.id, split.config, split=split.split, revision=split.revision
            ),
        )
    except (OSError, ValueError) as error:
        raise LoLDUError(
            f"The dataset {found.name} ({split.id} on the Hugging Face hub) cannot be fetched and "
            f"is not in the cache: connect to the network and run again ({first_line(error)})."
        ) from error
    if split.rows is not None and len(rows) != split.rows:
        raise LoLDUError(
            f"The dataset {found.name} ({split.id}) has {len(rows)} rows in its split "
            f"{split.split}, not {split.rows}: it is not the one the manifest describes."
        )
    if missing := sorted(set(found.columns.values()) - set(rows.column_names)):
        raise LoLDUError(
            f"The dataset {found.name} ({split.id}) has no column {missing[0]}: it has "
            f"{', '.join(rows.column_names)}."
        )
    rows = rows.select_columns(list(found.columns.values()))
    renamed = {own: ours for ours, own in found.columns.items() if own != ours}
    return rows.rename_columns(renamed) if renamed else rows


def _entry(name: str, table: dict[str, Any], file: Path) -> Entry:
    table = dict(table)
    shared = {f.name: table.pop(f.name) for f in fields(Split) if f.name in table}
    splits = table.pop("splits", {})
    try:
        made = {key: Split(**(shared | split)) for key, split in splits.items()}
        return Entry(name=name, splits=made, **table)
    except TypeError as error:
        raise LoLDUError(f"{file}: the entry {name} has a mistake: {error}.") from error
