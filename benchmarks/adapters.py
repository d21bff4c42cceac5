"""The compared adapters, and their installation on one model in turns."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft import FourierFTConfig, LoraConfig, PeftConfig, VeraConfig, get_peft_model
from peft.tuners.fourierft.layer import FourierFTLayer
from torch import Tensor, nn

from benchmarks.factorize import full_lu
from benchmarks.stable_diffusion import projections
from loldu import LoLDUConfig
from loldu.adapter.layer import LoLDULayer
from loldu.adapter.targets import DIFFUSERS_ATTENTION

R = 32
TARGETS = [*DIFFUSERS_ATTENTION]


class DenseLDULinear(nn.Module):
    """``y = (W_0 + P L diag(z) U) x + b``, which forms the weight in every call.

    P is a matrix and ``W_0 = W - P L diag(d) U``, as in the paper's released code. z (r numbers) is
    trained and starts at d.
    """

    residual: Tensor
    permutation: Tensor
    lower: Tensor
    upper: Tensor

    @torch.no_grad()
    def __init__(self, base_layer: nn.Linear, r: int) -> None:
        """Factor the weight of a linear layer."""
        super().__init__()
        weight = base_layer.weight
        permutation, lower, diagonal, upper = full_lu(weight.float(), r)
        residual = weight.float() - permutation @ lower @ torch.diag(diagonal) @ upper
        names = ("residual", "permutation", "lower", "upper")
        for name, matrix in zip(names, (residual, permutation, lower, upper), strict=True):
            self.register_buffer(name, matrix.to(weight.dtype))
        self.bias = base_layer.bias
        self.z = nn.Parameter(diagonal.clone())

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Form the weight and apply it."""
        change = self.permutation @ self.lower @ torch.diag(self.z) @ self.upper
        return F.linear(x, self.residual + change, self.bias)


class Method(NamedTuple):
    """An adapter: its description, and a function that puts it on a model's projections."""

    what: str
    adapt: Callable[[nn.Module], object]


def adapt_densely(model: nn.Module) -> None:
    """Replace the projections by dense LDU ones."""
    for name, linear in projections(model).items():
        model.set_submodule(name, DenseLDULinear(linear, R))


def _by_peft(what: str, config: Callable[..., PeftConfig], **settings: Any) -> Method:  # noqa: ANN401
    def adapt(model: nn.Module) -> None:
        get_peft_model(model, config(target_modules=TARGETS, **settings))  # pyright: ignore[reportArgumentType]  any module will do
        del model.peft_config  # The next method finds the model unchanged.

    return Method(what, adapt)


FROZEN, LORA = "frozen", "lora_r32"
METHODS = {
    FROZEN: Method("no adapter: backward to the input alone", lambda _: None),
    "loldu_r32": _by_peft("LoLDU, r = 32", LoLDUConfig, r=R),
    "loldu_full_rank": _by_peft("LoLDU, r = the smaller side of each weight", LoLDUConfig, r=2**16),
    "loldu_dense_r32": Method(
        "LoLDU, r = 32, P L D U multiplied out in every call as by the authors", adapt_densely
    ),
    LORA: _by_peft("PEFT's LoRA, r = 32", LoraConfig, r=R),
    "lora_r4": _by_peft("PEFT's LoRA, r = 4", LoraConfig, r=4),
    "vera_r256": _by_peft("PEFT's VeRA, r = 256", VeraConfig, r=256),
    "fourierft_n1000": _by_peft(
        "PEFT's FourierFT, 1000 frequencies", FourierFTConfig, n_frequency=1000
    ),
}


def adapted(model: nn.Module, method: Method) -> dict[str, nn.Module]:
    """Return the layers that a method puts in place of the projections; restore the model.

    The layers of all methods share one base model, which takes them in turns.
    """
    plain = projections(model)
    method.adapt(model)
    layers = {name: model.get_submodule(name) for name in plain}
    install(model, plain)
    return layers


def install(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put layers in place."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)


def held(modules: Iterable[nn.Module]) -> dict[int, int]:
    """Return the bytes of each storage that modules keep between steps, factors included."""
    tensors: list[Tensor] = []
    for root in modules:
        tensors += [*root.parameters(), *root.buffers()]
        for module in root.modules():
            if isinstance(module, LoLDULayer):
                for shared in module.factors.values():
                    tensors += [shared.left, shared.right, shared.gain, shared.diagonal]
            elif isinstance(module, FourierFTLayer):
                tensors += module.indices.values()
    return dict(map(storage_of, tensors))


def storage_of(tensor: Tensor) -> tuple[int, int]:
    """Return the address and the bytes of the storage behind a tensor."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
