"""Adapted layers other than nn.Linear: convolutions, embeddings, quantized linear layers."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import torch.nn.functional as F
from jaxtyping import Float, Int
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn

from loldu.adapter.base_layer import is_linear_map, quantization_of
from loldu.adapter.layer import Linear
from loldu.adapter.mixing import Update, add_updates


def kind_of(
    target: nn.Module, layer_name: str, model: nn.Module
) -> tuple[type[Linear], QuantizationBackend | None]:
    """Return the class that adapts a layer of a model, and how the layer is quantized.

    GPT-2's Conv1D is a linear layer that stores the transpose of its weight: it has no class of
    its own.

    Raises:
        TypeError: The layer cannot be adapted.
    """
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if not is_linear_map(base):
        # A layer's own text says its kernel and groups, in one line.
        what = repr(base).partition("\n")[0] if isinstance(base, nn.Conv2d) else type(base).__name__
        raise TypeError(
            f"target module '{layer_name}' is a {what}, and LoLDU adapts linear maps: nn.Linear, "
            "Conv1D, nn.Embedding without max_norm and nn.Conv2d in one group; "
            "narrow target_modules or name it in exclude_modules"
        )
    try:
        quantization = quantization_of(base, model)
    except TypeError as error:
        raise TypeError(
            f"target module '{layer_name}' {error}: load the base with bitsandbytes or torchao on "
            "its device first, or without quantization"
        ) from error
    if quantization is not None:
        return QuantizedLinear, quantization
    if isinstance(base, nn.Conv2d):
        return Conv2d, None
    return (Embedding if isinstance(base, nn.Embedding) else Linear), None


class QuantizedLinear(Linear):
    """``y = base(x) + B (delta ⊙ (A x))`` with the factors of the dequantized weight."""

    def _adapted(self, x: Float[Tensor, "*batch in"], updates: list[Update]) -> Tensor:
        return add_updates(x, self.base_layer(x), updates)


class Conv2d(Linear):
    """A convolution: a linear map of the patch around every pixel that the stride keeps.

    ``y = base(x) + B (delta ⊙ (A x))``, A being a kernel of the base's size and B one of a point.
    """

    def _adapted(self, x: Float[Tensor, "*batch in h w"], updates: list[Update]) -> Tensor:
        base = self.get_base_layer()
        assert isinstance(base, nn.Conv2d)
        output = self.base_layer(x)
        for factors, delta, dropout in updates:
            left, delta, right = factors.around(delta)
            kernel = right.to(output).unflatten(1, base.weight.shape[1:])
            hidden = base._conv_forward(x.to(output), kernel, None)  # pyright: ignore[reportPrivateUsage]
            hidden = F.dropout(hidden, dropout)
            scaled = (hidden * delta[..., None, None]).to(output.dtype)
            output = output + F.conv2d(scaled, left.to(output)[:, :, None, None])
        return output


class Embedding(Linear):
    """``y = E[x] + (B[x] ⊙ delta) A``: a token reads its own row of B."""

    def _adapted(self, x: Int[Tensor, "*batch"], updates: list[Update]) -> Tensor:
        result = self.base_layer(x)
        scale = self._get_embed_scale()
        for factors, delta, dropout in updates:
            left, delta, right = factors.around(delta)
            of_rows = delta.view(-1, *[1] * (x.dim() - 1), delta.shape[-1])
            written = F.dropout(left.to(x.device)[x] * of_rows, dropout).to(result.dtype)
            change = written @ right.to(result)
            result = result + (change if scale is None else change * scale.to(change.dtype))
        return result
