"""The factors that a layer holds for its adapters: shared, and always those of the saved pivots."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import warnings

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from loldu.adapter.base_layer import as_matrix, features_of
from loldu.adapter.diagonal import LoLDUDiagonal
from loldu.adapter.factorization import Pivoting, ldu, svd
from loldu.adapter.shared_factors import SharedFactors, version_of
from loldu.adapter.weight_fingerprint import fingerprint


class FactoredLayer(BaseTunerLayer):
    """A base layer and the factors of its weight, by adapter name."""

    def __init__(self, base_layer: nn.Module, layer_name: str) -> None:
        """Wrap a base layer; its name is for messages and for seeding."""
        self.base_layer = base_layer
        self.layer_name = layer_name
        self.out_features, self.in_features = features_of(self.get_base_layer())
        self.loldu_diagonal = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.factors: dict[str, SharedFactors] = {}
        self.pivots_version: dict[str, tuple[int, int]] = {}
        self._weight_before_merge: Tensor | None = None
        self._fingerprint: tuple[tuple[tuple[int, int], float, float], Tensor] | None = None
        self._weight_version = version_of(self.weight)

    def diagonal(self, adapter_name: str) -> LoLDUDiagonal:
        """Return what an adapter trains in this layer."""
        diagonal = self.loldu_diagonal[adapter_name]
        assert isinstance(diagonal, LoLDUDiagonal)
        return diagonal

    def base_weight(self) -> Float[Tensor, "out in"]:
        """Return the weight of the base model, also while adapters are merged into the layer."""
        merged_from = self._weight_before_merge
        stored = self.get_base_weight() if merged_from is None else merged_from
        return as_matrix(self.get_base_layer(), stored)

    def fingerprint(self) -> Float[Tensor, "3"]:
        """Return what tells the base weight from others, computed once for every weight."""
        weight = self.base_weight()
        # Writing through `.data` is seen by no version, but by sums of what was written.
        seen = version_of(self.weight), float(weight[0].sum()), float(weight[:, 0].sum())
        if self._fingerprint is None or self._fingerprint[0] != seen:
            self._fingerprint = seen, fingerprint(weight)
        return self._fingerprint[1]

    def follow_weight(self) -> None:
        """Let go of factors of a weight that has been replaced or written to since."""
        if not self.merged and not self.weight.is_meta:
            version = version_of(self.weight)
            if self._weight_version != version:
                self.factors.clear()
                self._weight_version = version

    def keep_factors(self) -> None:
        """Take the factors held for those of the weight as it is now."""
        self._weight_version = version_of(self.weight)

    def factors_of(self, adapter_name: str) -> SharedFactors:
        """Return the factors at an adapter's pivots, computing them where none are held."""
        held = self.factors.get(adapter_name)
        if held is not None and self._is_at_pivots(held, adapter_name):
            return held
        self.factors.pop(adapter_name, None)
        diagonal = self.diagonal(adapter_name)
        if diagonal.dz.is_meta or self.weight.is_meta:
            raise RuntimeError(
                f"adapter '{adapter_name}' of layer '{self.layer_name}' has no values yet: "
                "load its weights and those of the base model first"
            )
        shared = self._share(self.r[adapter_name], diagonal.pivoting, diagonal.pivots)
        self.factors[adapter_name] = shared
        return shared

    def _is_at_pivots(self, held: SharedFactors, adapter_name: str) -> bool:
        """Whether factors are those of an adapter's pivots, compared only after a write to them.

        Pivots are written by loaders that no hook of the layer sees; comparing them makes the
        host wait for the device, which a forward pass must not.
        """
        pivots = self.diagonal(adapter_name).pivots
        if pivots is None or pivots.is_meta or torch.compiler.is_compiling():
            return True
        version = version_of(pivots)
        if self.pivots_version.get(adapter_name) != version:
            if not held.begins_with(pivots, self.r[adapter_name]):
                return False
            self.pivots_version[adapter_name] = version
        return True

    @torch.inference_mode(False)
    @torch.no_grad()
    def _share(self, rank: int, pivoting: Pivoting | None, pivots: Tensor | None) -> SharedFactors:
        """Return held factors that serve, or make new ones and let every adapter they serve share.

        Without pivots any held pair of the same kind serves: its directions are as good.
        """
        self.follow_weight()
        for held in self.factors.values():
            if held.pivoting == pivoting and held.begins_with(pivots, rank):
                return held
        shared = self._factorize(rank, pivoting, pivots)
        for name, held in self.factors.items():
            if held.pivoting == pivoting and shared.begins_with(held.pivots, held.rank):
                self.factors[name] = shared
        return shared

    def _factorize(
        self, rank: int, pivoting: Pivoting | None, pivots: Tensor | None
    ) -> SharedFactors:
        weight = self.base_weight()
        try:
            if pivoting is None:
                factors = svd(weight, rank)
            else:
                factors = ldu(weight, rank, pivots=pivots, pivoting=pivoting)
        except ValueError as error:
            raise ValueError(f"layer '{self.layer_name}': {error}") from error
        dropped = int((factors.diagonal == 0).sum())
        if dropped == rank:
            raise ValueError(
                f"layer '{self.layer_name}' has nothing to factor (its first {rank} pivots are "
                "zero): leave it out with exclude_modules"
            )
        if dropped:
            cure = 'pivoting="complete"' if pivoting == "partial" else "a smaller rank"
            warnings.warn(
                f"layer '{self.layer_name}': {dropped} of {rank} directions have a zero pivot and "
                f"are dropped; {cure} avoids it",
                stacklevel=2,
            )
        return SharedFactors.of(factors, pivoting, weight.dtype)

    def follow_pivots(self) -> None:
        """Bring the factors up to date with the weight, and with pivots written since."""
        if self.weight.is_meta:
            return
        self.follow_weight()
        for name in self.r:
            if not self.diagonal(name).dz.is_meta:
                self.factors_of(name)
