"""Mutated checkpoints: one sentence, or exactly what was saved."""

import json
import random
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file

from loldu.errors import LoLDUError
from trainer import train_dreambooth_loldu
from trainer.options.config import Config
from trainer.train_dreambooth_loldu import main
from trainer.training.checkpoint import Progress, find_checkpoint, load_checkpoint

NAMES = ("trained.safetensors", "optimizer.pt", "state.json", "config.toml")
NUMBERS: dict[str, Callable[[bytearray], int]] = {
    "trained.safetensors": lambda content: len(content) - 1,
    "optimizer.pt": lambda content: len(content) // 2,
    "state.json": lambda content: content.index(b'"step": 1') + 8,
}
"""Where each file has a number, one bit of which is flipped."""
VALUES: tuple[Any, ...] = (True, -1, 2**62, 1.5, "", "x" * 10_000, [], [1, 2], {}, {"a": 5})


def mutate(rng: random.Random, name: str, content: bytes) -> bytes:
    """Flip, cut or add bytes; or replace a value of the state or of the options."""
    if name.endswith(("json", "toml")) and rng.random() < 0.5:
        table = json.loads(content) if name == "state.json" else tomllib.loads(content.decode())
        place = table
        if rng.random() < 0.8 and isinstance(inner := table[rng.choice([*table])], dict) and inner:
            place = inner
        place[rng.choice([*place, "more"])] = rng.choice(VALUES)
        return json.dumps(table).encode() if name == "state.json" else tomli_w.dumps(table).encode()
    place = rng.randrange(len(content))
    match rng.randrange(3):
        case 0:
            return content[:place]
        case 1:
            return content[:place] + rng.randbytes(rng.randrange(1, 40)) + content[place:]
        case _:
            changed = bytearray(content)
            for _ in range(rng.choice((1, 2, 16))):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            return bytes(changed)


def check(sentence: str) -> None:
    """One line of bounded length."""
    assert sentence.isprintable(), sentence[:500]
    assert 0 < len(sentence) < 1500


class Enough(Exception):
    """Ends a run where it would load its checkpoint."""


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_mutated_checkpoint_is_refused_or_right(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    short = ("--max_train_steps", "2", "--no_sample_at_end", "--lora_file", "no")
    main(make_config(*short, "--checkpointing_steps", "1"))
    good, folder = tmp_path / "run" / "checkpoint-000001", tmp_path / "checkpoint"
    config = make_config(*short, "--checkpointing_steps", "1", "--resume", str(good))
    parts: list[Any] = []

    def keep(_: Path, *rest: Any) -> Progress:  # noqa: ANN401
        parts.extend(rest)
        raise Enough

    monkeypatch.setattr(train_dreambooth_loldu, "load_checkpoint", keep)
    with pytest.raises(Enough):
        main(config)
    trained = parts[1]
    config = make_config(*short, "--checkpointing_steps", "1", "--resume", str(folder))
    shutil.copytree(good, folder)
    assert find_checkpoint(config) == folder
    right = load_checkpoint(folder, *parts)
    for name, place in NUMBERS.items():
        content = bytearray((good / name).read_bytes())
        content[place(content)] ^= 2
        (folder / name).write_bytes(content)
        with pytest.raises(LoLDUError, match=rf"is damaged; .* \({name} has changed since"):
            load_checkpoint(folder, *parts)
        shutil.copy(good / name, folder / name)
    rng, loaded = random.Random(3), 0
    for _ in range(count):
        name = rng.choice(NAMES)
        (folder / name).write_bytes(mutate(rng, name, (good / name).read_bytes()))
        before = {path: path.read_bytes() for path in folder.iterdir()}
        try:
            progress = load_checkpoint(find_checkpoint(config) or folder, *parts)
        except LoLDUError as error:
            check(str(error))
        else:
            loaded += 1
            assert progress == right
            found = trained.state_dict()
            for key, tensor in load_file(good / "trained.safetensors").items():
                assert torch.equal(found[key], tensor)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        shutil.copy(good / name, folder / name)
    assert 0 < loaded < count
