"""One module and one registration add a factorization: here Q, D and R with a unit diagonal."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from loldu import (
    Factors,
    LoLDUConfig,
    load_concept,
    mix,
    read_concept,
    save_concept,
    verify_concept,
)
from loldu.__main__ import run
from loldu.adapter.factorization import FACTORIZATIONS, register_factorization
from loldu.adapter.factors import Factorization
from loldu.errors import ConceptError


def qr(weight: Tensor, r: int, _: Tensor | None) -> Factors:
    q, upper = torch.linalg.qr(weight.detach().double())
    d = upper.diagonal()
    right = upper / d[:, None]
    return Factors(q[:, :r].float(), d[:r].float(), right[:r].float(), None)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register_factorization(Factorization("qr", "qr", qr))
    yield
    del FACTORIZATIONS["qr"]


@pytest.fixture
def trained(make_two_layers: Callable[..., nn.Module]) -> PeftModel:
    """A network after three steps toward zero, adapted by its QR factors."""
    config = LoLDUConfig(factorization="qr", r=5, target_modules=["wide", "tall"])
    model = get_peft_model(make_two_layers(), config)
    inputs = torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_the_change_is_between_its_factors(trained: PeftModel) -> None:
    layer = trained.get_submodule("base_model.model.wide")
    weight = layer.get_base_layer().weight.detach().double()
    q, upper = torch.linalg.qr(weight)
    delta = layer.diagonal("default").delta().detach().double()
    assert delta.norm() > 0
    expected = q[:, :5] @ torch.diag(delta / upper.diagonal()[:5]) @ upper[:5]
    actual = layer.get_delta_weight("default").detach().double()
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)


def test_concepts_are_saved_loaded_mixed_and_inspected(
    trained: PeftModel,
    make_two_layers: Callable[..., nn.Module],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = save_concept(trained, tmp_path / "toy.safetensors")
    assert {layer.factorization for layer in read_concept(path).layers} == {"qr"}
    fresh = make_two_layers()
    inputs = torch.randn(4, 24)
    before = fresh(inputs)
    load_concept(fresh, path)
    torch.testing.assert_close(fresh(inputs), trained(inputs))
    load_concept(fresh, path, "other")
    mix(fresh, {"default": 0.5, "other": -0.5})
    torch.testing.assert_close(fresh(inputs), before)
    assert run(["inspect", str(path)]) == 0
    assert "method      qr" in capsys.readouterr().out
    with pytest.raises(ConceptError, match="change with the dtype"):
        verify_concept(make_two_layers().bfloat16(), path)


def test_peft_saves_and_loads_it(
    trained: PeftModel, make_two_layers: Callable[..., nn.Module], tmp_path: Path
) -> None:
    trained.save_pretrained(tmp_path)
    inputs = torch.randn(4, 24)
    loaded = PeftModel.from_pretrained(make_two_layers(), tmp_path)
    torch.testing.assert_close(loaded(inputs), trained(inputs))
    fresh = make_two_layers()
    load_concept(fresh, tmp_path)
    torch.testing.assert_close(fresh(inputs), trained(inputs))


def test_names_are_checked(make_two_layers: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="named 'qr' is registered already"):
        register_factorization(Factorization("qr", "other", qr))
    with pytest.raises(ValueError, match="factorization must be one of ldu, svd, qr, got 'lq'"):
        LoLDUConfig(factorization="lq")
