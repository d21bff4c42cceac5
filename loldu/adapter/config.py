"""LoLDUConfig: every option of the adapter, with its trade-off."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from peft import PeftConfig
from peft.utils.other import get_pattern_key

from loldu.adapter.diagonal import DIAGONAL_INITS, DiagonalInit
from loldu.adapter.factorization import Pivoting

Factorization = Literal["ldu", "svd"]
Residual = Literal["preserve", "perturb"]


class LoLDUPeftType(str, enum.Enum):  # noqa: UP042  PEFT compares and serializes it as a str
    """The method's name in PEFT's tables; the member's name and value must be equal."""

    LOLDU = "LOLDU"


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class LoLDUConfig(PeftConfig):
    """Configuration of a LoLDU (``factorization="ldu"``) or SVFit (``"svd"``) adapter.

    ``delta_W = B diag(delta) A`` with ``delta = sigma z - sigma_0 z_ref`` and
    ``sigma_0 = alpha / r``; z (r numbers a layer) and sigma (one) are trained.

    Raises:
        ValueError: An option has a value it cannot have.
    """

    r: int = field(
        default=32,
        metadata=_help(
            "Rank: the number of trained directions a layer. Costs r floats a layer, so full "
            "rank is affordable; clamped to the smaller side of each weight."
        ),
    )
    alpha: float | int | None = field(
        default=None,
        metadata=_help(
            "sigma starts at alpha / r, r being the rank asked for. None means alpha = r, that "
            "is 1 in every layer, as in the paper's settings; it acts as a factor on the "
            "learning rate."
        ),
    )
    factorization: Factorization = field(
        default="ldu",
        metadata=_help(
            "'ldu' is LoLDU: quick to factor, nested in r, exact to reload. 'svd' is SVFit: "
            "orthogonal directions, largest first, at hundreds of times the cost of creation."
        ),
    )
    diagonal_init: DiagonalInit = field(
        default="ldu",
        metadata=_help(
            "Where z starts. With residual='preserve' and a frozen scale all choices train "
            "alike; with a trained scale or weight decay toward zero they part."
        ),
    )
    residual: Residual = field(
        default="preserve",
        metadata=_help(
            "'preserve' starts at the base model whatever diagonal_init. 'perturb' keeps d in "
            "the residual, as the authors' code does for zeros, ones, standard_uniform and "
            "standard_normal: the layer's output changes before the first step."
        ),
    )
    pivoting: Pivoting = field(
        default="partial",
        metadata=_help(
            "'partial' adapts the first r input columns; 'complete' picks rows and columns by "
            "size: better conditioned at low rank and no dropped directions, slower to create."
        ),
    )
    train_scale: bool = field(
        default=True,
        metadata=_help("Train sigma beside z: one more parameter a layer."),
    )
    normalize_directions: bool = field(
        default=False,
        metadata=_help(
            "Measure z along direction i in units of 1 / (|B_i| |A_i|), so that a step of the "
            "optimizer changes the weight as much along each. LDU's directions differ by a factor "
            "of ten to forty; without units, as in the paper, the long ones learn and harm most. "
            "Takes a learning rate several times as large."
        ),
    )
    dropout: float = field(
        default=0.0,
        metadata=_help(
            "Share of the entries of A x set to zero in training. r numbers a layer seldom "
            "overfit, so there is none unless asked for, as in the paper."
        ),
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata=_help(
            "Names (or a regular expression for the full name) of the layers to adapt: linear ones "
            "(quantized ones too), Conv1D, convolutions in one group and embeddings. "
            "None takes the attention projections of diffusers models, and PEFT's choice for "
            "transformers."
        ),
    )
    exclude_modules: list[str] | str | None = field(
        default=None,
        metadata=_help("Names (or a regular expression) of layers to leave alone."),
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict[str, int],
        metadata=_help("Rank for layers whose name ends in the key (a regular expression)."),
    )
    alpha_pattern: dict[str, float | int] = field(
        default_factory=dict[str, float | int],
        metadata=_help("Alpha for layers whose name ends in the key (a regular expression)."),
    )
    layers_to_transform: list[int] | int | None = field(
        default=None,
        metadata=_help("Indexes of the blocks to adapt, when only some are wanted."),
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata=_help(
            "Name of the block list that layers_to_transform indexes, such as 'layers'."
        ),
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata=_help(
            "Modules trained in full and saved beside the adapter, such as a classifier head."
        ),
    )
    init_weights: bool = field(
        default=True,
        metadata=_help(
            "False starts from a small random change, drawn from torch's global state, instead of "
            "the base model (for tests)."
        ),
    )
    seed: int = field(
        default=0,
        metadata=_help(
            "Seed of a random diagonal_init. Each layer draws from (seed, layer name), so a draw "
            "depends neither on torch's global state nor on the order of layers."
        ),
    )

    def __post_init__(self) -> None:
        """Check the values and bring module lists to PEFT's form."""
        super().__post_init__()
        self.peft_type = LoLDUPeftType.LOLDU  # pyright: ignore[reportAttributeAccessIssue]
        self.target_modules = _as_set(self.target_modules)
        self.exclude_modules = _as_set(self.exclude_modules)
        for rank in (self.r, *self.rank_pattern.values()):
            if isinstance(rank, bool) or rank < 1:
                raise ValueError(f"r must be a positive integer, got {rank!r}")
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            if alpha is not None and not alpha > 0:
                raise ValueError(f"alpha must be positive, got {alpha!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout!r}")
        for option, value, choices in (
            ("factorization", self.factorization, get_args(Factorization)),
            ("diagonal_init", self.diagonal_init, DIAGONAL_INITS),
            ("residual", self.residual, get_args(Residual)),
            ("pivoting", self.pivoting, get_args(Pivoting)),
        ):
            if value not in choices:
                raise ValueError(f"{option} must be one of {', '.join(choices)}, got {value!r}")
        if isinstance(self.target_modules, str) and (
            self.layers_to_transform is not None or self.layers_pattern is not None
        ):
            raise ValueError(
                "layers_to_transform and layers_pattern need target_modules as a list of names, "
                "not as a regular expression"
            )
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform")

    @classmethod
    def for_deltas(cls, ranks: Mapping[str, int], basis: Pivoting | None) -> "LoLDUConfig":
        """Return the configuration of an adapter that brings its deltas: they are not trained.

        Args:
            ranks: Rank by the full name of each layer.
            basis: How the pivots were chosen, or None for an SVD.
        """
        largest = max(ranks.values())
        return cls(
            r=largest,
            rank_pattern={f"^{re.escape(y)}": r for y, r in ranks.items() if r < largest},
            target_modules="|".join(re.escape(name) for name in ranks),
            factorization="ldu" if basis else "svd",
            pivoting=basis or "partial",
            train_scale=False,
            inference_mode=True,
        )

    def plain_values(self) -> dict[str, Any]:
        """Return the options as JSON has them."""
        values = self.to_dict()
        return {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()}

    def rank_and_sigma(self, layer: str) -> tuple[int, float]:
        """Return the rank asked for and sigma_0 = alpha / r of a layer."""
        r = self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), layer), self.r)
        alpha = self.alpha_pattern.get(get_pattern_key(list(self.alpha_pattern), layer), self.alpha)
        return r, 1.0 if alpha is None else alpha / r


def _as_set(modules: Any) -> Any:  # noqa: ANN401
    # PEFT matches names against a set and stores it as a list.
    return set(modules) if isinstance(modules, list) else modules
