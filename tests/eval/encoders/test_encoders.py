"""The encoders against direct calls of the libraries, on tiny random models."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, ViTConfig, ViTModel

from eval.encoders.encoder import Encoder
from eval.encoders.from_open_clip import OpenClip
from eval.encoders.from_timm import TimmDino
from eval.encoders.from_transformers import TransformersDino
from eval.encoders.load import load_clip, load_dino
from eval.encoders.preprocess import published_dino
from loldu.errors import LoLDUError


def pictures(count: int, width: int = 48, height: int = 40) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, size=(count, 5, 6, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((width, height)) for pixels in small]


def test_clip_images_match_transformers(clip_folder: Path) -> None:
    images = pictures(3)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    with torch.no_grad():
        hidden = model.vision_model(**processor(images, return_tensors="pt")).pooler_output
        expected = model.visual_projection(hidden)
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(
        load_clip(str(clip_folder)).encode_images(images), expected, atol=1e-5, rtol=0
    )


def test_clip_texts_match_transformers_one_by_one(
    clip_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["a toy", "a photo of a", "sks"]
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    with torch.no_grad():
        rows = [
            model.text_projection(
                model.text_model(**tokenizer(t, return_tensors="pt")).pooler_output
            )
            for t in texts
        ]
    expected = torch.nn.functional.normalize(torch.cat(rows), dim=-1)
    torch.testing.assert_close(
        load_clip(str(clip_folder)).encode_texts(texts), expected, atol=1e-6, rtol=0
    )
    load_clip(str(clip_folder)).encode_texts(["a toy" + " red" * 5])
    assert caplog.messages == [
        '"a toy red red red red red" has 19 tokens, and CLIP reads 14 of a prompt: "ed red" is '
        "left out; shorten the prompt."
    ]


def test_dino_is_the_cls_token_of_the_last_layer(dino_folder: Path) -> None:
    images = pictures(3, 32, 32)
    model = ViTModel.from_pretrained(dino_folder).eval()
    pixels = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])
    pixels = (pixels - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.25]
    with torch.no_grad():
        hidden = model(torch.tensor(pixels).permute(0, 3, 1, 2).float()).last_hidden_state[:, 0]
    expected = hidden / hidden.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(
        load_dino(str(dino_folder)).encode_images(images), expected, atol=1e-5, rtol=0
    )


def test_batches_change_nothing(dino_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = load_dino(str(dino_folder))
    whole = extractor.encode_images(pictures(5))
    monkeypatch.setattr("eval.encoders.encoder.BATCH_SIZE", 2)
    torch.testing.assert_close(extractor.encode_images(pictures(5)), whole, atol=1e-6, rtol=0)


def test_features_are_unit_fp32_rows(clip_folder: Path, dino_folder: Path) -> None:
    clip, dino = load_clip(str(clip_folder)), load_dino(str(dino_folder))
    for rows in (
        clip.encode_images(pictures(2)),
        clip.encode_texts(["a", "b"]),
        dino.encode_images(pictures(2)),
    ):
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(2))


def test_open_clip_matches_a_direct_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_clip = pytest.importorskip("open_clip")
    tiny = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 8,
            "heads": 2,
            "layers": 1,
        },
    }
    (tmp_path / "tiny-clip.json").write_text(json.dumps(tiny), encoding="utf-8")
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    extractor = OpenClip("tiny-clip")
    images, texts = pictures(2), ["a photo of a toy", "a car"]
    _, _, preprocess = open_clip.create_model_and_transforms("tiny-clip", pretrained=None)
    with torch.no_grad():
        pixels = torch.stack([preprocess(image) for image in images])
        seen = extractor.model.encode_image(pixels, normalize=True)
        read = extractor.model.encode_text(
            open_clip.tokenize(texts, context_length=16), normalize=True
        )
    torch.testing.assert_close(extractor.encode_images(images), seen, atol=1e-5, rtol=0)
    torch.testing.assert_close(extractor.encode_texts(texts), read, atol=1e-5, rtol=0)
    extractor.encode_texts(["a car" + " red" * 15])
    assert caplog.messages[-1:] == [
        '"a car red red red red red red red red red red red red red re..." has 17 tokens, and CLIP '
        'reads 14 of a prompt: "red red red" is left out; shorten the prompt.'
    ]


@pytest.fixture(scope="module")
def timm_and_transformers() -> tuple[Encoder, Encoder]:
    """Return one random ViT-S/16 in the formats of timm and transformers."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(5)
    theirs = timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=0)
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    config = ViTConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_attention_heads=6,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
    )
    ours = ViTModel(config, add_pooling_layer=False)
    ours.load_state_dict(as_transformers(theirs.state_dict()))
    extractors = []
    for kind, model in ((TimmDino, theirs), (TransformersDino, ours)):
        extractor = kind.__new__(kind)
        extractor.name, extractor.model = "random", model.eval()
        extractor.preprocess = published_dino()
        extractor.to("cpu")
        extractors.append(extractor)
    return tuple(extractors)


