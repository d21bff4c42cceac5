"""The concept file: its size, and errors for invalid content."""

import json
import pickle
import re
import resource
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file

from loldu import Concept, ConceptError, ConceptLayer, read_concept
from loldu.concept.format import write_concept
from loldu.concept.reader import checksum

SMALL = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def layer(
    name: str, out_features: int, in_features: int, r: int, **changes: object
) -> ConceptLayer:
    made = ConceptLayer(
        component="unet",
        name=name,
        out_features=out_features,
        in_features=in_features,
        factorization="partial",
        base_dtype="float16",
        delta=torch.randn(r),
        pivots=torch.randperm(out_features)[:r],
        fingerprint=torch.randn(3),
    )
    return replace(made, **changes)


def concept(*layers: ConceptLayer) -> Concept:
    return Concept(
        base="stable-diffusion-v1-5/stable-diffusion-v1-5",
        config={"unet": {"r": 32, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}},
        layers=layers,
        metadata={"instance_prompt": "a photo of sks toy", "steps": 1000, "scores": [0.5, 0.25]},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "toy.safetensors"
    write_concept(concept(layer("a.to_q", 6, 4, 3), layer("a.to_k", 300, 5, 4)), path)
    return path


def assert_same(one: Concept, other: Concept) -> None:
    assert (one.base, one.config, one.metadata) == (other.base, other.config, other.metadata)
    for a, b in zip(one.layers, other.layers, strict=True):
        for field, value in vars(a).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(b, field))
            else:
                assert value == getattr(b, field)


@pytest.mark.parametrize("factorization", ["partial", "complete", "svd"])
@pytest.mark.parametrize("width", [5, 250, 30_000, 70_000])
def test_files_round_trip(tmp_path: Path, factorization: str, width: int) -> None:
    rows, columns = torch.randperm(width)[:4], torch.randperm(9)[:4]
    pivots = {"partial": rows, "complete": torch.stack([rows, columns]), "svd": None}[factorization]
    written = concept(
        layer("a", width, 9, 4, factorization=factorization, pivots=pivots),
        layer(
            "b", width, 9, 4, factorization=factorization, pivots=pivots, component="text_encoder"
        ),
    )
    write_concept(written, tmp_path / "toy.safetensors")
    assert_same(read_concept(tmp_path / "toy.safetensors"), written)


def test_size_for_stable_diffusion_at_rank_32(tmp_path: Path) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768,
            attention_head_dim=8,
        )
    layers = [
        layer(name, module.out_features, module.in_features, 32)
        for name, module in unet.named_modules()
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    ]
    assert len(layers) == 128
    path = tmp_path / "toy.safetensors"
    write_concept(concept(*layers), path)
    assert path.stat().st_size < 40_000
    assert_same(read_concept(path), concept(*layers))


def test_size_for_ten_thousand_full_rank_values(tmp_path: Path) -> None:
    name = "down_blocks.{}.attentions.0.transformer_blocks.0.attn1.to_q"
    layers = [layer(name.format(i), 256, 256, 256) for i in range(24)]
    layers += [layer(name.format(i), 128, 128, 128) for i in range(24, 56)]
    assert sum(y.delta.numel() for y in layers) > 10_000
    path = tmp_path / "toy.safetensors"
    write_concept(concept(*layers), path)
    assert path.stat().st_size < 70_000


def test_truncated_files_are_refused(path: Path) -> None:
    content = path.read_bytes()
    for size in (*range(0, 24), *range(24, len(content), 7), len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ConceptError, match=r"toy\.safetensors"):
            read_concept(path)


