"""`python -m loldu inspect | verify | export | truncate | merge`."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from loldu import (
    LoLDUConfig,
    export_lora,
    load_concept,
    read_concept,
    save_concept,
    set_strength,
)
from loldu.__main__ import run
from loldu.adapter.layer import LoLDULayer

MakeUNet = Callable[..., UNet2DConditionModel]


def make_pipeline(unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2).eval(),
        text_encoder=CLIPTextModel(config).eval(),
        tokenizer=CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[]),
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def draw(unet: UNet2DConditionModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, states = (torch.randn(*s, generator=generator) for s in ((1, 4, 8, 8), (1, 5, 8)))
    return unet(latents, torch.tensor([3]), states).sample


@torch.no_grad()
def read(encoder: CLIPTextModel) -> Tensor:
    return encoder(torch.tensor([[1, 5, 2]])).last_hidden_state


@torch.no_grad()
def changes(model: nn.Module) -> Tensor:
    """Return all changes of weights, concatenated."""
    layers = [module for module in model.modules() if isinstance(module, LoLDULayer)]
    return torch.cat([y.get_delta_weight("default").double().flatten() for y in layers])


@pytest.fixture
def base(make_unet: MakeUNet, tmp_path: Path) -> str:
    make_pipeline(make_unet()).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def live(make_unet: MakeUNet) -> StableDiffusionPipeline:
    pipeline = make_pipeline(make_unet())
    pipeline.unet.add_adapter(LoLDUConfig(r=8, init_weights=False, rank_pattern={"attn1.to_q": 3}))
    pipeline.text_encoder.add_adapter(LoLDUConfig(r=4, init_weights=False))
    return pipeline


@pytest.fixture
def concept(live: StableDiffusionPipeline, tmp_path: Path) -> str:
    metadata = {"prompt": "a photo of sks toy", "title": "red\x1b[31m\nnot"}
    return str(save_concept(live, tmp_path / "toy.safetensors", metadata=metadata))


def test_inspect_shows_the_content_of_the_file(
    concept: str, capsys: pytest.CaptureFixture[str], live: StableDiffusionPipeline
) -> None:
    assert run(["inspect", concept]) == 0
    output = capsys.readouterr().out
    lines = {" ".join(line.split()) for line in output.splitlines()}
    deltas = 4 * 7 * 8 + 4 * 3 + 4 * 4
    assert {
        "format loldu-concept 1",
        "method LoLDU (LDU, partial pivoting)",
        "trained on float32",
        "layers 36",
        "rank 3 to 8",
        f"parameters {deltas}",
        f"bytes {Path(concept).stat().st_size:,}",
        "prompt a photo of sks toy",
        r"title red\x1b[31m\nnot",
    } <= lines
    layers = [m for n, m in live.unet.named_modules() if n.endswith("attn2.to_k")]
    delta = torch.cat([m.diagonal("default").delta().detach() for m in layers])
    sizes = f"{delta.square().mean().sqrt():.2e} {delta.abs().max():.2e}"
    assert f"unet attn2.to_k 4 16 x 8 to 32 x 8 8 {sizes}" in lines


def test_inspect_needs_no_torch_and_ends_quietly_when_its_pipe_closes(concept: str) -> None:
    code = "import sys; from loldu.__main__ import run; status = run(sys.argv[1:]); "
    code += "assert not {'torch', 'peft'} & {*sys.modules}; sys.exit(status)"
    inspect = [sys.executable, "-c", code, "inspect", concept]
    done = subprocess.run(inspect, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("toy.safetensors\n")
    for command in (inspect, [sys.executable, "-m", "loldu", "--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, b"")


def test_verify_distinguishes_the_base_from_others(
    concept: str, base: str, make_unet: MakeUNet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", concept, base]) == 0
    assert capsys.readouterr().out.endswith("all 36 layers agree.\n")
    other = make_pipeline(make_unet())
    with torch.no_grad():
        other.text_encoder.encoder.layers[0].self_attn.k_proj.weight[0, 0] += 0.1
    other.save_pretrained(tmp_path / "other")
    capsys.readouterr()
    assert run(["verify", concept, str(tmp_path / "other")]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.count("\n") == 1
    assert "'encoder.layers.0.self_attn.k_proj', whose weight is not the one here" in written.err


def test_verify_of_a_concept_saved_from_a_unet_alone(
    live: StableDiffusionPipeline, base: str, tmp_path: Path
) -> None:
    path = save_concept(live.unet, tmp_path / "unet.safetensors")
    assert run(["verify", str(path), base]) == 0


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "peft"])
def test_export_writes_what_other_programs_read(
    concept: str,
    base: str,
    live: StableDiffusionPipeline,
    make_unet: MakeUNet,
    tmp_path: Path,
    layout: str,
) -> None:
    out = tmp_path / ("lora" if layout == "peft" else "lora.safetensors")
    assert run(["export", concept, base, str(out), "--layout", layout]) == 0
    loaded = make_pipeline(make_unet())
    if layout == "peft":
        unet = PeftModel.from_pretrained(loaded.unet, out / "unet")
        encoder = PeftModel.from_pretrained(loaded.text_encoder, out / "text_encoder")
    else:
        loaded.load_lora_weights(out)
        unet, encoder = loaded.unet, loaded.text_encoder
    torch.testing.assert_close(draw(unet), draw(live.unet), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read(encoder), read(live.text_encoder), atol=1e-5, rtol=1e-5)


def test_the_default_layout_is_the_one_that_all_programs_read(
    concept: str, base: str, live: StableDiffusionPipeline, tmp_path: Path
) -> None:
    """The keys that ComfyUI maps to weights, kohya's scripts read and A1111 looks up."""
    assert run(["export", concept, base, str(tmp_path / "lora.safetensors")]) == 0
    read_by_comfyui = set()
    for name, module in live.unet.named_modules():
        if isinstance(module, LoLDULayer):
            read_by_comfyui.add(f"lora_unet_{name.replace('.', '_')}")
    for name, module in live.text_encoder.named_modules():
        if isinstance(module, LoLDULayer):
            full = f"text_model.{name.removeprefix('text_model.')}"
            read_by_comfyui.add(f"lora_te_{full.replace('.', '_')}")
    layers = {key.partition(".")[0] for key in load_file(tmp_path / "lora.safetensors")}
    assert layers == read_by_comfyui
    export_lora(live, tmp_path / "same.safetensors")
    assert load_file(tmp_path / "same.safetensors").keys() == {
        *load_file(tmp_path / "lora.safetensors")
    }