def as_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return timm's weights under the names of transformers; one matrix becomes q, k and v."""
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm.": "layernorm.",
    }
    inside = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    message: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if key.startswith("blocks."):
            _, number, rest = key.split(".", 2)
            if rest.startswith("attn.qkv"):
                for part, rows in zip("qkv", value.chunk(3), strict=True):
                    message[f"layers.{number}.attention.{part}_proj.{rest.split('.')[-1]}"] = rows
                continue
            old = next(name for name in inside if rest.startswith(name))
            message[f"layers.{number}.{rest.replace(old, inside[old])}"] = value
        else:
            old = next(name for name in names if key.startswith(name))
            message[key.replace(old, names[old], 1)] = value
    return message


def test_dino_is_the_same_in_timm_and_in_transformers(
    timm_and_transformers: tuple[Encoder, Encoder],
) -> None:
    images = pictures(2, 300, 260)
    ours, theirs = (extractor.encode_images(images) for extractor in timm_and_transformers)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert (ours[0] - ours[1]).abs().max() > 1e-3  # they do look at the pictures


def test_timm_loads_a_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(6)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_dino(f"timm:vit_tiny_patch16_224/{tmp_path / 'weights.safetensors'}")
    image = pictures(1)
    with torch.no_grad():
        seen = model.eval().forward_features(published_dino()(image[0])[None])[:, 0]
    expected = torch.nn.functional.normalize(seen, dim=-1)
    torch.testing.assert_close(loaded.encode_images(image), expected, atol=1e-6, rtol=0)


def test_the_identity_depends_on_weights_and_preprocessing(
    dino_folder: Path, clip_folder: Path, tmp_path: Path
) -> None:
    dino = load_dino(str(dino_folder)).identity
    assert dino == load_dino(str(dino_folder)).identity
    assert dino.library.startswith("transformers ")
    assert dino.weights != load_clip(str(clip_folder)).identity.weights
    changed = shutil.copytree(dino_folder, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    name = min(weights)
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    assert load_dino(str(changed)).identity.weights != dino.weights


@pytest.mark.parametrize(("load", "kind"), [(load_clip, "clip"), (load_dino, "dino")])
def test_a_missing_weight_is_an_error(
    load,  # noqa: ANN001
    kind: str,
    clip_folder: Path,
    dino_folder: Path,
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(clip_folder if kind == "clip" else dino_folder, tmp_path / "part")
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if "layer" in name and "norm" not in name)]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoLDUError, match=f"--{kind} .*part has no usable weights"):
        load(str(folder))


@pytest.mark.parametrize(("load", "flag"), [(load_clip, "--clip"), (load_dino, "--dino")])
def test_missing_weights_give_one_clear_error(load, flag: str, tmp_path: Path) -> None:  # noqa: ANN001
    with pytest.raises(LoLDUError, match=flag) as caught:
        load(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("load", "name", "message"),
    [
        (load_clip, "open_clip:ViT-B-32-quickgelu/no-such-weights", "--clip open_clip:.*/PATH"),
        (load_clip, "open_clip:no-such-network/openai", "--clip"),
        (load_clip, "timm:vit_small_patch16_224.dino", "of an unknown kind: give open_clip:NAME"),
        (load_dino, "timm:no_such_network", "--dino"),
        (load_dino, "timm:resnet18/no_such_file", "--dino"),
        (load_dino, "timm:vit_tiny_patch16_224/no_such_file", "--dino timm:.*/PATH"),
    ],
)
def test_missing_weights_of_other_libraries_give_one_clear_error(
    load,  # noqa: ANN001
    name: str,
    message: str,
) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(LoLDUError, match=message) as caught:
        load(name)
    assert "\n" not in str(caught.value)
