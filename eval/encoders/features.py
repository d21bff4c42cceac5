"""From picture files to features: each file is read once, and what was seen before not at all."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from eval.encoders.cache import FeatureCache
from eval.encoders.extractors import BATCH_SIZE, ImageExtractor
from loldu.errors import LoLDUError
from loldu.pictures.open import load_image

THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Seen:
    """What is known of pictures.

    Attributes:
        rows: A unit feature row for each extractor and picture that could be read.
        bad: Why a picture could not be, for those.
        black: Pictures that are black all over, as a safety checker leaves them.
    """

    rows: Mapping[str, Mapping[Path, Float[Tensor, " d"]]]
    bad: Mapping[Path, str]
    black: frozenset[Path]

    def stack(self, extractor: str, paths: Sequence[Path]) -> Float[Tensor, "n d"]:
        """One extractor's rows of these pictures."""
        return torch.stack([self.rows[extractor][path] for path in paths])


@dataclass(frozen=True)
class _Read:
    """One decoded file: what each network that has not seen it yet is to be given."""

    pixels: Mapping[str, Tensor]
    black: bool


def see(
    paths: Sequence[Path],
    extractors: Mapping[str, ImageExtractor],
    cache: FeatureCache | None,
    *,
    progress: bool = True,
) -> Seen:
    """Return the features of files; threads read ahead while the networks compute.

    What is computed is kept after every batch, so a call that was stopped goes on where it was.

    Args:
        paths: Pictures; the same one may come several times.
        extractors: By the names that their rows are to have.
        cache: Where rows are looked for and kept, or nowhere.
        progress: Show a bar on stderr, where that is a terminal.

    Raises:
        LoLDUError: If the cache cannot be used.
    """
    contents, bad = _digests(dict.fromkeys(paths))
    files = {content: path for path, content in contents.items()}  # one of those with the content
    found: dict[str, dict[str, Tensor]] = {name: {} for name in extractors}
    black: set[str] = set()
    if cache is not None:
        found = {name: cache.get(ex.identity, [*files]) for name, ex in extractors.items()}
        black = cache.black([*files])
    missing = {
        content: names
        for content in files
        if (names := [name for name in extractors if content not in found[name]])
    }
    unreadable: dict[str, str] = {}
    hidden = None if progress else True  # None: where stderr is no terminal
    with tqdm(total=len(missing), desc="looking", unit="picture", disable=hidden) as bar:
        reading = _read_ahead(files, missing, extractors)
        while batch := list(islice(reading, BATCH_SIZE)):
            unreadable |= {content: one for content, one in batch if isinstance(one, str)}
            read = {content: one for content, one in batch if isinstance(one, _Read)}
            new = [content for content, one in read.items() if one.black]
            black.update(new)
            if cache is not None:
                cache.put_black(new)  # before the rows, by which a picture counts as seen
            for name, extractor in extractors.items():
                own = {c: one.pixels[name] for c, one in read.items() if name in one.pixels}
                if own:
                    rows = dict(zip(own, extractor.encode_pixels([*own.values()]), strict=True))
                    found[name] |= rows
                    if cache is not None:
                        cache.put(extractor.identity, rows)
            bar.update(len(batch))
    return Seen(
        {
            name: {path: rows[content] for path, content in contents.items() if content in rows}
            for name, rows in found.items()
        },
        bad | {path: unreadable[c] for path, c in contents.items() if c in unreadable},
        frozenset(path for path, content in contents.items() if content in black),
    )


def tell_bad(bad: Mapping[Path, str], *, skip: bool) -> None:
    """Refuse pictures that cannot be read, unless they are to be skipped.

    Raises:
        LoLDUError: With every one of them.
    """
    if bad and not skip:
        reasons = " ".join(bad.values())
        count = "1 picture" if len(bad) == 1 else f"{len(bad)} pictures"
        raise LoLDUError(f"{reasons} Or leave {count} out with --skip_bad.")


def _digests(paths: Mapping[Path, None]) -> tuple[dict[Path, str], dict[Path, str]]:
    """The SHA-256 of each file, or why it cannot be read."""

    def digest(path: Path) -> str | OSError:
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        told = dict(zip(paths, pool.map(digest, paths), strict=True))
    bad = {
        path: f"The picture {path} cannot be read ({error.strerror})."
        for path, error in told.items()
        if isinstance(error, OSError)
    }
    return {path: text for path, text in told.items() if isinstance(text, str)}, bad


def _read_ahead(
    files: Mapping[str, Path],
    missing: Mapping[str, Sequence[str]],
    extractors: Mapping[str, ImageExtractor],
) -> Iterator[tuple[str, _Read | str]]:
    """Each missing file decoded and preprocessed, in order, or what is wrong with it.

    Never more than two batches wait in memory.
    """

    def read(content: str) -> _Read | str:
        try:
            # Published scores were made without a look at colour profiles.
            image = load_image(files[content], to_srgb=False)
        except LoLDUError as error:
            return str(error)
        pixels = {name: extractors[name].preprocess(image) for name in missing[content]}
        return _Read(pixels, black=image.getbbox() is None)

    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[tuple[str, Future[_Read | str]]] = deque()
        for content in missing:
            waiting.append((content, pool.submit(read, content)))
            if len(waiting) > 2 * BATCH_SIZE:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()
