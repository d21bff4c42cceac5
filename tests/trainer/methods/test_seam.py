"""A new training method is one file and its name; a toy one is tested from options to card."""

import copy
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from loldu.errors import LoLDUError
from trainer.methods import method
from trainer.methods.method import Method
from trainer.methods.trained import State, Trainable, Trained
from trainer.options.config import Config
from trainer.train_dreambooth_loldu import main

FILE = "bias.safetensors"


class Bias(Trainable):
    def __init__(self, layer: nn.Conv2d) -> None:
        assert isinstance(layer.bias, nn.Parameter)
        self._bias: nn.Parameter = layer.bias
        self._bias.requires_grad_(True)

    def parameters(self, concept: str) -> list[nn.Parameter]:
        return [self._bias]

    def state_dict(self) -> State:
        return {"bias": self._bias.detach()}

    def load_state_dict(self, state: State) -> None:
        self._bias.data.copy_(state["bias"])


def add(
    pipeline: DiffusionPipeline, config: Config, concepts: Sequence[str]
) -> dict[str, Trainable]:
    return {"unet": Bias(pipeline.unet.conv_in)}


def save(
    path: Path,
    pipeline: DiffusionPipeline,
    trained: Trained,
    concept: str,
    metadata: dict[str, Any],
) -> None:
    save_file({"bias": trained.parameters(concept)[0].detach()}, path)


METHOD = Method(
    title="First Bias", file_name=FILE, about="one bias, for nobody", add=add, save=save
)


def test_a_toy_method_trains_saves_resumes_and_has_a_card(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("trainer.methods.first_bias")
    module.__dict__["METHOD"] = METHOD
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(method, "MethodName", Literal["loldu", "first_bias"])

    def config(*more: str) -> Config:
        known = make_config("--checkpointing_steps", "2", "--no_sample_at_end", *more)
        adapter = copy.copy(known.adapter)
        object.__setattr__(adapter, "method", "first_bias")  # its type has only the known names
        return dataclasses.replace(known, adapter=adapter)

    folder = tmp_path / "run"
    main(config())
    bias = load_file(folder / FILE)["bias"]
    half = load_file(folder / "checkpoint-000002" / "trained.safetensors")["unet.bias"]
    assert (bias - half).abs().max() > 1e-3
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["trainable_parameters"] == len(bias)
    card = (folder / "README.md").read_text()
    assert "| method | First Bias |" in card
    assert f"| `{FILE}` | one bias, for nobody |" in card
    (folder / "summary.json").unlink()
    with pytest.raises(LoLDUError, match="holds another run"):
        main(config())
    main(config("--resume", str(folder / "checkpoint-000002")))
    assert torch.equal(load_file(folder / FILE)["bias"], bias)
