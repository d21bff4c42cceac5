"""Gradients of gradients and torch.func, each beside PEFT's LoRA and a plain dense network."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap

from loldu import LoLDUConfig, set_concepts

Make = Callable[..., nn.Module]
TARGETS = ["wide", "tall"]
GENERATOR = torch.Generator().manual_seed(0)
X, V = (torch.randn(6, 24, generator=GENERATOR).double() for _ in range(2))
CONFIGS = {
    "lora": LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False),
    "loldu": LoLDUConfig(r=4, target_modules=TARGETS, init_weights=False),
    # Six rows are enough for the dense route.
    "full_rank": LoLDUConfig(r=64, target_modules=TARGETS, init_weights=False),
}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest, make_two_layers: Make) -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(make_two_layers(), copy.deepcopy(CONFIGS[request.param])).double()


def dense(model: PeftModel, x: Tensor) -> Tensor:
    """The same network with the change of every weight added to the weight."""
    base = model.get_base_model()
    for layer in (base.wide, base.tall):
        weight = layer.base_layer.weight + layer.get_delta_weight("default")
        x = torch.tanh(F.linear(x, weight, layer.base_layer.bias))
    return base.head(x)


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def close(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, check_dtype=False)


def test_a_gradient_penalty_trains(model: PeftModel) -> None:
    def penalty(network: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        x = X.clone().requires_grad_()
        (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        loss = (slope.norm(dim=1) - 1).square().mean()
        return loss, *torch.autograd.grad(loss, [x, *trained(model).values()])

    close(penalty(model), penalty(partial(dense, model)))


def test_a_gradient_penalty_on_rows_with_their_own_concepts(make_two_layers: Make) -> None:
    model = get_peft_model(make_two_layers(), CONFIGS["loldu"]).double()
    set_concepts(model, ["default", None, None])
    x = X.clone().requires_grad_()

    def penalty(y: Tensor) -> tuple[Tensor, ...]:
        (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, *trained(model).values()])

    base = make_two_layers().double()(x)
    has_concept = (torch.arange(6) % 3 == 0)[:, None]
    close(penalty(model(x)), penalty(torch.where(has_concept, dense(model, x), base)))


def test_gradients_of_every_example(model: PeftModel) -> None:
    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, parameters, (x,)).square().sum()

    of_examples = vmap(grad(loss), (None, 0))(trained(model), X)
    for i, x in enumerate(X):
        expected = torch.autograd.grad(dense(model, x).square().sum(), [*trained(model).values()])
        close([of_examples[name][i] for name in trained(model)], [*expected])


def test_forward_mode(model: PeftModel) -> None:
    _, expected = torch.autograd.functional.jvp(partial(dense, model), X, V)
    close(jvp(model, (X,), (V,))[1], expected)
    close(vmap(lambda x, v: jvp(model, (x,), (v,))[1])(X, V), expected)
    with forward_ad.dual_level():
        y = model(forward_ad.make_dual(X, V))
        close(forward_ad.unpack_dual(y).tangent, expected)


def test_forward_mode_along_the_parameters(model: PeftModel) -> None:
    start = {name: p.detach() for name, p in trained(model).items()}
    along = {name: torch.ones_like(p) for name, p in start.items()}
    _, actual = jvp(lambda p: functional_call(model, p, (X,)), (start,), (along,))
    step, ends = 1e-3, []
    for sign in (1, -1):
        moved = {name: p + sign * step for name, p in start.items()}
        with torch.no_grad():
            ends.append(functional_call(model, moved, (X,)))
    torch.testing.assert_close(actual, (ends[0] - ends[1]) / (2 * step), rtol=1e-3, atol=1e-3)


def test_a_hessian(model: PeftModel) -> None:
    def total(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return network(x).square().sum()

    expected = torch.autograd.functional.hessian(partial(total, partial(dense, model)), X[0])
    close(hessian(partial(total, model))(X[0]), expected)


def test_an_ensemble_in_one_call(model: PeftModel) -> None:
    models = [model, copy.deepcopy(model)]
    for parameter in trained(models[1]).values():
        parameter.data *= -0.5
    expected = torch.stack([each(X) for each in models])
    parameters, buffers = stack_module_state(models)
    state = {**parameters, **buffers}
    actual = vmap(lambda state: functional_call(model, state, (X,)))(state)
    close(actual, expected)
