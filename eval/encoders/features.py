"""Compute features of picture files; each file is read once, or never if it is in the cache."""

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
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from eval.encoders.cache import FeatureCache
from eval.encoders.encoder import BATCH_SIZE, Encoder
from eval.encoders.preprocess import Preprocess
from eval.encoders.subject import GRAY, VERSION, load_subject
from loldu.errors import LoLDUError
from loldu.pictures.open import load_image

THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class PictureFeatures:
    """Features of picture files.

    Attributes:
        rows: Unit feature row of each readable picture, by encoder and path.
        bad: Error message of each unreadable picture.
        black: Completely black pictures, as safety checkers return them.
    """

    rows: Mapping[str, Mapping[Path, Float[Tensor, " d"]]]
    bad: Mapping[Path, str]
    black: frozenset[Path]

    def stack(self, encoder: str, paths: Sequence[Path]) -> Float[Tensor, "n d"]:
        """Return one encoder's rows of these pictures."""
        return torch.stack([self.rows[encoder][path] for path in paths])

    def by_encoder(self, paths: Sequence[Path]) -> dict[str, Float[Tensor, "n d"]]:
        """Return the rows of these pictures for every encoder that encoded all of them."""
        return {
            encoder: self.stack(encoder, paths)
            for encoder, rows in self.rows.items()
            if rows.keys() >= {*paths}
        }


@dataclass(frozen=True)
class _Read:
    """One decoded file: the input of each encoder that has no features of it yet."""

    pixels: Mapping[str, Tensor]
    black: bool
    empty: bool = False
    """Whether the mask shows no subject."""


def compute_features(
    paths: Sequence[Path],
    encoders: Mapping[str, Encoder],
    cache: FeatureCache | None,
    *,
    masks: Mapping[Path, Path] | None = None,
    progress: bool = True,
) -> PictureFeatures:
    """Return the features of files. Threads read ahead while the networks compute.

    Every batch is stored at once, so that an interrupted call can be resumed.

    Args:
        paths: Picture files, perhaps with repeats.
        encoders: Encoders by name.
        cache: Cache to read and fill, or None.
        masks: Mask of each picture, to encode its subject alone; a black mask gives zeros.
        progress: Whether to show a progress bar if stderr is a terminal.

    Raises:
        LoLDUError: If the cache cannot be used.
    """
    contents, bad = _digests(dict.fromkeys(paths))
    if masks is not None:
        contents, bad = _with_masks(contents, bad, masks)
    files = {content: path for path, content in contents.items()}  # one file of each content
    found: dict[str, dict[str, Tensor]] = {name: {} for name in encoders}
    black: set[str] = set()
    if cache is not None:
        found = {name: cache.get(ex.identity, [*files]) for name, ex in encoders.items()}
        black = cache.black([*files])
    missing = {
        content: names
        for content in files
        if (names := [name for name in encoders if content not in found[name]])
    }
    unreadable: dict[str, str] = {}
    hidden = None if progress else True  # None hides it unless stderr is a terminal
    with tqdm(total=len(missing), desc="encoding", unit="picture", disable=hidden) as bar:
        reading = _read_ahead(files, missing, encoders, masks)
        while batch := list(islice(reading, BATCH_SIZE)):
            unreadable |= {content: one for content, one in batch if isinstance(one, str)}
            read = {content: one for content, one in batch if isinstance(one, _Read)}
            new = [content for content, one in read.items() if one.black]
            black.update(new)
            if cache is not None:
                cache.put_black(new)  # before the rows, which mark a picture as done
            for name, rows in _encode_batch(read, encoders, cache).items():
                found[name] |= rows
            bar.update(len(batch))
    return PictureFeatures(
        {
            name: {path: rows[content] for path, content in contents.items() if content in rows}
            for name, rows in found.items()
        },
        bad | {path: unreadable[c] for path, c in contents.items() if c in unreadable},
        frozenset(path for path, content in contents.items() if content in black),
    )


def _encode_batch(
    read: Mapping[str, _Read], encoders: Mapping[str, Encoder], cache: FeatureCache | None
) -> dict[str, dict[str, Tensor]]:
    """Return the new rows of each encoder by content, and store them."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in encoders}
    for name, encoder in encoders.items():
        pixels = {c: one.pixels[name] for c, one in read.items() if name in one.pixels}
        if pixels:
            shown = torch.tensor([[not read[content].empty] for content in pixels])
            rows = encoder.encode_pixels([*pixels.values()]) * shown
            found[name] = dict(zip(pixels, rows, strict=True))
            if cache is not None:
                cache.put(encoder.identity, found[name])
    return found


def refuse_unreadable(bad: Mapping[Path, str], *, skip: bool) -> None:
    """Raise an error that names all unreadable pictures, unless they may be skipped.

    Raises:
        LoLDUError: If there are any and `skip` is false.
    """
    if bad and not skip:
        reasons = " ".join(bad.values())
        count = "1 picture" if len(bad) == 1 else f"{len(bad)} pictures"
        raise LoLDUError(f"{reasons} Or leave {count} out with --skip_bad.")


def _digests(paths: Mapping[Path, None]) -> tuple[dict[Path, str], dict[Path, str]]:
    """Return the SHA-256 of each readable file, and an error message for each other file."""

    def digest(path: Path) -> str | OSError:
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        digests = dict(zip(paths, pool.map(digest, paths), strict=True))
    bad = {
        path: f"The picture {path} cannot be read ({error.strerror})."
        for path, error in digests.items()
        if isinstance(error, OSError)
    }
    return {path: text for path, text in digests.items() if isinstance(text, str)}, bad


def _with_masks(
    contents: Mapping[Path, str], bad: Mapping[Path, str], masks: Mapping[Path, Path]
) -> tuple[dict[Path, str], dict[Path, str]]:
    """Return keys of pictures together with their masks, and error messages for both."""
    found, unreadable = _digests(dict.fromkeys(masks[path] for path in contents))
    both: dict[Path, str] = {}
    errors = dict(bad)
    for path, content in contents.items():
        if (mask := masks[path]) in unreadable:
            errors[path] = unreadable[mask]
        else:
            key = f"{VERSION} {content} {found[mask]}"
            both[path] = hashlib.sha256(key.encode()).hexdigest()
    return both, errors


def _read_ahead(
    files: Mapping[str, Path],
    missing: Mapping[str, Sequence[str]],
    encoders: Mapping[str, Encoder],
    masks: Mapping[Path, Path] | None,
) -> Iterator[tuple[str, _Read | str]]:
    """Yield each missing file, decoded and preprocessed, or its error message, in order.

    At most two batches wait in memory.
    """

    def read(content: str) -> _Read | str:
        try:
            path = files[content]
            if masks is None:
                # Published scores ignore color profiles.
                image = load_image(path, to_srgb=False)
            else:
                image = load_subject(path, masks[path])
        except LoLDUError as error:
            return str(error)
        empty = image is None
        image = image or Image.new("RGB", (1, 1), GRAY)
        made: dict[Preprocess, Tensor] = {}
        pixels: dict[str, Tensor] = {}
        for name in missing[content]:
            how = encoders[name].preprocess
            if how not in made:
                made[how] = how(image)
            pixels[name] = made[how]
        return _Read(pixels, black=image.getbbox() is None, empty=empty)

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