def test_truncate_writes_a_smaller_concept_and_its_error(
    concept: str,
    base: str,
    live: StableDiffusionPipeline,
    make_unet: MakeUNet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "small.safetensors"
    assert run(["truncate", concept, base, str(out), "--r", "4"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    whole, small = read_concept(concept), read_concept(out)
    assert [y.name for y in small.layers] == [y.name for y in whole.layers]
    assert {y.delta.numel() for y in small.layers} == {3, 4}
    assert (small.metadata, small.base, small.config) == (whole.metadata, whole.base, whole.config)
    changed = make_pipeline(make_unet())
    load_concept(changed, out)
    lost, norm = {}, {}
    for name in ("unet", "text_encoder"):
        before, after = changes(getattr(live, name)), changes(getattr(changed, name))
        lost[name], norm[name] = (
            float((before - after).square().sum()),
            float(before.square().sum()),
        )
    errors = {line[0]: float(line[-1]) for line in lines if line[0] in {*lost, "total"}}
    assert errors["unet"] == pytest.approx((lost["unet"] / norm["unet"]) ** 0.5, rel=1e-3)
    assert errors["text_encoder"] == 0  # of rank 4 already
    total = (sum(lost.values()) / sum(norm.values())) ** 0.5
    assert errors["total"] == pytest.approx(total, rel=1e-3)
    assert ["unet", "32", "3", "to", "4", "124"] in [line[:-1] for line in lines]
    again = ["truncate", concept, base, str(out), "--max_error", "0.2"]
    assert run(again) == 2
    assert run([*again, "--overwrite"]) == 0
    assert {y.delta.numel() for y in read_concept(out).layers} > {3, 4}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_merge_writes_a_pipeline(
    concept: str,
    base: str,
    make_unet: MakeUNet,
    tmp_path: Path,
    dtype: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "merged"
    assert run(["merge", concept, base, str(out), "--strength", "0.5", "--dtype", dtype]) == 0
    written = capsys.readouterr()
    assert (written.out, written.err) == (f"Wrote {out} ({dtype}, strength 0.5).\n", "")
    merged = StableDiffusionPipeline.from_pretrained(out)
    assert load_file(out / "unet" / "diffusion_pytorch_model.safetensors")[
        "conv_in.weight"
    ].dtype == getattr(torch, dtype)
    expected = make_pipeline(make_unet())
    expected.to(getattr(torch, dtype))
    load_concept(expected, concept)
    set_strength(expected, 0.5)
    limit = 1e-5 if dtype == "float32" else 2e-2
    for one, other in (
        (draw(merged.unet.float()), draw(expected.unet.float())),
        (read(merged.text_encoder.float()), read(expected.text_encoder.float())),
    ):
        torch.testing.assert_close(one, other, atol=limit, rtol=limit)


def test_mistakes_give_one_sentence(
    concept: str, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "mine.safetensors"
    kept.write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for name in ("model_index.json", "unet/config.json"):
        copy = tmp_path / "broken" / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text((Path(base) / name).read_text())
    export = ["export", concept, base]
    cases = {
        "does not exist": ["inspect", str(tmp_path / "none.safetensors")],
        "not a readable .safetensors file": ["inspect", str(kept)],
        "not a diffusers folder: it has no model_index.json": [
            "verify", concept, str(tmp_path / "empty"),
        ],
        "does not exist: give a diffusers folder": ["verify", concept, str(tmp_path / "none")],
        "The text_encoder of": ["verify", concept, str(tmp_path / "broken")],
        "exists: choose another name": [*export, str(kept), "--layout", "kohya"],
        "must end in .safetensors": [*export, str(tmp_path / "a.pt"), "--layout", "diffusers"],
        "either r or max_error": ["truncate", concept, base, str(tmp_path / "a.safetensors")],
        "r must be a positive": ["truncate", concept, base, str(tmp_path / "a"), "--r", "0"],
        "the folder to write": ["merge", concept, base, str(tmp_path / "empty")],
        "is not a diffusers folder": [
            "merge", concept, str(tmp_path / "empty"), str(tmp_path / "new"),
        ],
        "broken cannot be read (": [
            "merge", concept, str(tmp_path / "broken"), str(tmp_path / "new"),
        ],
        "cannot be read or written": [*export, str(kept / "a.safetensors"), "--layout", "kohya"],
    }  # fmt: skip
    for message, argv in cases.items():
        assert run(argv) == 2
        written = capsys.readouterr()
        assert message in written.err
        assert (written.out, written.err.count("\n")) == ("", 1)
    assert kept.read_text() == "mine"
    assert run([*export, str(kept), "--layout", "kohya", "--overwrite"]) == 0


def test_usage_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, status in ((["--help"], 0), (["export", "--help"], 0), (["export", "a"], 2), ([], 2)):
        with pytest.raises(SystemExit) as stopped:
            run(argv)
        assert stopped.value.code == status
    assert "A1111" in capsys.readouterr().out
