"""Mutated concept files, LoRAs and folders of PEFT: one sentence or a right result."""

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import get_peft_model_state_dict
from safetensors.numpy import load_file, save_file

from loldu import LoLDUConfig, export_lora, load_concept, save_concept
from loldu.__main__ import run
from loldu.base.record import base_options
from loldu.base.single_file import check_checkpoint
from loldu.concept.format import read_concept
from loldu.concept.reader import checksum, read_file
from loldu.concept.report import report_concept
from loldu.errors import LoLDUError

DEFAULT, ALL = 60, 2000
"""Mutated files of each sort: by default, and with the marker `slow`."""

Mutation = Callable[[random.Random, bytes], bytes]


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def join(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def flip(rng: random.Random, content: bytes) -> bytes:
    """Other bytes anywhere; without the checksum, those of the tensors would be trusted."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 16))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def grow(rng: random.Random, content: bytes) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + rng.randbytes(rng.randrange(1, 64)) + content[place:]


def declare_other_sizes(rng: random.Random, content: bytes) -> bytes:
    """Another length of the header, shape, offset or dtype, up to sizes that no memory has."""
    if rng.random() < 0.25:
        size = rng.choice((0, 7, 2**31, 2**63 - 1, len(content), rng.randrange(len(content))))
        return size.to_bytes(8, "little") + content[8:]
    header, body = split(content)
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    numbers = (0, 1, -1, 2**31, 2**62, rng.randrange(10_000))
    match rng.randrange(3):
        case 0:
            entry["shape"] = [rng.choice(numbers) for _ in range(rng.randrange(4))]
        case 1:
            entry["data_offsets"] = [rng.choice(numbers), rng.choice(numbers)]
        case _:
            entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "X"))
    return join(header, body)


VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**40, 10**30, 1.5, float("nan"), float("inf"), "", "x" * 100_000, "\ud800",
    "a/../b\n\x1b[31m", [], [1, 2], {}, {"vae": 5}, [[[[]]]],
)  # fmt: skip


def edit(rng: random.Random, value: Any) -> Any:  # noqa: ANN401
    """Replace, remove or add something at a random place of a JSON value."""
    place, parents = value, []
    while isinstance(place, dict | list) and place and rng.random() < 0.85:
        key = rng.choice([*place]) if isinstance(place, dict) else rng.randrange(len(place))
        parents.append((place, key))
        place = place[key]
    if not parents:
        return rng.choice(VALUES)
    owner, key = parents[-1]
    if rng.random() < 0.2:
        del owner[key]
    elif isinstance(owner, dict) and rng.random() < 0.2:
        owner[rng.choice(("base", "token", "more", "x" * 2000, "\udfff"))] = rng.choice(VALUES)
    else:
        owner[key] = rng.choice(VALUES)
    return value


def sign_again(rng: random.Random, content: bytes, path: Path) -> None:
    """Write a concept with an edited description or tensors, whose checksum fits."""
    path.write_bytes(content)
    arrays = load_file(path)
    header = split(content)[0]["__metadata__"]
    if rng.random() < 0.7:
        description = edit(rng, json.loads(header["description"]))
        header["description"] = json.dumps(description)
    else:
        name = rng.choice([*arrays])
        arrays[name] = alter(rng, arrays[name])
        if rng.random() < 0.1:
            del arrays[name]
    header["checksum"] = checksum(header["description"], arrays)
    save_file(arrays, path, header)


def alter(rng: random.Random, array: np.ndarray) -> np.ndarray:
    """Another dtype, shape or values."""
    with np.errstate(all="ignore"):
        match rng.randrange(4):
            case 0:
                return array.astype(rng.choice(("f8", "f2", "i8", "u1", "?", "i2")))
            case 1:
                return array[: rng.randrange(len(array))] if array.ndim else array
            case 2:
                return array[None] if rng.random() < 0.5 else array.reshape(-1)
            case _:
                changed = array.copy().reshape(-1)
                value = rng.choice((0, 1, 255, -1, 1e38, np.nan, np.inf))
                place = rng.randrange(changed.size)
                changed[place] = np.array(value).astype(changed.dtype)
                return changed.reshape(array.shape)


BYTES: tuple[Mutation, ...] = (flip, cut, grow, declare_other_sizes)


def counts() -> list[Any]:
    return [DEFAULT, pytest.param(ALL, marks=pytest.mark.slow)]


def state(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check(sentence: str) -> None:
    """One line of bounded length."""
    assert sentence.isprintable(), sentence[:500]
    assert 0 < len(sentence) < 1500


@pytest.fixture
def unet(make_unet: Callable[..., UNet2DConditionModel]) -> UNet2DConditionModel:
    return make_unet()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("count", counts())
def test_a_mutated_concept_is_refused_or_right(
    unet: UNet2DConditionModel, tmp_path: Path, count: int
) -> None:
    trained = unet
    trained.add_adapter(LoLDUConfig(r=4, init_weights=False, target_modules=["to_q", "to_k"]))
    metadata = {
        "token": "sks",
        "base": {"clip_skip": 1},
        "class_prompt": ["a toy"],
        "scores": {"a": 1},
    }
    good = save_concept(trained, tmp_path / "good", metadata=metadata)
    trained.delete_adapters("default")
    content, rng = good.read_bytes(), random.Random(0)
    path = tmp_path / "toy.safetensors"
    loaded = 0
    for _ in range(count):
        if rng.random() < 0.5:
            path.write_bytes(rng.choice(BYTES)(rng, content))
        else:
            sign_again(rng, content, path)
        before = state(tmp_path)
        for use in (read_file, lambda p: base_options(read_concept(p), p, "here")):
            try:
                use(path)
            except LoLDUError as error:
                check(str(error))
        try:
            report_concept(read_file(path), path).encode()
            load_concept(unet, path)
        except LoLDUError as error:
            check(str(error))
            assert not any("loldu" in name for name in unet.state_dict())
        else:
            loaded += 1
            for layer in read_concept(path).layers:
                placed = unet.get_submodule(layer.name)
                assert torch.equal(placed.diagonal("default").delta(), layer.delta)
            unet.delete_adapters("default")
        assert state(tmp_path) == before
    assert 0 < loaded < count


@pytest.mark.parametrize("count", counts())
def test_a_mutated_lora_is_refused(unet: UNet2DConditionModel, tmp_path: Path, count: int) -> None:
    """A LoRA where a concept or a base is wanted."""
    unet.add_adapter(LoLDUConfig(r=2, init_weights=False, target_modules=["to_q"]))
    content = export_lora(unet, tmp_path / "good.safetensors").read_bytes()
    unet.delete_adapters("default")
    rng, path = random.Random(1), tmp_path / "lora.safetensors"
    for _ in range(count):
        path.write_bytes(rng.choice(BYTES)(rng, content))
        before = state(tmp_path)
        for use in (
            read_file,
            partial(load_concept, unet),
            partial(check_checkpoint, text_encoders=("cond_stage_model.",), has_vae=True),
        ):
            with pytest.raises(LoLDUError) as refusal:
                use(path)
            check(str(refusal.value))
        assert state(tmp_path) == before


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Unexpected keyword arguments")
@pytest.mark.parametrize("count", counts())
def test_a_mutated_folder_of_peft_is_refused_or_right(
    unet: UNet2DConditionModel, tmp_path: Path, count: int
) -> None:
    unet.add_adapter(LoLDUConfig(r=4, init_weights=False, target_modules=["to_q", "to_k"]))
    folder = tmp_path / "folder"
    folder.mkdir()
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    unet.peft_config["default"].save_pretrained(folder)
    save_file(
        {k: v.numpy() for k, v in get_peft_model_state_dict(unet, adapter_name="default").items()},
        weights,
        {"format": "pt"},
    )
    unet.delete_adapters("default")
    good = config.read_bytes(), weights.read_bytes()
    rng, loaded = random.Random(2), 0
    for _ in range(count):
        config.write_bytes(good[0])
        weights.write_bytes(good[1])
        match rng.randrange(3):
            case 0:
                weights.write_bytes(rng.choice(BYTES)(rng, good[1]))
            case 1:
                config.write_bytes(rng.choice((flip, cut, grow))(rng, good[0]))
            case _:
                config.write_text(json.dumps(edit(rng, json.loads(good[0]))))
        before = state(tmp_path)
        try:
            load_concept(unet, folder)
        except LoLDUError as error:
            check(str(error))
            assert not any("loldu" in name for name in unet.state_dict())
        else:
            loaded += 1
            unet.delete_adapters("default")
        assert state(tmp_path) == before
    assert 0 < loaded < count


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("count", [8, pytest.param(400, marks=pytest.mark.slow)])
def test_commands_refuse_a_mutated_concept_or_write_a_sound_file(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    pipeline, base = StableDiffusionPipeline.from_pretrained(base_folder), str(base_folder)
    pipeline.unet.add_adapter(LoLDUConfig(r=4, init_weights=False, target_modules=["to_q"]))
    content = save_concept(pipeline, tmp_path / "good").read_bytes()
    rng, path, out = random.Random(8), tmp_path / "toy.safetensors", tmp_path / "out"
    statuses = set()
    for _ in range(count):
        sign_again(rng, content, path)
        before = state(tmp_path)
        for name, *more in (
            ("inspect",),
            ("verify", base),
            ("export", base, str(out / "lora.safetensors")),
            ("truncate", base, str(out / "less.safetensors"), "--r", "2"),
            ("merge", base, str(out / "merged")),
            ("compare-clients", base),
        ):
            out.mkdir()
            capsys.readouterr()
            status = run([name, str(path), *more])
            error = capsys.readouterr().err
            statuses.add(status)
            written = [*out.iterdir()]
            if status == 2:
                check(error.strip())
                assert not written
            elif name == "truncate":
                assert read_concept(written[0]).layers
            shutil.rmtree(out)
            assert state(tmp_path) == before
    assert statuses == {0, 2}
