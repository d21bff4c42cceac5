"""Each file is encoded once: how often the networks run, and the cache of a second call."""

import os
import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.config import default_cache
from eval.encoders.cache import FeatureCache
from eval.encoders.encoder import Encoder
from eval.encoders.features import compute_features
from eval.encoders.load import load_clip, load_dino
from loldu.errors import LoLDUError


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Seven pictures; the last is a copy of the first, one is black."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for path in paths[:5]:
        Image.fromarray(rng.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(path)
    Image.new("RGB", (32, 32)).save(paths[5])
    paths[6].write_bytes(paths[0].read_bytes())
    return paths


@pytest.fixture
def extractors(clip_folder: Path, dino_folder: Path) -> dict[str, Encoder]:
    return {"dino": load_dino(str(dino_folder)), "clip": load_clip(str(clip_folder))}


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the pictures that each network encodes."""
    counts: Counter[str] = Counter()
    encode = Encoder.encode_pixels

    def counted(self: Encoder, pixels: list[torch.Tensor]) -> torch.Tensor:
        counts[type(self).__name__] += len(pixels)
        return encode(self, pixels)

    monkeypatch.setattr(Encoder, "encode_pixels", counted)
    return counts


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "deep" / "features.sqlite")


@pytest.mark.parametrize("batch", [2, 32])
def test_files_have_the_features_of_their_pictures(
    files: list[Path],
    extractors: dict[str, Encoder],
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = {
        name: extractor.encode_images([Image.open(path) for path in files])
        for name, extractor in extractors.items()
    }
    monkeypatch.setattr("eval.encoders.features.BATCH_SIZE", batch)
    seen = compute_features(files, extractors, None)
    for name, rows in expected.items():
        torch.testing.assert_close(seen.stack(name, files), rows, atol=1e-6, rtol=0)
    assert seen.black == {files[5]}
    assert not seen.bad


def test_a_second_call_encodes_nothing(
    files: list[Path],
    extractors: dict[str, Encoder],
    cache: FeatureCache,
    looked: Counter[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = compute_features(files, extractors, cache)
    assert set(looked.values()) == {6}  # a copy is the same picture
    looked.clear()
    monkeypatch.setattr("eval.encoders.features.load_image", None)  # nothing is decoded either
    renamed = tmp_path / "renamed.png"
    files[2].rename(renamed)
    files[2] = renamed
    again = compute_features(files, extractors, FeatureCache(tmp_path / "deep" / "features.sqlite"))
    assert not looked
    assert again.black == {files[5]}
    others = [path for path in files if path != renamed]
    assert torch.equal(again.stack("dino", others), first.stack("dino", others))


def test_changed_files_are_encoded_again(
    files: list[Path],
    extractors: dict[str, Encoder],
    cache: FeatureCache,
    looked: Counter[str],
) -> None:
    compute_features(files, extractors, cache)
    looked.clear()
    Image.new("RGB", (32, 32), "red").save(files[3])
    compute_features(files, extractors, cache)
    assert set(looked.values()) == {1}
    looked.clear()
    extractors["dino"].model.layernorm.weight.data.mul_(2)
    del extractors["dino"].identity
    compute_features(files, extractors, cache)
    assert looked == {"TransformersDino": 6}


def test_a_stopped_call_continues(
    files: list[Path],
    extractors: dict[str, Encoder],
    cache: FeatureCache,
    looked: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eval.encoders.features.BATCH_SIZE", 2)
    put, calls = FeatureCache.put, []

    def stop(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 4:  # in the second batch, between the two networks
            raise KeyboardInterrupt
        put(*arguments)

    monkeypatch.setattr(FeatureCache, "put", stop)
    with pytest.raises(KeyboardInterrupt):
        compute_features(files, extractors, cache)
    monkeypatch.setattr(FeatureCache, "put", put)
    looked.clear()
    seen = compute_features(files, extractors, cache)
    assert sorted(looked.values()) == [2, 4]
    whole = compute_features(files, extractors, None)
    torch.testing.assert_close(seen.stack("clip", files), whole.stack("clip", files))
    assert seen.black == whole.black


def test_unreadable_files_are_reported_and_the_others_encoded(
    files: list[Path], extractors: dict[str, Encoder], cache: FeatureCache
) -> None:
    files[1].write_bytes(files[1].read_bytes()[:200])
    files[4].unlink()
    seen = compute_features(files, extractors, cache)
    assert set(seen.bad) == {files[1], files[4]}
    assert all(str(path) in why for path, why in seen.bad.items())
    assert set(seen.rows["dino"]) == set(files) - set(seen.bad)


def test_a_file_that_is_no_cache_is_reported(
    tmp_path: Path, extractors: dict[str, Encoder]
) -> None:
    (tmp_path / "notes").write_text("my notes, which are not a database at all" * 30)
    with pytest.raises(LoLDUError, match="--no_cache"):
        FeatureCache(tmp_path / "notes")
    assert (tmp_path / "notes").read_text().startswith("my notes")
    FeatureCache(tmp_path / "empty.sqlite")
    with sqlite3.connect(tmp_path / "empty.sqlite") as database:
        database.execute("DROP TABLE features")
    cache = FeatureCache(tmp_path / "empty.sqlite")  # made again
    assert cache.get(extractors["dino"].identity, ["a"] * 1200) == {}


def test_the_cache_is_in_the_cache_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache() == Path("/caches/loldu/features.sqlite")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/people/me")
    if os.name == "posix":
        assert default_cache() == Path("/people/me/.cache/loldu/features.sqlite")
