"""Other programs read an exported LoRA; PEFT reads the same file for comparison."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loldu import ConceptError, LoLDUConfig, export_lora, save_concept
from loldu.__main__ import run
from loldu.adapter.layer import LoLDULayer
from loldu.concept.clients import compare_clients


@pytest.fixture
def live(base_folder: Path) -> StableDiffusionPipeline:
    """Return a pipeline with a concept that changes much, with ranks that differ."""
    pipeline = StableDiffusionPipeline.from_pretrained(base_folder)
    unet = {"target_modules": ["to_q", "to_k", "to_v", "to_out.0"], "rank_pattern": {"to_k": 3}}
    pipeline.unet.add_adapter(LoLDUConfig(r=8, init_weights=False, **unet))
    targets = ["q_proj", "out_proj", "fc1"]  # diffusers reads them only with out_proj
    pipeline.text_encoder.add_adapter(LoLDUConfig(r=5, init_weights=False, target_modules=targets))
    return pipeline


@pytest.fixture
def lora(live: StableDiffusionPipeline, tmp_path: Path) -> Path:
    return export_lora(live, tmp_path / "lora.safetensors")


def changed(file: Path, to: Path, change: dict[str, Tensor | None]) -> Path:
    tensors = load_file(file) | change
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, to)
    return to


def deltas(model: nn.Module, kind: type[nn.Module]) -> list[Tensor]:
    """Return the changes of all weights in float64, in the order of the modules."""
    layers = [module for module in model.modules() if isinstance(module, kind)]
    return [layer.get_delta_weight(layer.active_adapters[0]).double() for layer in layers]


def test_the_errors_are_those_of_the_file_as_peft_reads_it(
    live: StableDiffusionPipeline, lora: Path, base_folder: Path
) -> None:
    loaded = StableDiffusionPipeline.from_pretrained(base_folder)
    loaded.load_lora_weights(lora)
    theirs = [*deltas(loaded.unet, LoraLayer), *deltas(loaded.text_encoder, LoraLayer)]
    ours = [*deltas(live.unet, LoLDULayer), *deltas(live.text_encoder, LoLDULayer)]
    size = torch.cat([delta.flatten() for delta in ours]).norm()
    error = torch.cat([(a - b).flatten() for a, b in zip(theirs, ours, strict=True)]).norm() / size
    comfyui, a1111, no_half = compare_clients(live, lora)
    assert comfyui.weights == len(ours)
    assert comfyui.error == no_half.error
    assert comfyui.error < 1e-6
    assert error < 1e-6
    assert 1e-5 < a1111.error < 1e-3  # float16 has 11 bits
    assert (a1111.client, no_half.client) == ("A1111", "A1111 --no-half")


def test_a_wrong_scale_is_measured(live: StableDiffusionPipeline, lora: Path) -> None:
    alphas = {key: value / 2 for key, value in load_file(lora).items() if key.endswith("alpha")}
    half = changed(lora, lora.with_name("half.safetensors"), alphas)
    for compared in compare_clients(live, half):
        assert compared.error == pytest.approx(0.5, abs=1e-3)


def test_layers_that_are_not_read_are_named(live: StableDiffusionPipeline, lora: Path) -> None:
    tensors = load_file(lora)
    key = next(key for key in tensors if key.endswith("attn2_to_q.lora_up.weight"))
    layer = key.split(".")[0]
    sides = [f"{layer}.{side}" for side in ("lora_up.weight", "lora_down.weight", "alpha")]
    unknown = {side.replace("attn2", "attn9"): tensors[side] for side in sides}
    other = {side.replace("to_q", "to_out_0"): tensors[side] for side in sides}
    without = dict.fromkeys(sides)
    target = lora.with_name("changed.safetensors")
    for change, message in (
        ({sides[0]: None}, f"lacks {sides[0]}"),
        (without, r"lacks 1 of the \d+ layers that the concept changes, such as unet"),
        (without | unknown, "attn9_to_q, which ComfyUI and A1111 do not find in this base"),
    ):
        with pytest.raises(ConceptError, match=message):
            compare_clients(live, changed(lora, target, change))
    live.unet.delete_adapters("default")
    live.unet.add_adapter(LoLDUConfig(r=8, init_weights=False, target_modules=["to_q"]))
    with pytest.raises(ConceptError, match=r"also changes unet.*, which the concept does not"):
        compare_clients(live, changed(lora, target, other))
    target.write_bytes(b"no tensors")
    with pytest.raises(ConceptError, match=r"is not a \.safetensors file"):
        compare_clients(live, target)


def test_the_command_prints_a_table(
    live: StableDiffusionPipeline,
    base_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    concept = str(save_concept(live, tmp_path / "concept.safetensors"))
    assert run(["compare-clients", concept, str(base_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[2:18].strip() for line in lines] == [
        "program",
        "ComfyUI",
        "A1111",
        "A1111 --no-half",
    ]
    missing = ["--lora", str(tmp_path / "none.safetensors")]
    assert run(["compare-clients", concept, str(base_folder), *missing]) == 2
    error = capsys.readouterr().err
    assert "none.safetensors" in error
    assert error.count("\n") == 1
