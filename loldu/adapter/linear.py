"""The layers that wrap a base layer: linear, quantized, convolution, embedding."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn

from loldu.adapter.base_weight import check_requantizable, is_linear_map, quantization_of
from loldu.adapter.config import LoLDUConfig
from loldu.adapter.functional import adapted_linear
from loldu.adapter.layer import LoLDULayer
from loldu.adapter.mixing import Mixture, Rows, Update, add_updates


class Linear(nn.Module, LoLDULayer):
    """``y = W x + b + B (delta ⊙ (A x))``; W is never rewritten, except while merged."""

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        *,
        layer_name: str,
        r: int,
        sigma_0: float,
        config: LoLDUConfig,
        quantization: QuantizationBackend | None = None,
    ) -> None:
        """Wrap a linear layer and give it its first adapter."""
        super().__init__()
        LoLDULayer.__init__(self, base_layer, layer_name)
        self.quantization_backend = quantization
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, sigma_0, config)
        self.register_load_state_dict_post_hook(_follow_loaded)

    def forward(
        self,
        x: Tensor,
        adapter_names: Sequence[Mixture] | Rows | None = None,
    ) -> Tensor:
        """Apply the base layer and the active adapters, or those of every row.

        Args:
            x: Input; its first axis is the batch.
            adapter_names: An adapter for every row, "__base__" for none (PEFT's mixed batches), or
                several with factors on their strengths.

        Raises:
            ValueError: If rows have their own adapters and the batch does not fit them.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters:
            return self.base_layer(x)
        blank, updates = self._updates(x.shape[0], adapter_names)
        if not updates:
            return self.base_layer(x)
        if not blank:
            return self._adapted(x, updates)
        # Every row is multiplied by one weight, so two calls cost what one costs.
        return torch.cat([self.base_layer(x[:blank]), self._adapted(x[blank:], updates)])

    def _adapted(self, x: Tensor, updates: list[Update]) -> Tensor:
        """Apply the base layer and at least one update."""
        first, *others = updates
        if first.dropout:
            return add_updates(x, self.base_layer(x), updates)
        result = adapted_linear(x, self.base_layer, first.factors, first.delta)
        return add_updates(x, result, others)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the delta of adapters to the weight of the base layer.

        A copy of the base weight is kept, so that unmerging restores it bit by bit. A quantized
        weight is quantized again both times.

        Raises:
            ValueError: If, with `safe_merge`, the merged weight is not finite; or if the base layer
                is quantized and it is not known how to quantize it again.
        """
        names = check_adapters_to_merge(self, adapter_names)
        names = [name for name in names if name in self.loldu_diagonal]
        if not names:
            return
        if self.quantization_backend is not None:
            check_requantizable(self.quantization_backend, self.layer_name)
        weight = self.get_base_weight()
        merged = weight
        for name in names:
            merged = merged + self.get_delta_weight(name).detach()
        merged = merged.to(weight.dtype)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be "
                f"broken (layer '{self.layer_name}'): train or load it anew"
            )
        if self._weight_before_merge is None:
            self._weight_before_merge = weight
        self.set_base_weight(merged)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Restore the weight of the base layer."""
        if self._weight_before_merge is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.set_base_weight(self._weight_before_merge)
        self._weight_before_merge = None
        self.merged_adapters.clear()
        self.keep_factors()

    def train(self, mode: bool = True) -> "Linear":
        """Switch between training and inference, and update the factors.

        Loaders of other libraries write pivots and then call this method; a compiled forward pass
        cannot check for new pivots itself.
        """
        super().train(mode)
        self.follow_pivots()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Linear":
        """Move or cast the layer and its factors.

        After a cast, factors with pivots are computed again at these pivots, as they would be on
        reloading. Factors without pivots (an SVD) could come out differently, so they are cast.
        """
        before = self.weight.dtype
        super()._apply(fn, recurse)
        weight = self.weight
        if self._weight_before_merge is not None:
            self._weight_before_merge = fn(self._weight_before_merge)
        same = weight.dtype == before
        self._fingerprint = None
        with torch.inference_mode(False):
            moved = {
                id(held): held.to(weight.device, held.left.dtype if same else weight.dtype)
                for held in self.factors.values()
                if not weight.is_meta and (same or held.pivots is None)
            }
        cast = [] if weight.is_meta else [n for n, f in self.factors.items() if id(f) not in moved]
        self.factors = {
            name: moved[id(held)] for name, held in self.factors.items() if id(held) in moved
        }
        self.keep_factors()
        # Now, because a compiled forward pass cannot do it; the largest rank serves the others.
        for name in sorted(cast, key=self.r.__getitem__, reverse=True):
            self.factors_of(name)
        return self

    def __repr__(self) -> str:
        """Prefix the name of the method."""
        return "loldu." + super().__repr__()


def _follow_loaded(layer: Linear, _: object) -> None:
    layer.follow_pivots()


class QuantizedLinear(Linear):
    """``y = base(x) + B (delta ⊙ (A x))`` with the factors of the dequantized weight."""

    def _adapted(self, x: Float[Tensor, "*batch in"], updates: list[Update]) -> Tensor:
        return add_updates(x, self.base_layer(x), updates)


class Conv2d(Linear):
    """A convolution, that is, a linear map of the patch around every output pixel.

    ``y = base(x) + B (delta ⊙ (A x))``, where A is a kernel of the base's size and B is 1 x 1.
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


def kind_of(
    target: nn.Module, layer_name: str, model: nn.Module
) -> tuple[type[Linear], QuantizationBackend | None]:
    """Return the class that wraps a layer of a model, and how the layer is quantized.

    GPT-2's Conv1D is a linear layer that stores the transpose of its weight: it needs no class
    of its own.

    Raises:
        TypeError: If the layer cannot be adapted.
    """
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if not is_linear_map(base):
        # The text of a convolution names its kernel and groups, in one line.
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
