"""The factors that a layer holds for its adapters: shared, and always those at the saved pivots."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import warnings

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from loldu.adapter.base_check import DiagonalStart, accepts_any_base, fits_weight
from loldu.adapter.base_weight import as_matrix, features_of, fingerprint
from loldu.adapter.diagonal import LoLDUDiagonal
from loldu.adapter.factorization import FACTORIZATIONS
from loldu.adapter.shared_factors import SharedFactors, unwrapped, version_of
from loldu.errors import ConceptError


class LayerFactors(BaseTunerLayer):
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
        self.starts: dict[str, DiagonalStart] = {}
        self.base_checked: dict[str, bool] = {}
        self._weight_before_merge: Tensor | None = None
        self._fingerprint: tuple[tuple[tuple[int, int], float, float], Tensor] | None = None
        self._weight_version = version_of(self.weight)

    def diagonal(self, adapter_name: str) -> LoLDUDiagonal:
        """Return the trained diagonal of an adapter in this layer."""
        diagonal = self.loldu_diagonal[adapter_name]
        assert isinstance(diagonal, LoLDUDiagonal)
        return diagonal

    def base_weight(self) -> Float[Tensor, "out in"]:
        """Return the weight of the base model, also while adapters are merged into the layer."""
        merged_from = self._weight_before_merge
        stored = self.get_base_weight() if merged_from is None else merged_from
        return as_matrix(self.get_base_layer(), stored)

    def fingerprint(self) -> Float[Tensor, "3"]:
        """Return three numbers that identify the base weight, computed once for every weight."""
        weight = self.base_weight()
        # A write through `.data` changes no version: sums of a row and a column are compared.
        seen = version_of(self.weight), float(weight[0].sum()), float(weight[:, 0].sum())
        if self._fingerprint is None or self._fingerprint[0] != seen:
            self._fingerprint = seen, fingerprint(weight)
        return self._fingerprint[1]

    def follow_weight(self) -> None:
        """Drop the factors if the weight was replaced or written to since they were computed."""
        if not self.merged and not self.weight.is_meta:
            version = version_of(self.weight)
            if self._weight_version != version:
                self.factors.clear()
                self._weight_version = version

    def keep_factors(self) -> None:
        """Declare that the factors held are those of the current weight."""
        self._weight_version = version_of(self.weight)

    def factors_of(self, adapter_name: str) -> SharedFactors:
        """Return the factors at the pivots of an adapter; compute them if none are held.

        Raises:
            RuntimeError: If the adapter or the weight is on the meta device.
            ConceptError: If an adapter was loaded that belongs to another weight.
        """
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
        shared = self._share(self.r[adapter_name], diagonal.factorization, diagonal.pivots)
        if held is not None or adapter_name not in self.base_checked:
            self._require_own_base(adapter_name, shared)
        self.factors[adapter_name] = shared
        return shared

    def _require_own_base(self, adapter_name: str, shared: SharedFactors) -> None:
        """Check that loaded values belong to this weight.

        Raises:
            ConceptError: If they belong to another.
        """
        self.base_checked.pop(adapter_name, None)
        diagonal, start = self.diagonal(adapter_name), self.starts[adapter_name]
        if not (accepts_any_base() or fits_weight(diagonal, shared, start, self.layer_name)):
            raise ConceptError(
                f"adapter '{adapter_name}' was trained on another base model: its values do not "
                f"fit the weight of layer '{self.layer_name}'; load the base it was trained on, or "
                "load it inside `with loldu.any_base():` if you know that this one will do"
            )
        self.base_checked[adapter_name] = True

    def _is_at_pivots(self, held: SharedFactors, adapter_name: str) -> bool:
        """Return whether factors are those at an adapter's pivots.

        Loaders write pivots without calling a hook of the layer. The pivots are compared only after
        a write, because comparing makes the host wait for the device.
        """
        pivots = self.diagonal(adapter_name).pivots
        if pivots is None or pivots.is_meta:
            return True
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return True
        pivots = unwrapped(pivots)
        version = version_of(pivots)
        if self.pivots_version.get(adapter_name) != version:
            if not held.begins_with(pivots, self.r[adapter_name]):
                return False
            self.pivots_version[adapter_name] = version
        return True

    @torch.inference_mode(False)
    @torch.no_grad()
    def _share(self, rank: int, factorization: str, pivots: Tensor | None) -> SharedFactors:
        """Return factors that are held already, or new ones that other adapters then share too.

        If no pivots are given, any pair of the same factorization will do.
        """
        self.follow_weight()
        for held in self.factors.values():
            if held.factorization == factorization and held.begins_with(pivots, rank):
                return held
        shared = self._factorize(rank, factorization, pivots)
        for name, held in self.factors.items():
            if held.factorization == factorization and shared.begins_with(held.pivots, held.rank):
                self.factors[name] = shared
        return shared

    def _factorize(self, rank: int, factorization: str, pivots: Tensor | None) -> SharedFactors:
        weight, known = self.base_weight(), FACTORIZATIONS[factorization]
        try:
            factors = known.factorize(weight, rank, pivots)
        except ValueError as error:
            raise ValueError(f"layer '{self.layer_name}': {error}") from error
        dropped = int((factors.diagonal == 0).sum())
        if dropped == rank:
            raise ValueError(
                f"layer '{self.layer_name}' has nothing to factor (its first {rank} pivots are "
                "zero): leave it out with exclude_modules"
            )
        if dropped:
            warnings.warn(
                f"layer '{self.layer_name}': {dropped} of {rank} directions have a zero pivot and "
                f"are dropped; {known.advice} avoids it",
                stacklevel=2,
            )
        return SharedFactors.of(factors, factorization, weight.dtype)

    def follow_pivots(self) -> None:
        """Update the factors after the weight or the pivots were written to.

        Raises:
            ConceptError: If an adapter was loaded that belongs to another weight.
        """
        if self.weight.is_meta:
            return
        self.follow_weight()
        for name in self.r:
            diagonal = self.diagonal(name)
            if diagonal.dz.is_meta:
                continue
            shared = self.factors_of(name)
            if diagonal.pivots is None and diagonal.z_ref is not None:
                # Without pivots no factors become wrong, so the start is compared after a write.
                version = version_of(diagonal.z_ref)
                if self.pivots_version.get(name) != version:
                    self._require_own_base(name, shared)
                    self.pivots_version[name] = version
