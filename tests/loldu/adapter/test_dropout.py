"""Dropout of the low-rank activation, adapter by adapter."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from loldu import LoLDUConfig


def adapted(dropout: float) -> PeftModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10))
    return get_peft_model(
        model, LoLDUConfig(r=4, target_modules=["0"], dropout=dropout, init_weights=False)
    )


def test_dropout_acts_in_training_only_and_keeps_the_mean() -> None:
    model, x = adapted(0.5), torch.randn(3, 12)
    model.eval()
    kept = model(x)
    assert torch.equal(kept, adapted(0.0).eval()(x))
    model.train()
    drawn = torch.stack([model(x) for _ in range(1000)])
    assert drawn.std(0).max() > 0.01
    spread = drawn.std(0) / 1000**0.5
    assert ((drawn.mean(0) - kept).abs() <= 5 * spread + 1e-6).all()


def test_adapters_with_other_dropout_do_not_mix() -> None:
    model, x = adapted(0.0), torch.randn(3, 12)
    model.add_adapter(
        "other", LoLDUConfig(r=4, target_modules=["0"], dropout=0.9, init_weights=False, seed=1)
    )
    model.train()
    first = model(x)
    assert torch.equal(model(x), first)
    model.base_model.set_adapter(["default", "other"])
    outputs = torch.stack([model(x) for _ in range(50)])
    # What the adapter without dropout adds is there in every draw: some drop all of the other.
    assert (outputs - first).flatten(1).norm(dim=1).min() < 1e-5
    assert (outputs - first).flatten(1).norm(dim=1).max() > 1e-3


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_an_invalid_dropout_is_refused(dropout: float) -> None:
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1"):
        LoLDUConfig(dropout=dropout)
