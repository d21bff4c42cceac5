"""The pre-training corpus: rendered pictures with scenes and captions, stored under `build`."""

import json
import os
import random
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTokenizer

from pocket.captions import full_caption, random_caption
from pocket.render import SIZE_PX, render
from pocket.world import (
    Scene,
    elsewhere,
    named_scene,
    random_scene,
    random_thing,
    two_things,
)

CAPTIONS_EACH = 6
PICTURES_OF_A_THING = 5
"""Pictures of a thing in the split "things"; a chunk holds whole things."""
_CHUNK = 1000


@dataclass(frozen=True)
class Corpus:
    """Pictures, scenes and captions of one split.

    Attributes:
        pictures: uint8 array, (n, 64, 64, 3), memory-mapped.
        scenes: Attributes of each picture.
        captions: `CAPTIONS_EACH` random captions of each picture.
    """

    pictures: UInt8[np.ndarray, "n h w 3"]
    scenes: list[Scene]
    captions: list[list[str]]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.scenes)

    @cached_property
    def full_captions(self) -> list[str]:
        """Captions that name every attribute, one per picture."""
        return [full_caption(scene) for scene in self.scenes]

    def pixels(self, rows: Int[Tensor, " b"] | slice) -> Float[Tensor, "b 3 h w"]:
        """Return pictures as floats in [-1, 1], channels last in memory."""
        index = rows if isinstance(rows, slice) else rows.numpy()
        batch = torch.from_numpy(np.array(self.pictures[index])).permute(0, 3, 1, 2)
        return batch.to(torch.float32) / 127.5 - 1

    def token_ids(self, tokenizer: CLIPTokenizer) -> Int[Tensor, "n captions length"]:
        """Return all captions as padded token ids."""
        flat = [caption for captions in self.captions for caption in captions]
        return tokenize(tokenizer, flat).view(len(self), CAPTIONS_EACH, -1)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Int[Tensor, "n length"]:
    """Return texts as token ids, padded to the tokenizer's maximal length."""
    return tokenizer(
        texts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def random_scenes(seed: int, count: int) -> list[Scene]:
    """Return random scenes, the same for every corpus."""
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


def _world(rng: random.Random, count: int) -> list[Scene]:
    return [random_scene(rng) for _ in range(count)]


def _named(rng: random.Random, count: int) -> list[Scene]:
    return [named_scene(rng) for _ in range(count)]


def _pairs(rng: random.Random, count: int) -> list[Scene]:
    once = _world(rng, count // 2)
    return [s for scene in once for s in (scene, elsewhere(scene, rng))]


def _two(rng: random.Random, count: int) -> list[Scene]:
    return [two_things(rng) for _ in range(count)]


def _things(rng: random.Random, count: int) -> list[Scene]:
    looks = [random_thing(rng) for _ in range(count // PICTURES_OF_A_THING)]
    return [elsewhere(look, rng) for look in looks for _ in range(PICTURES_OF_A_THING)]


SPLITS = {"named": _named, "pairs": _pairs, "things": _things, "two": _two, "judged_two": _two}


def _render_chunk(job: tuple[str, int, int]) -> tuple[np.ndarray, list[Scene], list[list[str]]]:
    split, seed, count = job
    rng = random.Random(seed)
    scenes = SPLITS.get(split, _world)(rng, count)
    pictures = np.stack([np.asarray(render(scene, rng)) for scene in scenes])
    captions = [[random_caption(scene, rng) for _ in range(CAPTIONS_EACH)] for scene in scenes]
    return pictures, scenes, captions


def make_corpus(build: Path, split: str, size: int, seed: int) -> Corpus:
    """Render a split, or open the rendered one; an interrupted rendering continues.

    The split "named" shows individuals with their names. "pairs" shows every thing twice, in two
    settings, one after the other, and "things" every thing `PICTURES_OF_A_THING` times. "two" and
    "judged_two" show two things in one picture. All other splits show random scenes.
    """
    pictures_file, texts_file = build / f"{split}-{size}.npy", build / f"{split}-{size}.jsonl"
    build.mkdir(parents=True, exist_ok=True)
    jobs = [
        (split, seed + i, min(_CHUNK, size - start))
        for i, start in enumerate(range(0, size, _CHUNK))
    ]
    done = _finished_chunks(texts_file)
    if done < len(jobs):
        pictures = np.lib.format.open_memmap(
            pictures_file,
            mode="r+" if done else "w+",
            dtype=np.uint8,
            shape=(size, SIZE_PX, SIZE_PX, 3),
        )
        with (
            get_context("fork").Pool(os.cpu_count()) as pool,
            texts_file.open("a", encoding="utf-8") as texts,
        ):
            chunks = pool.imap(_render_chunk, jobs[done:])
            for drawn, scenes, captions in tqdm(
                chunks, initial=done, total=len(jobs), desc=f"render {split}"
            ):
                pictures[done * _CHUNK : done * _CHUNK + len(scenes)] = drawn
                pictures.flush()
                texts.write(json.dumps({"scenes": scenes, "captions": captions}) + "\n")
                texts.flush()
                done += 1
    lines = [json.loads(line) for line in texts_file.read_text(encoding="utf-8").splitlines()]
    return Corpus(
        np.load(pictures_file, mmap_mode="r"),
        [scene for line in lines for scene in line["scenes"]],
        [captions for line in lines for captions in line["captions"]],
    )


def _finished_chunks(texts_file: Path) -> int:
    """Count the chunks whose texts were written whole; cut off a line that was not finished."""
    if not texts_file.exists():
        return 0
    written = texts_file.read_bytes()
    os.truncate(texts_file, written.rfind(b"\n") + 1)
    return written.count(b"\n")