@given(data=st.data())
@SMALL
def test_a_changed_byte_is_noticed(path: Path, data: st.DataObject) -> None:
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[position] = data.draw(st.integers(0, 255).filter(lambda b: b != content[position]))
    damaged = path.with_name("damaged.safetensors")
    damaged.write_bytes(changed)
    try:
        survived = read_concept(damaged)
    except ConceptError:
        return
    # Spaces in the header may change without changing the content.
    assert_same(survived, read_concept(path))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Limit memory to that of a small file, so that a forged size would not fit."""
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + 2**28
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@given(
    edits=st.lists(
        st.tuples(
            st.sampled_from(["overwrite", "insert", "delete"]),
            st.floats(0, 1),
            st.binary(min_size=1, max_size=9),
        ),
        min_size=1,
        max_size=4,
    )
)
@SMALL
@pytest.mark.usefixtures("little_memory")
def test_edited_files_are_refused_or_unchanged(
    path: Path, edits: list[tuple[str, float, bytes]]
) -> None:
    changed = bytearray(path.read_bytes())
    for kind, place, piece in edits:
        start = int(place * len(changed))
        stop = start if kind == "insert" else start + len(piece)
        changed[start:stop] = b"" if kind == "delete" else piece
    damaged = path.with_name("damaged.safetensors")
    damaged.write_bytes(changed)
    try:
        survived = read_concept(damaged)
    except ConceptError:
        return
    assert_same(survived, read_concept(path))


NUMBER = st.integers(-1, 20) | st.integers(2**24, 2**70) | st.floats() | st.text(max_size=3)


@given(place=st.floats(0, 0.999), value=NUMBER)
@example(place=0.0, value=2**64)
@SMALL
@pytest.mark.usefixtures("little_memory")
def test_numbers_of_the_description_are_not_trusted(
    path: Path, place: float, value: object
) -> None:
    """The checksum fits, because whoever forges a number can forge it too."""
    header_size = int.from_bytes(path.read_bytes()[:8], "little")
    description = json.loads(path.read_bytes()[8 : 8 + header_size])["__metadata__"]["description"]
    numbers = list(re.finditer(r"(?<=[\[,:])[0-9.]+(?=[],}])", description))
    forged = numbers[int(place * len(numbers))]
    text = description[: forged.start()] + json.dumps(value) + description[forged.end() :]
    tensors = load_file(path)
    header = {"format": "loldu-concept", "version": "1", "description": text}
    header["checksum"] = checksum(text, load_arrays(path))
    damaged = path.with_name("damaged.safetensors")
    save_file(tensors, damaged, metadata=header)
    try:
        survived = read_concept(damaged)
    except ConceptError:
        return
    for one, other in zip(survived.layers, read_concept(path).layers, strict=True):
        # What remains free is a size that pivots and rank allow; the base's own decides on it.
        assert torch.equal(one.delta, other.delta)
        assert torch.equal(one.pivots, other.pivots)
        assert one.pivots.max() < one.out_features
        assert one.delta.numel() <= min(one.out_features, one.in_features)


@given(garbage=st.binary(max_size=400))
@SMALL
def test_garbage_is_refused(path: Path, garbage: bytes) -> None:
    path.write_bytes(garbage)
    with pytest.raises(ConceptError, match=r"toy\.safetensors"):
        read_concept(path)


def test_other_kinds_of_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(ConceptError, match=r"does not exist"):
        read_concept(path)
    with pytest.raises(ConceptError, match=r"does not exist"):
        read_concept(tmp_path)
    for content in (b"", b"# notes\n", pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(ConceptError, match=r"not a readable \.safetensors file"):
            read_concept(path)
    save_file({"unet.to_q.lora_A.weight": torch.ones(2, 2)}, path, metadata={"format": "pt"})
    with pytest.raises(ConceptError, match=r"not a LoLDU concept \(a LoRA or model weights\?\)"):
        read_concept(path)
    save_file({"delta": torch.ones(2)}, path)
    with pytest.raises(ConceptError, match=r"not a LoLDU concept"):
        read_concept(path)


def test_a_newer_format_asks_for_a_newer_loldu(path: Path) -> None:
    save_file(load_file(path), path, metadata={"format": "loldu-concept", "version": "2"})
    with pytest.raises(ConceptError, match=r"format version 2.*install a newer loldu"):
        read_concept(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"pivots": torch.tensor([0, 1, 6])},
        {"pivots": torch.tensor([0, 1, 1])},
        {"pivots": torch.tensor([0, 1])},
        {"pivots": torch.tensor([0, 1, 2, 3])},
        {"pivots": None},
        {"factorization": "complete"},
        {"factorization": "svd"},
        {"factorization": "qr"},
        {"out_features": 2},
        {"in_features": 2},
        {"out_features": -6},
        {"in_features": 4.0},
        {"in_features": True},
        {"name": 7},
        {"base_dtype": "int8"},
        {"delta": torch.tensor([1.0, float("nan"), 0.0])},
        {"delta": torch.empty(0), "pivots": None, "factorization": "svd"},
        {"fingerprint": torch.zeros(2)},
        {"fingerprint": torch.tensor([float("inf"), 0.0, 0.0])},
        {"fingerprint": torch.tensor([1.0, float("nan"), 0.0])},
        {"name": "a\n" * 9},
        {"name": "a" * 513},
    ],
    ids=str,
)
def test_impossible_content_is_refused_though_its_checksum_fits(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    good = layer("a", 6, 4, 3)
    bad = object.__new__(ConceptLayer)
    bad.__dict__.update(vars(good) | changes)
    forged = object.__new__(Concept)
    forged.__dict__.update(vars(concept(good)) | {"layers": (bad,)})
    path = tmp_path / "toy.safetensors"
    write_concept(forged, path)
    with pytest.raises(ConceptError, match=r"does not hold what a concept file must"):
        read_concept(path)


def sign_again(path: Path, metadata: str) -> None:
    """Replace the metadata of a concept file, as JSON text, and make the checksum fit."""
    header_size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + header_size])["__metadata__"]
    content = json.loads(header["description"]) | {"metadata": 0}
    header["description"] = json.dumps(content).replace('"metadata": 0', f'"metadata": {metadata}')
    header["checksum"] = checksum(header["description"], load_arrays(path))
    save_file(load_file(path), path, metadata=header)


UNSOUND = {
    '{"base": [1, 2]}': "metadata.base is [1, 2], and must be a table",
    '{"base": {"vae": 5}}': "metadata.base.vae is 5, and must be a string",
    '{"base": {"prediction_type": "x"}}': "must be epsilon or v_prediction",
    '{"base": {"clip_skip": -1}}': "metadata.base.clip_skip is -1, and must be a number of layers",
    '{"base": {"clip_skip": true}}': "metadata.base.clip_skip is True",
    '{"token": ["sks"]}': "metadata.token is ['sks'], and must be a string",
    '{"instance_prompt": 3}': "metadata.instance_prompt is 3",
    '{"class_prompt": [1]}': "must be a string or a list of strings",
    f'{{"token": "{"a" * 10_001}"}}': "metadata.token is aaaaaaaaaaa",
    '{"token": "\\ud800"}': "metadata has a string that is not Unicode text",
    '{"\\udfff": 1}': "metadata has a string that is not Unicode text",
    '{"scores": {"dino": NaN}}': "metadata has a number that is not finite",
    '{"scores": [1e999]}': "metadata has a number that is not finite",
    f'{{"steps": 1{"0" * 30}}}': "metadata has a number beyond 18446744073709551616",
    f'{{"a": {"[" * 30}1{"]" * 30}}}': "metadata is nested more than 20 levels deep",
}


@pytest.mark.parametrize("metadata", UNSOUND, ids=lambda text: text[:40])
def test_metadata_that_no_program_can_use_is_refused_in_one_line(path: Path, metadata: str) -> None:
    sign_again(path, metadata)
    with pytest.raises(ConceptError) as refusal:
        read_concept(path)
    message = str(refusal.value).removeprefix(str(path))
    assert UNSOUND[metadata] in message
    assert message.isprintable()
    assert len(message) < 300


@pytest.mark.parametrize(
    "metadata",
    [
        {"base": "a/b", "class_prompt": "a toy"},  # as the first concepts had it
        {"base": {"vae": None, "a later option": [1]}, "token": None, "scores": [0.5, 0.25]},
        {"title": "red\x1b[31m\nnot", "optimization": {"seed": 2**64 - 1}, "mine": [{}, [None]]},
    ],
    ids=str,
)
def test_other_metadata_is_whatever_one_likes(path: Path, metadata: dict[str, object]) -> None:
    write_concept(replace(read_concept(path), metadata=metadata), path, overwrite=True)
    assert read_concept(path).metadata == metadata


def test_metadata_that_could_not_be_read_again_is_not_written(path: Path) -> None:
    before = path.read_bytes()
    bad = replace(read_concept(path), metadata={"base": [1, 2]})
    with pytest.raises(ConceptError, match=r"cannot be stored: metadata.base is \[1, 2\]"):
        write_concept(bad, path, overwrite=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("delta", torch.tensor(1.0)),
        ("delta", torch.ones(7, 1)),
        ("delta", torch.ones(7, dtype=torch.int64)),
        ("pivots", torch.zeros(7)),
        ("pivots", torch.zeros(7, 1, dtype=torch.uint8)),
        ("fingerprint", torch.zeros(6)),
    ],
    ids=str,
)
def test_tensors_of_another_kind_are_refused(path: Path, name: str, tensor: torch.Tensor) -> None:
    header_size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + header_size])["__metadata__"]
    tensors = load_file(path) | {name: tensor}
    arrays = {key: value.numpy() for key, value in tensors.items()}
    header["checksum"] = checksum(header["description"], arrays)
    save_file(tensors, path, metadata=header)
    with pytest.raises(ConceptError, match=rf"does not hold what a concept file must.*{name}"):
        read_concept(path)


@pytest.mark.parametrize(
    "description",
    ["", "[]", "{}", "null", '{"components": 3}', '{"components": {"unet": {"layers": [[]]}}}',
     '{"components": {"unet": {"layers": [5]}}}', "[" * 100_000, '{"components": {"a": []}}'],
    ids=lambda text: text[:50],
)  # fmt: skip
def test_descriptions_of_another_kind_are_refused(path: Path, description: str) -> None:
    tensors = load_file(path)
    header = {
        "format": "loldu-concept",
        "version": "1",
        "description": description,
        "checksum": checksum(description, load_arrays(path)),
    }
    save_file(tensors, path, metadata=header)
    with pytest.raises(ConceptError, match=r"does not hold what a concept file must"):
        read_concept(path)


def test_a_layer_may_not_occur_twice(tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    write_concept(concept(layer("a", 6, 4, 3), layer("a", 6, 4, 3)), path)
    with pytest.raises(ConceptError, match=r"a layer occurs twice"):
        read_concept(path)


def test_the_description_is_plain_json(path: Path) -> None:
    header_size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + header_size])
    description = json.loads(header["__metadata__"]["description"])
    assert description["components"]["unet"]["layers"][0] == ["a.to_q", 6, 4, 3]
    assert set(header) == {"__metadata__", "delta", "pivots", "fingerprint"}


def test_the_file_has_the_usual_permissions(path: Path) -> None:
    usual = path.with_name("usual")
    usual.write_bytes(b"")
    assert path.stat().st_mode == usual.stat().st_mode
    assert {file.name for file in path.parent.iterdir()} == {path.name, usual.name}
