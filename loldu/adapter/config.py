"""LoLDUConfig: the options of the adapter, each with its trade-off."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from peft import PeftConfig
from peft.utils.other import get_pattern_key

from loldu.adapter.diagonal import DIAGONAL_INITS, DiagonalInit
from loldu.adapter.factorization import FACTORIZATIONS, methods, select
from loldu.adapter.ldu import Pivoting

Residual = Literal["preserve", "perturb"]


_HOW_TO_LOAD = """
# How to load it

```python
import loldu  # pip install loldu; without this line PEFT knows no method LOLDU (KeyError: 'LOLDU')
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "this folder")
```
"""


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
        ValueError: If an option has an invalid value.
    """

    r: int = field(
        default=32,
        metadata=_help(
            "Rank: the number of trained directions per layer. Costs r floats per layer, so full "
            "rank is affordable; clamped to the smaller side of each weight."
        ),
    )
    alpha: float | int | None = field(
        default=None,
        metadata=_help(
            "sigma starts at alpha / r, where r is the configured rank. None means alpha = r, so "
            "that sigma starts at 1 in every layer, as in the paper; alpha acts as a factor on "
            "the learning rate."
        ),
    )
    factorization: str = field(
        default="ldu",
        metadata=_help(
            "'ldu' is LoLDU: quick to factor, nested in r, exact to reload. 'svd' is SVFit: "
            "orthogonal directions, largest first, but creation takes hundreds of times as long."
        ),
    )
    diagonal_init: DiagonalInit = field(
        default="ldu",
        metadata=_help(
            "Initial value of z. With residual='preserve' and a frozen scale all choices train "
            "the same; with a trained scale or weight decay toward zero they differ."
        ),
    )
    residual: Residual = field(
        default="preserve",
        metadata=_help(
            "'preserve' starts at the base model for every diagonal_init. 'perturb' keeps d in "
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
        metadata=_help("Also train sigma: one more parameter per layer."),
    )
    normalize_directions: bool = field(
        default=False,
        metadata=_help(
            "Measure z along direction i in units of 1 / (|B_i| |A_i|), so that a step of the "
            "optimizer changes the weight by the same amount along each. LDU's directions differ "
            "in length by a factor of ten to forty; without units, as in the paper, the long ones "
            "learn and harm most. Needs a learning rate several times as large."
        ),
    )
    dropout: float = field(
        default=0.0,
        metadata=_help(
            "Share of the entries of A x set to zero in training. r numbers per layer rarely "
            "overfit, so the default is 0, as in the paper."
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
        metadata=_help("Names (or a regular expression) of layers that are not adapted."),
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
        metadata=_help("Indexes of the blocks to adapt; all by default."),
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
            "Seed of a random diagonal_init. Each layer draws from (seed, layer name), so the "
            "values depend neither on torch's global state nor on the order of layers."
        ),
    )

    def __post_init__(self) -> None:
        """Check the values, and convert module lists to sets.

        Raises:
            ValueError: If an option has an invalid value.
        """
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
            ("factorization", self.factorization, methods()),
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

    def save_pretrained(
        self,
        save_directory: Any,  # noqa: ANN401  PEFT says str and passes paths
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Write adapter_config.json, and how to load the adapter into the README.md beside it.

        PEFT writes the README.md, and knows the method only after `import loldu`.
        """
        super().save_pretrained(save_directory, **kwargs)
        card = Path(save_directory) / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else "import loldu"
        if "import loldu" not in text:
            front, mark, rest = text.partition("\n---\n") if text[:4] == "---\n" else ("", "", text)
            card.write_text(f"{front}{mark}{_HOW_TO_LOAD}{rest}", encoding="utf-8")

    @classmethod
    def for_deltas(cls, ranks: Mapping[str, int], factorization: str) -> "LoLDUConfig":
        """Return the configuration of an adapter whose deltas are given: they are not trained.

        Args:
            ranks: Rank by the full name of each layer.
            factorization: Name of the factorization.
        """
        largest = max(ranks.values())
        options: dict[str, Any] = {"factorization": FACTORIZATIONS[factorization].method}
        if factorization in get_args(Pivoting):
            options["pivoting"] = factorization
        return cls(
            r=largest,
            rank_pattern={f"^{re.escape(y)}": r for y, r in ranks.items() if r < largest},
            target_modules="|".join(re.escape(name) for name in ranks),
            train_scale=False,
            inference_mode=True,
            **options,
        )

    @property
    def factorization_name(self) -> str:
        """Name of the factorization that `factorization` and `pivoting` select."""
        return select(self.factorization, self.pivoting)

    def plain_values(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        values = self.to_dict()
        return {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()}

    def rank_and_sigma(self, layer: str) -> tuple[int, float]:
        """Return the configured rank of a layer, and its sigma_0 = alpha / r."""
        r = self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), layer), self.r)
        alpha = self.alpha_pattern.get(get_pattern_key(list(self.alpha_pattern), layer), self.alpha)
        return r, 1.0 if alpha is None else alpha / r


def _as_set(modules: Any) -> Any:  # noqa: ANN401
    # PEFT matches names against a set and stores it as a list.
    return set(modules) if isinstance(modules, list) else modules
